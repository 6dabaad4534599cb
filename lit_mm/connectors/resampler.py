"""Qwen-VL's resampler: a grid of learnt queries reads the patches by one position-aware cross-attention."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.layers.attention import attention
from lit_mm.layers.position import resize_grid, sincos_table
from lit_mm.layers.start import start_at, start_local, start_resampler
from lit_mm.tiling.grids import FixedGrid

# V views, N patches, D vision width, E language width, Q queries (a square grid), H heads


class Resampler(nn.Module, Connector):
    """Compresses each view to Q visual tokens by one cross-attention, without residual and feed-forward.

    P is the fixed sine-cosine table of the query grid. Queries are LN(query) + P, keys are LN(W x) + P resized
    bicubically to the grid of patches, values are LN(W x) without positions. W is left out if D = E.

    P is a parameter, as in the release, but in a part of its own (`position_table`), which no recipe trains, because
    the paper fixes it. The released fine-tuning script trains it by accident, with all of `attn_pool`.

    Args:
        vision_width: D.
        language_width: E.
        grid_size: rows and columns of queries; 16 makes 256 visual tokens of any view.
        heads: number of attention heads; None: one per 128 channels, as in the release.
        eps: epsilon of the layer norms.
        standardise: True brings every feature vector to mean 0 and variance 1 before W, without learnt weights. The
            release does not; the nano vision encoder's features have outliers that would fill the layer norm behind W.
        local: None: the attention starts almost uniform, as in the release, and learns from billions of pairs where to
            look. A number s: each query starts at its own place, where a patch at the distance of one query gets e^-s
            of the weight (see `start_local`).
    Raises:
        UserError: the heads do not divide E, a head has fewer than 4 channels, or `local` meets a single head.
    Source: class Resampler of Qwen-VL's visual.py (arXiv:2308.12966, section 2.1).
    """

    parts_within: ClassVar[dict[str, str]] = {"positions": "position_table"}

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        grid_size: int = 16,
        heads: int | None = None,
        eps: float = 1e-6,
        standardise: bool = False,
        local: float | None = None,
    ) -> None:
        super().__init__()
        heads = max(1, language_width // 128) if heads is None else heads
        if language_width % heads or language_width // heads < 4:
            raise UserError(
                f"Resampler: `heads` must divide the language width, {language_width}, into heads of 4 channels or "
                f"more, got {heads}"
            )
        self.vision_width, self.language_width = vision_width, language_width
        self.grid_size, self.heads, self.standardise = grid_size, heads, standardise
        self.grid_rule = FixedGrid(grid_size, grid_size, square="Resampler")
        self.positions = nn.Parameter(sincos_table(language_width, grid_size), requires_grad=False)
        self.query = nn.Parameter(torch.empty(grid_size**2, language_width))
        same = vision_width == language_width
        self.kv_proj = nn.Identity() if same else nn.Linear(vision_width, language_width, bias=False)
        self.norm_q = nn.LayerNorm(language_width, eps=eps)
        self.norm_kv = nn.LayerNorm(language_width, eps=eps)
        self.q, self.k, self.v, self.out = (nn.Linear(language_width, language_width) for _ in range(4))
        start_resampler(self.query, self.kv_proj, (self.q, self.k, self.v), self.out)
        if local is not None:
            start_local(self.query, self.kv_proj, (self.q, self.k, self.v), self.out, heads, local)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Any square (rows, columns) of patches -> the grid of queries.

        Raises:
            UserError: the patches are not a square grid, which the positions of the keys need.
        """
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return torch.zeros(0, self.language_width)

    def forward(self, x: Tensor) -> Tensor:
        """[V, N, D] patch features -> [V, Q, E] visual tokens.

        Raises:
            UserError: the patches are not a square grid.
        """
        side = math.isqrt(x.shape[1])
        if side**2 != x.shape[1]:
            raise UserError(
                f"Resampler: needs a square grid of patches, got {x.shape[1]}. Did the vision encoder keep its class "
                "token? Set `drop_cls: true`"
            )
        x = F.layer_norm(x, (self.vision_width,)) if self.standardise else x
        x = self.norm_kv(self.kv_proj(x))  # [V, N, E]
        q = self.q(self.norm_q(self.query) + self.positions)  # [Q, E]
        k = self.k(x + resize_grid(self.positions, (side, side)))
        q = self._heads(q[None]).expand(len(x), -1, -1, -1)  # [V, H, Q, E / H]
        read = attention(q, self._heads(k), self._heads(self.v(x)))  # [V, H, Q, E / H]
        return self.out(read.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[V, N, E] -> [V, H, N, E / H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class NormalisedResampler(nn.Module, Connector):
    """Qwen-VL's connector: the resampler, a layer norm and a square matrix.

    Norm and matrix are a part of their own, `projection`: the release keeps them outside of `attn_pool`, and its
    fine-tuning script freezes them.

    Args:
        vision_width: D.
        language_width: E.
        grid_size, heads, eps, standardise, local: arguments of the `Resampler`.
        start: standard deviation of the visual tokens at the start; 1 in the release. The text embeddings of the nano
            language model have a third of that.
        weights: reference of the checkpoint that `load_pretrained` loads later; the constructor reads nothing.
    Source: `ln_post` and `proj` of Qwen-VL's visual.py.
    """

    parts_within: ClassVar[dict[str, str]] = {"norm": "projection", "proj": "projection"}

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        grid_size: int = 16,
        heads: int | None = None,
        eps: float = 1e-6,
        standardise: bool = False,
        local: float | None = None,
        start: float = 1.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.resampler = Resampler(vision_width, language_width, grid_size, heads, eps, standardise, local)
        self.norm = nn.LayerNorm(language_width, eps=eps)
        self.proj = nn.Linear(language_width, language_width, bias=False)
        start_at(self.proj, start)

    @property
    def grid_rule(self) -> FixedGrid:
        """The grid rule of the resampler."""
        return self.resampler.grid_rule

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Any square (rows, columns) of patches -> the grid of queries. Raises as `Resampler.token_grid`."""
        return self.resampler.token_grid(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return self.resampler.learned()

    def forward(self, x: Tensor) -> Tensor:
        """[V, N, D] patch features -> [V, Q, E] visual tokens."""
        return self.proj(self.norm(self.resampler(x)))
