"""An export is compared with the run itself: its numbers, its logits, and the parts that config.json names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lit_mm.checkpoints import manifest
from lit_mm.commands.conversions.llava import CLIPS, vision_name
from lit_mm.commands.export_files import check_room
from lit_mm.commands.export_numbers import differences
from lit_mm.commands.export_start import check_digest, with_tokenizers
from lit_mm.commands.import_ import write_run
from lit_mm.commands.published import Published
from lit_mm.errors import UserError
from lit_mm.vision.vit import ViT
from lit_mm.weights.convert import read_checkpoint
from tests import hub
from tests.commands.test_export import published_recipe
from tests.commands.test_import import command  # noqa: F401  # `command` is a fixture


def write_recipe_run(folder: Path, run: Path, parts: dict[str, str] | None = None, **settings: Any) -> None:
    """Write a run as a recipe trains it, with no record of an import.

    Args:
        folder: checkpoint that gives the weights.
        run: new run folder.
        parts: parts from other places.
        settings: part -> arguments of the part in the recipe.
    """
    opened = Published.open(str(folder), parts or {})
    recipe = yaml.safe_load(yaml.safe_dump(opened.recipe))
    for part, arguments in settings.items():
        recipe["model"]["init_args"][part]["init_args"] |= arguments
    run.mkdir()
    write_run(replace(opened, recipe=recipe), run)
    (run / "published.json").unlink()
    shutil.rmtree(run / "published")


class Block(nn.Module):
    """A norm and an activation."""

    def __init__(self, eps: float, activation: type[nn.Module], theta: float) -> None:
        super().__init__()
        self.norm, self.activation, self.theta = nn.LayerNorm(4, eps=eps), activation(), theta


@pytest.mark.parametrize(
    ("numbers", "lines", "problem"),
    [
        ((1e-5, nn.GELU, 1e4), 0, ""),
        ((1e-6, nn.GELU, 1e4), 1, ""),
        ((1e-5, nn.SiLU, 1e4), 0, "activation is GELU in the run and SiLU there"),
        ((1e-5, nn.GELU, 1e6), 0, "theta is 10000.0 in the run and 1000000.0 there"),
    ],
)
def test_a_number_that_the_files_lack_is_stated_or_refused(numbers: Any, lines: int, problem: str) -> None:
    run, exported = Block(1e-5, nn.GELU, 1e4), Block(*numbers)
    if problem:
        with pytest.raises(UserError, match=problem):
            differences(run, exported, "llava/hf")
    else:
        assert len(differences(run, exported, "llava/hf")) == lines


def test_numbers_of_training_alone_are_not_compared() -> None:
    run, exported = nn.Module(), nn.Module()
    run.momentum, exported.momentum = Block(1e-5, nn.GELU, 1e4), Block(1e-5, nn.GELU, 1e6)
    assert differences(run, exported, "llava/hf") == ()


def test_a_tokenizer_that_the_run_does_not_have_is_not_taken() -> None:
    recipe = {"model": {"init_args": {"tokenizer": "nano"}}}
    with pytest.raises(UserError, match=r"--with reading=.*the run has no such tokenizer"):
        with_tokenizers(recipe, None, {"reading": "elsewhere"})


def test_another_tokenizer_than_the_import_had_is_not_replaced_by_its_copy(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "config.yaml").write_text("model: {init_args: {tokenizer: /before/tokenizer}}")
    recipe = {"model": {"init_args": {"tokenizer": "/before/tokenizer"}}}
    copied = with_tokenizers(recipe, tmp_path, {})
    assert copied["model"]["init_args"]["tokenizer"] == str(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="'/before/larger' of the run no longer exists"):
        with_tokenizers({"model": {"init_args": {"tokenizer": "/before/larger"}}}, tmp_path, {})


def test_another_import_than_the_start_is_refused(tmp_path: Path) -> None:
    for name in ("import", "other"):
        (tmp_path / name / "checkpoints/01-import-step=000000.ckpt").mkdir(parents=True)
        (tmp_path / name / "checkpoints/01-import-step=000000.ckpt/manifest.json").write_text(name)
    checkpoint = tmp_path / "import/checkpoints/01-import-step=000000.ckpt"
    record = {"checkpoint": str(checkpoint), "digest": manifest.digest_file(checkpoint / "manifest.json")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/init_from.json").write_text(json.dumps(record))
    check_digest(tmp_path / "run", checkpoint)
    with pytest.raises(UserError, match="did not start from this import"):
        check_digest(tmp_path / "run", tmp_path / "other/checkpoints" / checkpoint.name)


@pytest.mark.distributed
def test_an_epsilon_of_lavis_is_stated_beside_the_logits_of_the_run(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    settings = {"connector": {"norm_eps": 1e-5}, "vision": {"any_size": True}}
    write_recipe_run(hub.hf_blip2(tmp_path / "hub"), tmp_path / "run", **settings)
    code, output, error = command("export", "run", "--to", "out", "--format", "hf")
    assert code == 0 and "logits differ by" in output, error
    assert "blip2/hf has the epsilon 1e-06 where the run has 1e-05 (connector.norm.eps)" in output
    write_recipe_run(tmp_path / "hub", tmp_path / "far", connector={"norm_eps": 0.5})
    code, output, error = command("export", "far", "--to", "refused", "--format", "hf")
    assert code == 2 and "failed on an image" in error and "where the run has 0.5 (connector.norm.eps)" in error
    assert not Path("refused").exists()


def test_a_fuyu_of_a_recipe_has_the_logits_of_transformers(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    write_recipe_run(hub.fuyu(tmp_path / "hub"), tmp_path / "run")
    code, output, error = command("export", "run", "--to", "out", "--format", "hf")
    assert code == 0 and "FuyuForCausalLM, decoder layers [0, 1, 3] of 4: logits differ by" in output, error


@pytest.mark.distributed
def test_a_config_that_a_run_has_left_is_not_copied_to_its_export(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder = hub.hf_llava(tmp_path / "hub")
    assert command("import", folder, "--to", "run", "--proof_memory", "0")[0] == 0
    write_recipe_run(folder, tmp_path / "tuned", language={"rope_theta": 1e6})
    start = str(next(Path("run/checkpoints").iterdir()).absolute())
    Path("tuned/init_from.json").write_text(json.dumps({"checkpoint": start}))
    code, _, error = command("export", "tuned", "--to", "out", "--format", "hf")
    assert code == 2 and "rope_theta is 1000000.0 in the run and 10000.0 there" in error, error


def clip_of(folder: Path, place: Path) -> Path:
    """Write the vision encoder of a LLaVA of transformers as a CLIP of its own."""
    prefix = "vision_tower."
    state = {name.removeprefix(prefix): of for name, of in read_checkpoint(folder).items() if name.startswith(prefix)}
    place.mkdir()
    save_file({name: tensor.clone() for name, tensor in state.items()}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **hub.VISION}))
    return place


@pytest.mark.distributed
def test_the_authors_config_names_the_vision_encoder_of_the_run(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder = hub.hf_llava(tmp_path / "hub", pad=True)
    assert command("import", folder, "--to", "run", "--proof_memory", "0")[0] == 0
    words = ("export", "run", "--format", "authors", "--to")
    code, _, error = command(*words, "out")
    assert code == 2 and "no known published encoder has the sizes of that of the run" in error, error
    code, _, error = command(*words, "out", "--with", f"vision={hub.clip(tmp_path / 'other')}")
    assert code == 2 and "in the weights of" in error, error
    place = clip_of(folder, tmp_path / "clip")
    sizes = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(sizes | {"hidden_act": "gelu"}))
    code, _, error = command(*words, "out", "--with", f"vision={place}")
    assert code == 2 and "hidden_act is gelu there and quick_gelu in the recipe" in error, error
    (place / "config.json").write_text(json.dumps(sizes))
    code, _, error = command(*words, "out", "--with", f"vision={place}")
    assert code == 0, error
    assert json.loads(Path("out/config.json").read_text())["mm_vision_tower"] == str(place)


def test_a_vision_encoder_has_the_name_of_the_published_clip_of_its_sizes() -> None:
    keys = ("image_size", "patch", "width", "layers", "heads", "ffn_width", "activation")
    for sizes, name in CLIPS.items():
        arguments = dict(zip(keys, sizes, strict=True))
        with torch.device("meta"):
            assert vision_name(ViT(**arguments)) == name
    with torch.device("meta"):
        base = ViT(**dict(zip(keys, next(iter(CLIPS)), strict=True)), eps=1e-6)
        wider, recipe = ViT(**arguments | {"layers": 2}), ViT(**arguments | {"layers": 2}, weights="clip:mine/clip")
    assert vision_name(wider) == vision_name(base) == "" and vision_name(recipe) == "mine/clip"


@pytest.mark.distributed
def test_a_run_whose_start_is_gone_is_exported_unless_something_is_needed(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    for name, folder, parts in (
        ("llava", hub.hf_llava(tmp_path / "llava_hub"), {}),
        ("uhd", hub.llava_uhd(tmp_path / "uhd_hub"), {}),
    ):
        assert command("import", folder, "--to", f"start_{name}", "--proof_memory", "0")[0] == 0
        write_recipe_run(folder, tmp_path / name, parts)
        start = str(next(Path(f"start_{name}/checkpoints").iterdir()).absolute())
        Path(f"{name}/init_from.json").write_text(json.dumps({"checkpoint": start}))
        Path(f"start_{name}").rename(f"moved_{name}")
    shutil.rmtree("uhd/tokenizer")
    config = Path("moved_uhd/config.yaml")  # the run has the tokenizer of its start
    config.write_text(config.read_text().replace("start_uhd/tokenizer", "uhd/tokenizer"))
    code, _, error = command("export", "llava", "--to", "out", "--format", "hf")
    assert code == 2 and "--with vision=" in error, error
    place = clip_of(tmp_path / "llava_hub", tmp_path / "clip")
    code, output, error = command("export", "llava", "--to", "out", "--format", "hf", "--with", f"vision={place}")
    assert code == 0 and "start_llava', which is not there any more: written from the run alone" in output, error
    code, output, error = command("export", "llava", "--to", "same", "--format", "hf", "--with", "import=moved_llava")
    assert code == 0 and "any more" not in output, error

    code, _, error = command("export", "uhd", "--to", "uhd_out", "--format", "authors")
    assert code == 2 and "Add --with tokenizer=PLACE" in error, error
    words = ("--with", "tokenizer=moved_uhd/tokenizer")
    code, _, error = command("export", "uhd", "--to", "uhd_out", "--format", "authors", *words)
    assert code == 2 and "Name the run: --with import=RUN" in error, error
    code, _, error = command("export", "uhd", "--to", "uhd_out", "--format", "authors", "--with", "import=moved_uhd")
    assert code == 0, error
    Path("afile").write_text("")
    code, _, error = command("export", "llava", "--to", "afile/out", "--format", "hf", "--with", "import=moved_llava")
    assert code == 2 and "the folder cannot be created (Not a directory)" in error, error
    code, _, error = command("export", "uhd", "--to", "no", "--format", "authors", "--with", "import=uhd_hub")
    assert code == 2 and "has no published.json" in error, error


@pytest.mark.distributed
def test_an_adapter_of_a_recipe_stands_on_its_published_language_model(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    file = published_recipe(tmp_path)
    recipe = yaml.safe_load(file.read_text())
    finetune = recipe["stages"][1]
    finetune["train"] = {"connector": {"lr": 1e-3}, "language": {"lr": 0.05, "adapter": {"rank": 3}}}
    file.write_text(yaml.safe_dump(recipe | {"stages": [finetune]}, sort_keys=False))
    code, output, error = command("fit", "--config", file, "--trainer.fast_dev_run", "true", "--track", "false")
    assert code == 0 and "its checkpoint loaded and exported; nothing is kept" in output, error
    code, _, error = command("fit", "--config", file, "--run_dir", "run", "--track", "false")
    assert code == 0, error
    code, output, error = command("export", "run", "--to", "adapter", "--format", "peft")
    assert code == 0 and "LlamaForCausalLM: logits of a text differ by" in output, error
    assert "is a language model alone: connector" in output
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "vicuna") and config["task_type"] == "CAUSAL_LM"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "vicuna", dtype=torch.float32)
    model, ids = PeftModel.from_pretrained(base, "adapter").eval(), torch.tensor([[1, 5, 40, 7]])
    with torch.inference_mode():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            assert (adapted - model(input_ids=ids).logits).abs().max() > 1e-3
    code, _, error = command("export", "run", "--to", "averaged", "--format", "hf", "--averaged")
    assert code == 2 and "has no averages of weights" in error, error


@pytest.mark.slow
def test_a_blip2_of_a_recipe_with_an_encoder_decoder_keeps_its_head(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    write_recipe_run(hub.hf_blip2(tmp_path / "hub", hub.T5), tmp_path / "run")
    code, output, error = command("export", "run", "--to", "out", "--format", "hf")
    assert code == 0 and "logits differ by" in output, error
    head, table = (read_checkpoint("out")[f"language_model.{name}.weight"] for name in ("lm_head", "shared"))
    assert not torch.equal(head, table[: len(head)])


def test_the_space_of_an_export_is_said_and_checked_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    check_room(tmp_path, 2_500_000_000)
    check_room(tmp_path, 1_000_000)
    assert capfd.readouterr().err == f"lit_mm: writing 2.5 GB to {tmp_path}\n"
    with pytest.raises(UserError, match=r"take 4\.0 GB, .* has room for 3\.0 GB"):
        check_room(tmp_path, 4_000_000_000)
