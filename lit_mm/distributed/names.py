"""The strategies by name, and what a name means for the memory of a rank."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry

from lit_mm.distributed.ddp import DDP
from lit_mm.distributed.memory import Spread
from lit_mm.distributed.zero import ZERO_STAGE, ZeRO, check_zero_precision
from lit_mm.errors import UserError


def fresh(strategy: Any) -> Any:
    """A strategy that no Trainer has used: names stay names, an object from the config is copied."""
    return copy.deepcopy(strategy)


def check_strategy(strategy: Any) -> None:
    """Refuse a strategy whose pieces this framework cannot save.

    Raises:
        UserError: it is none of single device, DDP and ZeRO.
    """
    if not isinstance(strategy, (SingleDeviceStrategy, DDP, ZeRO)):
        raise _unknown(type(strategy).__name__)


def _unknown(strategy: str) -> UserError:
    return UserError(
        f"trainer.strategy is {strategy}; stages are trained with one of {', '.join(NAMES)}, or class_path: "
        "lit_mm.distributed.zero.ZeRO"
    )


def spread_of(strategy: str | Mapping[str, Any], *, ranks: int, precision: str, accumulation: int = 1) -> Spread | None:
    """What a recipe's `trainer.strategy` means for the memory of a rank (see `memory.py`). No engine is made.

    None for a precision whose weights the plan does not know, such as 64-true.

    Args:
        strategy: a name, or `class_path` and `init_args` as the resolved config has them.
        ranks: processes.
        precision: as `lit_mm.distributed.precision.resolved` gives it.
        accumulation: micro-batches of an optimizer step.
    Raises:
        UserError: stages are not trained with this strategy, or not in this precision.
    """
    if isinstance(strategy, str):
        if strategy not in NAMES:
            raise _unknown(strategy)
        registration = StrategyRegistry[
            strategy if strategy != "auto" else "ddp"
        ]  # `auto` is DDP, where there are ranks
        kind, arguments = registration["strategy"], registration["init_params"]
    else:
        classes = {f"{each.__module__}.{each.__qualname__}": each for each in (DDP, ZeRO)}
        if strategy["class_path"] not in classes:
            raise _unknown(strategy["class_path"])
        kind, arguments = classes[strategy["class_path"]], strategy.get("init_args") or {}
    if kind is DDP:
        if precision not in ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"):
            return None
        return Spread(ranks=ranks, pure=precision in ("16-true", "bf16-true"), accumulation=accumulation)
    check_zero_precision(precision)
    options = {name: value for name, value in arguments.items() if name in {field.name for field in fields(Spread)}}
    stage = arguments.get("stage", ZERO_STAGE)
    return Spread(stage, ranks, precision.startswith("bf16"), accumulation=accumulation, **options)


NAMES = ("auto", "ddp", "zero1", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload")

StrategyRegistry.register("ddp", DDP, description="Data parallel", override=True)
for _stage in (1, 2, 3):
    StrategyRegistry.register(f"zero{_stage}", ZeRO, description=f"DeepSpeed ZeRO-{_stage}", stage=_stage)
    StrategyRegistry.register(
        f"zero{_stage}_offload",
        ZeRO,
        description=f"DeepSpeed ZeRO-{_stage} with its optimizer in the CPU's memory",
        stage=_stage,
        offload_optimizer=True,
        offload_parameters=_stage == 3,
    )
