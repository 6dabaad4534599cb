"""The optimizer of a stage: AdamW, and Muon for the matrices of the parts that ask for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """torch's Muon for groups with `muon`, torch's AdamW for the others, as one optimizer.

    An update of Muon is as large as one of AdamW (root mean square), so both take the same learning rates.

    Args:
        groups: as `lit_mm.stages.parameter_groups` makes them.
        betas: of AdamW; Muon's momentum is 0.95.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale of the update is
        that of arXiv:2502.16982, section 2.2.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        matrices, others = [g for g in groups if g["muon"]], [g for g in groups if not g["muon"]]
        self.inner: list[Optimizer] = []
        if matrices:
            self.inner.append(Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
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
