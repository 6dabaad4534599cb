"""Monkey's window adapters: a set of low-rank branches on the vision encoder for each window of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_mm.errors import UserError
from lit_mm.layers.activations import prepare_layers
from lit_mm.layers.dropout import dropout
from lit_mm.layers.injection import Injection
from lit_mm.vision.vit import Block, ViT

RANKS = {"qkv": 16, "out": 16, "mlp": 32}  # published


# V views, P positions, W windows, r rank
class WindowAdapter(nn.Module):
    """A low-rank branch per window: scale_w B_w A_w dropout(x) for a view of window w, zero for a global view.

    There is no bias and no factor alpha / rank. All views run in one product, to which each view contributes the
    matrices of its window. A window without a view in the batch thus has a gradient of zero and not a missing one, as
    distributed training needs. A starts kaiming-uniform, B at zero and the scale at one, so that a new model is the
    plain encoder.

    Args:
        in_width: width of x.
        out_width: width of the result.
        rank: r.
        windows: W.
        dropout: dropout probability of the input while training.
    Source: Monkey, class Lora_Adapter of visual.py.
    """

    def __init__(self, in_width: int, out_width: int, rank: int, windows: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.down = nn.Parameter(torch.empty(windows, rank, in_width))
        self.up = nn.Parameter(torch.zeros(windows, out_width, rank))
        self.scale = nn.Parameter(torch.ones(windows))
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def forward(self, x: Tensor, tiles: Tensor) -> Tensor:
        """[V, P, in] and the window of each view [V], -1 for a global view -> [V, P, out]."""
        windows = tiles.clamp(min=0)
        # `embedding` and not `self.down[windows]`: its backward is deterministic
        down, up = (F.embedding(windows, of.flatten(1)).unflatten(1, of.shape[1:]) for of in (self.down, self.up))
        scale = F.embedding(windows, self.scale[:, None]) * (tiles >= 0)[:, None]  # [V, 1]
        low = torch.bmm(dropout(x, self.dropout, self.training), down.transpose(1, 2))  # [V, P, r]
        return torch.bmm(low * scale[:, :, None], up.transpose(1, 2))


class AdaptedBlock(GradientCheckpointingLayer):
    """A block of the vision encoder with window adapters.

    | adapter | reads | its result is added to |
    |---|---|---|
    | qkv | the normed input of the attention | the output of the linear qkv |
    | out | the outputs of the heads | the output of the linear out |
    | mlp | the residual stream after the attention, before the norm | the output of the block |

    Args:
        base: block that is adapted; it stays the same module.
        ranks: adapter -> rank; an adapter without a rank is not built.
        windows: number of windows.
        dropout: dropout probability of the adapters' inputs.
    Source: Monkey, class VisualAttentionBlock of visual.py.
    """

    parts_within: ClassVar[dict[str, str]] = {"adapters": "window_adapters"}

    def __init__(self, base: Block, ranks: Mapping[str, int], windows: int, dropout: float) -> None:
        super().__init__()
        self.base = base
        width = base.out.in_features
        outs = {"qkv": 3 * width, "out": width, "mlp": width}
        self.adapters = nn.ModuleDict(
            {place: WindowAdapter(width, outs[place], rank, windows, dropout) for place, rank in ranks.items()}
        )

    def forward(self, x: Tensor, lengths: Sequence[int] | None = None, tiles: Tensor | None = None) -> Tensor:
        """[V, P, D] -> [V, P, D].

        Args:
            lengths: number of positions of each view, which precede its padding; None: all views have P.
            tiles: [V] window of each view, -1 for a global view; None if all views are global.
        """
        base = self.base
        if tiles is None:
            return base(x, lengths)
        normed = base.norm1(x)
        read = base.attend(self._with("qkv", base.qkv(normed), normed, tiles), lengths)
        x = x + self._with("out", base.out(read), read, tiles)
        return x + self._with("mlp", base.feed_forward(x), x, tiles)

    def _with(self, place: str, plain: Tensor, x: Tensor, tiles: Tensor) -> Tensor:
        return plain + self.adapters[place](x, tiles) if place in self.adapters else plain


def apply_window_adapters(
    vision: ViT, windows: int, ranks: Mapping[str, int] | None = None, dropout: float = 0.05
) -> ViT:
    """Add one set of adapters per window to every block, in place; returns the same encoder, which then `reads_tiles`.

    Args:
        vision: encoder that is changed.
        windows: W; a global view uses no adapter.
        ranks: adapter (qkv, out, mlp) -> rank; None: the published ranks, 12.78M parameters per window at Monkey's
            size. The paper reports 117M in all, which no placement of the released code gives (51.1M for 4 windows).
        dropout: dropout probability of the adapters' inputs.
    Raises:
        UserError: the encoder is no ViT or has adapters already, there is no window, an adapter is unknown, or a rank
            is not positive.
    Source: arXiv:2311.06607, section 3.1; visual.py of the release, which we follow.
    """
    if not isinstance(vision, ViT):
        raise UserError(f"window adapters need a ViT, got {type(vision).__name__}. Leave them out")
    ranks = dict(RANKS if ranks is None else ranks)
    unknown = sorted(ranks.keys() - RANKS.keys())
    if unknown or any(rank < 1 for rank in ranks.values()):
        raise UserError(f"window adapters: `ranks` maps places of {sorted(RANKS)} to ranks of 1 or more, got {ranks}")
    if windows < 1:
        raise UserError(f"window adapters need at least one window, got {windows}. Is the image larger than a window?")
    if vision.reads_tiles:
        raise UserError("the blocks of this vision encoder already have window adapters. Apply them only once")
    vision.blocks = nn.ModuleList(AdaptedBlock(block, ranks, windows, dropout) for block in vision.blocks)
    prepare_layers(vision, vision.activation_checkpointing, vision.compiled)
    vision.reads_tiles, vision.windows = True, windows
    return vision


@dataclass(frozen=True)
class WindowAdapters(Injection):
    """Adds window adapters to a ViT, see `apply_window_adapters`. A recipe names this class.

    Args:
        windows: number of sets of adapters, one per window of the tiling.
        ranks: adapter (qkv, out, mlp) -> rank; None: the published ranks.
        dropout: dropout probability of the adapters' inputs while training.
    """

    windows: int
    ranks: dict[str, int] | None = None
    dropout: float = 0.05

    def __call__(self, model: ViT) -> ViT:
        return apply_window_adapters(model, self.windows, self.ranks, self.dropout)
