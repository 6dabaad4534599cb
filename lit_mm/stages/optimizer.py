"""The optimizer of a stage: AdamW, and Muon for the matrices of the parts that ask for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from lit_mm.layers.hardware import fast_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pulls singular values to 0.7 .. 1.2
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """[K, R, C] matrices -> the nearest matrices whose singular values are all about 1.

    In bf16, which is exact enough, where the device multiplies in it.
    Source: Jordan et al., "Muon" (2024), `zeropower_via_newtonschulz5`.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.to(torch.bfloat16 if fast_bf16(x.device.type) else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@dataclass(frozen=True, slots=True)
class Cut:
    """Where this rank's piece of a matrix lies in a flat tensor that ZeRO has made of a group.

    Attributes:
        shape: of the matrix.
        start, count: elements of the flattened matrix that this rank has; a count of 0: none.
        offset: where they begin in the flat tensor.
    """

    shape: torch.Size
    start: int = 0
    count: int = 0
    offset: int = 0


class Muon(Optimizer):
    """Momentum whose update is orthogonalised. torch's own always works in bf16, which most laptops only imitate.

    Matrices of one shape are orthogonalised together. Where ZeRO has cut them, every rank puts the pieces together for
    as long as that takes, and moves its own.

    Args:
        groups: with `params` (matrices), `lr` and `weight_decay`.
        momentum: Nesterov's.
    Attributes:
        cuts: flat parameter -> the matrices of its group, in the same order on every rank; empty where `params` are the
            matrices themselves.
        add_up: sums a tensor over the ranks, in place of it or as a new one; needed with `cuts`.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale of the update,
        that of AdamW's, is arXiv:2502.16982, section 2.2.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "momentum": momentum})
        self.cuts: Mapping[Tensor, Sequence[Cut]] = {}
        self.add_up: Callable[[Tensor], Tensor] = lambda pieces: pieces

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Cut]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                for cut in self.cuts.get(parameter, (Cut(parameter.shape, count=parameter.numel()),)):
                    of_shape[cut.shape].append((parameter.view(-1), update.view(-1), cut))
            for shape, entries in of_shape.items():
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                whole = entries[0][1].new_zeros(len(entries), shape.numel())
                for matrix, (_, update, cut) in zip(whole, entries, strict=True):
                    matrix.narrow(0, cut.start, cut.count).copy_(update.narrow(0, cut.offset, cut.count))
                updates = orthogonalise(self.add_up(whole).view(len(entries), *shape)).flatten(1)
                for (parameter, _, cut), update in zip(entries, updates, strict=True):
                    mine, delta = parameter.narrow(0, cut.offset, cut.count), update.narrow(0, cut.start, cut.count)
                    mine.mul_(1 - group["lr"] * group["weight_decay"]).sub_(delta.to(mine), alpha=size)
        return loss


class MuonWithAdamW(Optimizer):
    """Muon for groups with `muon`, torch's AdamW for the others, as one optimizer.

    An update of Muon is as large as one of AdamW (root mean square), so both take the same learning rates.

    Args:
        groups: as `lit_mm.stages.groups.parameter_groups` makes them.
        betas: of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        matrices, others = [g for g in groups if g["muon"]], [g for g in groups if not g["muon"]]
        self.muon, self.adamw = Muon(matrices), AdamW(others, betas=betas, fused=True) if others else None
        super().__init__([*self.muon.param_groups, *(self.adamw.param_groups if self.adamw else ())], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Of the groups that are in `param_groups` now: DeepSpeed steps one at a time."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in (self.muon, self.adamw):
            if groups := [group for group in self.param_groups if group["muon"] == (optimizer is self.muon)]:
                optimizer.param_groups, optimizer.state = groups, self.state
                optimizer.step()
        return loss


def make_optimizer(groups: list[dict[str, Any]], betas: tuple[float, float]) -> Optimizer:
    """AdamW, or Muon with AdamW where a group asks for Muon."""
    if any(group["muon"] for group in groups):
        return MuonWithAdamW(groups, betas)
    return AdamW(groups, betas=betas, fused=True)
