"""Parameter counts of BLIP at published size, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_mm.language.med import MED
from lit_mm.vision.timm_vit import TimmViT

BASE: dict[str, Any] = {}
LARGE = {"width": 1024, "layers": 24, "heads": 16}


def count(module: torch.nn.Module, *pieces: str) -> int:
    """Number of parameters whose names contain one of `pieces`; without pieces, of all."""
    return sum(p.numel() for name, p in module.named_parameters() if not pieces or any(x in name for x in pieces))


@pytest.fixture(scope="module")
def base() -> tuple[TimmViT, MED]:
    with torch.device("meta"):
        return TimmViT(), MED(768, 30524)


def test_parts_of_base_have_the_published_counts(golden: Any, base: tuple[TimmViT, MED]) -> None:
    expected, (vision, text) = golden.json("blip_params")["blip_med_vitb16_224"], base
    assert count(vision) == expected["vision"]
    assert count(text) - count(text, "decoder_attention", "head.") == expected["text_encoder_with_cross_attention"]
    assert count(text, "decoder_attention") == expected["self_attention_12_layers"]
    assert count(text, ".cross.") == expected["cross_attention_12_layers"]
    assert count(text, "head.") == expected["lm_head_extra"]
    assert count(vision) + count(text) == expected["total_all_except_SA_shared(default)"]


@pytest.mark.parametrize(
    ("name", "size", "image_size"),
    [
        ("blip_vit_base_224", BASE, 224),
        ("blip_vit_base_384", BASE, 384),
        ("blip_vit_large_224", LARGE, 224),
        ("blip_vit_large_384", LARGE, 384),
    ],
)
def test_vision_encoders_have_the_published_counts(
    golden: Any, name: str, size: dict[str, Any], image_size: int
) -> None:
    with torch.device("meta"):
        vision = TimmViT(image_size, **size)
    assert count(vision) == golden.json("blip_params")["hf_models"][name]["total"]


def test_text_stacks_of_large_have_the_published_counts(golden: Any) -> None:
    models = golden.json("blip_params")["hf_models"]
    with torch.device("meta"):
        text = MED(LARGE["width"], 30524)
    captioner = models["blip_large_384_BlipForConditionalGeneration"]["modules"]["text_decoder"]
    retrieval = models["blip_large_384_BlipForImageTextRetrieval"]["modules"]["text_encoder"]
    assert count(text) - count(text, "encoder_attention") == captioner
    assert count(text) - count(text, "decoder_attention", "head.") == retrieval
