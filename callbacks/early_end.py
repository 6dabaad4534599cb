"""Lightning's EarlyStopping and ModelCheckpoint in a recipe: metrics, times of checks, and early ends of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler

from lit_mm.callbacks.examination import Examination
from lit_mm.callbacks.steps import Step, StepObserver, callbacks_of
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule

ACCURACY = "accuracy/"


class EarlyEnd(StepObserver):
    """Lets Lightning's EarlyStopping and ModelCheckpoint work per stage, and records a stage that ends early.

    Metrics have the names of metrics.csv (`loss`, `tokens`, `lr_PART`) and `accuracy/overall`, `accuracy/SKILL`, and
    those that another callback logs with `pl_module.log` in every step. A callback that monitors an accuracy checks
    after each examination. EarlyStopping on another metric checks after each optimizer step; ModelCheckpoint on another
    metric saves at its `every_n_train_steps`, or at the end of a stage.

    A callback that sets `trainer.should_stop` finishes the stage: step and reason go into `module.ends`, and so into
    every later checkpoint; the next stage starts.

    It must follow the callbacks that measure and precede the one that saves.

    Args:
        folder: the run folder; `model_checkpoints/STAGE` and `profile/` are made in it if needed.
    Raises:
        UserError: a callback monitors a metric that is not measured.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.examined = -1  # last step whose accuracy was passed on

    def setup(self, trainer: L.Trainer, pl_module: MultimodalModule, stage: str) -> None:
        name = pl_module.current_stage.name
        profiler = trainer.profiler  # pyrefly: ignore[missing-attribute]  # Lightning sets it
        if profiler.filename is None and not isinstance(profiler, PassThroughProfiler):  # it would open an empty file
            profiler.dirpath, profiler.filename = self.folder / "profile", name
        for callback in callbacks_of(trainer):
            if isinstance(callback, EarlyStopping):
                callback._check_on_train_epoch_end = False  # a stage is one epoch of the loader
            elif isinstance(callback, ModelCheckpoint):
                callback.dirpath = callback.dirpath or str(self.folder / "model_checkpoints" / name)
                if (callback.monitor or "").startswith(ACCURACY):
                    callback._save_on_train_epoch_end = False

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        examinations = [callback for callback in callbacks_of(trainer) if isinstance(callback, Examination)]
        names = ["loss", "tokens", "seconds", *(f"lr_{part}" for part in module.base_parts())]
        names += [f"loss/{name}" for name in module.objectives] if len(module.objectives) > 1 else []
        names += [f"{ACCURACY}{name}" for examination in examinations for name in ("overall", *examination.skills)]
        for callback in monitors(callbacks_of(trainer)):
            if callback.monitor not in names and not any(map(may_log, callbacks_of(trainer))):
                raise unmeasured(callback, names)
            if (callback.monitor or "").startswith(ACCURACY) and not any(each.every_n_steps for each in examinations):
                raise UserError(
                    f"trainer.callbacks: {type(callback).__name__} monitors {callback.monitor!r}, which is "
                    "measured only at the ends of stages. Set `examine_every` to a number of steps"
                )

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        """Return True if a callback of Lightning or of a user may save the model or read the metrics of the step."""
        callbacks = callbacks_of(trainer)
        acting = (EarlyStopping, ModelCheckpoint, LambdaCallback)
        return any(isinstance(callback, acting) or may_log(callback) for callback in callbacks)

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        self.publish(
            trainer,
            {
                "loss": step.loss,
                "tokens": step.tokens,
                "seconds": step.seconds,
                **{f"loss/{name}": loss for name, loss in step.losses.items()},
                **{f"lr_{part}": rate for part, rate in step.learning_rates.items()},
            },
        )
        accuracy = next(
            (c.accuracy for c in callbacks_of(trainer) if isinstance(c, Examination) and c.step == step.number), {}
        )
        self.publish(trainer, {f"{ACCURACY}{name}": value for name, value in accuracy.items()})
        for callback in monitors(callbacks_of(trainer)):
            if accuracy or not (callback.monitor or "").startswith(ACCURACY):
                if callback.monitor not in trainer.callback_metrics:
                    raise unmeasured(callback, sorted(trainer.callback_metrics))
                callback.on_validation_end(trainer, module)
        planned = module.total_steps
        if trainer.should_stop and trainer.global_step < planned:
            module.ends[module.current_stage.name] = {
                "step": trainer.global_step,
                "planned": planned,
                "reason": trainer.strategy.broadcast(reason_of(callbacks_of(trainer))),
            }

    def publish(self, trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
        """Make metrics known to other callbacks."""
        trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in metrics.items()})


def monitors(callbacks: Sequence[L.Callback]) -> list[EarlyStopping | ModelCheckpoint]:
    """Return the callbacks that check a metric between the steps of a stage."""
    checking = [callback for callback in callbacks if isinstance(callback, (EarlyStopping, ModelCheckpoint))]
    return [callback for callback in checking if callback.monitor is not None]


def may_log(callback: L.Callback) -> bool:
    """Return True for a callback of a user's package, whose metrics are known when it has logged them."""
    return type(callback).__module__.partition(".")[0] not in ("lightning", "lit_mm")


def unmeasured(callback: EarlyStopping | ModelCheckpoint, names: Sequence[str]) -> UserError:
    """Return the error about a callback that monitors none of the metrics `names`."""
    return UserError(
        f"trainer.callbacks: {type(callback).__name__} monitors {callback.monitor!r}, which is not "
        f"measured. Measured are {', '.join(names)}"
    )


def reason_of(callbacks: Sequence[L.Callback]) -> str:
    """Return the words of the callback that ended a stage, if it has any."""
    messages = [
        c.stopping_reason_message for c in callbacks if isinstance(c, EarlyStopping) if c.stopping_reason_message
    ]
    return messages[0] if messages else "a callback set `should_stop`"
