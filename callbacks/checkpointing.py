"""Publishes checkpoints while a stage runs and at its end, and keeps the last few and the best."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import lightning as L

from callbacks.steps import Step, StepObserver
from lit_mm.checkpoints.manifest import checkpoint_name, published
from lit_mm.checkpoints.reading import read
from lit_mm.checkpoints.writing import remove
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule


class Checkpointing(StepObserver):
    """Saves every n optimizer steps of a stage, and at its end.

    Put it last in `Trainer.callbacks`: a checkpoint then appears after everything else about its step is on disk.

    Args:
        folder: of the run's checkpoints.
        every: optimizer steps between checkpoints.
        keep: how many of the last are kept.
        score_at: optimizer step, counted through all stages, -> how good the model was then, None if nobody asked. The
            best of the checkpoints with a score is kept, too.
        lasting: stages of which the last checkpoint is kept, see `lit_mm.stages.stage.lasting_ends`.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 100,
        keep: int = 2,
        score_at: Callable[[int], float | None] = lambda step: None,
        lasting: Collection[str] = (),
    ) -> None:
        if every < 1 or keep < 1:
            raise UserError(
                f"`checkpoint_every` is at least 1 step and at least one checkpoint is kept, got {every=}, {keep=}"
            )
        self.folder, self.every, self.keep, self.score_at = Path(folder), every, keep, score_at
        self.lasting = lasting

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step < module.total_steps:
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self.save(trainer, pl_module)

    def save(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        trainer.save_checkpoint(
            self.folder / checkpoint_name(module.stage_number, module.stage.name, trainer.global_step)
        )
        if trainer.is_global_zero:
            self.tidy()

    def tidy(self) -> None:
        """Remove all but the last checkpoints, the ends that last, and the best one; of equals the later is better."""
        saved = published(self.folder)
        scores = [self.score_at(read(checkpoint.path).manifest["step"]) for checkpoint in saved]
        scored = [(score, number) for number, score in enumerate(scores) if score is not None]
        ends = {checkpoint.stage: number for number, checkpoint in enumerate(saved)}
        kept = {ends[stage] for stage in self.lasting if stage in ends} | {max(scored)[1] for _ in scored[:1]}
        for number, old in enumerate(saved[: -self.keep]):
            if number not in kept:
                remove(old.path)
