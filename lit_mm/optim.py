"""The optimizer of a stage: AdamW, and Muon for the matrices of the parts that ask for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from lit_mm.precision import fast_bf16

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


class Muon(Optimizer):
    """Momentum whose update is orthogonalised. torch's own always works in bf16, which most laptops only imitate.

    Matrices of one shape are orthogonalised together.

    Args:
        groups: with `params` (matrices), `lr` and `weight_decay`.
        momentum: Nesterov's.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale of the update,
        that of AdamW's, is arXiv:2502.16982, section 2.2.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                of_shape[parameter.shape].append((parameter, update))
            for shape, moved in of_shape.items():
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                updates = orthogonalise(torch.stack([update for _, update in moved]))
                for (parameter, _), update in zip(moved, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.to(parameter), alpha=size)
        return loss


class MuonWithAdamW(Optimizer):
    """Muon for groups with `muon`, torch's AdamW for the others, as one optimizer.

    An update of Muon is as large as one of AdamW (root mean square), so both take the same learning rates.

    Args:
        groups: as `lit_mm.stages.parameter_groups` makes them.
        betas: of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        matrices, others = [g for g in groups if g["muon"]], [g for g in groups if not g["muon"]]
        self.inner: list[Optimizer] = []
        if matrices:
            self.inner.append(Muon(matrices))
        if others:
            self.inner.append(AdamW(others, betas=betas, fused=True))
        super().__init__([group for one in self.inner for group in one.param_groups], {})
        self._share()

    def _share(self) -> None:
        """One list of groups and one table of states, seen from here and from the optimizers inside."""
        self.param_groups = [group for one in self.inner for group in one.param_groups]
        self.state = defaultdict(dict)
        for one in self.inner:
            self.state.update(one.state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.inner:
            one.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"inner": [one.state_dict() for one in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for one, state in zip(self.inner, state_dict["inner"], strict=True):
            one.load_state_dict(state)
        self._share()


def make_optimizer(groups: list[dict[str, Any]], betas: tuple[float, float]) -> Optimizer:
    """AdamW, or Muon with AdamW where a group asks for Muon."""
    if any(group["muon"] for group in groups):
        return MuonWithAdamW(groups, betas)
    return AdamW(groups, betas=betas, fused=True)
