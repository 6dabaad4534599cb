"""LLaVA-UHD's resampler: shapes, padding, gradients, errors. The values are tested in tests/parity."""

from __future__ import annotations

import pytest
import torch

from lit_mm.connectors.slice_resampler import SliceResampler, by_grid
from lit_mm.errors import UserError

GRIDS = [(4, 4), (4, 4), (2, 7), (1, 9)]


def padded(grids: list[tuple[int, int]], width: int = 6, fill: float = 0.0) -> torch.Tensor:
    longest = max(rows * columns for rows, columns in grids)
    x = torch.full((len(grids), longest, width), fill)
    for view, (rows, columns) in enumerate(grids):
        x[view, : rows * columns] = torch.randn(rows * columns, width)
    return x


@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize("widths", [(6, 8), (8, 8)])
def test_every_view_becomes_as_many_tokens_as_there_are_queries(regions: bool, widths: tuple[int, int]) -> None:
    connector = SliceResampler(*widths, side=3, heads=2, regions=regions)
    assert connector(padded(GRIDS, widths[0]), GRIDS).shape == (4, 9, 8)
    assert connector.token_grid((2, 7)) == connector.token_grid((24, 24)) == (3, 3)
    assert connector.learned().shape == (0, 8)
    assert isinstance(connector.kv_proj, torch.nn.Identity) == (widths[0] == widths[1])


def test_a_local_start_looks_at_its_own_place_in_a_view_of_any_shape() -> None:
    connector = SliceResampler(160, 192, side=4, heads=6, regions=False, local=8.0)
    assert set(connector.parts_within.values()) == {"projection"}
    for grid in ((4, 4), (8, 4), (4, 6)):
        x = torch.randn(1, grid[0] * grid[1], 160).requires_grad_()
        before: list[torch.Tensor] = []
        connector.out.register_forward_hook(lambda module, args, out, before=before: before.append(args[0]))
        connector(x, [grid])
        for query in (0, 5, 15):  # how far what it reads depends on each patch
            (seen,) = torch.autograd.grad(before[0][0, query].square().sum(), x, retain_graph=True)
            row, column = divmod(int(seen.norm(dim=-1).argmax()), grid[1])
            own = ((query // 4 + 0.5) / 4 * grid[0] - 0.5, (query % 4 + 0.5) / 4 * grid[1] - 0.5)
            assert abs(row - own[0]) <= 1 and abs(column - own[1]) <= 1


def test_a_local_start_is_refused_where_a_query_sees_its_own_region_alone() -> None:
    with pytest.raises(UserError, match="`local` needs `regions: false`"):
        SliceResampler(6, 8, side=3, heads=2, local=4.0)
    assert not SliceResampler(6, 8, side=3, heads=2).parts_within


@pytest.mark.parametrize("regions", [True, False])
def test_what_follows_a_views_patches_is_not_read(regions: bool) -> None:
    connector, x = SliceResampler(6, 8, side=2, heads=2, regions=regions), padded(GRIDS, fill=float("nan"))
    with torch.no_grad():
        tokens = connector(x, GRIDS)
        assert tokens.isfinite().all()
        for view, (rows, columns) in enumerate(GRIDS):
            alone = connector(x[view : view + 1, : rows * columns], [(rows, columns)])
            torch.testing.assert_close(tokens[view : view + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("regions", [True, False])
def test_views_of_one_shape_need_no_grids_where_they_are_squares(regions: bool) -> None:
    connector, x = SliceResampler(6, 8, side=2, heads=2, regions=regions), torch.randn(2, 9, 6)
    assert torch.equal(connector(x), connector(x, [(3, 3)] * 2))
    with pytest.raises(UserError, match=r"form a square, got 10 patches\. .*any_size: true"):
        connector(torch.randn(2, 10, 6))


@pytest.mark.parametrize("regions", [True, False])
def test_every_parameter_and_every_patch_gets_a_gradient(regions: bool) -> None:
    connector = SliceResampler(6, 8, side=3, heads=2, regions=regions)
    x = padded(GRIDS).requires_grad_()
    connector(x, GRIDS).square().sum().backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any() or name == "k.bias", name  # it moves all scores of a query alike
    for view, (rows, columns) in enumerate(GRIDS):
        assert x.grad[view, : rows * columns].abs().sum(-1).all()
        assert not x.grad[view, rows * columns :].any()
    assert "positions" not in dict(connector.named_parameters())


def test_a_query_sees_its_region_alone() -> None:
    x = torch.randn(1, 144, 6, requires_grad=True)
    for regions, seen in ((True, 5 * 5), (False, 144)):
        connector = SliceResampler(6, 8, side=3, heads=2, regions=regions)
        (gradient,) = torch.autograd.grad(connector(x)[0, 0, 0], x)
        assert gradient.abs().sum(-1).count_nonzero() == seen  # a box of 4 x 4 patches samples up to the fifth


def test_the_start_is_the_scale_of_the_visual_tokens() -> None:
    tokens = {start: SliceResampler(32, 64, start=start)(torch.randn(1, 64, 32)).std().item() for start in (1.0, 0.1)}
    assert tokens[1.0] == pytest.approx(1, rel=0.2) and tokens[0.1] == pytest.approx(0.1, rel=0.2)


def test_the_table_is_recomputed_after_a_build_without_memory() -> None:
    with torch.device("meta"):
        connector = SliceResampler(6, 8, side=3, heads=2)
    connector.to_empty(device="cpu").restore_buffers()
    assert torch.equal(connector.positions, SliceResampler(6, 8, side=3, heads=2).positions)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="got 3 heads and 8 channels"):
        SliceResampler(6, 8, heads=3)


def test_views_are_changed_shape_by_shape_and_padded_again() -> None:
    x = torch.arange(12.0).view(3, 4, 1)
    got, lengths = by_grid(x, [(1, 2), (1, 2), (1, 3)], lambda own, grid: own[:, None])
    assert got[..., 0].tolist() == [[[0, 1, 0]], [[4, 5, 0]], [[8, 9, 10]]]
    assert lengths == [2, 2, 3]
    assert by_grid(x, [(2, 2)] * 3, lambda own, grid: own[:, None])[1] is None


def test_standardised_features_may_have_any_scale_and_offset() -> None:
    connector, x = SliceResampler(32, 16, side=2, heads=2, standardise=True), torch.randn(1, 16, 32)
    torch.testing.assert_close(connector(x), connector(x * 30 + 5), rtol=0, atol=1e-4)
    plain = SliceResampler(32, 16, side=2, heads=2)
    assert not torch.allclose(plain(x), plain(x * 30 + 5), atol=1e-2)
