"""RoI-Align over a grid of equal boxes, computed as two matrix products.

RoI-Align of boxes that form a grid is separable: the bilinear weights of a sample, the mean over the samples of a bin
and the zero for a sample off the map are all products of one factor per axis. Pooling is therefore a product with one
small matrix for the rows and one for the columns, and both matrices follow from the sides of the grid.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lit_mm.layers.autocast import without_autocast

# (rows, columns) that a box may be pooled to, in the order in which the release tries them
POOLED = ((2, 4), (2, 3), (3, 4), (3, 3), (4, 2), (3, 2), (4, 3))


def pooled_shape(grid: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) that each box of a map is pooled to: the entry of `POOLED` nearest to the map's aspect ratio.

    Example: 24 x 24 patches give 3 x 3, 20 x 27 give 3 x 4, 9 x 64 give 2 x 4.
    Source: LLaVA-UHD, branch v1, `cal_best_pooling_size`.
    """
    ratio = math.log(grid[1] / grid[0])
    return min(POOLED, key=lambda shape: abs(ratio - math.log(shape[1] / shape[0])))  # the first of equals


def axis_weights(length: int, box: float, boxes: int, bins: int) -> Tensor:
    """Compute the weights of the patches in each bin along one axis: [boxes * bins, length] fp32.

    A bin is the mean of equally spaced samples; their number is the patches of a box / its bins, rounded up. A sample
    is a linear mixture of the two patches beside it. A box shorter than a patch is stretched to one patch from its
    start; a sample beyond the map counts as zero. All arithmetic is fp32, because the last bit decides the number of
    samples.

    Args:
        length: number of patches along the axis.
        box: length of a box, patches.
        boxes: number of boxes along the axis.
        bins: number of bins of a box.
    Source: torchvision's `roi_align` on CPU, aligned False, sampling_ratio -1, spatial_scale 1.
    """
    single = np.float32
    weights = np.zeros((boxes * bins, length), dtype=single)
    for number in range(boxes):
        start = single(number * box)
        extent = max(single(number * box + box) - start, single(1))
        size = extent / single(bins)
        samples = math.ceil(size)
        for at in range(bins):
            for sample in range(samples):
                place = start + single(at) * size + single(sample + 0.5) * size / single(samples)
                if place > length:
                    continue
                low = min(int(place), length - 1)
                high = min(low + 1, length - 1)
                share = place - single(low) if high > low else single(0)
                weights[number * bins + at, low] += (single(1) - share) / single(samples)
                weights[number * bins + at, high] += share / single(samples)
    return torch.from_numpy(weights)


@lru_cache(maxsize=1024)
def region_weights(grid: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """Compute the weights of the rows and columns for a map that is divided into `side` x `side` boxes.

    Source: LLaVA-UHD, branch v1, `slice_image_feature_minicpm`, whose boxes have this height and width, computed
    in this order. The release rounds the boxes to the dtype of the features (bf16, say); here they stay fp32.
    """
    rows, columns = grid
    height = math.sqrt(rows * columns / side**2 / (columns / rows))
    width = height * (columns / rows)
    high, wide = pooled_shape(grid)
    with torch.inference_mode(False):  # training may reuse what inference has cached
        return axis_weights(rows, height, side, high), axis_weights(columns, width, side, wide)


def pool_regions(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Pool maps of patches over `side` x `side` boxes.

    Args:
        x: [V, N, D] maps, N = rows * columns, row-major.
        grid: (rows, columns) of the maps.
        side: number of boxes per side.
    Returns:
        [V, side * side, P, D], P vectors per box, row-major; computed in fp32, in the dtype of `x`.
    """
    of_rows, of_columns = (weights.to(x.device, non_blocking=True) for weights in region_weights(grid, side))
    with without_autocast(x):
        pooled = torch.einsum("ir,vrcd->vicd", of_rows, x.float().unflatten(1, grid))
        pooled = torch.einsum("jc,vicd->vijd", of_columns, pooled)  # [V, side * high, side * wide, D]
    pooled = pooled.unflatten(2, (side, -1)).unflatten(1, (side, -1))  # [V, side, high, side, wide, D]
    return pooled.transpose(2, 3).flatten(3, 4).flatten(1, 2).to(x.dtype)
