"""Fuyu has the preprocessing, layout, embeddings, logits, loss, names and sizes of transformers' FuyuForCausalLM."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from PIL import Image
from torch import Tensor

import lit_mm.families.fuyu
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.documents.document import Document, Turn
from lit_mm.families import Fuyu
from lit_mm.language.pretrained import Pretrained
from lit_mm.prompts.fuyu import FuyuPrompt, resize_factor
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import RowsThenNewlines
from lit_mm.tiling.canvas import Canvas
from lit_mm.tiling.grids import PatchGrid
from lit_mm.vision.linear_patches import LinearPatches, flat_patches
from lit_mm.weights.convert import load_strict
from lit_mm.weights.fuyu import fuyu_to_model
from tests.rows import loss_sum, states
from tests.tokens import counter, rows_of

FILE = "fuyu_hf_tiny"
ATOL = 4e-6  # fp32 on a CPU, of the golden file
RTOL = 1e-6  # embeddings reach 20: the linear sums in another order for other numbers of patches, measured 8e-7
PAPER = Path(__file__).parents[2] / "experiments" / "paper" / "fuyu.yaml"
OLD = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_embed_tokens.", "vision_embed_tokens."),
)


@dataclass(frozen=True)
class Pixels:
    """A picture whose pixels are a [3, H, W] uint8 tensor."""

    values: Tensor

    @property
    def height(self) -> int:
        return self.values.shape[1]

    @property
    def width(self) -> int:
        return self.values.shape[2]

    def read(self) -> Image.Image:
        return Image.fromarray(self.values.permute(1, 2, 0).numpy())


def words(config: dict[str, Any]) -> Tokenizer:
    """A tokenizer in which the token with id 20 is the word w20, beside the special tokens of the golden file."""
    special = {
        "<s>": config["bos"],
        "</s>": config["eos"],
        "<0x04>": config["beginning_of_answer_id_used"],
        "|SPEAKER|": config["image_token_id"],
        "|NEWLINE|": config["image_newline_id_used"],
    }
    vocabulary = {f"w{number}": number for number in range(config["vocab_size"])}
    vocabulary = {word: number for word, number in vocabulary.items() if number not in special.values()} | special
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(list(special))
    return Tokenizer(model, bos="<s>", eos="</s>", pad="w0")


@pytest.fixture
def module(golden: Any, monkeypatch: pytest.MonkeyPatch) -> Fuyu:
    """The model of the golden file, with its weights."""
    config = golden.json(FILE)["config"]
    vision = LinearPatches(config["patch_size"], config["hidden_size"])
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    keys += ("rope_parameters", "layer_norm_eps")
    language = Pretrained({"model_type": "persimmon"} | {key: config[key] for key in keys})
    monkeypatch.setattr("lit_mm.families.composition.load_tokenizer", lambda reference: words(config))
    canvas = golden.tensors(FILE)["preprocess.padded"].shape[-2:]
    prompt = Inputs(prompt=FuyuPrompt(tuple(canvas), question="{question}"))
    model = Fuyu(vision, language, "words", canvas=tuple(canvas), inputs=prompt).eval()
    load_strict(model, fuyu_to_model(golden.tensors(FILE, "weight.")))
    return model


def test_an_image_becomes_the_patches_of_the_reference(golden: Any, module: Fuyu) -> None:
    tensors = golden.tensors(FILE, "preprocess.")
    document = Document("image", (Turn("user", (Pixels(tensors["image_uint8"]), "w20")),))
    (view,) = module.processor.views(module.processor.sample(document))
    height, width = view.shape[1:]
    torch.testing.assert_close(view, tensors["padded"][:, :height, :width], rtol=0, atol=ATOL)
    patches = flat_patches(view[None], module.network.vision.patch)
    torch.testing.assert_close(patches, tensors["patches"], rtol=0, atol=ATOL)


def cut(ids: list[int], config: dict[str, Any]) -> tuple[tuple[int, int] | None, list[int], list[int], list[int]]:
    """Take a golden row apart: grid of patches, ids without padding, ids of the question, ids of the answer."""
    ids = [number for number in ids if number]
    image, newline = config["image_token_id"], config["image_newline_id_used"]
    rows, columns = ids.count(newline), ids.index(newline) if newline in ids else 0
    assert ids.count(image) == rows * columns
    text = ids[rows * (columns + 1) + 1 :]
    start = config["beginning_of_answer_id_used"]
    question, answer = (text[: text.index(start)], text[text.index(start) + 1 :]) if start in text else (text, [])
    return (rows, columns) if rows else None, ids, question, [number for number in answer if number != config["eos"]]


def written(ids: list[int]) -> str:
    return " ".join(f"w{number}" for number in ids)


@pytest.mark.golden_cases(FILE)
@torch.inference_mode()
def test_embeddings_logits_and_loss_are_those_of_the_reference(golden: Any, module: Fuyu, case: dict[str, Any]) -> None:
    config, tensors = golden.json(FILE)["config"], golden.tensors(FILE, f"{case['name']}.")
    patch, processor = module.network.vision.patch, module.processor
    samples, views, expected_ids, start = [], [], [], 0
    for number, row in enumerate(case["input_ids"]):
        grid, ids, question, answer = cut(row, config)
        expected_ids.append(ids)
        pictures: tuple = ()
        if grid is not None:
            count = grid[0] * grid[1]
            patches = tensors["patches"].flatten(0, -2)[start : start + count]
            cells = patches.unflatten(0, grid).unflatten(2, (patch, patch, 3))  # [rows, columns, P, P, 3]
            pixels = cells.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)  # [3, H, W]
            views.append([pixels])
            pictures = (Pixels(torch.zeros(pixels.shape, dtype=torch.uint8)),)
            start += count
        else:
            views.append([])
        turns = (Turn("user", (*pictures, written(question))),)
        turns += (Turn("assistant", (written(answer),)),) if answer else ()
        samples.append(processor.sample(Document(str(number), turns)))
    for sample, ids in zip(samples, expected_ids, strict=True):  # a prompt of text alone ends with a marker in addition
        pairs = zip(sample.index, sample.input_ids, strict=True)
        shown = [config["image_token_id"] if at >= 0 else int(i) for at, i in pairs]
        assert shown[: len(ids)] == ids
    if case["labels"] is not None:
        assert samples[0].labels.tolist() == case["labels"][0]
    batch = collate(samples, processor, views=views)
    embeds, logits = module.network.embed(batch)[0], module.network.language.logits(states(module.network, batch))
    first = 0
    for number, (sample, ids) in enumerate(zip(samples, expected_ids, strict=True)):
        stretch = slice(first, first + len(ids))
        for got, name in ((embeds, "input_embeds"), (logits, "logits")):
            expected = tensors[name][number][-len(ids) :]
            torch.testing.assert_close(got[stretch], expected, rtol=RTOL, atol=ATOL, msg=f"{name} of sample {number}")
        first += len(sample)
    if case["loss"] is not None:
        assert loss_sum(module, batch).item() / batch.num_supervised == pytest.approx(case["loss"], abs=ATOL)


def test_the_names_of_older_files_give_the_same_weights(golden: Any, module: Fuyu) -> None:
    published = golden.tensors(FILE, "weight.")
    older = {}
    for name, tensor in published.items():
        prefix, other = next(pair for pair in OLD if name.startswith(pair[0]))
        older[other + name.removeprefix(prefix)] = tensor
    older["language_model.model.rotary_emb.inv_freq"] = torch.zeros(3)
    expected = fuyu_to_model(published)
    assert fuyu_to_model(older).keys() == expected.keys() == dict(module.state_dict()).keys()
    assert "model.stray" in fuyu_to_model({"model.stray": torch.zeros(1)})


def test_every_size_has_the_layout_of_the_reference(golden: Any) -> None:
    table = golden.json("fuyu_layout")
    defaults = table["defaults"]
    patch, canvas = defaults["patch"], (defaults["max_height"], defaults["max_width"])
    tiling = Canvas(*canvas, patch)
    processor = counter(tiling, PatchGrid(patch, "patches"), RowsThenNewlines("\n"))
    for row in rows_of(table):
        height, width = row["image_h"], row["image_w"]
        (view,) = tiling(height, width).views
        assert view.resize == (row["resized_h"], row["resized_w"]), row
        assert view.size == (row["cropped_h"], row["cropped_w"]), row
        assert processor.visual_tokens(height, width) == row["image_tokens_with_newlines"], row
        assert resize_factor(height, width, canvas) == pytest.approx(row["scale_factor"], abs=1e-8), row
    fill = lit_mm.families.fuyu.ALMOST_BLACK[0]
    assert (fill / 255 - 0.5) / 0.5 == pytest.approx(defaults["normalized_pad_value"], abs=1e-6)


def test_the_published_recipe_has_the_published_size(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = golden.json("cog_fuyu_mgm_params")["counts"]["fuyu_8b"]
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    with torch.device("meta"):
        model = RecipeCLI(["--config", str(PAPER), "--model.init_args.tokenizer", "nano"], "fit").model
    parts = {part: sum(p.numel() for p in tensors.values()) for part, tensors in model.parts().items()}
    assert parts == {
        "vision": published["vision_embed_tokens"],
        "language": published["total"] - published["vision_embed_tokens"],
    }
    assert model.processor.visual_tokens(1080, 1920) == 2340
    assert model.network.language.lm.config.rope_parameters["rope_theta"] == 25000
