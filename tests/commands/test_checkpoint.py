"""`checkpoint inspect` and `checkpoint consolidate` work on sharded checkpoints, whole and damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from lit_mm.checkpoints.manifest import covered, damage, find, read, sealed
from lit_mm.cli import main
from lit_mm.commands.trained import open_trained
from lit_mm.errors import UserError
from lit_mm.weights.stream import Stored, places, write

ROOT = Path(__file__).parents[2]
SHAPES = {"network.vision.a": (3, 5), "network.vision.b": (7,), "network.connector.c": (2, 2, 2)}
MINIMAL = '{"format": 2, "files": {}, "weights": {}, "moments": {}, "steps": {}, "frozen": {}}'
NO_TORCH = """
import resource, sys, tracemalloc
import lit_mm.commands.checkpoint
from lit_mm.cli import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tracemalloc.start()
main({arguments})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert "torch" not in sys.modules
print(tracemalloc.get_traced_memory()[1], (after - before) * 1024)
"""


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(name)).standard_normal(shape, dtype=np.float32)


def checkpoint(
    folder: Path, shapes: dict[str, tuple[int, ...]] = SHAPES, ranks: int = 2, step: int = 4, frozen: bool = True
) -> dict[str, np.ndarray]:
    """A checkpoint as a ZeRO run on `ranks` ranks writes it: tensors are cut at arbitrary elements, not at rows."""
    folder.mkdir(parents=True)
    whole = {name: values(name, shape) for name, shape in shapes.items()}
    content: dict[str, Any] = {
        "format": 1,
        "family": "lit_mm.families.XComposer2",
        "stage": "finetune",
        "stage_number": 2,
        "stage_step": step,
        "step": 10 + step,
        "strategy": "ZeRO",
        "ranks": ranks,
        "weights": {n: {"shape": list(v.shape), "dtype": "float32", "pieces": []} for n, v in whole.items()},
        "moments": {},
        "steps": {},
        "files": {},
        "frozen": {"language": {"origin": "nano:language", "digests": {"network.language.x": "0" * 32}}},
        "parts": {"vision": [n for n in whole if "vision" in n], "connector": [n for n in whole if "vision" not in n]},
    }
    if frozen:
        content["parts"]["language"] = ["network.language.x"]
    else:
        content["frozen"] = {}
    for rank in range(ranks):
        held: dict[str, np.ndarray] = {}
        file = f"weights-{rank:05d}-00.safetensors"
        for name, tensor in whole.items():
            size = -(-tensor.size // ranks)
            start, end = min(rank * size, tensor.size), min((rank + 1) * size, tensor.size)
            if start < end:
                held[f"{name}#{start}"] = tensor.reshape(-1)[start:end]
                content["weights"][name]["pieces"].append([file, f"{name}#{start}", start, end - start])
        save_file(held, folder / file)
    save_file({"exp_avg/network.vision.a": whole[next(iter(whole))]}, folder / "optimizer-00000-00.safetensors")
    first = next(iter(whole))
    content["moments"][f"exp_avg/{first}"] = {
        "shape": list(whole[first].shape),
        "dtype": "float32",
        "pieces": [["optimizer-00000-00.safetensors", "exp_avg/network.vision.a", 0, whole[first].size]],
    }
    (folder / "config.yaml").write_text("model: {}\n")
    (folder / "state.pt").write_bytes(b"state")
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        content["files"][file.name] = {"bytes": len(data), "blake2b": blake2b(data, digest_size=16).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(content))
    return whole


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with two checkpoints and one unpublished checkpoint."""
    monkeypatch.chdir(tmp_path)
    for number, step in ((1, 90), (2, 4)):
        checkpoint(tmp_path / "run/checkpoints" / f"{number:02d}-finetune-step={step:06d}.ckpt", step=step)
    (tmp_path / "run/checkpoints/03-finetune-step=000001.ckpt.part").mkdir()
    return tmp_path / "run"


def newest(run_folder: Path) -> Path:
    return run_folder / "checkpoints/02-finetune-step=000004.ckpt"


def spoil(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[:-1])
    elif how == "changed":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        file.unlink()


# --- inspect ---------------------------------------------------------------------------------------------------------
def test_inspect_says_what_is_in_the_newest_checkpoint_of_a_run(run_folder, capsys):
    main(["checkpoint", "inspect", "run"])
    text = capsys.readouterr().out
    for line in (
        "family   lit_mm.families.XComposer2",
        "stage    2, 'finetune', step 4; step 14 of the run",
        "written  by ZeRO on 2 ranks",
        "all files have their length (--verify compares digests)",
        "vision           2          22  float32  weights, optimizer moments of 1",
        "connector        1           8  float32  weights",
        "language         1           -  -        digest; origin nano:language",
    ):
        assert line in text, text


def test_inspect_as_json(run_folder, capsys):
    main(["checkpoint", "inspect", str(newest(run_folder)), "--format", "json", "--verify"])
    told = json.loads(capsys.readouterr().out)
    assert (told["stage"], told["stage_step"], told["step"], told["ranks"]) == ("finetune", 4, 14, 2)
    assert told["parts"]["vision"] == {
        "tensors": 2,
        "parameters": 22,
        "dtypes": {"float32": 2},
        "origin": "",
        "moments": 1,
    }
    assert told["parts"]["language"]["origin"] == "nano:language"
    assert told["bytes"] == sum(file.stat().st_size for file in newest(run_folder).iterdir() if file.suffix != ".json")
    assert told["damage"] == [] and told["verified"]


@pytest.mark.parametrize(
    ("how", "verify", "said"),
    [
        ("cut", [], "weights-00001-00.safetensors has "),
        ("gone", [], "weights-00001-00.safetensors is missing"),
        ("changed", ["--verify"], "weights-00001-00.safetensors does not have the bytes that were written"),
    ],
)
def test_a_damaged_checkpoint_is_said_to_be(run_folder, capsys, how, verify, said):
    spoil(newest(run_folder) / "weights-00001-00.safetensors", how)
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", "inspect", "run", *verify])
    assert left.value.code == 2
    told = capsys.readouterr()
    assert f"DAMAGED: {said}" in told.out and said in told.err


def test_inspect_says_that_a_manifest_of_before_cannot_be_checked(run_folder, capsys):
    main(["checkpoint", "inspect", "run", "--verify"])
    assert "every byte is as written; manifest.json itself cannot be checked: format 1" in capsys.readouterr().out
    main(["checkpoint", "inspect", "run", "--verify", "--format", "json"])
    assert json.loads(capsys.readouterr().out)["unchecked"] == ["manifest.json"]
    file = newest(run_folder) / "manifest.json"
    file.write_text(sealed(json.loads(file.read_text()) | {"format": 2}))
    main(["checkpoint", "inspect", "run", "--verify"])
    assert "state    every byte is as written\n" in capsys.readouterr().out
    file.write_text(file.read_text().replace('"step": 14', '"step": 15'))
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", "inspect", "run"])
    assert left.value.code == 2
    assert "manifest.json' does not have the bytes that were written" in capsys.readouterr().err


def test_pieces_that_do_not_make_a_whole_are_damage(run_folder):
    opened = read(newest(run_folder))
    opened.content["weights"]["network.vision.a"]["pieces"].pop(0)
    assert damage(opened) == ["weights of 'network.vision.a': the pieces hold 0 of 15 elements"]
    assert covered({"pieces": [["f", "k", 4, 4], ["f", "k", 0, 3]]}) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "nowhere"], "there is no checkpoint 'nowhere'"),
        (["inspect", "run/checkpoints/03-finetune-step=000001.ckpt.part"], "is incomplete"),
        (["inspect", "empty"], "'empty' holds no checkpoint"),
        (["inspect", "run", "--verfy"], "there is no option --verfy"),
        (["consolidate", "run", "out.bin"], "should end in .safetensors"),
        (["consolidate", "run", "none/out.safetensors"], "the folder 'none' of the output does not exist"),
        (["consolidate", "run", "there.safetensors"], "exists; --overwrite replaces it"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(run_folder, capsys, arguments, said):
    Path("empty").mkdir()
    Path("there.safetensors").touch()
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", *arguments])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "files": {}}', MINIMAL])
def test_a_spoilt_manifest_is_a_mistake(run_folder, text):
    (newest(run_folder) / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json is missing or spoilt|its digest is missing"):
        read(find(run_folder))


# --- consolidate -----------------------------------------------------------------------------------------------------
def test_consolidate_puts_the_pieces_of_all_ranks_together(run_folder, capsys):
    main(["checkpoint", "consolidate", "run", "out.safetensors", "--stored_only"])
    assert "not in it: language, which is nano:language" in capsys.readouterr().out
    found = load_file("out.safetensors")
    assert found.keys() == SHAPES.keys()
    assert all(np.array_equal(found[name], values(name, shape)) for name, shape in SHAPES.items())
    with safe_open("out.safetensors", framework="np") as file:
        metadata = file.metadata()
    assert metadata["stage"] == "finetune" and metadata["config"] == "model: {}\n"
    assert sorted(Path.cwd().glob("*.safetensors*")) == [Path.cwd() / "out.safetensors"]


@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_is_not_consolidated(run_folder, how, capsys):
    spoil(newest(run_folder) / "weights-00000-00.safetensors", how)
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", "consolidate", "run", "out.safetensors", "--stored_only"])
    assert left.value.code == 2 and "is damaged: weights-00000-00.safetensors" in capsys.readouterr().err
    assert not list(Path.cwd().glob("out*"))


def test_consolidating_needs_no_more_memory_than_the_largest_tensor(tmp_path, monkeypatch):
    """The checkpoint has 96 MB in 48 tensors of 1 or 4 MB."""
    monkeypatch.chdir(tmp_path)
    largest = 4 << 20
    shapes = {f"network.vision.{n:03d}": (1024, 1024 if n % 3 == 0 else 256) for n in range(48)}
    whole = checkpoint(Path("run/checkpoints/01-a-step=000001.ckpt"), shapes, ranks=3, frozen=False)
    arguments = ["checkpoint", "consolidate", "run", "out.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(arguments=arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    traced, grown = map(int, done.stdout.splitlines()[-1].split())
    assert sum(tensor.nbytes for tensor in whole.values()) > 20 * largest
    assert traced <= largest
    assert grown <= 2 * largest
    with safe_open("out.safetensors", framework="np") as file:
        assert all(np.array_equal(file.get_tensor(name), tensor) for name, tensor in whole.items())


# --- the file format -------------------------------------------------------------------------------------------------
def test_any_dtype_is_written_aligned_and_read_back(tmp_path):
    arrays = {"b": np.array([True, False, True]), "f": values("f", (5,)), "i": np.arange(3), "s": values("s", ())}
    kinds = {"b": "bool", "f": "float32", "i": "int64", "s": "float32"}
    tensors = {name: Stored(kinds[name], array.shape) for name, array in arrays.items()}
    write(tmp_path / "x.safetensors", tensors, lambda name: [arrays[name].tobytes()], {})
    assert all(np.array_equal(load_file(tmp_path / "x.safetensors")[n], array) for n, array in arrays.items())
    assert all(places(tmp_path / "x.safetensors")[n][0] % arrays[n].itemsize == 0 for n in arrays)


def test_a_tensor_of_another_size_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="tensor 'a' should have 8 bytes, got 4"):
        write(tmp_path / "x.safetensors", {"a": Stored("float32", (2,))}, lambda _: [b"1234"], {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_file_and_is_told(tmp_path):
    def full(name: str) -> list[bytes]:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        write(tmp_path / "x.safetensors", {"a": Stored("float32", (2,))}, full, {})
    assert not list(tmp_path.iterdir())


# --- of a real run ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of XComposer2 in the nano world after one step with vision encoder and language model frozen."""
    config = yaml.safe_load((ROOT / "experiments/xcomposer2.yaml").read_text())
    config["stages"] = config["stages"][:1]
    config["stages"][0] |= {"max_steps": 1, "train": {"connector": {"lr": 1e-3}, "partial_lora": {"lr": 1e-3}}}
    config["data"]["init_args"] = {"documents": 8, "global_batch": 1, "heldout_documents": 0}
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config | {"track": False}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lit_mm"])
        main(["fit", "--config", "recipe.yaml", "--run_dir", "run"])
        torch.use_deterministic_algorithms(False)
    return folder / "run"


def test_frozen_parts_are_known_by_digest_and_origin(trained, capsys):
    main(["checkpoint", "inspect", str(trained), "--verify", "--format", "json"])
    told = json.loads(capsys.readouterr().out)
    assert {part: one["origin"] for part, one in told["parts"].items() if one["origin"]} == {
        "vision": "nano:vision",
        "language": "nano:language",
    }
    assert told["parts"]["partial_lora"]["parameters"] > told["parts"]["connector"]["parameters"] > 0
    assert told["parts"]["vision"]["parameters"] == 0 and told["damage"] == []


def test_consolidate_fetches_frozen_parts_from_their_origin(trained, tmp_path):
    main(["checkpoint", "consolidate", str(trained), str(tmp_path / "all.safetensors")])
    found = load_tensors(tmp_path / "all.safetensors")
    module, _, _ = open_trained(str(trained))
    expected = dict(module.named_parameters())
    assert expected.keys() <= found.keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in expected.items())


def test_another_origin_is_refused(trained, tmp_path, capsys):
    copy = shutil.copytree(find(trained), tmp_path / "01-pretrain-step=000001.ckpt")
    content = json.loads((copy / "manifest.json").read_text())
    name = next(iter(content["frozen"]["vision"]["digests"]))
    content["frozen"]["vision"]["digests"][name] = "0" * 32
    (copy / "manifest.json").write_text(sealed(content))
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", "consolidate", str(copy), str(tmp_path / "all.safetensors")])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "was trained on the frozen 'nano:vision'" in said and name in said
    assert not list(tmp_path.glob("all*"))
