"""`export` writes runs in layouts that they were not imported from, and transformers opens them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText

from lit_mm.commands.conversions.conversion import all_conversions, conversion_of, is_layout_of
from lit_mm.commands.export_output import with_old_rope_keys
from lit_mm.commands.published import Published
from lit_mm.commands.trained import open_model
from lit_mm.module import family_of
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.weights.convert import read_checkpoint
from lit_mm.weights.layouts.layout import all_layouts
from tests import hub
from tests.commands.test_import import ATOL, command, conversation, logits  # noqa: F401  # `command` is a fixture
from tests.commands.test_layouts import words_of

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "experiments/paper/llava_1_5.yaml"
CPU = ("--trainer.accelerator", "cpu", "--track", "false")


def published_recipe(place: Path) -> Path:
    """The published recipe of LLaVA-1.5 with small parts, one step a stage, and conversations of a file."""
    recipe = yaml.safe_load(RECIPE.read_text())
    arguments, (pretrain, finetune) = recipe["model"]["init_args"], recipe["stages"]
    clip, vicuna = hub.clip(place / "clip"), hub.vicuna(place / "vicuna")
    sizes = {"image_size": hub.SIDE, "width": 64, "layers": 3, "heads": 1, "ffn_width": 96}
    arguments["vision"]["init_args"] |= sizes | {"weights": f"clip:{clip.name}"}
    sizes = {"width": 32, "layers": 4, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": hub.TEXT["vocab_size"]}
    arguments["language"]["init_args"] |= sizes | {"weights": f"llama:{vicuna.name}", "max_positions": 2048}
    arguments |= {"tokenizer": vicuna.name, "image_size": hub.SIDE}
    pretrain["inputs"]["tiling"]["init_args"]["size"] = hub.SIDE
    corpora = [{"name": "mine", "format": "llava", "path": str(conversation(place))}]
    for stage in (pretrain, finetune):
        del stage["epochs"]
        stage |= {"max_steps": 1, "data": {"global_batch": 2, "micro_batch": 2, "corpora": corpora}}
    finetune["train"]["vision"] = {"lr": 1e-4, "weight_decay": 0.0}
    recipe["data"]["init_args"] |= {"corpora": corpora, "num_workers": 0}
    recipe["trainer"] = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
    del recipe["checkpoint_every"]
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return place / "recipe.yaml"


def check_logits(run: str, stage: str | None, folder: Path, size: tuple[int, int]) -> None:
    """Compare a run with transformers' model of its export, after rounding to the dtype of the files."""
    module = open_model(run, stage=stage, accelerator="cpu")
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.float16).float()
    ours, expected = logits(module, folder, size)
    torch.testing.assert_close(ours, expected[:, : ours.shape[1]], rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("write", "words", "size"),
    [(hub.llava_1_5, True, (40, 30)), pytest.param(hub.llava_next, False, (61, 20), marks=pytest.mark.distributed)],
)
def test_an_import_from_the_authors_is_exported_for_transformers(
    command: Callable,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], Path],
    words: bool,
    size: tuple[int, int],
) -> None:
    monkeypatch.setitem(hub.TEXT, "vocab_size", 509)  # no row is free for the image token
    folder = write(tmp_path / "hub")
    vision = ("--with", f"vision={hub.clip(tmp_path / 'clip')}") if words else ()
    assert command("import", folder, "--to", "run", *vision)[0] == 0
    code, output, error = command("export", "run", "--to", "out", "--format", "hf")
    assert code == 0 and "logits differ by" in output and "pixels by" in output, error
    config = json.loads(Path("out/config.json").read_text())
    assert config["image_token_index"] == 509 and config["text_config"]["vocab_size"] == 512
    table = read_checkpoint("out")["language_model.model.embed_tokens.weight"]
    torch.testing.assert_close(table[509:].float(), table[:509].float().mean(0).expand(3, -1), rtol=0, atol=1e-3)
    check_logits("run", None, tmp_path / "out", size)


@pytest.mark.distributed
def test_a_published_recipe_is_trained_on_published_parts_and_exported(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    recipe = published_recipe(tmp_path)
    code, _, error = command("fit", "--config", recipe, "--run_dir", "run", "--track", "false")
    assert code == 0, error
    for stage in ("pretrain", "finetune"):  # the first one keeps both published parts frozen
        code, output, error = command("export", "run", "--to", stage, "--format", "hf", "--stage", stage)
        assert code == 0 and "logits differ by" in output, error
        check_logits("run", stage, tmp_path / stage, (40, 30))
    last = read_checkpoint("pretrain")["vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight"]
    assert torch.equal(last, read_checkpoint("clip")["vision_model.encoder.layers.2.mlp.fc1.weight"])

    code, _, error = command("export", "run", "--to", "authors", "--format", "authors", "--stage", "pretrain")
    assert code == 0, error
    published, exported = read_checkpoint(hub.llava_1_5(tmp_path / "hub")), read_checkpoint("authors")
    assert exported.keys() == {name for name in published if not name.endswith("inv_freq")}
    assert all((of.dtype, of.shape) == (published[name].dtype, published[name].shape) for name, of in exported.items())
    code, _, error = command("import", "authors", "--with", "vision=clip", "--to", "again")
    assert code == 0, error
    before, after = (
        open_model(name, stage=stage, accelerator="cpu").state_dict()
        for name, stage in (("run", "pretrain"), ("again", None))
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].half(), after[name].half()) for name in before)

    code, _, error = command("export", "run", "--to", "refused", "--format", "authors")
    assert code == 2 and "has trained the part 'vision'" in error
    (tmp_path / "clip").rename(tmp_path / "elsewhere")
    code, _, error = command("export", "run", "--to", "refused", "--format", "hf")
    assert code == 2 and "--with vision=openai/clip-vit-large-patch14-336" in error, error
    assert not Path("refused").exists() and not Path("refused.part").exists()
    code, _, error = command("export", "run", "--to", "named", "--format", "hf", "--with", "vision=elsewhere")
    assert code == 0, error


def sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a section of config.json that change logits."""
    free = ("initializer_factor", "initializer_range", "projection_dim", "dtype", "_name_or_path", "use_cache")
    return {key: value for key, value in config.items() if not key.endswith("_token_id") and key not in free}


@pytest.mark.parametrize("write", [hub.hf_llava, hub.hf_next, hub.instructblip])
def test_the_files_of_a_model_are_those_that_are_published(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    folder = write(tmp_path / "hub")
    module = Published.open(str(folder), {}).module
    files = conversion_of(family_of(module), "hf").files(module)
    assert {name: stored.shape for name, stored in files.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in read_checkpoint(folder).items()
    }
    config, published = json.loads(json.dumps(files.config)), json.loads((folder / "config.json").read_text())
    for part in ("vision_config", "text_config", "qformer_config"):
        assert sizes(config.get(part, {})) == sizes(published.get(part, {})), part


@pytest.mark.distributed
@pytest.mark.parametrize(
    "text", [None, pytest.param(hub.T5, marks=pytest.mark.slow)], ids=["decoder", "encoder-decoder"]
)
def test_an_instructblip_of_a_recipe_is_exported_for_transformers(command: Callable, tmp_path: Path, text: Any) -> None:  # noqa: F811
    folder, data = hub.instructblip(tmp_path / "hub", text), conversation(tmp_path)
    assert command("import", folder, "--to", "run", "--proof_memory", "0")[0] == 0
    words = ("--data.path", data, "--data.global_batch", "4", *CPU)
    code, _, error = command("fit", "--config", "run/recipe.yaml", "--run_dir", "fresh", *words)
    assert code == 0, error
    code, output, error = command("export", "fresh", "--to", "out", "--format", "hf")
    assert code == 0 and "logits differ by" in output and "pixels by" in output, error
    assert Path("out/qformer_tokenizer/tokenizer.json").is_file()
    assert {of.dtype for of in read_checkpoint("out").values()} == {torch.float32}


def commands_of(file: Path) -> list[str]:
    """The lines of the first block of a guide that imports a checkpoint of transformers; [] if it has none."""
    blocks = file.read_text().split("```")[1::2]
    return next((block.strip().splitlines() for block in blocks if "lit_mm import llava-hf/" in block), [])


@pytest.mark.distributed
def test_a_new_user_types_the_five_commands_of_the_guide(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    lines = commands_of(ROOT / "docs/checkpoints.md")
    assert len(lines) == 5 and commands_of(ROOT / "README.md") in ([], lines)
    hub.hf_llava(tmp_path / "llava-hf/llava-1.5-7b-hf", pad=True)
    conversation(tmp_path)
    rows = json.loads(Path("mine.json").read_text())
    Path("my_data.json").write_text(json.dumps([row | {"id": f"{n}"} for n, row in enumerate(rows * 4)]))
    Image.new("RGB", (50, 40), "blue").save("page.png")
    for line in lines:
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "lit_mm"]:
            code, _, error = command(*words[3:])
            assert code == 0, error
        else:
            assert words[:2] == ["python", "-c"]
            exec(words[2], {})
    before, after = read_checkpoint("llava-hf/llava-1.5-7b-hf"), read_checkpoint("exported")
    names = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("self_attn" in name for name in names) and not any("vision_tower" in name for name in names)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["lora", "dora", pytest.param("rslora", marks=pytest.mark.slow)])
def test_an_adapter_is_exported_for_peft_and_merged(command: Callable, tmp_path: Path, kind: str) -> None:  # noqa: F811
    folder, data = hub.hf_llava(tmp_path / "hub"), conversation(tmp_path)
    assert command("import", folder, "--to", "run", "--proof_memory", "0")[0] == 0
    adapter = f"{{lr: 0.05, adapter: {{type: {kind}, rank: 3, alpha: 6, targets: all-linear}}}}"
    words = ("--stages.finetune.train.language", adapter, "--data.path", data, "--data.global_batch", "2", *CPU)
    code, _, error = command("fit", "--config", "run/recipe.yaml", "--init_from", "run", "--run_dir", "tuned", *words)
    assert code == 0, error
    code, output, error = command("export", "tuned", "--to", "adapter", "--format", "peft")
    assert code == 0 and "branches of rank 3 on 28 linears and 2 whole layers" in output, error
    assert "LlavaForConditionalGeneration, decoder layers [0, 1, 2, 3] of 4: logits differ by" in output
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, "adapter").eval()
    code, output, error = command("export", "tuned", "--to", "out", "--format", "hf")
    assert code == 0 and "logits differ by" in output, error
    merged = AutoModelForImageTextToText.from_pretrained("out", dtype=torch.float32).eval()
    ids = torch.tensor([[1, 5, 40, 7]])
    with torch.inference_mode():
        adapted, whole = (of(input_ids=ids).logits for of in (model, merged))
        with model.disable_adapter():
            before = model(input_ids=ids).logits
    torch.testing.assert_close(adapted, whole, rtol=0, atol=1e-4)
    assert (adapted - before).abs().max() > 0.1


@pytest.mark.distributed
def test_what_peft_cannot_hold_is_refused_with_the_reason(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    data = conversation(tmp_path)
    assert command("import", hub.hf_next(tmp_path / "hub"), "--to", "run", "--proof_memory", "0")[0] == 0
    code, _, error = command("export", "run", "--to", "out", "--format", "peft")
    assert code == 2 and "has no adapter of peft" in error, error
    words = ("--config", "run/recipe.yaml", "--init_from", "run", "--data.path", data, "--data.global_batch", "2", *CPU)
    adapter = "{lr: 0.05, adapter: {rank: 3}}"
    for train, message in [
        (f"{{language: {adapter}, newline: {{lr: 0.1}}}}", "a parameter outside of any layer"),
        (f"{{vision: {adapter}}}", "which is no single linear in transformers"),
    ]:
        stages = f"[{{name: finetune, max_steps: 1, train: {train}}}]"
        code, _, error = command("fit", *words, "--run_dir", message, "--stages.replace", stages)
        assert code == 0, error
        code, _, error = command("export", message, "--to", "out", "--format", "peft")
        assert code == 2 and message in error and not Path("out").exists(), error


@pytest.mark.distributed
def test_an_instructblip_of_its_authors_is_exported_for_transformers(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    words, place = words_of("instructblip/authors", tmp_path), hub.lavis_instructblip(tmp_path / "hub")
    code, _, error = command("import", place, "--to", "run", *words)
    assert code == 0, error
    code, output, error = command("export", "run", "--to", "out", "--format", "hf")
    assert code == 0 and "logits differ by" in output and "pixels by" in output, error
    assert torch.equal(read_checkpoint("out")["query_tokens"], read_checkpoint(place)["query_tokens"].float())


def test_every_conversion_is_in_the_table_of_the_docs() -> None:
    in_transformers = {layout.name for layout in all_layouts() if layout.in_transformers}
    rows = ["| family | layout | proved by |", "| --- | --- | --- |"]
    for conversion in all_conversions():
        beside = "; logits and pixels of transformers" if conversion.layout in in_transformers else ""
        rows.append(f"| {conversion.family.rpartition('.')[2]} | {conversion.layout} | read again{beside} |")
    table = "\n".join(rows)
    assert table in (ROOT / "docs/checkpoints.md").read_text(), f"docs/checkpoints.md needs this table:\n{table}"


@pytest.mark.parametrize(
    ("layout", "objectives", "holds"),
    [
        ("blip/hf", {"lm": 1.0}, True),
        ("blip/hf", {"itc_finetune": 1.0, "itm_finetune": 1.0}, False),
        ("blip_retrieval/hf", {"itc_finetune": 1.0, "itm_finetune": 1.0}, True),
        ("blip2_retrieval/hf", {"next_token": 1.0}, False),
        ("blip2/hf", {"next_token": 1.0}, True),
        ("blip2/authors", {"next_token": 1.0}, False),  # of another format
    ],
)
def test_a_run_keeps_its_layout_if_that_holds_what_its_stage_trained(
    layout: str, objectives: dict[str, float], holds: bool
) -> None:
    family = "lit_mm.families.Blip2" if layout.startswith("blip2") else "lit_mm.families.Blip"
    assert is_layout_of(layout, family, "hf", objectives) is holds


def test_the_base_of_rotary_positions_is_where_older_programs_read_it() -> None:
    rope = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert with_old_rope_keys(rope) == rope | {"rope_theta": 1e6}
    assert with_old_rope_keys({"text_config": rope})["text_config"]["rope_theta"] == 1e6
    assert with_old_rope_keys({"hidden_size": 4}) == {"hidden_size": 4}


def test_a_prompt_without_bos_is_exported_without_it() -> None:
    assert ChatPrompt(bos=False).jinja("<s>") == ChatPrompt(bos=False).jinja()
    assert ChatPrompt().jinja("<s>") != ChatPrompt().jinja()


def test_what_a_layout_cannot_hold_is_refused_with_the_reason(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    assert command("import", hub.llava(tmp_path / "hub"), "--to", "run")[0] == 0
    for words, message in [
        (("--with", "bird=x"), "--with bird=...: an export takes"),
        ((), "the projector of transformers' LLaVA has two linears"),
    ]:
        code, _, error = command("export", "run", "--to", "out", "--format", "hf", *words)
        assert code == 2 and message in error and not Path("out").exists(), error
