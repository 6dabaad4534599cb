"""Ends training at the first loss that is nan or infinite, because all later steps would be wasted."""

from __future__ import annotations

import math

import lightning as L

from lit_mm.callbacks.steps import Step, StepObserver
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule


class FiniteLoss(StepObserver):
    """Ends the run on every rank if the loss of an optimizer step is nan or infinite. The step is not saved.

    On a GPU one more step may have run when the loss is read; it is not saved either.

    Raises:
        UserError: a loss is nan or infinite. The message has stage, step, and the samples of this rank's last
            micro-batch.
    """

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return False

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if math.isfinite(step.loss):
            return
        ids = ", ".join(step.last_samples[:4]) + (", ..." if len(step.last_samples) > 4 else "")
        raise UserError(
            f"stage {step.stage!r}, step {step.number}: the loss is {step.loss}. The last samples of rank "
            f"{trainer.global_rank} were {ids}. Lower the learning rates or lengthen the warm-up, and start "
            "in another folder (--run_dir). --init_from with this folder starts from its last checkpoint"
        )
