"""Groups of neighbouring patches become visual tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_mm.connectors.grouped import GroupedProjector
from lit_mm.errors import UserError


def test_neighbours_in_a_row_are_concatenated_and_projected() -> None:
    projector, x = GroupedProjector(6, 5, group=2), torch.randn(3, 8, 6)  # 2 rows of 4 patches
    expected = projector.projection(F.layer_norm(x, (6,)).reshape(3, 4, 12))  # as the release views them
    torch.testing.assert_close(projector(x), expected, rtol=0, atol=0)
    assert projector(x).shape == (3, 4, 5) and projector.token_grid((2, 4)) == (2, 2)
    assert projector.learned().shape == (0, 5)
    projector(x).sum().backward()
    assert {name for name, parameter in projector.named_parameters() if parameter.grad is not None} == {
        "projection.weight",
        "projection.bias",
    }


def test_a_count_that_the_group_does_not_divide_is_refused() -> None:
    projector = GroupedProjector(6, 5, group=4)
    with pytest.raises(UserError, match="rows of patches that 4 divides, got 4 x 6"):
        projector.token_grid((4, 6))
    with pytest.raises(UserError, match=r"that 4 divides, got 17\. Did the vision encoder keep its class token"):
        projector(torch.randn(1, 17, 6))
    with pytest.raises(UserError, match="at least 1, got 0"):
        GroupedProjector(6, 5, group=0)
