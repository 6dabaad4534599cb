"""EVA ViT: shapes, sizes, stochastic depth, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.vision.eva import EvaViT

SIZES = {"image_size": 28, "patch": 14, "width": 24, "layers": 4, "heads": 3}


@pytest.mark.parametrize(("drop_cls", "tokens"), [(False, 5), (True, 4)])
def test_the_class_token_is_kept_unless_told(drop_cls: bool, tokens: int) -> None:
    model = EvaViT(**SIZES, drop_cls=drop_cls)
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, tokens, 24)
    assert model.token_grid((28, 28)) == (2, 2)


def test_every_parameter_gets_a_gradient_with_and_without_recomputing() -> None:
    pixels, gradients = torch.randn(2, 3, 28, 28), []
    for recompute in ("none", "full"):
        torch.manual_seed(1)
        model = EvaViT(**SIZES, activation_checkpointing=recompute, drop_path=0.3).train()
        torch.manual_seed(2)
        model(pixels).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_stochastic_depth_grows_from_block_to_block_and_keeps_the_mean() -> None:
    model = EvaViT(**SIZES, drop_path=0.6).train()
    assert [block.drop_path for block in model.blocks] == pytest.approx([0, 0.2, 0.4, 0.6])
    block = model.blocks[-1]
    branch = block._dropped(torch.ones(4000, 1, 1)).flatten()
    assert sorted(set(branch.tolist())) == pytest.approx([0, 2.5])
    assert branch.mean().item() == pytest.approx(1, abs=0.06)  # three deviations


def test_a_frozen_or_examined_encoder_drops_nothing() -> None:
    model, pixels = EvaViT(**SIZES, drop_path=0.6), torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        examined = model.eval()(pixels)
        assert not torch.equal(model.train()(pixels), examined)
        assert torch.equal(model.requires_grad_(False)(pixels), examined)


def test_depths_are_told_for_layer_wise_rates() -> None:
    model = EvaViT(**SIZES)
    depths = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert depths["cls"] == depths["positions"] == depths["patches.bias"] == 0
    assert depths["blocks.0.q_bias"] == 1 and depths["blocks.3.fc2.weight"] == model.num_layers == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 5}, "`heads` must divide"),
        ({"layers": 0}, "at least 1 layer"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"image_size": 30}, "multiple of the patch"),
        ({"position_size": 20}, "multiple of the patch"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaViT(**SIZES | wrong)


def test_views_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="built for views of 28 x 28 pixels, got 42 x 28"):
        EvaViT(**SIZES)(torch.randn(1, 3, 42, 28))
