"""This program runs `tests.uneven` with other families: `python -m tests.uneven_families FAMILY FOLDER ENGINE...`.

The pictures of the documents differ in size, from one document to the next.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.families import Fuyu, MiniGemini
from lit_mm.module import MultimodalModule
from lit_mm.prompts.fuyu import FuyuPrompt
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.vision.dual import DualEncoder
from lit_mm.vision.linear_patches import LinearPatches
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.vision.vit import ViT
from tests import tiny, uneven

CANVAS = (60, 90)
FINE = "convnext_large_mlp.clip_laion2b_ft_soup_320"


def fuyu(**_: object) -> Fuyu:
    language = tiny.language()
    inputs = Inputs(prompt=FuyuPrompt(CANVAS, answer_start="<|im_start|>"))
    return Fuyu(LinearPatches(10, 32), language, "nano", canvas=CANVAS, newline="\n", inputs=inputs)


def mini_gemini(**_: object) -> MiniGemini:
    language = tiny.language()
    sizes = {"depths": [1, 1, 1, 1], "dims": [4, 8, 12, 16]}
    high = TimmEncoder(FINE, image_size=64, pyramid=True, overrides=sizes)
    vision = DualEncoder(ViT(28, 14, 16, layers=2, heads=2), high, tiles=2, overview=True)
    return MiniGemini(vision, language, "nano")


FAMILIES = {"fuyu": fuyu, "mini_gemini": mini_gemini}


def sized(number: int, pictures: int | None = None) -> Document:
    """`tests.tiny.document` with pictures of many sizes."""
    document = tiny.document(number, pictures)

    def resized(part: object) -> object:
        if isinstance(part, str):
            return part
        return tiny.Noise(part.seed, 10 + 7 * (part.seed * 3 % 9), 12 + 11 * (part.seed % 5))

    return replace(document, turns=tuple(Turn(turn.role, tuple(map(resized, turn.parts))) for turn in document.turns))


def main(family: str, folder: str, *engines: str) -> None:
    build: type[MultimodalModule] = FAMILIES[family]
    torch.manual_seed(0)
    train = {part: Train(lr=1e-12) for part in build().parts()}  # AdamW enlarges rounding
    uneven.xcomposer2, uneven.document = build, sized
    uneven.EVERYTHING = Stage("all", train, max_steps=6, clip=0.0)
    uneven.ACCUMULATING = replace(uneven.EVERYTHING, name="accumulating", max_steps=3)
    uneven.main(folder, *engines)


if __name__ == "__main__":
    main(*sys.argv[1:])
