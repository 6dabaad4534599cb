"""An InstructBLIP and its recipe that need seconds, for tests."""

from __future__ import annotations

from typing import Any

import torch

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.documents.document import Document, Turn
from lit_mm.families import InstructBlip
from lit_mm.prompts.blip2 import Blip2Caption, PrefixSplit
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.reading import Reading
from lit_mm.stages.stage import Stage, Train
from lit_mm.vision.vit import ViT
from tests.tiny import WORDS, Noise
from tests.tiny_blip2 import FIRST, PAIRS, language, qformer

READING: dict[str, Any] = {"tokenizer": "nano", "first_id": 512, "last_id": 513, "max_length": 24}
TUNED = ("connector", "text_branch", "projection")


def reading_qformer(vision_width: int, language_width: int, **options: Any) -> PairedQFormer:
    return qformer(vision_width, language_width, **({"reads_text": True} | options))


def instructblip(kind: str = "decoder", seed: int = 0, **options: Any) -> InstructBlip:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "vision": ViT(image_size=28, patch=14, width=16, layers=1, heads=2, drop_cls=False),
        "language": language(kind),
        "connector": reading_qformer,
        "reading": Reading(text="instruction", cut="left", **READING),
        "image_size": 28,
    }
    return InstructBlip(tokenizer="nano", **(arguments | options))


def question(number: int, instruction: str | None = None, response: str | None = None, pictures: int = 1) -> Document:
    texts = (
        instruction or f"what is {WORDS[number % len(WORDS)]}",
        response or " ".join(WORDS[(number * 3 + k) % len(WORDS)] for k in range(1 + number % 3)),
    )
    shown = (Noise(number + 1000 * n) for n in range(pictures))
    return Document(f"question/{number}", (Turn("user", (*shown, texts[0])), Turn("assistant", (texts[1],))))


def stages(kind: str = "decoder", steps: int = 1) -> list[Stage]:
    """All published stages: both of BLIP-2, then instruction tuning."""
    rates = {part: Train(lr=1e-2) for part in (*FIRST, "projection")}
    caption = Blip2Caption(clean=False) if kind == "decoder" else PrefixSplit(clean=False)
    inputs = {text: Inputs(prompt=caption, reading=Reading(text=text, **READING)) for text in ("caption", "none")}
    generate = {part: rates[part] for part in ("connector", "projection")}
    return [
        Stage(
            "represent",
            {part: rates[part] for part in FIRST},
            max_steps=steps,
            objectives=dict(PAIRS),
            inputs=inputs["caption"],
        ),
        Stage("generate", generate, max_steps=steps, objectives={"next_token": 1.0}, inputs=inputs["none"]),
        Stage("instruct", {part: rates[part] for part in TUNED}, max_steps=steps, objectives={"next_token": 1.0}),
    ]
