"""`store` extracts a backbone from a tiny run into a file that loads back into a part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import nn

from lit_mm.checkpoints import manifest
from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.checkpoints.manifest import checkpoint_name
from lit_mm.checkpoints.writing import publish, remove
from lit_mm.commands import store as module_under_test
from lit_mm.commands.store import check_finished, check_loads, main, plain_state, store, write
from lit_mm.errors import UserError
from lit_mm.families import EncoderDecoder
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.language.t5 import T5
from lit_mm.weights import source
from lit_mm.weights.convert import load_strict, read_checkpoint
from lit_mm.weights.source import load_part

SIZES = {"width": 32, "layers": 1, "heads": 2, "ffn_width": 48, "vocab_size": 512}
STEPS = 7
RECIPE = {
    "seed_everything": 3,
    "model": {
        "class_path": "lit_mm.families.EncoderDecoder",
        "init_args": {"language": {"class_path": "lit_mm.language.t5.T5", "init_args": SIZES}, "tokenizer": "nano"},
    },
    "stages": [{"name": "read", "train": {"language": {"lr": 1e-3}}, "max_steps": STEPS}],
    "data": {"class_path": "lit_mm.datamodules.nano_text_pairs.NanoTextPairs"},
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a checkpoint, metrics and recipe, written by hand."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    losses = "".join(f"{step},read,{2 / step},10,{step}.5,0.001\n" for step in range(1, STEPS + 1))
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,stage,loss,tokens,seconds,lr_language\n" + losses)
    checkpoint(folder, STEPS)
    return folder


def checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """A checkpoint as `fit` writes it, with random weights that depend on the step."""
    torch.manual_seed(step)
    module = EncoderDecoder(T5(**SIZES), tokenizer="nano")
    state = module.state_dict()
    said = {
        "family": "lit_mm.families.EncoderDecoder",
        "config": yaml.safe_dump(RECIPE),
        "stage": "read",
        "step": step,
        "stored": [name for name, _ in kept_tensors(module)],
        "frozen": {},
    }
    path = folder / "checkpoints" / checkpoint_name(1, "read", step)
    publish({"state_dict": state, "optimizer_states": [], "lit_mm": said}, path)
    return state


def test_a_stored_part_loads_by_name_into_a_part_in_fp32(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.parent / "weights"
    file = store(run, "language", "tiny", str(run.parent / "tiny.yaml"), folder)
    assert file == folder / "tiny.safetensors"
    assert {value.dtype for value in read_checkpoint(file).values()} == {torch.bfloat16}
    monkeypatch.setattr(source, "NANO_WEIGHTS", folder)
    language = T5(**SIZES)
    load_part(language, "nano:tiny", "language")
    trained = checkpoint(run, STEPS)
    for name, value in language.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, trained[f"network.language.{name}"].bfloat16().float())


def test_the_file_says_what_made_it(run: Path) -> None:
    recipe = str(run.parent / "tiny.yaml")
    with safe_open(store(run, "language", "tiny", recipe, run.parent / "weights"), "pt") as file:
        told = file.metadata()
    assert told["command"] == f"python -m lit_mm fit --config {recipe}"
    assert (told["seed"], told["steps"], told["seconds"], told["torch"]) == ("3", "7", "8", torch.__version__)
    assert float(told["final_loss"]) == pytest.approx(sum(2 / step for step in range(1, 8)) / 7, abs=1e-4)
    assert yaml.safe_load(told["config"]) == RECIPE


def test_without_metrics_no_loss_is_told(run: Path) -> None:
    (run / "metrics.csv").unlink()
    with safe_open(store(run, "language", "tiny", str(run.parent / "tiny.yaml"), run.parent / "weights"), "pt") as file:
        assert file.metadata().keys() == {"command", "seed", "steps", "torch", "config"}


def test_a_run_that_is_not_finished_is_refused(run: Path) -> None:
    remove(run / "checkpoints" / checkpoint_name(1, "read", STEPS))
    checkpoint(run, STEPS - 2)
    with pytest.raises(UserError, match=r"step 5 of stage 'read'.*step 7"):
        store(run, "language", "tiny", str(run.parent / "tiny.yaml"), run.parent / "weights")


def test_a_run_whose_last_stage_a_callback_has_ended_is_finished() -> None:
    saved = manifest.Saved(1, STEPS - 2, "read", Path("run"))
    check_finished(saved, RECIPE, {"read": {"step": STEPS - 2}})
    with pytest.raises(UserError, match="Finish it"):
        check_finished(saved, RECIPE, {"other": {"step": STEPS - 2}})


def test_a_part_that_the_model_lacks_is_refused_with_those_it_has(run: Path) -> None:
    with pytest.raises(UserError, match=r"no part 'vision'; it has \['language'\]"):
        store(run, "vision", "tiny", str(run.parent / "tiny.yaml"), run.parent / "weights")


def test_a_recipe_that_is_not_there_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="--recipe"):
        store(run, "language", "nobody", folder=run.parent / "weights")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        store(tmp_path, "language", "tiny")


def test_what_exceeds_the_limit_is_not_stored_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(nn.Linear(64, 64), "vision", "first", {}, tmp_path)
    kept = first.read_bytes()
    monkeypatch.setattr(module_under_test, "LIMIT", len(kept) + 4000)
    with pytest.raises(UserError, match="all together are at most"):
        write(nn.Linear(64, 64), "vision", "second", {}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["first.safetensors"]
    assert write(nn.Linear(64, 64), "vision", "first", {}, tmp_path) == first  # what it replaces does not count
    assert first.read_bytes() != kept


def test_everybody_may_read_a_stored_file(tmp_path: Path) -> None:
    assert write(nn.Linear(4, 4), "vision", "one", {}, tmp_path).stat().st_mode & 0o444 == 0o444


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    sizes = {"width": 32, "layers": 1, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 40}
    language = Llama(**sizes, tie_embeddings=True)
    state = read_checkpoint(write(language, "language", "tied", {}, tmp_path))
    assert "lm.model.embed_tokens.weight" in state and "lm.lm_head.weight" not in state
    other = Llama(**sizes, tie_embeddings=True)
    load_strict(other, state)
    assert torch.equal(other.lm.lm_head.weight, language.lm.lm_head.weight.bfloat16().float())


def test_a_part_with_partial_lora_is_refused() -> None:
    language = Llama(width=32, layers=1, heads=4, kv_heads=2, ffn_width=48, vocab_size=40)
    with pytest.raises(UserError, match="plain backbones"):
        plain_state(apply_partial_lora(language, rank=2), "language")


def test_a_file_with_other_weights_is_found(tmp_path: Path) -> None:
    file = write(nn.Linear(4, 4), "vision", "one", {}, tmp_path)
    with pytest.raises(RuntimeError, match="weight"):
        check_loads(nn.Linear(4, 4), file)


def test_a_name_with_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="letters, digits and underscores"):
        write(nn.Linear(4, 4), "vision", "../one", {}, tmp_path)


def test_the_command_exits_with_2_for_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "language", "tiny"])
    assert ended.value.code == 2
    assert "no checkpoint" in capsys.readouterr().err
