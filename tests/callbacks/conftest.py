"""A recipe of two stages on a model of three linear layers, run by the real Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_mm.checkpoints import reading, writing
from lit_mm.documents.document import Document, Turn
from lit_mm.module import MultimodalModule, family_of
from lit_mm.samples.batch import Batch
from lit_mm.stages import Cosine
from lit_mm.stages.stage import Stage, Train

ACCUMULATION, WIDTH = 2, 4


@dataclass(frozen=True)
class Patch:
    width: int = 12
    height: int = 8

    def read(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height), "teal")


class TinyNetwork(nn.Module):
    """A network that returns the sum of a squared error over the supervised tokens, with random dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.connector = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.language, self.dropout = nn.Linear(WIDTH, 1), nn.Dropout(0.2)

    def forward(self, batch: Batch) -> Tensor:
        x = batch.ids[0, :, None].float() / torch.tensor([1.0, 3.0, 7.0, 11.0])  # [T, W]
        x = self.dropout(torch.tanh(self.connector(torch.tanh(self.vision(x)))))
        error = (self.language(x).squeeze(-1) - batch.ids[0] / 10) ** 2
        return error[batch.supervised].sum()


class SquaredError:
    """The loss of `TinyNetwork`."""

    unit, parts = "tokens", None

    def __call__(self, model: TinyNetwork, batch: Batch) -> Tensor:
        return model(batch)


def tiny_batch(number: int) -> Batch:
    """Micro-batch `number`: two samples of four and three positions, of which 6 are supervised."""
    ids = torch.tensor([0, 1, 2, 3, 5, 6, 7]) + number
    none = torch.zeros(0, dtype=torch.long)
    supervised = torch.arange(1, 7)
    return Batch(
        ids=ids[None],
        lengths=(4, 3),
        positions=torch.tensor([[0, 1, 2, 3, 0, 1, 2]]),
        visual=none,
        bank=none,
        supervised=supervised,
        labels=ids[supervised],
        sample_ids=(),
        units={"tokens": 6 * ACCUMULATION},
    )


class TinyStream:
    """A stream of micro-batch numbers from optimizer step `first_step` on; its length is that of the whole stage."""

    def __init__(self, first_step: int, steps: int) -> None:
        self.first_step, self.steps = first_step, steps

    def __len__(self) -> int:
        return self.steps * ACCUMULATION

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first_step * ACCUMULATION, self.steps * ACCUMULATION))


class TinyBatches(torch.utils.data.Dataset):
    def __getitem__(self, number: int) -> Batch:
        return tiny_batch(number)


class TinyData(L.LightningDataModule):
    def __init__(self, steps: int, first_step: int) -> None:
        super().__init__()
        self.steps, self.first_step = steps, first_step

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TinyBatches(), sampler=TinyStream(self.first_step, self.steps), batch_size=None)

    def heldout(self, count: int | None = None) -> list[Document]:
        return held_out(count or 4)


def held_out(count: int) -> list[Document]:
    """Held-out documents that alternate between the skills "read" and "count"."""
    return [
        Document(
            id=f"{number}",
            turns=(Turn("user", (Patch(), f"question {number}")), Turn("assistant", (f"answer {number}",))),
            skill=("read", "count")[number % 2],
        )
        for number in range(count)
    ]


@dataclass
class Recipe:
    """A recipe runs its stages in order, each with a fresh Trainer."""

    folder: Path
    stages: list[Stage]

    def module(self) -> MultimodalModule:
        torch.manual_seed(0)
        return MultimodalModule(TinyNetwork(), processor=lambda: None, objectives={"error": SquaredError()})

    def run(
        self,
        module: MultimodalModule,
        callbacks: Sequence[L.Callback],
        *,
        loggers: Sequence[L.pytorch.loggers.Logger] = (),
        first: int = 0,
        checkpoint: Path | None = None,
        steps_done: int = 0,
    ) -> None:
        """Run the stages from number `first` on; the first one resumes from `checkpoint` after `steps_done` steps."""
        for number, stage in enumerate(self.stages):
            if number < first:
                continue
            resumed = checkpoint is not None and number == first
            if resumed:
                reading.load_weights(module, reading.read(checkpoint), family_of(module))
            module.begin(stage, total_steps=stage.max_steps, first_step=sum(s.max_steps for s in self.stages[:number]))
            trainer = L.Trainer(
                max_steps=stage.max_steps,
                accumulate_grad_batches=ACCUMULATION,
                callbacks=list(callbacks),
                plugins=[writing.FolderCheckpointIO()],
                logger=list(loggers) or False,
                accelerator="cpu",
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=any(isinstance(c, L.pytorch.callbacks.ProgressBar) for c in callbacks),
                default_root_dir=self.folder,
                use_distributed_sampler=False,
            )
            data = TinyData(stage.max_steps, steps_done if resumed else 0)
            trainer.fit(module, data, ckpt_path=checkpoint if resumed else None, weights_only=True)


class Killed(Exception):
    """This exception replaces kill -9."""


class SaveThenDie(L.Callback):
    """This callback saves after optimizer step `save_at` of the stage and raises `Killed` after step `die_at`."""

    def __init__(self, path: Path, stage: str, save_at: int, die_at: int) -> None:
        self.path, self.stage, self.save_at, self.die_at = path, stage, save_at, die_at

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: MultimodalModule, *_: object) -> None:
        if pl_module.stage.name != self.stage:
            return
        if trainer.global_step == self.save_at and not self.path.exists():
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.die_at:
            raise Killed


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(
        tmp_path,
        [
            Stage("pretrain", train={"connector": Train(lr=1e-2)}, max_steps=4, schedule=Cosine(0.5)),
            Stage("finetune", train={"connector": Train(lr=5e-3), "language": Train(lr=1e-3)}, max_steps=3),
        ],
    )


@pytest.fixture
def killed() -> type[Exception]:
    return Killed


@pytest.fixture
def save_then_die() -> type[L.Callback]:
    return SaveThenDie


@pytest.fixture
def documents() -> Callable[[int], list[Document]]:
    return held_out
