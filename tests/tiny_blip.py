"""A BLIP, its pages and its recipe that need seconds, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_mm.checkpoints.digests import digest
from lit_mm.documents.document import Document, Turn
from lit_mm.families import Blip
from lit_mm.language.med import MED
from lit_mm.module import MultimodalModule
from lit_mm.prompts.caption import Caption
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.datamodule import Source, StreamDataModule
from lit_mm.vision.timm_vit import TimmViT
from tests.tiny import WORDS, Noise

PARTS = ("vision", "text", "encoder", "decoder", "contrast", "matching")


def blip(seed: int = 0, prompt: Caption | None = None, dropout: float = 0.0, **options: Any) -> Blip:
    torch.manual_seed(seed)
    return Blip(
        TimmViT(32, 16, 16, layers=1, heads=2),
        MED(16, 515, 16, layers=2, heads=2, ffn_width=24, max_positions=48, dropout=dropout),
        "nano",
        encoder_id=512,
        decoder_id=513,
        grounded_id=514,
        width=8,
        queue_size=8,
        inputs=Inputs(prompt=prompt or Caption(513, clean=False)),
        **options,
    )


def page(number: int) -> Document:
    text = " ".join(WORDS[(number * 7 + k) % len(WORDS)] for k in range(2 + number % 5))
    turns = (Turn("user", (Noise(number), "describe the image")), Turn("assistant", (text,)))
    return Document(f"page/{number}", turns)


class Pages(StreamDataModule):
    """Pages with captions, one per row."""

    def __init__(self, count: int = 24, **options: Any) -> None:
        super().__init__(**{"global_batch": 4, "num_workers": 0, "window": 16} | options)
        self.count = count

    def source(self) -> Source:
        return [page(number) for number in range(self.count)]

    def heldout(self, count: int | None = None) -> list[Document]:
        return [page(100 + number) for number in range(count or 4)]


def stages(steps: int = 3) -> list[Stage]:
    rates = {part: Train(lr=1e-2) for part in PARTS}
    writes, compares = ("vision", "text", "decoder"), ("vision", "text", "encoder", "contrast", "matching")
    return [
        Stage("pretrain", rates, max_steps=steps, objectives={"itc": 1, "itm": 1, "lm": 1}),
        Stage("caption", {part: rates[part] for part in writes}, max_steps=steps, objectives={"lm": 1}),
        Stage(
            "retrieval",
            {part: rates[part] for part in compares},
            max_steps=steps,
            objectives={"itc_finetune": 1, "itm_finetune": 1},
            starts_from="pretrain",
            inputs=Inputs(image_ids=True),
        ),
    ]


class Buffers(L.Callback):
    """Writes a digest of every buffer of each rank at the end of a stage to "buffers-<stage>-<rank>.txt"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        lines = [f"{name} {digest(buffer)}" for name, buffer in sorted(pl_module.network.named_buffers())]
        file = self.folder / f"buffers-{pl_module.current_stage.name}-{trainer.global_rank}.txt"
        file.write_text("\n".join(lines))
