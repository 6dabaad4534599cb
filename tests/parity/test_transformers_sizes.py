"""Imported LLaVA-1.5 and LLaVA-NeXT agree with transformers' processor and model: ids, pixels, counts and logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lit_mm.cli import main
from lit_mm.commands.proof import Drawing
from lit_mm.commands.trained import open_model
from lit_mm.documents.document import Document, Turn
from lit_mm.samples.collate import collate
from tests import hub

SIZES = (  # (height, width), pixels
    *((337, 500), (1, 2000), (4000, 30), (336, 672), (1344, 336), (336, 336), (100, 100), (333, 333), (1000, 1001)),
    *((1001, 1000), (480, 640), (640, 480), (17, 900), (900, 17), (672, 672), (1008, 336), (335, 673), (1, 1), (2, 3)),
    *(
        (1500, 2250),
        (28, 28),
        (56, 28),
        (27, 57),
        (84, 28),
        (29, 29),
        (200, 40),
        (176, 198),
        (20, 61),
        (2000, 1),
        (7, 7),
    ),
)
KINDS: dict[str, tuple[Callable[..., Path], type]] = {
    "llava, cropped": (hub.hf_llava, LlavaProcessor),
    "llava, padded": (lambda folder: hub.hf_llava(folder, pad=True), LlavaProcessor),
    "llava_next": (hub.hf_next, LlavaNextProcessor),
}
STD = torch.tensor(hub.PIXELS["image_std"])[:, None, None]
LOGITS, PIXEL = 1e-4, 1 / 255


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Our imported model, and transformers' model and processor of the same folder."""
    place = tmp_path_factory.mktemp("sizes")
    write, kind = KINDS[request.param]
    folder = write(place / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit_mm"])
        main(["import", str(folder), "--to", str(place / "run"), "--proof_memory", "0"])
        # This check of classes imports every optional tokenizer of transformers, installed or not
        patch.setattr(kind, "check_argument_for_proper_class", lambda self, name, argument: type(argument))
        processor = kind(
            image_processor=AutoImageProcessor.from_pretrained(folder),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return open_model(str(place / "run"), accelerator="cpu"), theirs, processor


@torch.inference_mode()
def differences(pair: tuple[Any, Any, Any], *sizes: tuple[int, int]) -> tuple[float, float]:
    """Largest differences of logits and of pixels (of 1) for a question about images; the ids are equal."""
    ours, theirs, processor = pair
    pictures = [Drawing(*size) for size in sizes]
    question = Document("a", (Turn("user", (*pictures, "what is it?")),))
    batch = collate([ours.processor.sample(question)], ours.processor)
    ids = batch.ids.index_fill(1, batch.visual, hub.IMAGE_ID)
    text, _ = ours.processor.prompt.text(question)
    inputs = processor(text=f"<s>{text}", images=[picture.read() for picture in pictures] or None, return_tensors="pt")
    assert inputs["input_ids"].tolist() == ids.tolist()
    pixels = 0.0
    if pictures:
        views, expected = torch.cat(list(batch.views.groups)), inputs["pixel_values"]
        expected = expected.flatten(0, -4)
        expected = expected[expected.flatten(1).any(1)]  # transformers pads images to the largest number of views
        assert views.shape == expected.shape
        pixels = float(((views - expected) * STD).abs().max())
    every = replace(batch, supervised=torch.arange(batch.ids.shape[1]), labels=batch.ids[0])
    logits = ours.network.language.logits(ours.network(every).hidden)
    return float((logits - theirs(**inputs).logits[0]).abs().max()), pixels


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_image_of_any_size_gives_the_ids_pixels_and_logits_of_transformers(pair: Any, size: tuple[int, int]) -> None:
    logits, pixels = differences(pair, size)
    assert pixels < PIXEL and logits < LOGITS


def test_text_alone_and_two_images_give_the_ids_pixels_and_logits_of_transformers(pair: Any) -> None:
    for sizes in ((), ((337, 500), (640, 480)), ((56, 28), (100, 100))):
        logits, pixels = differences(pair, *sizes)
        assert pixels < PIXEL and logits < LOGITS
