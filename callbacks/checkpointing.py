"""Saves checkpoints during a stage and at its end, and removes all but the last few and the best."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import lightning as L

from lit_mm.callbacks.steps import Step, StepObserver
from lit_mm.checkpoints.manifest import checkpoint_name, published
from lit_mm.checkpoints.reading import read
from lit_mm.checkpoints.writing import remove
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule


class Checkpointing(StepObserver):
    """Saves a checkpoint every n optimizer steps of a stage, and at its end.

    It must be the last of `Trainer.callbacks`: a checkpoint then appears after all other files of its step are written.

    Args:
        folder: folder of the run's checkpoints.
        every: number of optimizer steps between checkpoints.
        keep: number of the latest checkpoints that stay.
        score_at: function of an optimizer step, counted through all stages, that returns the score of the model at this
            step, None if it was not examined. The checkpoint with the best score stays as well.
        lasting: names of stages whose last checkpoint stays, see `lit_mm.stages.stage.lasting_ends`.
    Raises:
        UserError: `every` or `keep` is below 1.
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

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return trainer.global_step % self.every == 0

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        finished = step.number - module.first_step
        if finished % self.every == 0 and finished < module.total_steps:
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self.save(trainer, pl_module)

    def save(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        trainer.save_checkpoint(
            self.folder / checkpoint_name(module.stage_number, module.current_stage.name, trainer.global_step)
        )
        if trainer.is_global_zero:
            self.tidy()

    def tidy(self) -> None:
        """Remove all checkpoints but the latest, the lasting ends and the best; of equal scores the later one stays."""
        saved = published(self.folder)
        scores = [self.score_at(read(checkpoint.path).manifest["step"]) for checkpoint in saved]
        scored = [(score, number) for number, score in enumerate(scores) if score is not None]
        ends = {checkpoint.stage: number for number, checkpoint in enumerate(saved)}
        protected = {ends[stage] for stage in self.lasting if stage in ends} | {max(scored)[1] for _ in scored[:1]}
        for number, old in enumerate(saved[: -self.keep]):
            if number not in protected:
                remove(old.path)
