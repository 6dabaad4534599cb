"""Pooling over a grid of boxes. The values are compared with torchvision in tests/parity."""

from __future__ import annotations

import pytest
import torch

from lit_mm.connectors.region_pooling import POOLED, axis_weights, pool_regions, pooled_shape, region_weights


@pytest.mark.parametrize(
    ("grid", "shape"),  # (rows, columns)
    [((24, 24), (3, 3)), ((20, 27), (3, 4)), ((27, 20), (4, 3)), ((9, 64), (2, 4)), ((758, 1), (4, 2))],
)
def test_boxes_are_pooled_to_the_nearest_aspect_ratio(grid: tuple[int, int], shape: tuple[int, int]) -> None:
    assert pooled_shape(grid) == shape
    assert shape in POOLED


def test_a_bin_of_two_patches_is_their_mean_seen_from_its_middle() -> None:
    # one sample in the middle of each bin, patch i lying at i: 24 patches, 12 boxes of 2, 2 bins of 1: at 0.5, 1.5, ...
    weights = axis_weights(24, 2.0, 12, 2)
    assert weights.shape == (24, 24)
    assert weights[0, :3].tolist() == [0.5, 0.5, 0]
    assert weights[-1, -2:].tolist() == [0, 1]  # 23.5 lies behind the last patch, which counts alone


def test_a_box_shorter_than_a_patch_is_stretched_and_loses_what_lies_beyond_the_map() -> None:
    weights = axis_weights(2, 2 / 3, 3, 2)  # boxes from 0, 0.67 and 1.33, one patch each: the last sample is at 2.08
    assert weights.sum(1).tolist() == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("grid", [(24, 24), (20, 27), (13, 44), (12, 12)])
def test_nothing_is_lost_where_boxes_are_a_patch_or_longer(grid: tuple[int, int]) -> None:
    for weights in region_weights(grid, 12):
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    assert pool_regions(torch.ones(1, grid[0] * grid[1], 2), grid, 12).eq(1).float().mean() > 0.9


def test_a_query_reads_its_own_box_and_a_patch_beyond() -> None:
    x = torch.zeros(1, 12, 12, 1)
    x[0, 7, 4] = 1.0  # boxes of 4 x 4: the box in the second row and second column
    pooled = pool_regions(x.flatten(1, 2), (12, 12), 3)
    assert pooled.shape == (1, 9, 9, 1)
    reached = pooled[0].sum((1, 2)).nonzero().flatten().tolist()
    assert reached == [3, 4]  # patch 4 is a neighbour of what the box before it samples at 3.67


def test_it_stays_fp32_inside_a_reduced_precision() -> None:
    x = torch.randn(1, 54, 4)
    with torch.autocast("cpu", torch.bfloat16):
        got = pool_regions(x, (6, 9), 3)
    assert torch.equal(got, pool_regions(x, (6, 9), 3))


def test_what_is_kept_from_an_inference_can_be_trained_with() -> None:
    x = torch.randn(1, 33, 4, requires_grad=True)  # a shape that no other test keeps
    with torch.inference_mode():
        pool_regions(x.detach(), (3, 11), 2)
    pool_regions(x, (3, 11), 2).sum().backward()
    assert x.grad.any()
