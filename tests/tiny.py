"""A model, documents and a recipe that need seconds, for the tests of the core."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import Strategy
from PIL import Image
from rich.console import Console

from lit_mm.callbacks.checkpointing import Checkpointing
from lit_mm.callbacks.ledger import DataLedger
from lit_mm.callbacks.metrics_csv import MetricsCSV
from lit_mm.callbacks.steps import StepObserver
from lit_mm.checkpoints.writing import FolderCheckpointIO
from lit_mm.documents.document import Document, Turn
from lit_mm.families.decoder import Decoder
from lit_mm.families.xcomposer2 import XComposer2
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.run.folder import RunFolder
from lit_mm.run.stages import run_stages
from lit_mm.samples.batch import Batch
from lit_mm.samples.inputs import Inputs
from lit_mm.stages import Cosine
from lit_mm.stages.stage import Stage, Train, lasting_ends
from lit_mm.stream.datamodule import Source, StreamDataModule
from lit_mm.vision.vit import ViT

PROMPT = XComposer2Prompt("<|im_start|>", "<|im_end|>")
PARTS = ("vision", "connector", "partial_lora", "language")
WORDS = ("what", "is", "the", "colour", "of", "this", "large", "red", "circle", "near", "page", "ABC", "123", "?")


@dataclass(frozen=True)
class Noise:
    """A picture of random pixels."""

    seed: int
    height: int = 20
    width: int = 30

    def read(self) -> Image.Image:
        pixels = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def document(number: int, pictures: int | None = None, skill: str = "") -> Document:
    """Document `number` has one to three questions, and 0 to 2 pictures unless `pictures` sets their number."""
    rng = Random(number)
    shown = [Noise(10 * number + n) for n in range(number % 3 if pictures is None else pictures)]
    turns: list[Turn] = []
    for asked in range(rng.randint(1, 3)):
        question = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        parts = (*shown[:1], question, *shown[1:]) if not asked else (question,)  # the second stands behind the text
        turns += [Turn("user", parts), Turn("assistant", (" ".join(rng.choices(WORDS, k=rng.randint(1, 6))),))]
    return Document(f"tiny/{number}", tuple(turns), skill=skill)


def language(seed: int = 0) -> Llama:
    torch.manual_seed(seed)
    return Llama(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, vocab_size=512)


def xcomposer2(*, dropout: float = 0.0, trained: bool = False, max_length: int = 4096) -> XComposer2:
    """A model with one view of 2 x 2 visual tokens per picture.

    Args:
        trained: if True, the up-projections of the partial LoRA are random; in a new model they are zero.
    """
    decoder = language()
    vision = ViT(image_size=28, patch=14, width=16, layers=2, heads=2)
    module = XComposer2(
        vision,
        decoder,
        "nano",
        image_size=28,
        rank=4,
        dropout=dropout,
        inputs=Inputs(prompt=PROMPT, max_length=max_length),
    )
    if trained:
        for name, parameter in module.network.named_parameters():
            if module.part_of(name) == "partial_lora":
                torch.nn.init.normal_(parameter, std=0.2)
    return module


def sharp_xcomposer2() -> XComposer2:
    """A model with large random weights: attention is sharp, so answers depend on text, images and positions."""
    module = xcomposer2(trained=True)
    for name, parameter in module.network.language.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name else 0.4)
    return module


def decoder() -> Decoder:
    """The language model of `xcomposer2()` alone."""
    return Decoder(language(), "nano", PROMPT)


class Documents(StreamDataModule):
    """A source with `document(0)` to `document(count - 1)`."""

    def __init__(self, count: int = 24, **options: Any) -> None:
        super().__init__(**{"global_batch": 4, "row_tokens": 192, "window": 16, "num_workers": 0} | options)
        self.count = count

    def source(self) -> Source:
        return [document(number) for number in range(self.count)]

    def heldout(self, count: int | None = None) -> list[Document]:
        return [document(1000 + number, pictures=1) for number in range(count or 4)]


class Ledger(StepObserver):
    """This callback appends "stage micro-batch sample ids" to a file after every micro-batch.

    Micro-batches that a killed run repeats are there twice. With several ranks, each has a file
    `ledger-<ranks>-<rank>.txt`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultimodalModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        split = f"-{trainer.world_size}-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.path.with_stem(self.path.stem + split)
        with path.open("a") as file:
            file.write(" ".join([pl_module.stage.name, str(batch_idx), *batch.sample_ids]) + "\n")
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def stages(steps: int = 4) -> list[Stage]:
    """The published recipe in small: first the language model is frozen, then all parts are trained."""
    everything = {part: Train(lr=1e-2) for part in PARTS}
    frozen = {part: train for part, train in everything.items() if part != "language"}
    return [
        Stage("pretrain", frozen, max_steps=steps, schedule=Cosine(0.3)),
        Stage("finetune", everything, max_steps=steps),
    ]


def trainer(
    callbacks: Sequence[L.Callback] = (),
    *,
    max_steps: int = 1,
    accumulate_grad_batches: int = 1,
    ranks: int = 1,
    strategy: str | Strategy | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
) -> L.Trainer:
    return L.Trainer(
        devices=ranks,
        precision=precision,
        strategy=strategy or ("ddp" if ranks > 1 else "auto"),
        max_steps=max_steps,
        accumulate_grad_batches=accumulate_grad_batches,
        callbacks=list(callbacks),
        plugins=[FolderCheckpointIO()],
        accelerator=accelerator,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )


def run_recipe(
    module: MultimodalModule,
    recipe: list[Stage],
    folder: Path,
    *,
    callbacks: Sequence[L.Callback] = (),
    every: int = 2,
    seed: int = 0,
    ranks: int = 1,
    strategy: str | Callable[[], Strategy] | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    keep: int = 2,
    data_class: Callable[..., StreamDataModule] = Documents,
    **data: Any,
) -> None:
    """Run a recipe as `fit` does; `folder` gets metrics.csv, ledger files, ledger.txt and checkpoints. It resumes.

    Args:
        callbacks: callbacks that come before the one that writes metrics.csv.
        every: optimizer steps between checkpoints.
        ranks: number of processes of the run; this is one of them.
        strategy: a registered name, or a function that builds a strategy; by default ddp on several ranks.
        keep: number of checkpoints to keep.
        data_class, data: the data module and its arguments.
    """
    run_folder = RunFolder(folder)
    run_folder.checkpoints.mkdir(parents=True, exist_ok=True)
    observers = [
        *callbacks,
        Ledger(folder / "ledger.txt"),
        MetricsCSV(folder / "metrics.csv"),
        DataLedger(folder, Console(file=io.StringIO())),
        Checkpointing(run_folder.checkpoints, every, keep, lasting=lasting_ends(recipe)),
    ]
    run_stages(
        module,
        recipe,
        run_folder,
        data_of=lambda stage: data_class(**{**data, **stage.data}),
        trainer_of=lambda **changes: trainer(
            observers,
            ranks=ranks,
            strategy=strategy() if callable(strategy) else strategy,
            precision=precision,
            accelerator=accelerator,
            **changes,
        ),
        seed=seed,
    )


# The same model as a config has it
MODEL: dict[str, Any] = {
    "class_path": "lit_mm.families.XComposer2",
    "init_args": {
        "vision": {
            "class_path": "lit_mm.vision.vit.ViT",
            "init_args": {"image_size": 28, "patch": 14, "width": 16, "layers": 1, "heads": 2},
        },
        "language": {
            "class_path": "lit_mm.language.llama.Llama",
            "init_args": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32, "vocab_size": 512},
        },
        "tokenizer": "nano",
        "inputs": {
            "prompt": {
                "class_path": "lit_mm.prompts.xcomposer2.XComposer2Prompt",
                "init_args": {"turn_start": "<|im_start|>", "turn_end": "<|im_end|>"},
            },
        },
        "image_size": 28,
        "rank": 2,
    },
}
