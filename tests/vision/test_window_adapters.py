"""Window adapters: the set for each view, trainable parameters, errors. The values are tested in tests/parity."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.layers.activations import prepare_layers
from lit_mm.vision.vit import ViT
from lit_mm.vision.window_adapters import RANKS, WindowAdapter, apply_window_adapters

WINDOWS, DROPOUT = 3, 0.5
TILES = torch.tensor([2, -1, 0, 2])


def encoder(trained: bool = True, **options: Any) -> ViT:
    """Two blocks of width 16 with three adapter sets; `trained` draws values that are zero or one in a new model."""
    vit = ViT(image_size=8, patch=4, width=16, layers=2, heads=2, **options)
    apply_window_adapters(vit, WINDOWS, {"qkv": 2, "out": 2, "mlp": 4}, DROPOUT)
    if trained:
        for name, parameter in vit.named_parameters():
            if ".adapters." in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return vit.eval()


def adapters(vit: ViT) -> dict[str, Tensor]:
    return {name: p for name, p in vit.named_parameters() if ".adapters." in name}


def test_a_new_set_of_adapters_leaves_the_encoder_as_it_was() -> None:
    plain = ViT(image_size=8, patch=4, width=16, layers=2, heads=2)
    adapted = apply_window_adapters(copy.deepcopy(plain), WINDOWS).eval()
    pixels = torch.randn(4, 3, 8, 8)
    assert torch.equal(adapted(pixels, TILES), plain(pixels))
    assert adapted.reads_tiles and not plain.reads_tiles


def test_all_views_in_one_call_are_what_each_is_alone() -> None:
    vit, pixels = encoder(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        together = vit(pixels, TILES)
        for view in range(4):
            alone = vit(pixels[view : view + 1], TILES[view : view + 1])
            torch.testing.assert_close(together[view : view + 1], alone, rtol=0, atol=1e-5)
        assert torch.equal(vit(pixels[1:2]), vit(pixels[1:2], TILES[1:2]))  # a global view has none
        other = vit(pixels[:1], torch.tensor([1]))
    assert (other - together[:1]).abs().max() > 0.01


def test_a_set_whose_window_is_absent_has_a_gradient_of_zero_and_not_none() -> None:
    vit = encoder().train()
    vit(torch.randn(4, 3, 8, 8), TILES).square().sum().backward()
    for name, parameter in adapters(vit).items():
        assert [bool(own.any()) for own in parameter.grad] == [True, False, True], name
    vit.zero_grad()
    vit(torch.randn(2, 3, 8, 8), torch.tensor([-1, -1])).sum().backward()
    for name, parameter in adapters(vit).items():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_activation_checkpointing_leaves_the_gradients_alone() -> None:
    plain = encoder().train()
    for block in plain.blocks:
        for adapter in block.adapters.values():
            adapter.dropout = 0.0
    checkpointed = copy.deepcopy(plain)
    prepare_layers(checkpointed, "full")
    pixels = torch.randn(4, 3, 8, 8)
    for vit in (plain, checkpointed):
        first = vit(pixels, TILES)
        vit(pixels, TILES.flip(0))  # another forward before the backward of the first
        first.square().sum().backward()
    for (name, expected), got in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_dropout_acts_on_the_adapters_alone_and_while_training() -> None:
    vit, pixels = encoder(), torch.randn(2, 3, 8, 8)
    windows, none = torch.tensor([0, 1]), torch.tensor([-1, -1])
    assert torch.equal(vit(pixels, windows), vit(pixels, windows))
    vit.train()
    assert not torch.allclose(vit(pixels, windows), vit(pixels, windows))
    assert torch.equal(vit(pixels, none), vit(pixels, none))


def test_the_scale_is_learnt_and_acts_on_its_window_alone() -> None:
    adapter = WindowAdapter(6, 5, rank=2, windows=2, dropout=0.0)
    torch.nn.init.normal_(adapter.up)
    x, tiles = torch.randn(2, 3, 6), torch.tensor([0, 1])
    before = adapter(x, tiles)
    adapter.scale.data[1] = 3.0
    torch.testing.assert_close(adapter(x, tiles), before * torch.tensor([1.0, 3.0])[:, None, None])


def test_places_that_are_not_named_have_no_adapter() -> None:
    vit = ViT(image_size=8, patch=4, width=16, layers=1, heads=2)
    apply_window_adapters(vit, 1, {"mlp": 4})
    assert {name.split(".")[3] for name in adapters(vit)} == {"mlp"}
    assert vit(torch.randn(1, 3, 8, 8), torch.tensor([0])).shape == (1, 4, 16)


@pytest.mark.parametrize(
    ("windows", "ranks", "said"),
    [
        (0, RANKS, "at least one window, got 0"),
        (2, {"fc1": 4}, r"places of \['mlp', 'out', 'qkv'\].*got \{'fc1': 4\}"),
        (2, {"qkv": 0}, r"ranks of 1 or more, got \{'qkv': 0\}"),
    ],
)
def test_what_cannot_be_is_refused(windows: int, ranks: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        apply_window_adapters(ViT(image_size=8, patch=4, width=16, layers=1, heads=2), windows, ranks)


def test_adapters_are_applied_once() -> None:
    with pytest.raises(UserError, match="Apply them only once"):
        apply_window_adapters(encoder(), 2)
