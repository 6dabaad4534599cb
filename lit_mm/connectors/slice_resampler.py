"""LLaVA-UHD's resampler, which makes the same number of visual tokens of a view of any shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.connectors.region_pooling import pool_regions
from lit_mm.errors import UserError
from lit_mm.layers.attention import attention_by_length
from lit_mm.layers.position import resize_grid, sincos_table
from lit_mm.layers.start import start_at, start_local, start_resampler
from lit_mm.tiling.grids import FixedGrid

Grid = tuple[int, int]  # (rows, columns) of patches


# V views, N patches of the largest, D vision width, E language width, S side of the query grid, Q = S^2 queries,
# H heads; R readers of q queries and P vectors each: Q of 1 query (each its region), or 1 of Q queries (all)
class SliceResampler(nn.Module, Connector):
    """Compresses each view to Q visual tokens: one cross-attention of learnt queries, a layer norm, a square matrix.

    T is the fixed sine-cosine table of the query grid. Queries are LN(query) + T, keys are LN(W x) + T resized
    bicubically to the view's patches, values are LN(W x). There are two forms with the same parameters:

    - `regions: true` (the released v1, of the ECCV paper): the view is divided into S x S equal boxes, the keys and
      values of each box are pooled to 6 to 12 vectors, and a query reads those of its own box.
    - `regions: false` (the first version on arXiv): every query reads every patch.

    T is recomputed and never trained; in the release it is a parameter without a gradient.

    Args:
        vision_width: D.
        language_width: E.
        side: S; 12 in the release, 144 visual tokens a view; 8 on arXiv.
        heads: number of attention heads; None: E / 128, as in the release. 8 on arXiv.
        regions: form of the attention, see above.
        eps: epsilon of the layer norms.
        start: standard deviation of the visual tokens at the start; 1 in the release, where text embeddings have a
            fiftieth of that.
        standardise: True brings every feature vector to mean 0 and variance 1 before W, without learnt weights. The
            release does not; the nano vision encoder's features have outliers that would fill the layer norm behind W.
        local: None: the attention starts as in the release. A number: every query starts at its own place, see
            `Resampler`; this needs `regions: false`, because a query of a region sees its own box alone. The last layer
            norm and matrix are then a part of their own, `projection`, as in Qwen-VL: the layers before them need a
            lower learning rate to stay local.
    Raises:
        UserError: the heads do not divide E, or `local` meets `regions` or a single head.
    Source: LLaVA-UHD, branch v1 dd7f6cc, class AdaptSpatialResampler; d0d857d, class Resampler, for the other form.
    """

    any_grid = True

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        side: int = 12,
        heads: int | None = None,
        regions: bool = True,
        eps: float = 1e-6,
        start: float = 1.0,
        standardise: bool = False,
        local: float | None = None,
    ) -> None:
        super().__init__()
        heads = max(1, language_width // 128) if heads is None else heads
        if language_width % heads:
            raise UserError(
                f"SliceResampler: `heads` divides the language width, got {heads} heads and {language_width} channels"
            )
        if local is not None and regions:
            raise UserError(
                "SliceResampler: with `regions` each query reads only its own region, so `local` needs `regions: false`"
            )
        self.vision_width, self.language_width = vision_width, language_width
        self.side, self.heads, self.regions, self.standardise = side, heads, regions, standardise
        self.grid_rule = FixedGrid(side, side)
        self.register_buffer("positions", sincos_table(language_width, side), persistent=False)
        self.query = nn.Parameter(torch.empty(side**2, language_width))
        same = vision_width == language_width
        self.kv_proj = nn.Identity() if same else nn.Linear(vision_width, language_width, bias=False)
        self.norm_q, self.norm_kv, self.norm = (nn.LayerNorm(language_width, eps=eps) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(language_width, language_width) for _ in range(4))
        self.proj = nn.Linear(language_width, language_width, bias=False)
        start_resampler(self.query, self.kv_proj, (self.q, self.k, self.v), self.out)
        self.parts_within = {} if local is None else {"norm": "projection", "proj": "projection"}
        if local is not None:
            start_local(self.query, self.kv_proj, (self.q, self.k, self.v), self.out, heads, local)
        start_at(self.proj, start)

    def restore_buffers(self) -> None:
        """Recompute the table, which our checkpoints do not hold; needed after a build on the meta device."""
        self.positions = sincos_table(self.language_width, self.side).to(self.query.device)

    def token_grid(self, grid: Grid) -> Grid:
        """Any (rows, columns) of patches -> the grid of queries."""
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return torch.zeros(0, self.language_width)

    def forward(self, x: Tensor, grids: Sequence[Grid] | None = None) -> Tensor:
        """[V, N, D] patch features -> [V, Q, E] visual tokens.

        Args:
            x: features, padded to the longest view; the valid patches of a view come first, row-major.
            grids: (rows, columns) of the valid patches of each view; None: the N patches of every view are a square.
        Raises:
            UserError: there are no grids, and N is not a square.
        """
        grids = [self._square(x.shape[1])] * len(x) if grids is None else grids
        if self.standardise:
            x = F.layer_norm(x, x.shape[-1:])
        x = self.norm_kv(self.kv_proj(x))  # [V, N, E]
        q = self.norm_q(self.query) + self.positions  # [Q, E]
        if self.regions:
            values, lengths = by_grid(
                x, grids, lambda features, grid: pool_regions(features, grid, self.side)
            )  # [V, Q, P, E]
        else:
            values, lengths = by_grid(x, grids, lambda features, grid: features[:, None])  # [V, 1, N, E]
        keys = values + self._positions(grids, values.shape[-2]).to(values.dtype)
        q = self.q(q[:, None] if self.regions else q[None])  # [R, q, E]
        q = q.expand(len(x), -1, -1, -1)  # [V, R, q, E]
        q, k, v = (self._heads(of) for of in (q, self.k(keys), self.v(values)))
        if lengths is not None:
            lengths = [length for length in lengths for _ in range(values.shape[1])]  # V * R
        read = attention_by_length(q, k, v, lengths).transpose(1, 2).flatten(2)  # [V * R, q, E]
        return self.proj(self.norm(self.out(read.reshape(len(x), -1, self.language_width))))

    def _positions(self, grids: Sequence[Grid], length: int) -> Tensor:
        """Return the positions of the keys [V, R, P, E]; a view with fewer than P = `length` vectors has zeros."""

        def table(grid: Grid) -> Tensor:
            resized = resize_grid(self.positions, grid)[None]
            return pool_regions(resized, grid, self.side) if self.regions else resized[:, None]

        of = {grid: table(grid) for grid in set(grids)}
        return torch.cat([F.pad(of[grid], (0, 0, 0, length - of[grid].shape[2])) for grid in grids])

    def _heads(self, x: Tensor) -> Tensor:
        """[V, R, P, E] -> [V * R, H, P, E / H]."""
        return x.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @staticmethod
    def _square(patches: int) -> Grid:
        side = math.isqrt(patches)
        if side**2 != patches:
            raise UserError(
                f"SliceResampler: without `grids` the patches of a view must form a square, got {patches} "
                "patches. Set `any_size: true` of the vision encoder, or `drop_cls: true` if it kept its class token"
            )
        return side, side


def by_grid(
    x: Tensor, grids: Sequence[Grid], change: Callable[[Tensor, Grid], Tensor]
) -> tuple[Tensor, list[int] | None]:
    """Apply a function to runs of views of one shape, without their padding, and pad the results.

    Args:
        x: [V, N, D] features; the valid patches of a view come first.
        grids: (rows, columns) of each view.
        change: function of [G, n, D] features and the grid of these G views that returns [G, R, P, D].
    Returns:
        [V, R, P, D] results, padded to the largest P, and the number of vectors of each view; None instead of the
        latter if all views have P.
    """
    outputs, start = [], 0
    for grid, members in groupby(grids):
        count = len(list(members))
        outputs.append(change(x[start : start + count, : grid[0] * grid[1]], grid))
        start += count
    longest = max(of.shape[2] for of in outputs)
    whole = torch.cat([F.pad(of, (0, 0, 0, longest - of.shape[2])) for of in outputs])
    if all(of.shape[2] == longest for of in outputs):
        return whole, None
    return whole, [of.shape[2] for of in outputs for _ in range(len(of))]
