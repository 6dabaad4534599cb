"""This program trains ranks with unequal batches under every engine: `python -m tests.uneven FOLDER ENGINE...`.

Each engine trains the same steps on two processes or one, and writes gradients and loss of every step, the content of
each rank's batches, and how often each rank called its vision encoder. Then both ranks answer different questions. In a
second stage steps have twice the rows: two processes accumulate two micro-batches, one process does not accumulate.
`MODEL@ENGINE` trains another model than XComposer2, see `MODELS`. The freeze audit watches those that `TRAINED` names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from deepspeed.utils import safe_get_full_grad
from lightning.pytorch.strategies import Strategy

from lit_mm.callbacks.freeze_audit import FreezeAudit
from lit_mm.distributed.zero import ZeRO
from lit_mm.documents.document import Document
from lit_mm.families import Recombined
from lit_mm.inference.generate import answer
from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import Batch
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.datamodule import Source
from lit_mm.tiling import Stretch
from lit_mm.vision.timm_encoder import TimmEncoder
from tests import tiny_instructblip
from tests.families import test_cogagent, test_cogvlm, test_recombined_pretrained, test_recombined_t5
from tests.forked import run_ranks
from tests.tiny import PARTS, PROMPT, Documents, document, language, trainer, xcomposer2
from tests.tiny_blip2 import blip2
from tests.tiny_instructblip import instructblip
from tests.tiny_minigpt4 import minigpt4


def with_timm() -> Recombined:
    """A model with a vision encoder of timm."""
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3}
    vision = TimmEncoder("vit_base_patch14_reg4_dinov2", image_size=28, overrides=sizes)
    return Recombined(vision, language(), "nano", Inputs(Stretch(28), prompt=PROMPT))


MODELS: dict[str, Callable[[], MultimodalModule]] = {
    "": lambda: xcomposer2(trained=True),
    "cogvlm": test_cogvlm.build,
    "cogagent": test_cogagent.build,
    "opt": partial(test_recombined_pretrained.build, "opt"),
    "gemma3": partial(test_recombined_pretrained.build, "gemma3_text"),
    "t5": test_recombined_t5.build,
    "timm": with_timm,
    "instructblip": instructblip,
    "blip2": blip2,
    "minigpt4": minigpt4,
}
TRAINED = {  # model -> parts that its last stage trains, if others are frozen
    "instructblip": tiny_instructblip.TUNED,
    "blip2": ("connector", "projection"),
    "minigpt4": ("projection",),
}


def one_question(number: int, pictures: int) -> Document:
    """A document of one question with pictures."""
    return tiny_instructblip.question(number, pictures=pictures)


def always_pictured(number: int, pictures: int) -> Document:
    """A document of one question with at least one picture, for families that refuse a text alone."""
    return one_question(number, max(pictures, 1))


DOCUMENTS = {"instructblip": one_question, "blip2": always_pictured, "minigpt4": always_pictured}
EVERYTHING = Stage("all", {part: Train(lr=1e-12) for part in PARTS}, max_steps=6, clip=0.0)  # AdamW enlarges rounding
PICTURES = (0, 5, 1, 0, 0, 5, 1, 1, 0, 0, 5, 0)  # of the documents, of which each step takes two
ACCUMULATING = replace(EVERYTHING, name="accumulating", max_steps=3)
ENGINES = ("alone", "ddp", "zero1", "zero2", "zero3")


class Uneven(Documents):
    """A stream with one document per row and two or four rows per step, one per rank and micro-batch or all in one."""

    def __init__(self, global_batch: int, ranks: int, write: Callable[[int, int], Document]) -> None:
        micro_batch = global_batch if ranks == 1 else 1
        self.write = write
        super().__init__(global_batch=global_batch, micro_batch=micro_batch, row_tokens=None, window=2)

    def source(self) -> Source:
        return [self.write(number, pictures) for number, pictures in enumerate(PICTURES)]


class Seen(L.Callback):
    def __init__(self, write: Callable[[int, int], Document]) -> None:
        self.write = write
        self.steps: list[dict[str, Any]] = []
        self.calls = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.network.vision.register_forward_pre_hook(self._called)

    def _called(self, *_: object) -> None:
        self.calls += 1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.calls = 0
        pictures = batch.num_views if len(batch.visual) else 0
        self.steps.append({"pictures": pictures})

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if len(self.steps) % trainer.accumulate_grad_batches:
            return  # DeepSpeed's engine is asked for a step after every micro-batch
        gradients = {}
        for name, parameter in pl_module.network.named_parameters():
            if not parameter.requires_grad:
                continue
            gradients[name] = safe_get_full_grad(parameter).detach().float().clone()
        self.steps[-1] |= {"gradients": gradients}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.steps[-1] |= {"calls": self.calls, "loss": pl_module.micro_loss.clone()}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last rank stops after one token and the others go on; with a sharded model they go on together."""
        if pl_module.stage.name == ACCUMULATING.name:
            return
        answers_at_once = trainer.global_rank == trainer.world_size - 1 > 0
        stop_ids = frozenset(range(512)) if answers_at_once else frozenset[int]()
        with patch.object(type(pl_module.processor.prompt), "stop_ids", lambda *_: stop_ids):
            mine = [self.write(100 + trainer.global_rank, trainer.global_rank)]
            self.answers = answer(pl_module, mine, max_new_tokens=5)


def strategy_of(engine: str) -> str | Strategy:
    if engine in ("alone", "ddp"):
        return "auto" if engine == "alone" else "ddp"
    return ZeRO(int(engine[-1]), keep_whole=100, bucket=1 << 20)


def run(label: str, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    model, _, engine = label.rpartition("@")
    ranks = 1 if engine == "alone" else 2
    torch.manual_seed(0)
    module = MODELS[model]()
    write = DOCUMENTS.get(model, document)
    audit = [FreezeAudit()] if model in TRAINED else []
    rate = 1e-8 if audit else 1e-12  # a trained part has to move
    parts = {part: Train(lr=rate) for part in TRAINED.get(model, module.parts())}
    everything, accumulating_stage = (replace(stage, train=parts) for stage in (EVERYTHING, ACCUMULATING))
    attributes = {name: set(vars(part)) for name, part in module.network.named_modules()}

    def train(stage: Stage, global_batch: int) -> Seen:
        seen, data = Seen(write), Uneven(global_batch, ranks, write)
        module.begin(stage, total_steps=data.begin(module.processor, stage, seed=2, rank=rank, world=ranks))
        trainer(
            [seen, *audit],
            max_steps=stage.max_steps,
            accumulate_grad_batches=data.stream.accumulation,
            ranks=ranks,
            strategy=strategy_of(engine),
        ).fit(module, data)
        return seen

    seen, accumulating = train(everything, global_batch=2), train(accumulating_stage, global_batch=4)
    left = {a for name, part in module.network.named_modules() for a in vars(part).keys() - attributes[name]}
    kept = {"steps": seen.steps, "answers": seen.answers, "accumulating": accumulating.steps, "left": sorted(left)}
    torch.save(kept, folder / f"{label}-{rank}.pt")


def main(folder: str, *engines: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for engine in engines:
        run_ranks(partial(run, engine, Path(folder)), 1 if engine.endswith("alone") else 2)


if __name__ == "__main__":
    main(*sys.argv[1:])
