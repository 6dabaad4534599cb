"""This benchmark compares the visual tokens counted from image sizes with those built from pixels, for every tiling.

    python benchmarks/token_counts.py [--sizes 100000] [--policy anyres ...] [--seed 0]

For each random size, the processor counts from (height, width) alone. Then an image is generated, its views are cut
and encoded by a minimal vision encoder (one token per patch, or a fixed number of queries), and the positions of the
layout are filled with the tokens. Both counts must agree, and every visual token must be used exactly once, except
padding that the layout leaves out. Tiles are 28 pixels wide, so that a size takes a millisecond; the arithmetic does
not depend on the width.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.layout import Layout, base_then_unpadded_rows, global_then_tiles, in_order, slices_then_overview
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.samples.processor import Processor
from lit_mm.tiling.anyres import plan_anyres
from lit_mm.tiling.hd import plan_hd
from lit_mm.tiling.plan import Size, TilePlan, plan_square
from lit_mm.tiling.square import plan_centre_crop, plan_pad
from lit_mm.tiling.uhd import plan_uhd, plan_uhd_arxiv
from lit_mm.tiling.windows import plan_windows

TILE, PATCH, QUERIES = 28, 7, (2, 2)


@dataclass(frozen=True)
class Policy:
    """A tiling with a layout and a minimal vision encoder.

    Attributes:
        tiling: function (height, width) -> plan.
        layout: layout of the visual tokens.
        queries: if True, a view becomes a fixed grid of queries, else one token per patch.
        whole: if True, every visual token must occur in the text; False where the layout leaves padding out.
    """

    tiling: Callable[[int, int], TilePlan]
    layout: Layout = in_order
    queries: bool = False
    whole: bool = True

    def token_grid(self, size: Size) -> tuple[int, int]:
        return QUERIES if self.queries else (size[0] // PATCH, size[1] // PATCH)

    def encode(self, view: Tensor) -> Tensor:
        """[3, H, W] -> [M, 3] visual tokens: patch means, or means over a grid of queries."""
        if self.queries:
            return F.adaptive_avg_pool2d(view, QUERIES).flatten(1).T
        return F.avg_pool2d(view, PATCH).flatten(1).T


POLICIES = {
    "square": Policy(partial(plan_square, size=TILE)),
    "centre_crop": Policy(partial(plan_centre_crop, size=TILE)),
    "pad": Policy(partial(plan_pad, size=TILE)),
    "anyres": Policy(partial(plan_anyres, tile=TILE), base_then_unpadded_rows, whole=False),
    "anyres_hf": Policy(
        partial(plan_anyres, tile=TILE, rule="hf"), partial(base_then_unpadded_rows, rule="hf"), whole=False
    ),
    "uhd": Policy(partial(plan_uhd, size=TILE, patch=PATCH), slices_then_overview, queries=True),
    "uhd_arxiv": Policy(partial(plan_uhd_arxiv, size=TILE, patch=PATCH), queries=True),
    "windows": Policy(partial(plan_windows, size=(2 * TILE, 3 * TILE), window=TILE), queries=True),
    "hd": Policy(partial(plan_hd, tile=TILE, max_tiles=16), global_then_tiles),
}


class Letters:
    """A tokenizer with one token per letter."""

    pad_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def random_size(rng: Random, largest: int = 400) -> Size:
    """Draw (height, width) in pixels, log-uniform in both sides, so that small and very long images are common."""
    return tuple(round(math.exp(rng.uniform(0, math.log(largest)))) for _ in range(2))


def check(policy: Policy, size: Size) -> None:
    """Count, build and compare for one image size.

    Raises:
        AssertionError: the count differs from the built sequence, or a visual token is used twice or left out.
    """
    processor = Processor(
        Letters(), XComposer2Prompt(), tiling=policy.tiling, token_grid=policy.token_grid, layout=policy.layout
    )
    count = processor.visual_tokens(*size)
    plan = policy.tiling(*size)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    bank = torch.cat([policy.encode(view) for view in cut_views(image, plan.views, Normalise((0.5,) * 3, (0.5,) * 3))])

    used: list[int] = []
    length = 0
    for run in policy.layout(plan, policy.token_grid):
        if isinstance(run, str):
            length += len(run)
        else:
            used += run[run >= 0].tolist()
            length += len(bank[torch.from_numpy(run[run >= 0])]) + int((run < 0).sum())
    assert length == count, f"{size}: {count} counted from the size, {length} built"
    assert len(set(used)) == len(used), f"{size}: a visual token is used twice"
    assert not policy.whole or sorted(used) == list(range(len(bank))), f"{size}: a visual token is left out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=100_000, help="random image sizes per policy")
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.policy:
        rng, start = Random(options.seed), time.perf_counter()
        for _ in range(options.sizes):
            check(POLICIES[name], random_size(rng))
        seconds = time.perf_counter() - start
        print(f"{name:12s} {options.sizes} sizes agree   {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
