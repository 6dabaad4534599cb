"""The names of strategies, and the distribution over ranks that a name stands for.

`trainer.strategy` is auto, ddp, zero1, zero2 or zero3. Each ZeRO name has a twin with `_offload`, which keeps the
optimizer, and under ZeRO-3 the parameters too, in the CPU's memory; `class_path: lit_mm.distributed.zero.ZeRO` takes
further arguments. Importing this module registers the names with Lightning.
"""

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
    """Return a strategy that no Trainer has used: a name is returned unchanged, an object from the config is copied."""
    return copy.deepcopy(strategy)


def check_strategy(strategy: Any) -> None:
    """Refuse a strategy whose checkpoints this framework cannot write.

    Raises:
        UserError: the strategy is none of single device, DDP and ZeRO.
    """
    if not isinstance(strategy, (SingleDeviceStrategy, DDP, ZeRO)):
        raise _unknown(type(strategy).__name__)


def _unknown(strategy: str) -> UserError:
    return UserError(
        f"trainer.strategy is {strategy}; expected one of {', '.join(NAMES)}, or class_path: "
        "lit_mm.distributed.zero.ZeRO"
    )


def spread_of(strategy: str | Mapping[str, Any], *, ranks: int, precision: str, accumulation: int = 1) -> Spread | None:
    """Return the distribution that a recipe's `trainer.strategy` stands for. No engine is built.

    Args:
        strategy: a name, or `class_path` and `init_args` as the resolved config has them.
        ranks: number of processes.
        precision: a result of `lit_mm.distributed.precision.resolved`.
        accumulation: micro-batches per optimizer step.
    Returns:
        The distribution; None if memory cannot be planned for this precision, such as 64-true.
    Raises:
        UserError: stages are not trained with this strategy, or not in this precision.
    """
    if isinstance(strategy, str):
        if strategy not in NAMES:
            raise _unknown(strategy)
        registration = StrategyRegistry[strategy if strategy != "auto" else "ddp"]  # several ranks under `auto` use DDP
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
