"""`import` turns published checkpoints into runs that can be asked and fine-tuned."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from lit_mm.commands.trained import open_model
from lit_mm.documents.document import Document, Turn
from lit_mm.module import MultimodalModule
from lit_mm.samples.collate import collate
from lit_mm.weights.clip import HF_PARTS
from lit_mm.weights.convert import read_checkpoint
from lit_mm.weights.files import TensorFiles
from tests import hub
from tests.command_line import run_command
from tests.rows import states
from tests.tiny import Noise

ATOL = 1e-5  # fp32 on a CPU
QUESTION = ("--question", "what?", "--max_new_tokens", "2")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """A command typed in an empty folder. Returns exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str) -> tuple[int, str, str]:
        return run_command(capsys, *arguments)

    yield typed
    torch.use_deterministic_algorithms(False)


def conversation(folder: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": str(number), "image": "red.png", "conversations": turns} for number in range(4)]
    (folder / "mine.json").write_text(json.dumps(rows))
    return folder / "mine.json"


@torch.inference_mode()
def logits(ours: MultimodalModule, folder: Path, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Our logits, and those of transformers' model of the same folder on the same ids and pixels."""
    document = Document("a", (Turn("user", (Noise(0, *size), "what colour is it?")), Turn("assistant", ("red",))))
    batch = collate([ours.processor.sample(document)], ours.processor)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    ids = batch.ids.index_fill(1, batch.visual, hub.IMAGE_ID)
    views = torch.cat([*batch.views.groups])
    is_next = theirs.config.model_type == "llava_next"
    extra = {"image_sizes": torch.tensor([size])} if is_next else {}
    pixels = views[None] if is_next else views
    expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), **extra).logits[0]
    return ours.network.language.logits(states(ours.network, batch)), expected


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("write", "size"),
    [(hub.hf_llava, (40, 30)), pytest.param(hub.hf_next, (28, 28), marks=pytest.mark.slow), (hub.hf_next, (61, 20))],
)
def test_a_checkpoint_of_transformers_gives_its_logits(command, tmp_path, write, size, old) -> None:
    folder = write(tmp_path / "hub", old=old)
    code, _, error = command("import", folder, "--to", "run")
    assert code == 0, error
    ours, expected = logits(open_model("run", accelerator="cpu"), folder, size)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(ours, expected, rtol=0, atol=ATOL)


def test_a_converted_checkpoint_pads_if_its_preprocessor_pads(command, tmp_path) -> None:
    for pad, tiling in ((True, "Pad"), (False, "CentreCrop")):
        folder = hub.hf_llava(tmp_path / tiling, pad=pad)
        assert command("import", folder, "--to", f"run_{tiling}")[0] == 0
        recipe = yaml.safe_load(Path(f"run_{tiling}/recipe.yaml").read_text())
        assert recipe["model"]["init_args"]["inputs"]["tiling"]["class_path"] == f"lit_mm.tiling.{tiling}"


@pytest.mark.parametrize(
    ("write", "words", "layers"),
    [
        (hub.hf_llava, (), [0, 1, 3]),
        (lambda folder: hub.hf_llava(folder, pad=True), (), [0, 1, 3]),
        (hub.hf_next, (), [0, 1, 3]),
        (hub.hf_next, ("--proof", "full"), [0, 1, 2, 3]),
    ],
)
def test_the_proof_beside_transformers_is_kept(command, tmp_path, write, words, layers) -> None:
    code, output, error = command("import", write(tmp_path / "hub"), "--to", "run", *words)
    assert code == 0, error
    figures = json.loads(Path("run/proof.json").read_text())
    assert figures["decoder_layers"] == layers and figures["decoder_layers_of_the_checkpoint"] == 4
    assert len(figures["images"]) == 3
    assert all(image["logits"] < 1e-4 and image["pixels"] < 1 / 255 for image in figures["images"])
    assert figures["token_ids"] == {"text": True, "one image": True, "two images": True}
    assert "proof: " in output and "logits differ by" in output and "token ids equal (text, one" in output


def test_a_single_file_is_proved_beside_transformers_by_the_configs_beside_it(command, tmp_path) -> None:
    folder = hub.hf_llava(tmp_path / "hub")
    state = {name: tensor for file in folder.glob("model-*.safetensors") for name, tensor in load_file(file).items()}
    save_file(state, folder / "model.safetensors")
    code, output, error = command("import", folder / "model.safetensors", "--to", "run")
    assert code == 0 and "logits differ by" in output, error


def test_a_proof_that_fails_says_so(command, tmp_path, monkeypatch) -> None:
    folder = hub.hf_next(tmp_path / "hub")
    monkeypatch.setattr(
        "lit_mm.weights.clip.HF_PARTS", {**HF_PARTS, "mlp.fc1": "fc1", "layer_norm1": "norm2", "layer_norm2": "norm1"}
    )
    code, _, error = command("import", folder, "--to", "run")
    assert code == 2 and "logits differ by" in error and not Path("run").exists()


def test_a_proof_without_memory_says_that_nothing_was_compared(command, tmp_path) -> None:
    code, output, error = command("import", hub.hf_next(tmp_path / "hub"), "--to", "run", "--proof_memory", "0")
    assert code == 0 and "against none: the comparison needs" in output, error
    code, output, error = command("import", hub.llava_next(tmp_path / "authors"), "--to", "run2")
    assert code == 0 and "against none: every tensor is placed once" in output, error


def test_the_rule_is_that_of_the_files(command, tmp_path) -> None:
    for write, rule in ((hub.llava_next, "official"), (hub.hf_next, "hf")):
        assert command("import", write(tmp_path / rule), "--to", f"run_{rule}")[0] == 0
        inputs = yaml.safe_load(Path(f"run_{rule}/recipe.yaml").read_text())["model"]["init_args"]["inputs"]
        assert inputs["tiling"]["init_args"]["rule"] == inputs["layout"]["init_args"]["rule"] == rule
        assert inputs["tiling"]["init_args"]["grids"] == [[2, 1], [1, 2], [2, 2], [1, 3], [3, 1]]


def test_a_new_user_imports_asks_evaluates_and_fine_tunes_without_editing_yaml(command, tmp_path) -> None:
    folder, vision = hub.llava_1_5(tmp_path / "llava"), hub.clip(tmp_path / "clip")
    data = conversation(tmp_path)
    code, _, error = command("import", folder, "--with", f"vision={vision}", "--to", "run")
    assert code == 0, error
    for path in (*folder.iterdir(), *vision.iterdir()):  # the run stands by itself
        path.unlink()
    code, _, error = command("generate", "run", "--image", "red.png", *QUESTION, "--accelerator", "cpu")
    assert code == 0, error
    asked = f"{{format: llava, path: {data}}}"
    code, output, error = command("evaluate", "run", "--data", asked, "--format", "json", "--accelerator", "cpu")
    assert code == 0 and json.loads(output)["documents"] == 4, error
    words = ("--data.path", data, "--data.global_batch", "2", "--trainer.accelerator", "cpu", "--track", "false")
    code, _, error = command("fit", "--config", "run/recipe.yaml", "--init_from", "run", "--run_dir", "tuned", *words)
    assert code == 0, error
    before, after = (open_model(run, accelerator="cpu").state_dict() for run in ("run", "tuned"))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"connector", "language"}
    assert command("export", "tuned", "--to", "out", "--format", "authors")[0] == 0
    published, exported = (json.loads(Path(file).read_text()) for file in ("run/published.json", "out/config.json"))
    files = TensorFiles([Path("out/model.safetensors")])
    listed = {n: [s.dtype, list(s.shape)] for n, s in files.stored.items()}
    assert listed == {n: entry for n, entry in published["tensors"].items() if ":" not in n}
    assert exported == hub.authors_config(mm_projector_type="mlp2x_gelu", image_aspect_ratio="pad")
    code, _, error = command("import", "out", "--with", f"vision={hub.clip(tmp_path / 'clip2')}", "--to", "again")
    assert code == 0, error
    again = open_model("again", accelerator="cpu").state_dict()
    assert all(torch.equal(again[name], after[name].to(torch.float16).float()) for name in after)


@pytest.mark.parametrize("old", [True, False])
def test_a_fine_tuned_checkpoint_of_transformers_is_exported_for_transformers(command, tmp_path, old) -> None:
    folder, data = hub.hf_next(tmp_path / "hub", old=old), conversation(tmp_path)
    assert command("import", folder, "--to", "run")[0] == 0
    words = ("--data.path", data, "--data.global_batch", "2", "--trainer.accelerator", "cpu", "--track", "false")
    code, _, error = command("fit", "--config", "run/recipe.yaml", "--init_from", "run", "--run_dir", "tuned", *words)
    assert code == 0, error
    code, output, error = command("export", "tuned", "--to", "out", "--format", "hf")
    assert code == 0 and "every tensor is the run's" in output, error
    ours, expected = logits(open_model("tuned", accelerator="cpu"), tmp_path / "out", (61, 20))
    before, _ = logits(open_model("run", accelerator="cpu"), folder, (61, 20))
    torch.testing.assert_close(ours, expected, rtol=0, atol=ATOL)
    assert (ours - before).abs().max() > 100 * ATOL


def test_a_rehearsal_exports_a_run_that_starts_from_an_imported_one(command, tmp_path) -> None:
    data, vision = conversation(tmp_path), hub.clip(tmp_path / "clip")
    place = hub.llava_1_5(tmp_path / "llava")
    assert command("import", place, "--with", f"vision={vision}", "--to", "run")[0] == 0
    words = ("--data.path", data, "--data.global_batch", "2", "--trainer.accelerator", "cpu")
    rehearsal = ("fit", "--config", "run/recipe.yaml", *words, "--trainer.fast_dev_run", "true")
    code, output, error = command(*rehearsal, "--init_from", "run")
    assert code == 0 and "its checkpoint loaded and exported; nothing is kept" in output, error


def test_an_untouched_import_is_exported_to_the_bytes_that_were_published(command, tmp_path) -> None:
    folder = hub.llava_next(tmp_path / "hub")
    assert command("import", folder, "--to", "run")[0] == 0
    code, _, error = command("export", "run", "--to", "out", "--format", "authors")
    assert code == 0, error
    published, exported = read_checkpoint(folder), read_checkpoint("out")
    assert published.keys() == exported.keys()
    for name, tensor in published.items():
        assert tensor.dtype == exported[name].dtype
        assert torch.equal(tensor.view(torch.int16), exported[name].view(torch.int16)), name


def test_missing_parts_are_named_with_what_belongs_there(command, tmp_path) -> None:
    folder = hub.llava_1_5(tmp_path / "llava")
    code, _, error = command("import", folder, "--to", "run")
    assert code == 2
    assert "has no vision encoder, which is openai/clip-vit-large-patch14-336. Add --with vision=" in error
    assert not Path("run").exists()


def test_a_projector_file_starts_at_stage_two(command, tmp_path) -> None:
    vision, language = hub.clip(tmp_path / "clip"), hub.vicuna(tmp_path / "vicuna")
    torch.save(hub.projector(), tmp_path / "mm_projector.bin")
    code, _, error = command("import", "mm_projector.bin", "--with", f"vision={vision}", "--to", "run")
    assert code == 2 and "--with language=lmsys/vicuna-7b-v1.5" in error
    words = ("--with", f"vision={vision}", "--with", f"language={language}", "--to", "run")
    code, _, error = command("import", "mm_projector.bin", *words)
    assert code == 0, error
    state = open_model("run", accelerator="cpu").state_dict()
    assert torch.equal(state["network.connector.mlp.2.weight"], hub.projector()["model.mm_projector.2.weight"].float())
    assert torch.equal(state["network.language.lm.lm_head.weight"], hub.llama()["lm_head.weight"].float())


def test_a_lora_is_merged_into_its_language_model(command, tmp_path) -> None:
    vision, language = hub.clip(tmp_path / "clip"), hub.vicuna(tmp_path / "vicuna")
    folder = tmp_path / "lora"
    linear = "model.layers.1.self_attn.q_proj"
    a, b = torch.randn(4, 32).half(), torch.randn(32, 4).half()
    prefix = f"base_model.model.{linear}.lora_"
    hub.write(folder, {}, hub.authors_config(mm_projector_type="mlp2x_gelu", image_aspect_ratio="pad"))
    (folder / "model.safetensors").unlink()
    torch.save({f"{prefix}A.weight": a, f"{prefix}B.weight": b}, folder / "adapter_model.bin")
    rest = {f"base_model.model.{name}": tensor for name, tensor in hub.projector().items()}
    torch.save(rest, folder / "non_lora_trainables.bin")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    words = ("--with", f"vision={vision}", "--with", f"language={language}", "--to", "run")
    code, _, error = command("import", folder, *words)
    assert code == 0, error
    state = open_model("run", accelerator="cpu").state_dict()
    expected = (hub.llama()[f"{linear}.weight"].float() + 2 * b.float() @ a.float()).half()
    assert torch.equal(state[f"network.language.lm.{linear}.weight"], expected.float())


def test_what_cannot_be_imported_is_refused(command, tmp_path) -> None:
    folder = hub.hf_next(tmp_path / "next")
    (tmp_path / "sat/global_step1000").mkdir(parents=True)
    other = hub.write(tmp_path / "other", hub.llama(), {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    cases = [
        (("sat",), "global_step1000"),
        ((other,), "model_type 'gpt2'"),
        (("nowhere.bin",), "no such file or folder"),
        ((folder, "--with", "vision=x"), "No such file"),
        ((folder, "--layout", "bird/authors"), "there is no layout 'bird/authors'"),
    ]
    for words, message in cases:
        code, _, error = command("import", *words, "--to", "run")
        assert code == 2 and message.lower() in error.lower(), error
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vision_feature_select_strategy": "full"}))
    code, _, error = command("import", folder, "--to", "run")
    assert code == 2 and "vision_feature_select_strategy is 'full'" in error
    assert not Path("run").exists()


def test_the_list_names_every_layout(command) -> None:
    code, output, _ = command("import", "--list")
    assert code == 0 and "llava_next/hf" in output and "llava-hf/llava-v1.6-vicuna-7b-hf" in output


def test_an_import_that_cannot_write_leaves_nothing(command, tmp_path, monkeypatch) -> None:
    folder = hub.hf_next(tmp_path / "hub")
    monkeypatch.setattr("lit_mm.checkpoints.importing.os.rename", full)
    code, _, error = command("import", folder, "--to", "run")
    assert code == 2 and "cannot be written (No space left on device)" in error
    assert not Path("run").exists()


def full(*places: object) -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")
