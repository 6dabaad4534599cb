"""The optimizer of a stage: AdamW, and Muon for the matrices of parts with `optimizer: muon`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from lit_mm.layers.hardware import fast_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic with these coefficients moves singular values to 0.7 .. 1.2
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Replace [K, R, C] matrices by the nearest matrices with singular values of about 1.

    It computes in bf16, which is exact enough, if the device multiplies bf16 in hardware, else in fp32.
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
    """The piece of a matrix that this rank holds in the flat tensor into which ZeRO joins a group.

    Attributes:
        shape: shape of the matrix.
        start: first element of the flattened matrix that this rank holds.
        count: number of elements that this rank holds; 0 if it holds none.
        offset: position of these elements in the flat tensor.
    """

    shape: torch.Size
    start: int = 0
    count: int = 0
    offset: int = 0


class Muon(Optimizer):
    """The optimizer Muon: momentum with an orthogonalised update.

    torch has a Muon, but it always computes in bf16, which most laptops only emulate. Matrices of one shape are
    orthogonalised together. Where ZeRO has cut matrices, every rank assembles them for the update and then applies the
    update to the pieces that it holds.

    Args:
        groups: groups with `params` (matrices), `lr` and `weight_decay`.
        momentum: coefficient of Nesterov momentum.
    Attributes:
        cuts: flat parameter -> cuts of the matrices of its group, in the same order on every rank. It is empty if
            `params` are whole matrices.
        add_up: function that sums a tensor over the ranks and returns the sum, in place or not. Needed with `cuts`.
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
            entries_by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Cut]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                for cut in self.cuts.get(parameter, (Cut(parameter.shape, count=parameter.numel()),)):
                    entries_by_shape[cut.shape].append((parameter.view(-1), update.view(-1), cut))
            for shape, entries in entries_by_shape.items():
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                matrices = entries[0][1].new_zeros(len(entries), shape.numel())
                for matrix, (_, update, cut) in zip(matrices, entries, strict=True):
                    matrix.narrow(0, cut.start, cut.count).copy_(update.narrow(0, cut.offset, cut.count))
                updates = orthogonalise(self.add_up(matrices).view(len(entries), *shape)).flatten(1)
                for (parameter, _, cut), update in zip(entries, updates, strict=True):
                    piece, delta = parameter.narrow(0, cut.offset, cut.count), update.narrow(0, cut.start, cut.count)
                    piece.mul_(1 - group["lr"] * group["weight_decay"]).sub_(delta.to(piece), alpha=size)
        return loss


class MuonWithAdamW(Optimizer):
    """One optimizer that applies Muon to groups with `muon` and torch's AdamW to all others.

    Updates of Muon are scaled to the root mean square of AdamW's, so both take the same learning rates.

    Args:
        groups: groups from `lit_mm.stages.groups.parameter_groups`.
        betas: coefficients of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        matrices, others = [g for g in groups if g["muon"]], [g for g in groups if not g["muon"]]
        self.muon, self.adamw = Muon(matrices), AdamW(others, betas=betas, fused=True) if others else None
        super().__init__([*self.muon.param_groups, *(self.adamw.param_groups if self.adamw else ())], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Step the groups that are in `param_groups` at the moment; DeepSpeed puts them there one at a time."""
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
    """Build AdamW, or Muon with AdamW if some group has `muon`.

    Args:
        groups: groups from `lit_mm.stages.groups.parameter_groups`.
        betas: coefficients of AdamW.
    """
    if any(group["muon"] for group in groups):
        optimizer: Optimizer = MuonWithAdamW(groups, betas)
    else:
        optimizer = AdamW(groups, betas=betas, fused=True)
    if any("bounds" in group for group in groups):
        optimizer.register_step_post_hook(clamp_bounded)
    return optimizer


@torch.no_grad()
def clamp_bounded(optimizer: Optimizer, *_: object) -> None:
    """Clamp the tensors of groups with `bounds`, in place.

    They are the tensors that the optimizer updates. ZeRO keeps its own copies of the weights, so a clamp of the weights
    themselves would be lost at the next step.
    """
    for group in optimizer.param_groups:
        if "bounds" in group:
            for tensor in group["params"]:
                tensor.clamp_(*group["bounds"])
