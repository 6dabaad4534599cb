"""A BLIP-2 and its recipe that need seconds, for tests."""

from __future__ import annotations

from typing import Any

import torch

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.families import Blip2
from lit_mm.language.llama import Llama
from lit_mm.language.protocol import LanguageModel
from lit_mm.language.t5 import T5
from lit_mm.prompts.blip2 import Blip2Caption, PrefixSplit
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.reading import Reading
from lit_mm.stages.stage import Stage, Train
from lit_mm.vision.vit import ViT

PARTS = ("vision", "connector", "text_branch", "text_head", "contrast", "matching", "projection", "language")
FIRST = ("connector", "text_branch", "text_head", "contrast", "matching")
READING = Reading("nano", first_id=512, last_id=513, max_length=24)
PAIRS = {"itc": 1.0, "itm": 1.0, "itg": 1.0}


def qformer(vision_width: int, language_width: int, **options: Any) -> PairedQFormer:
    sizes: dict[str, Any] = {"queries": 4, "width": 16, "layers": 2, "heads": 2, "ffn_width": 24, "max_positions": 32}
    texts: dict[str, Any] = {"vocab_size": 515, "head": True, "contrast_width": 8, "decoder_id": 514}
    return PairedQFormer(vision_width, language_width, **(sizes | texts | {"dropout": 0.0} | options))


def language(kind: str = "decoder") -> LanguageModel:
    """A tiny language model: a "decoder", or an "encoder-decoder"."""
    if kind == "decoder":
        return Llama(width=24, layers=1, heads=2, kv_heads=2, ffn_width=32, vocab_size=512)
    return T5(24, layers=1, heads=2, ffn_width=32, vocab_size=512)


def blip2(kind: str = "decoder", seed: int = 0, **options: Any) -> Blip2:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "vision": ViT(image_size=28, patch=14, width=16, layers=1, heads=2, drop_cls=False),
        "language": language(kind),
        "connector": qformer,
        "reading": READING,
        "image_size": 28,
        "candidates": 2,
        "inputs": Inputs(prompt=Blip2Caption(clean=False) if kind == "decoder" else PrefixSplit(clean=False)),
    }
    return Blip2(tokenizer="nano", **(arguments | options))


def stages(steps: int = 2) -> list[Stage]:
    """All published stages: representation, generation, and the captioner and the retrieval model that branch off."""
    rates = {part: Train(lr=1e-2) for part in PARTS}
    writes = ("connector", "projection")
    return [
        Stage("represent", {part: rates[part] for part in FIRST}, max_steps=steps, objectives=dict(PAIRS)),
        Stage("generate", {part: rates[part] for part in writes}, max_steps=steps),
        Stage("caption", {part: rates[part] for part in ("vision", *writes)}, max_steps=steps),
        Stage(
            "retrieval",
            {part: rates[part] for part in ("vision", *FIRST)},
            max_steps=steps,
            objectives=dict(PAIRS),
            starts_from="represent",
        ),
    ]
