"""Position tables: resizing a grid, and the fixed sine-cosine table."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lit_mm.errors import UserError
from lit_mm.layers.position import resize_grid, sincos_table


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (7, 5)])
def test_a_grid_and_its_gradient_are_those_of_bicubic_interpolation(grid: tuple[int, int]) -> None:
    ours = torch.randn(16, 6, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    image = theirs.view(4, 4, 6).permute(2, 0, 1)[None]
    expected = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T
    resized, weight = resize_grid(ours, grid), torch.randn(grid[0] * grid[1], 6)
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)
    (resized * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5)


def test_the_same_grid_is_the_same_table() -> None:
    table = torch.randn(9, 4)
    assert resize_grid(table, (3, 3)) is table


def test_it_is_computed_in_fp32_under_autocast_and_kept_in_the_tables_dtype() -> None:
    table = torch.randn(9, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize_grid(table, (6, 6)), resize_grid(table.clone(), (6, 6)))
        assert resize_grid(table.bfloat16(), (6, 6)).dtype == torch.bfloat16
    torch.testing.assert_close(resize_grid(table, (6, 6)).mean(0), table.mean(0), rtol=0, atol=0.2)


@pytest.mark.parametrize("length", [0, 2, 15])
def test_a_table_that_is_not_square_is_refused(length: int) -> None:
    with pytest.raises(UserError, match=f"square grid of positions, got {length}"):
        resize_grid(torch.zeros(length, 4), (3, 3))


def test_the_first_half_tells_the_column_the_second_the_row() -> None:
    table = sincos_table(8, 3).view(3, 3, 8)  # [row, column, D]
    assert torch.equal(table[0, :, :4], table[2, :, :4])
    assert torch.equal(table[:, 0, 4:], table[:, 2, 4:])
    column, slow = 2.0, 10000**-0.5
    expected = [math.sin(column), math.sin(column * slow), math.cos(column), math.cos(column * slow), 0, 0, 1, 1]
    torch.testing.assert_close(table[0, 2], torch.tensor(expected))


def test_a_width_that_is_not_a_multiple_of_4_is_refused() -> None:
    with pytest.raises(UserError, match="multiple of 4, got 6"):
        sincos_table(6, 3)
