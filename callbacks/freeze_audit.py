"""The freeze audit proves that frozen parameters keep their bytes in a stage and that trainable parts change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import nn

from lit_mm.checkpoints.digests import digest
from lit_mm.distributed.shares import share_of, whole_shape
from lit_mm.distributed.zero import ZeRO
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.stages.thaw import idle_line, idle_steps

Parts = Mapping[str, Mapping[str, nn.Parameter]]
Digests = dict[str, dict[str, str]]  # part -> parameter -> digest of its bytes


class FreezeAudit(L.Callback):
    """Checks the optimizer and computes digests at the start of a stage; compares the digests at its end.

    A checkpoint contains the digests of the start, so a resumed stage is audited over its whole length, and other
    frozen weights in a checkpoint are detected at once. Under ZeRO a rank has only its shards, which change with the
    number of ranks, so each launch is audited separately; `load_weights` has checked the weights it loaded. Digests
    take about a second per gigabyte of weights.

    Raises:
        UserError: a part would thaw after the end of the stage.
        RuntimeError: the optimizer has other parameters than those of the trainable parts, a frozen parameter has
            changed, or a trainable part has not. The message has the part and the parameter.
    """

    def __init__(self) -> None:
        self.stage = ""
        self.started_at = 0  # optimizer steps of the stage that were finished when the digests were taken
        self.digests: Digests = {}
        self.sharded = False

    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        parts, stage = pl_module.parts(), pl_module.current_stage
        late = [part for part, train in stage.train_parts.items() if train.from_step >= pl_module.total_steps]
        if late:
            raise UserError(
                f"stage {stage.name!r}: parts {late} would thaw at or after the end of the stage, at "
                f"{pl_module.total_steps} optimizer steps. Lower `from_step`, or remove the parts from `train`"
            )
        self.sharded = isinstance(trainer.strategy, ZeRO)
        lists = [*map(optimizer_parameters, trainer.optimizers)]
        if isinstance(trainer.strategy, ZeRO):  # DeepSpeed drops parameters without gradients in silence
            lists.append(trainer.strategy.original_groups)
        for groups in lists:
            check_groups(groups, parts, set(stage.train_parts), stage.name)
        trainer.print(describe_parts(parts, set(stage.train_parts), stage.name, pl_module.parts_read(stage)))
        if idle := idle_steps(stage):
            trainer.print(idle_line(stage.name, idle))
        parts = {part: tensors for part, tensors in parts.items() if part not in pl_module.origins.unloaded}
        if self.stage == stage.name and self.digests and trainer.global_step:  # from the checkpoint
            self._check_frozen(parts, set(stage.train_parts), "the checkpoint that was loaded")
            return
        self.stage, self.started_at, self.digests = stage.name, trainer.global_step, digest_parts(parts)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        parts, trained = pl_module.parts(), set(pl_module.current_stage.train_parts)
        parts = {part: tensors for part, tensors in parts.items() if part not in pl_module.origins.unloaded}
        self._check_frozen(parts, trained, "training")
        if trainer.global_step > self.started_at:
            self._check_moved(trainer, parts, sorted(trained))
        self.digests = {}

    def _check_frozen(self, parts: Parts, trained: set[str], culprit: str) -> None:
        for part, parameters in parts.items():
            names = [
                n for n, p in parameters.items() if part not in trained and digest_share(p) != self.digests[part][n]
            ]
            if names:
                raise RuntimeError(
                    f"stage {self.stage!r}: {culprit} changed the frozen part {part!r}, in {len(names)} of "
                    f"{len(parameters)} parameters, the first is {names[0]!r}. Nothing of this stage can be trusted"
                )

    def _check_moved(self, trainer: L.Trainer, parts: Parts, trained: list[str]) -> None:
        differs = [any(digest_share(p) != self.digests[part][n] for n, p in parts[part].items()) for part in trained]
        # The shards of a rank may be padding alone: a part has moved if it has on any rank
        counts = torch.tensor(differs, dtype=torch.float32, device=trainer.strategy.root_device)
        counts = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        still = [part for part, count in zip(trained, counts, strict=True) if not count]
        if still:
            first = next(iter(parts[still[0]]))
            raise RuntimeError(
                f"stage {self.stage!r} trains the part {still[0]!r}, but none of its {len(parts[still[0]])} parameters "
                f"({first!r} and on) moved in {trainer.global_step - self.started_at} optimizer steps: no gradient "
                "reaches it, or its learning rate is too small for its precision"
            )

    def state_dict(self) -> dict[str, Any]:
        if self.sharded:
            return {}
        return {"stage": self.stage, "started_at": self.started_at, "digests": self.digests}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self.stage, self.started_at = state_dict["stage"], state_dict["started_at"]
            self.digests = state_dict["digests"]


def check_groups(groups: Sequence[Sequence[nn.Parameter]], parts: Parts, trained: set[str], stage: str) -> None:
    """Refuse an optimizer whose parameters are not exactly those of the trainable parts, each once.

    Args:
        groups: parameters of the optimizer's groups.
        parts: part -> its parameters by name.
        trained: names of the trainable parts.
        stage: name of the stage, for the error.
    Raises:
        RuntimeError: a parameter is missing, superfluous or repeated, or its `requires_grad` is wrong. The message has
            the part and the parameter.
    """
    names = {id(p): (part, name) for part, parameters in parts.items() for name, p in parameters.items()}
    ids: set[int] = set()
    for parameter in (parameter for group in groups for parameter in group):
        part, name = names.get(id(parameter), ("", f"of shape {tuple(parameter.shape)}"))
        where = f"stage {stage!r}: the optimizer holds parameter {name!r} of part {part!r}"
        if not part:
            raise RuntimeError(f"stage {stage!r}: the optimizer holds a parameter {name} that belongs to no part")
        if part not in trained:
            raise RuntimeError(f"{where}, which is frozen")
        if id(parameter) in ids:
            raise RuntimeError(f"{where} twice; it would be updated twice a step")
        ids.add(id(parameter))
    for part, parameters in parts.items():
        for name, parameter in parameters.items():
            if parameter.requires_grad != (part in trained):
                says = "is frozen but wants gradients" if parameter.requires_grad else "is trainable but wants none"
                raise RuntimeError(f"stage {stage!r}: parameter {name!r} of part {part!r} {says}")
            if part in trained and id(parameter) not in ids:
                raise RuntimeError(
                    f"stage {stage!r}: the optimizer lacks the trainable parameter {name!r} of part {part!r}"
                )


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
    """Return the model's parameters by group. DeepSpeed's own groups are flat partitions; it keeps the originals."""
    for attribute in ("bit16_groups", "fp16_groups", "bf16_groups"):  # ZeRO-1 and 2; ZeRO-3 and fp16; bf16
        if hasattr(optimizer, attribute):
            return [list(group) for group in getattr(optimizer, attribute)]
    return [list(group["params"]) for group in optimizer.param_groups]


def digest_parts(parts: Parts) -> Digests:
    return {part: {name: digest_share(p) for name, p in parameters.items()} for part, parameters in parts.items()}


def digest_share(parameter: nn.Parameter) -> str:
    """Return the digest of a parameter's bytes, or of this rank's shard; "" if this rank has no share of it."""
    share = share_of(parameter)
    return "" if share is None else digest(share)


def describe_parts(parts: Parts, trained: set[str], stage: str, read: Collection[str]) -> str:
    """Format one line with the trainable, frozen and unread parts of a stage and their numbers of parameters."""

    def listed(names: Iterator[str]) -> str:
        return ", ".join(f"{name} ({_count(parts[name])} parameters)" for name in sorted(names)) or "none"

    unread = [name for name in parts if name not in read]
    return (
        f"stage {stage}: trainable: {listed(n for n in parts if n in trained)}; "
        f"frozen: {listed(n for n in parts if n in read and n not in trained)}"
        + (f"; not read are {listed(iter(unread))}" if unread else "")
    )


def _count(parameters: Mapping[str, nn.Parameter]) -> str:
    number = sum(whole_shape(p).numel() for p in parameters.values())
    if number < 100_000:
        return f"{number:,}"
    return f"{number / 1e6:,.1f} million" if number < 1e9 else f"{number / 1e9:,.2f} billion"
