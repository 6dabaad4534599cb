"""Files that cannot be imported are refused in one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_mm.commands.published import Published, described, lora_scale
from lit_mm.errors import UserError
from lit_mm.weights.files import tensor_files
from lit_mm.weights.layouts.layout import layout_named
from tests import hub
from tests.commands.test_import import command  # noqa: F401  # a fixture

PROCESSOR = {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 4999802720\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.hf_llava(tmp_path_factory.mktemp("original") / "hub")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A folder of LLaVA-1.5 in transformers' layout, to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "hub"))


def shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def edit_config(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | keys
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, edit: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    (folder / "model.safetensors.index.json").unlink()
    for file in folder.glob("*.safetensors"):
        save_file(dict(edit(name, tensor) for name, tensor in load_file(file).items()), file)


def replaced(old: str, new: str) -> Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]:
    return lambda name, tensor: (name.replace(old, new), tensor)


def cast(end: str, dtype: torch.dtype) -> Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]:
    return lambda name, tensor: (name, tensor.to(dtype) if name.endswith(end) else tensor)


def list_ghost(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost.weight"] = shard(folder).name
    index.write_text(json.dumps(content))


def only(folder: Path, *names: str) -> None:
    """Leave empty files and folders of these names alone."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()


def list_alone(folder: Path) -> None:
    only(folder)
    torch.save([1], folder / "model.bin")


DAMAGES = [
    (lambda f: shard(f).write_bytes(shard(f).read_bytes()[:900]), "cannot be read .* Is the download complete"),
    (lambda f: shard(f).write_text(POINTER), "is a pointer of Git LFS, not the file itself. Fetch it by git lfs pull"),
    (lambda f: (f / "config.json").write_text(POINTER), "config.json' is a pointer of Git LFS"),
    (lambda f: (f / "config.json").write_text("[]"), "config.json' should hold an object, got list"),
    (lambda f: (f / "config.json").unlink(), "hub' with no config.json and its 98 tensors such as"),
    (lambda f: shard(f).unlink(), "names shards that are not there: ['model-00001"),
    (list_ghost, "model.safetensors.index.json lists tensors that no shard holds: ghost.weight"),
    (lambda f: edit_config(f, text_config=None), "the key of config.json or tensor 'text_config' is missing"),
    (lambda f: edit_config(f, vision_config=None), "config.json' lacks vision_config"),
    (lambda f: edit_config(f, text_config="llama"), "text_config should be an object, got 'llama'"),
    (lambda f: edit_config(f, vision_feature_layer=[-2, -5]), "its vision_feature_layer [-2, -5] is no whole number"),
    (lambda f: edit_config(f, vision_config={"model_type": "siglip_vision_model"}), "'siglip_vision_model', and only"),
    (lambda f: edit_config(f, text_config={"model_type": "phi3"}), "a language model of model_type 'phi3' cannot be"),
    (lambda f: edit_config(f, text_config={"hidden_act": "gelu"}), "a llama with hidden_act 'gelu'"),
    (lambda f: edit_config(f, text_config={"num_hidden_layers": "4"}), "transformers refuses the config of this llama"),
    (lambda f: edit_config(f, quantization_config={"quant_method": "awq"}), "is quantised by awq, and only weights in"),
    (lambda f: edit_tensors(f, replaced("up_proj.weight", "up_proj.qweight")), "is quantised, and only weights in"),
    (lambda f: edit_tensors(f, replaced("q_proj.w", "q_proj.base_layer.w")), "has adapters beside its weights, such"),
    (lambda f: edit_tensors(f, cast("up_proj.weight", torch.float8_e4m3fn)), "has the dtype F8_E4M3. Quantised"),
    (lambda f: edit_tensors(f, cast("up_proj.weight", torch.int8)), "4 weights are whole numbers, as of a quantised"),
    (
        lambda f: only(f, "llava.Q4.gguf"),
        "'llava.Q4.gguf' is a file of llama.cpp; take the files",
    ),
    (lambda f: only(f, "checkpoint-10/config.json"), "holds no weights; .* Give its folder 'checkpoint-10'"),
    (lambda f: only(f, "global_step10/", "training_args.bin"), "shards of DeepSpeed or SwissArmyTransformer. Join"),
    (lambda f: only(f, "model_fsdp_0/__0_0.distcp"), "shards of FSDP. Join them first with accelerate merge-weights"),
    (lambda f: only(f, "manifest.json"), "is a checkpoint or run of this program and needs no import"),
    (lambda f: (f / "model.safetensors.index.json").write_text(POINTER), "index.json' is a pointer of Git LFS"),
    (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json' is a pointer of Git LFS, not the file"),
    (lambda f: max(f.glob("*.safetensors")).write_bytes(shard(f).read_bytes()[:-99]), "cannot be read .* complete?"),
    (list_alone, "model.bin' should map names to tensors; it holds list"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    command: Callable,  # noqa: F811
    folder: Path,
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    damage(folder)
    code, _, error = command("import", folder, "--to", "run")
    first, _, rest = message.partition(" .* ")
    assert code == 2 and first in error and rest in error and len(error.strip().splitlines()) == 1, error
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layout", "qwen_vl/authors"), "--layout qwen_vl/authors: '"),
        (("--proof_memory", "-3"), "--proof_memory is at least 0 GB, got -3.0"),
        (("--with", "vision=a/b/c", "--with", "vision=a/b/c"), "--with is PART=PLACE, each part once"),
        (("--to", "/proc/run"), "the import to '/proc/run' failed: No such file or directory. Free some disk space"),
    ],
)
def test_words_that_do_not_fit_are_refused_in_one_line(
    command: Callable,  # noqa: F811
    folder: Path,
    words: tuple[str, ...],
    message: str,
) -> None:
    code, _, error = command("import", folder, "--to", "run", *words)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1, error


def write_for_windows(folder: Path) -> None:
    for file in {*folder.glob("*.json")} - {folder / "tokenizer.json"}:
        text = json.dumps(json.loads(file.read_text()), indent=1).replace("\n", "\r\n")
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())


def write_for_transformers_5(folder: Path) -> None:
    """Put the image processor into processor_config.json, with a null, and the chat template into a file of its own."""
    file = folder / "preprocessor_config.json"
    section = json.loads(file.read_text()) | {"do_pad": None}
    file.unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": section, **PROCESSOR}))
    (folder / "video_preprocessor_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ 'USER: ' }}")
    edit_config(folder, dtype="bfloat16", torch_dtype=None)


@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: (write_for_transformers_5(folder), write_for_windows(folder)),
        lambda folder: edit_tensors(folder, lambda name, tensor: (f"_orig_mod.module.{name}", tensor)),
    ],
)
def test_other_spellings_of_a_folder_give_the_same_model(
    original: Path, folder: Path, edit: Callable[[Path], Any]
) -> None:
    expected = layout_named("llava_1_5/hf").model(described(original)[0])["init_args"]
    edit(folder)
    published = Published.open(str(folder), {})
    arguments = published.recipe["model"]["init_args"]
    assert arguments | {"tokenizer": ""} == expected | {"tokenizer": ""} and len(published.plan.targets) == 72


def test_an_address_and_a_shard_are_refused_with_what_to_give(folder: Path) -> None:
    with pytest.raises(UserError, match=r"address\. Give a published name, such as llava-hf/llava-1\.5-7b-hf, or"):
        Published.open("https://huggingface.co/llava-hf/llava-1.5-7b-hf/tree/main", {})
    with pytest.raises(UserError, match=r"is one of 2 shards\. Give the folder, '.*hub'"):
        Published.open(str(shard(folder)), {})


def test_a_name_that_cannot_be_published_is_refused(command: Callable) -> None:  # noqa: F811
    code, _, error = command("import", "llava hf/llava 1.5", "--to", "run")
    assert code == 2 and "the weights 'llava hf/llava 1.5' cannot be downloaded (Repo id must use" in error


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_file_that_could_run_code_is_named_in_one_line(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    torch.save({"a": Harmful()}, tmp_path / "mm_projector.bin")
    code, _, error = command("import", "mm_projector.bin", "--to", "run")
    assert code == 2 and "It is not loaded, because it could run code (Trying to load unsupported GLOBAL" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "adapter_config.json' is missing, or lacks r, lora_alpha, which scale the LoRA"),
        ({"r": 4, "lora_alpha": 8, "use_dora": True}, "sets use_dora, but only a plain LoRA can be merged here"),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 16}}, "sets alpha_pattern, but only a plain LoRA"),
        ({"r": 4, "lora_alpha": 8}, "holds a LoRA, but no connector. Copy non_lora_trainables.bin"),
    ],
)
def test_a_lora_that_is_not_merged_here_is_refused(
    command: Callable,  # noqa: F811
    tmp_path: Path,
    config: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "lora").mkdir()
    at = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    pair = {f"{at}A.weight": torch.zeros(4, 32), f"{at}B.weight": torch.zeros(32, 4)}
    torch.save(pair, tmp_path / "lora" / "adapter_model.bin")
    if config:
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    code, _, error = command("import", "lora", "--to", "run")
    assert code == 2 and message in error, error


@pytest.mark.parametrize(("more", "scale"), [({}, 2.0), ({"use_rslora": True}, 4.0), ({"use_rslora": False}, 2.0)])
def test_the_products_of_a_lora_have_the_scale_of_peft(more: dict[str, Any], scale: float) -> None:
    assert lora_scale({"r": 4, "lora_alpha": 8} | more) == scale


def test_files_of_a_trainer_beside_the_weights_are_passed_over(folder: Path) -> None:
    weights = tensor_files(folder)
    (folder / "model.safetensors.index.json").unlink()
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "optimizer.bin"):
        (folder / name).touch()
    assert [path.stem for path in tensor_files(folder)] == [path.stem for path in weights]
