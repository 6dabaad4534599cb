"""Measures how every part learns, at an interval: the norm of its gradient, and its update relative to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from lit_mm.callbacks.step_table import StepTable
from lit_mm.callbacks.steps import Step, StepObserver
from lit_mm.distributed.shares import share_of
from lit_mm.distributed.zero import ZeRO
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.stages.adapter import adapter_part
from lit_mm.stages.thaw import learning_parts

COLUMNS = ("step", "stage", "part", "lr", "gradient_norm", "weight_norm", "update_ratio")
TYPES = {"step": int, "stage": str, "part": str}
SAMPLE = 1 << 16  # elements of a parameter whose update is measured


class Learning(StepObserver):
    """Writes learning.csv: a row per part that learns, every n optimizer steps.

    | column | meaning |
    |---|---|
    | lr | highest learning rate of the part in this step |
    | gradient_norm | norm of the part's gradient over all ranks and micro-batches, before it is clipped |
    | weight_norm | norm of the sampled weights before the step |
    | update_ratio | norm of the update divided by that of the weights, over the sampled weights |

    At most `SAMPLE` equally spaced elements of a parameter are sampled, so no copy of the weights is kept. Norms stay
    on the device until the step has ended. Losses by source are in sources.csv, see `DataLedger`.

    Args:
        every_n_steps: number of optimizer steps between measurements, counted through all stages.
        path: path of the file. A resumed run continues it.
    Raises:
        UserError: the interval is below 1.
    """

    def __init__(self, every_n_steps: int, path: str | Path) -> None:
        if every_n_steps < 1:
            raise UserError(f"Learning: `every_n_steps` is at least 1, got {every_n_steps}")
        self.every_n_steps, self.path = every_n_steps, Path(path)
        self.table: StepTable | None = None
        self._norms: dict[str, Tensor] = {}  # part -> norm of its gradient
        self._before: dict[str, list[Tensor]] = {}  # part -> sampled weights of its parameters before the step

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        if trainer.is_global_zero:
            self.table = StepTable(self.path, COLUMNS, TYPES)
            self.table.restart(module.step)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: MultimodalModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._norms, self._before = {}, {}
        if (pl_module.step + 1) % self.every_n_steps:
            return
        stage, parts = pl_module.current_stage, pl_module.parts()
        strategy, sharded = trainer.strategy, isinstance(trainer.strategy, ZeRO)
        if isinstance(strategy, ZeRO) and not strategy.deepspeed_engine.is_gradient_accumulation_boundary():
            return  # the engine is asked after every micro-batch, and steps after the last
        for part in sorted(learning_parts(stage, trainer.global_step)):
            parameters = [parameter for parameter in parts[part].values() if parameter.requires_grad]
            gradients = [full_gradient(parameter) if sharded else parameter.grad for parameter in parameters]
            present = [gradient for gradient in gradients if gradient is not None]
            self._norms[part] = torch.nn.utils.get_total_norm(present).float()
            self._before[part] = sampled(parameters)

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return module.step % self.every_n_steps == 0

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if step.number % self.every_n_steps or not self._norms:
            return
        parts, sharded = module.parts(), isinstance(trainer.strategy, ZeRO)
        figures = []
        for part, before in self._before.items():
            after = sampled([parameter for parameter in parts[part].values() if parameter.requires_grad])
            updates = [new - old for new, old in zip(after, before, strict=True)]
            figures.append(torch.stack([square_sum(before), square_sum(updates)]))
        # Under ZeRO every rank has a share of the weights; otherwise all ranks have the same
        squares = trainer.strategy.reduce(torch.stack(figures), reduce_op="sum" if sharded else "mean").tolist()
        norms = torch.stack(list(self._norms.values())).tolist()
        bases = {adapter_part(part): part for part in module.adapters}
        for part, norm, (weights, updates) in zip(self._norms, norms, squares, strict=True):
            row = {
                "lr": step.learning_rates.get(bases.get(part, part), 0.0),
                "gradient_norm": norm,
                "weight_norm": weights**0.5,
                "update_ratio": (updates / weights) ** 0.5 if weights else float("nan"),
            }
            if self.table is not None:
                self.table.append({"step": step.number, "stage": step.stage, "part": part, **row})
            metrics = {f"{name}/{part}": value for name, value in row.items() if name != "lr" and value == value}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step.number)
        self._norms, self._before = {}, {}


def full_gradient(parameter: nn.Parameter) -> Tensor | None:
    """Return the whole gradient of a parameter under ZeRO. Every rank must call it."""
    from deepspeed.utils import safe_get_full_grad  # seconds, which only runs under ZeRO need

    return safe_get_full_grad(parameter)


def sampled(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Copy equally spaced elements of this rank's share of every parameter, at most `SAMPLE` of each."""
    copies = []
    for parameter in parameters:
        share = share_of(parameter)
        if share is not None and share.numel():
            copies.append(share.detach().flatten()[:: -(-share.numel() // SAMPLE)].float().clone())
    return copies


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    """Sum the squares of all elements; 0 for no tensor."""
    return sum((tensor.square().sum() for tensor in tensors), torch.zeros((), device=_device_of(tensors)))


def _device_of(tensors: Sequence[Tensor]) -> torch.device:
    return tensors[0].device if tensors else torch.device("cpu")
