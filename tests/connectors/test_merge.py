"""XComposer2-4KHD's projector: order, learned vectors, errors, gradients."""

from __future__ import annotations

import pytest
import torch

from lit_mm.connectors.merge import MergeMLP, merge_patches
from lit_mm.errors import UserError


def test_a_block_is_folded_row_by_row_and_tokens_leave_row_by_row() -> None:
    patches = torch.arange(16.0).view(1, 16, 1)
    assert merge_patches(patches, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(merge_patches(patches, 1), patches)
    assert torch.equal(merge_patches(patches, 4).flatten(), patches.flatten())


def test_shapes_and_grids() -> None:
    connector = MergeMLP(5, 12, merge=3)
    assert connector(torch.randn(2, 81, 5)).shape == (2, 9, 12)
    assert connector.token_grid((9, 6)) == (3, 2)
    assert connector.learned().shape == (2, 12)


def test_the_learned_vectors_pass_through_the_projector() -> None:
    connector = MergeMLP(3, 8)
    assert not connector.newline.any() and not connector.separator.any()
    torch.nn.init.normal_(connector.newline)
    torch.nn.init.normal_(connector.separator)
    expected = torch.stack([connector.mlp(connector.newline), connector.mlp(connector.separator)])
    torch.testing.assert_close(connector.learned(), expected)
    image = connector.newline.view(1, 2, 2, 3).flatten(1, 2)  # a block of patches that holds the newline's numbers
    torch.testing.assert_close(connector(image)[0], expected[:1])


@pytest.mark.parametrize("patches", [8, 9, 25])
def test_patches_that_do_not_fold_are_refused(patches: int) -> None:
    with pytest.raises(UserError, match=rf"got {patches} patches\. Did the vision encoder keep its class token"):
        MergeMLP(3, 8)(torch.randn(1, patches, 3))


@pytest.mark.parametrize("grid", [(3, 4), (4, 3)])
def test_grids_that_do_not_fold_are_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"got {grid[0]} x {grid[1]}"):
        MergeMLP(3, 8).token_grid(grid)
    with pytest.raises(UserError, match="at least 1, got 0"):
        MergeMLP(3, 8, merge=0)


def test_every_parameter_has_a_gradient() -> None:
    connector = MergeMLP(3, 8, standardise=True, start=0.3)
    bank = torch.cat([connector(torch.randn(2, 16, 3)).flatten(0, 1), connector.learned()])
    (bank * torch.randn(10, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in connector.parameters())


def test_the_start_sets_the_scale_of_what_leaves_the_hidden_layer() -> None:
    torch.manual_seed(0)
    connector = MergeMLP(8, 256, start=0.3)
    assert not connector.mlp[2].bias.any()
    assert connector.mlp[2].weight.std().item() == pytest.approx(0.3 / 16, rel=0.05)


def test_standardised_features_may_have_any_scale_and_offset() -> None:
    connector, x = MergeMLP(16, 8, standardise=True), torch.randn(1, 4, 16)
    torch.testing.assert_close(connector(70 * x + 5), connector(x), rtol=1e-4, atol=1e-5)
