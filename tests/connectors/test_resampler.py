"""Qwen-VL's resampler: shapes at any grid, initial weights, parts, errors, gradients."""

from __future__ import annotations

import pytest
import torch

from lit_mm.connectors.resampler import NormalisedResampler, Resampler
from lit_mm.errors import UserError
from lit_mm.families import QwenVL
from lit_mm.language.llama import Llama
from lit_mm.layers.position import sincos_table
from lit_mm.vision.vit import ViT


@pytest.mark.parametrize("side", [1, 3, 4, 9])
def test_any_square_grid_of_patches_becomes_the_grid_of_queries(side: int) -> None:
    resampler = NormalisedResampler(12, 16, grid_size=3, heads=2)
    assert resampler(torch.randn(2, side**2, 12)).shape == (2, 9, 16)
    assert resampler.token_grid((side, side)) == (3, 3)
    assert resampler.learned().shape == (0, 16)


def test_the_order_of_views_does_not_matter_to_a_view() -> None:
    resampler, x = Resampler(12, 16, grid_size=2, heads=2), torch.randn(3, 9, 12)
    torch.testing.assert_close(resampler(x)[2:], resampler(x[2:]))


def test_patches_that_are_not_square_are_refused() -> None:
    resampler = Resampler(12, 16, grid_size=2, heads=2)
    with pytest.raises(UserError, match=r"got 10\. Did the vision encoder keep its class token"):
        resampler(torch.randn(1, 10, 12))
    with pytest.raises(UserError, match="got 3 x 4"):
        resampler.token_grid((3, 4))


@pytest.mark.parametrize("heads", [3, 8])
def test_heads_that_do_not_fit_are_refused(heads: int) -> None:
    with pytest.raises(UserError, match=f"the language width, 16, into heads of 4 channels or more, got {heads}"):
        Resampler(12, 16, heads=heads)


def test_there_is_one_head_for_128_channels() -> None:
    assert Resampler(8, 512, grid_size=2).heads == 4 and Resampler(8, 64, grid_size=2).heads == 1


def test_equal_widths_need_no_projection_of_the_patches() -> None:
    assert not any(name.startswith("kv_proj") for name in Resampler(16, 16, grid_size=2, heads=2).state_dict())


def test_the_released_start_hardly_looks_at_places_and_the_local_one_at_its_own() -> None:
    """With identity values and outputs, the output of a query is its attention weights."""
    side = 4

    def looks(local: float | None, grid: int) -> torch.Tensor:
        torch.manual_seed(0)
        resampler = Resampler(160, 192, grid_size=grid, heads=6, local=local)
        values: list[torch.Tensor] = []
        resampler.v.register_forward_hook(lambda module, args, out: values.append(out[0]))
        for linear in (resampler.v, resampler.out):
            torch.nn.init.eye_(linear.weight)
        read = resampler(torch.randn(1, side**2, 160))[0]
        return torch.linalg.lstsq(values[0].T, read.T).solution.T  # [Q, N] weights

    released, local = looks(None, side), looks(4.0, side)
    assert released.max() < 0.3
    assert (local.argmax(dim=1) == torch.arange(side**2)).all() and local.diagonal().min() > 0.75
    between = looks(4.0, 2).view(2, 2, side, side)  # each query between four patches
    assert between[0, 1, :2, 2:].sum() > 0.8 and between[1, 0, 2:, :2].sum() > 0.8


def test_it_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        connector = NormalisedResampler(12, 32, grid_size=2, heads=2, local=4.0, start=0.3)
    assert all(parameter.is_meta for parameter in connector.parameters())


def test_the_start_sets_the_scale_of_the_visual_tokens() -> None:
    torch.manual_seed(0)
    for start in (1.0, 0.3):
        tokens = NormalisedResampler(64, 128, grid_size=4, heads=4, start=start)(torch.randn(2, 64, 64))
        assert tokens.std().item() == pytest.approx(start, rel=0.1)


def test_standardised_features_may_have_any_scale_and_offset() -> None:
    resampler, x = Resampler(32, 16, grid_size=2, heads=2, standardise=True), torch.randn(1, 4, 32)
    torch.testing.assert_close(resampler(70 * x + 5), resampler(x), rtol=1e-4, atol=1e-5)


def module(connector: NormalisedResampler) -> QwenVL:
    vision = ViT(image_size=28, patch=14, width=16, layers=1, heads=2)
    language = Llama(width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, vocab_size=64)
    return QwenVL(vision, language, "nano", image_size=28, connector=lambda *_: connector)


def test_the_table_and_the_projection_are_parts_of_their_own() -> None:
    parts = module(NormalisedResampler(16, 16, grid_size=2, heads=2)).parts()
    assert set(parts) == {"vision", "language", "connector", "position_table", "projection"}
    assert set(parts["position_table"]) == {"resampler.positions"}
    assert set(parts["projection"]) == {"norm.weight", "norm.bias", "proj.weight"}
    torch.testing.assert_close(parts["position_table"]["resampler.positions"].data, sincos_table(16, 2))


@pytest.mark.parametrize("local", [None, 4.0])
def test_gradients_reach_all_but_the_table(local: float | None) -> None:
    resampler, x = NormalisedResampler(12, 32, grid_size=2, heads=2, local=local), torch.randn(2, 9, 12)
    x.requires_grad_()
    (resampler(x) * torch.randn(2, 4, 32)).sum().backward()
    without = {name for name, p in resampler.named_parameters() if p.grad is None}
    assert without == {"resampler.positions"} and x.grad.abs().min() > 0
    # A bias of the keys adds the same to all scores of a query: softmax does not see it
    assert all(p.grad.any() for name, p in resampler.named_parameters() if name not in without | {"resampler.k.bias"})


def test_it_runs_under_bf16_autocast() -> None:
    resampler, x = NormalisedResampler(12, 16, grid_size=2, heads=2), torch.randn(2, 9, 12)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = resampler(x)
    torch.testing.assert_close(tokens.float(), resampler(x), rtol=0.1, atol=0.1)
