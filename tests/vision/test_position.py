"""Resizing position tables."""

from __future__ import annotations

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.vision.position import resize_position_table


def test_the_same_grid_is_the_same_table() -> None:
    table = torch.randn(10, 4)
    assert resize_position_table(table, (3, 3)) is table


@pytest.mark.parametrize("grid", [(2, 2), (7, 5)])
def test_the_patches_are_resized_bicubically_and_the_class_token_is_kept(grid: tuple[int, int]) -> None:
    table = torch.randn(17, 6)
    resized = resize_position_table(table, grid)
    image = table[1:].view(4, 4, 6).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    assert torch.equal(resized[0], table[0])
    torch.testing.assert_close(resized[1:].view(*grid, 6), expected[0].permute(1, 2, 0), rtol=0, atol=1e-6)


def test_rows_and_columns_are_not_swapped() -> None:
    table = torch.cat([torch.zeros(1, 1), torch.arange(4.0).repeat_interleave(4)[:, None]])  # grows from row to row
    resized = resize_position_table(table, (8, 3))[1:].view(8, 3)
    assert (resized.diff(dim=0)[2:-2] > 0).all()
    torch.testing.assert_close(resized[:, 0], resized[:, 2])


def test_a_half_precision_table_keeps_its_dtype() -> None:
    assert resize_position_table(torch.randn(5, 4).bfloat16(), (3, 3)).dtype == torch.bfloat16


def test_a_table_that_is_not_square_is_refused() -> None:
    with pytest.raises(UserError, match="got 12 rows"):
        resize_position_table(torch.zeros(12, 4), (3, 3))
