"""The CLIP ViT equals transformers'; sizes, depths and gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from lit_mm.errors import UserError
from lit_mm.vision.vit import ViT
from lit_mm.weights.clip import hf_clip_to_vit
from lit_mm.weights.convert import load_strict

ATOL = 1e-5  # fp32, fused q, k, v: measured 1e-6 on features of size 3
SIZES = {"image_size": 24, "patch": 4, "width": 32, "layers": 3, "heads": 4}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("drop_cls", [True, False])
def test_it_agrees_with_transformers(activation: str, drop_cls: bool) -> None:
    config = CLIPVisionConfig(
        image_size=24,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=72,
        hidden_act=activation,
        initializer_factor=20.0,  # weights large enough that attention and activation matter
    )
    theirs = CLIPVisionModel(config).eval()
    ours = ViT(**SIZES, ffn_width=72, activation=activation, drop_cls=drop_cls).eval()
    load_strict(ours, hf_clip_to_vit(theirs.state_dict()))
    pixels = torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-1]
        got = ours(pixels)
    torch.testing.assert_close(got, expected[:, 1:] if drop_cls else expected, rtol=1e-5, atol=ATOL)


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_the_features_of_a_layer_are_those_of_transformers_and_what_is_behind_it_is_not_built(layer: int) -> None:
    config = CLIPVisionConfig(
        image_size=24, patch_size=4, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128
    )
    theirs = CLIPVisionModel(config).eval()
    ours = ViT(**SIZES, select_layer=layer).eval()
    load_strict(ours, hf_clip_to_vit(theirs.state_dict()))
    assert len(ours.blocks) == ours.num_layers == 4 + layer
    pixels = torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(ours(pixels), expected[:, 1:], rtol=1e-5, atol=ATOL)


def test_a_checkpoint_with_more_layers_than_published_is_refused() -> None:
    with pytest.raises(UserError, match=r"not in the model: blocks\.3\."):
        load_strict(ViT(**SIZES, select_layer=-2), ViT(**SIZES | {"layers": 4}).state_dict())


@pytest.mark.parametrize("layer", [0, 1, -4])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(UserError, match=f"`select_layer` is -1 .* to -3, got {layer}"):
        ViT(**SIZES, select_layer=layer)


def test_a_checkpoint_of_another_image_size_is_resized_while_loading() -> None:
    small, large = ViT(**SIZES), ViT(**SIZES | {"image_size": 40}, position_size=24)
    load_strict(large, small.state_dict())
    assert large.positions.shape == (101, 32)
    assert torch.equal(large.positions[0], small.positions[0])
    load_strict(large, large.state_dict())  # its own size is left alone


def test_without_a_position_size_another_table_is_an_error() -> None:
    with pytest.raises(UserError, match=r"positions: expected \(101, 32\), got \(37, 32\)"):
        load_strict(ViT(**SIZES | {"image_size": 40}), ViT(**SIZES).state_dict())


def test_every_parameter_has_a_depth_and_a_gradient() -> None:
    vit = ViT(**SIZES)
    vit(torch.randn(1, 3, 24, 24)).square().sum().backward()
    depths = {name: vit.layer_of(name) for name, _ in vit.named_parameters()}
    assert set(depths.values()) == {0, 1, 2, 3} == set(range(vit.num_layers + 1))
    assert depths["positions"] == depths["pre_norm.weight"] == 0 and depths["blocks.2.qkv.bias"] == 3
    assert all(p.grad is not None and p.grad.any() for p in vit.parameters())


def test_activation_checkpointing_leaves_the_gradients_alone() -> None:
    pixels, gradients = torch.randn(2, 3, 24, 24), []
    for checkpointing in ("none", "full"):
        torch.manual_seed(1)
        vit = ViT(**SIZES, activation_checkpointing=checkpointing).train()
        vit(pixels).square().sum().backward()
        gradients.append([p.grad for p in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_it_runs_under_bf16_autocast() -> None:
    vit, pixels = ViT(**SIZES), torch.randn(2, 3, 24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        features = vit(pixels)
    features.float().square().mean().backward()
    torch.testing.assert_close(features.float(), vit(pixels), rtol=0.05, atol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in vit.parameters())


def test_views_of_another_size_are_refused_with_both_sizes() -> None:
    vit = ViT(**SIZES)
    assert vit.token_grid((24, 40)) == (6, 10)
    with pytest.raises(UserError, match="24 x 24 pixels, got 24 x 40"):
        vit(torch.zeros(1, 3, 24, 40))
    with pytest.raises(UserError, match="multiple of the patch"):
        vit.token_grid((24, 25))


@pytest.mark.parametrize(("size", "published"), [(224, 303_179_776), (490, 304_172_032)])
def test_clip_l_has_the_published_parameter_count(size: int, published: int) -> None:
    with torch.device("meta"):
        vit = ViT(image_size=size, patch=14, width=1024, layers=24, heads=16)
    post_norm = 2 * 1024  # counted by the release, never used, not built here
    assert sum(p.numel() for p in vit.parameters()) == published - post_norm


def test_views_of_any_size_use_the_stored_table_resized_and_train_it() -> None:
    vit = ViT(**SIZES, any_size=True)
    fixed = ViT(**SIZES | {"image_size": 48}, position_size=24)
    load_strict(fixed, vit.state_dict())
    pixels = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(vit(pixels), fixed(pixels), rtol=1e-5, atol=ATOL)
    assert vit(torch.randn(1, 3, 24, 40)).shape == (1, 60, 32)
    assert vit.state_dict()["positions"].shape == (37, 32)
    (vit(pixels) * torch.randn(2, 144, 32)).sum().backward()
    assert vit.positions.grad.abs().min() > 0


def test_there_may_be_no_class_token() -> None:
    vit = ViT(**SIZES, class_token=False, any_size=True)
    assert "cls" not in vit.state_dict() and vit.positions.shape == (36, 32)
    features = vit(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 64, 32)
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in vit.parameters())
    larger = ViT(**SIZES | {"image_size": 40}, position_size=24, class_token=False)
    load_strict(larger, vit.state_dict())
    assert larger.positions.shape == (100, 32)


@pytest.mark.parametrize("class_token", [True, False])
def test_views_of_several_shapes_in_one_call_are_what_they_are_alone(class_token: bool) -> None:
    vit = ViT(**SIZES, class_token=class_token, any_size=True)
    groups = [torch.randn(2, 3, 24, 24), torch.randn(1, 3, 4, 60), torch.randn(3, 3, 36, 28)]
    calls: list[int] = []
    vit.patches.register_forward_hook(lambda *_: calls.append(1))
    together = vit(groups)
    assert len(calls) == 1  # whatever the shapes: ranks must make the same calls
    assert together.shape == (6, 63, 32)
    first = 0
    for group in groups:
        alone = vit(group)
        torch.testing.assert_close(together[first : first + len(group), : alone.shape[1]], alone, rtol=0, atol=ATOL)
        first += len(group)


def test_what_padding_holds_reaches_no_gradient() -> None:
    vit = ViT(**SIZES, any_size=True, activation_checkpointing="full")
    groups = [torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 20)]

    def gradients(x: torch.Tensor) -> list[torch.Tensor]:
        vit.zero_grad()
        x.square().sum().backward()
        return [parameter.grad for parameter in vit.parameters()]

    together = gradients(vit(groups)[0, :4])
    for got, expected in zip(together, gradients(vit(groups[0])), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=ATOL)


def test_several_groups_are_refused_where_sizes_are_fixed() -> None:
    with pytest.raises(UserError, match=r"built for views of 24 x 24 pixels, got 8 x 8"):
        ViT(**SIZES)([torch.zeros(1, 3, 24, 24), torch.zeros(1, 3, 8, 8)])
