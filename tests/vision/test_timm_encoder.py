"""Encoders of timm: features, sizes, layers, meta device, published names in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.vision.timm_encoder import TimmEncoder, normalisation
from lit_mm.weights import timm as maps
from lit_mm.weights.convert import load_strict
from lit_mm.weights.source import load_part

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 4}
CONVNEXT = "convnext_large_mlp.clip_laion2b_ft_soup_320"
# name -> overrides, image size
TOKENS: dict[str, tuple[dict[str, Any], int]] = {
    "eva_giant_patch14_clip_224": (TINY, 28),
    "eva02_enormous_patch14_clip_224": (TINY, 28),
    "eva02_large_patch14_clip_224": (TINY | {"ref_feat_shape": (2, 2)}, 28),
    "vit_large_patch14_clip_224.laion2b": (TINY, 28),
    "vit_so400m_patch14_siglip_378": (TINY, 28),
    "vit_so400m_patch14_siglip_378.v2_webli": (TINY, 28),
    "vit_large_patch14_reg4_dinov2": (TINY, 28),
    "vit_large_patch16_dinov3": (TINY, 32),
    "vit_base_patch16_224": (TINY, 32),
}
MAPS: dict[str, tuple[dict[str, Any], int]] = {CONVNEXT: ({"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, 64)}


def encoder(name: str, **options: Any) -> TimmEncoder:
    overrides, size = (TOKENS | MAPS)[name]
    torch.manual_seed(0)
    return TimmEncoder(name, **{"image_size": size, "overrides": overrides} | options).eval()


def reference(name: str) -> nn.Module:
    """Build timm's whole model, with random weights and its head."""
    overrides, size = (TOKENS | MAPS)[name]
    sized = {"img_size": size} if name in TOKENS else {}
    model = timm.create_model(name, **sized, **overrides).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def loaded(model: nn.Module, name: str, **options: Any) -> TimmEncoder:
    ours = encoder(name, **options)
    load_strict(ours, maps.timm_to_timm(model.state_dict()))
    return ours


def expected_features(model: nn.Module, features: Tensor) -> Tensor:
    """[V, class + N, D] of timm's features: maps become rows, registers go."""
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    count = model.num_prefix_tokens
    return torch.cat([features[:, :1], features[:, count:]], dim=1) if count else features


@pytest.mark.parametrize("name", [*TOKENS, *MAPS])
def test_features_equal_timms_own_forward(name: str) -> None:
    model = reference(name)
    size = (TOKENS | MAPS)[name][1]
    pixels = torch.randn(2, 3, size, size)
    ours = loaded(model, name, norm=True, drop_cls=False)
    with torch.no_grad():
        expected = expected_features(model, model.forward_features(pixels))
        torch.testing.assert_close(ours(pixels), expected, rtol=0, atol=1e-6)
        patches = loaded(model, name, norm=True)(pixels)
    rows, columns = ours.token_grid((size, size))
    assert patches.shape == (2, rows * columns, ours.width) and torch.equal(patches, expected[:, -rows * columns :])
    assert ours.returns_class_token == (expected.shape[1] > rows * columns)


@pytest.mark.parametrize("name", [*TOKENS, *MAPS])
@pytest.mark.parametrize("select_layer", [-1, -2, -3])
def test_the_select_layer_is_a_block_before_the_norm(name: str, select_layer: int) -> None:
    model = reference(name)
    size = (TOKENS | MAPS)[name][1]
    pixels = torch.randn(1, 3, size, size)
    ours = loaded(model, name, select_layer=select_layer)
    index = len(model.feature_info) + select_layer
    with torch.no_grad():
        (features,) = model.forward_intermediates(pixels, indices=[index], intermediates_only=True)
        torch.testing.assert_close(ours(pixels), features.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TOKENS)
def test_views_of_several_shapes_in_one_call_equal_views_of_one_shape(name: str) -> None:
    model = reference(name)
    size = TOKENS[name][1]
    square, oblong = torch.randn(2, 3, size, size), torch.randn(1, 3, size, 2 * size)
    whole, ours = loaded(model, name, drop_cls=False), loaded(model, name, drop_cls=False, any_size=True)
    first = int(ours.returns_class_token)
    with torch.no_grad():
        together = ours([square, oblong])
        length = whole(square).shape[1]
        torch.testing.assert_close(together[:2, :length], whole(square), rtol=0, atol=1e-5)
        torch.testing.assert_close(together[2:], ours(oblong), rtol=0, atol=1e-5)
        assert together.shape[1] == first + 8 and not torch.allclose(ours(oblong), ours(oblong.flip(-1)))
        with pytest.raises(UserError, match=f"built for views of {size} x {size} pixels, got {size} x {2 * size}"):
            whole(oblong)


def test_a_pyramid_joins_all_stages_at_the_grid_of_the_first() -> None:
    model = reference(CONVNEXT)
    ours = loaded(model, CONVNEXT, pyramid=True)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        stages = model.forward_intermediates(pixels, intermediates_only=True)
        resized = [nn.functional.interpolate(x, (16, 16), mode="bilinear", align_corners=False) for x in stages]
        features = ours(pixels)
    assert ours.token_grid((64, 64)) == (16, 16) and ours.width == 8 + 16 + 24 + 32
    torch.testing.assert_close(features, torch.cat(resized, dim=1).flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "select_layer", "parameters", "width"),
    [
        ("eva_giant_patch14_clip_224", -2, 985_894_528, 1408),
        (CONVNEXT, -1, 196_227_264, 1536),
        ("vit_so400m_patch14_siglip_378.v2_webli", -1, 412_984_944, 1152),
    ],
)
def test_published_sizes_are_built_on_the_meta_device(
    name: str, select_layer: int, parameters: int, width: int
) -> None:
    with torch.device("meta"):
        model = TimmEncoder(name, select_layer=select_layer)
        assert model(torch.zeros(1, 3, model.image_size, model.image_size)).shape[-1] == width
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters and model.width == width


@pytest.mark.parametrize("name", ["eva02_large_patch14_clip_224", "vit_large_patch16_dinov3"])
def test_angles_are_recomputed_after_a_build_on_the_meta_device(name: str) -> None:
    model = reference(name)
    with torch.device("meta"):
        ours = encoder(name)
    load_strict(ours, maps.timm_to_timm(model.state_dict()))
    size = TOKENS[name][1]
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(ours(pixels), loaded(model, name)(pixels))


def test_constants_of_normalisation_are_those_of_the_named_weights() -> None:
    assert normalisation("vit_so400m_patch14_siglip_378.v2_webli") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = encoder("eva02_large_patch14_clip_224")
    assert model.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    with pytest.raises(UserError, match=r"no weights 'nope', only .*augreg_in21k"):
        TimmEncoder("vit_tiny_patch16_224.nope")
    with pytest.raises(UserError, match=r"'vit_tinyy_patch16_224'; near names are .*'vit_tiny_patch16_224'"):
        TimmEncoder("vit_tinyy_patch16_224")
    with pytest.raises(UserError, match="timm has no model 'eva_gigantic'"):
        normalisation("eva_gigantic")


@pytest.mark.parametrize("name", ["eva_giant_patch14_clip_224", "vit_base_patch16_224", CONVNEXT])
def test_every_parameter_gets_the_same_gradient_with_and_without_recomputing(name: str) -> None:
    size = (TOKENS | MAPS)[name][1]
    pixels, gradients = torch.randn(2, 3, size, size), []
    for checkpointing in ("none", "full"):
        model = encoder(name, activation_checkpointing=checkpointing, drop_path=0.3).train()
        torch.manual_seed(2)
        model(pixels).square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_grows_from_block_to_block_and_acts_in_training_alone() -> None:
    model = encoder("eva_giant_patch14_clip_224", drop_path=0.6)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.model.blocks]
    assert rates == pytest.approx([0, 0.3, 0.6])
    pixels = torch.randn(4, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(model(pixels), model(pixels))
        assert not torch.equal(model.train()(pixels), model.eval()(pixels))


def test_the_depth_of_a_parameter_is_the_number_of_its_block() -> None:
    model = encoder("vit_large_patch14_clip_224.laion2b", norm=True)
    assert model.layer_of("model.norm_pre.weight") == model.layer_of("model.pos_embed") == 0
    assert model.layer_of("model.blocks.0.mlp.fc1.weight") == 1
    assert model.layer_of("model.norm.weight") == model.num_layers == 3
    stages = encoder(CONVNEXT)
    depths = [stages.layer_of(name) for name, _ in stages.named_parameters()]
    assert depths == sorted(depths) and stages.num_layers == 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_base_patch16_224", {"select_layer": -4}, r"`select_layer` is -1 \(the last of 3"),
        ("vit_base_patch16_224", {"image_size": 36}, "multiple of the patch"),
        ("vit_base_patch16_224", {"drop_path": 1.0}, "`drop_path` is in"),
        ("vit_base_patch16_224", {"pyramid": True}, "joins all stages of a convolutional model"),
        ("vit_base_patch16_224", {"overrides": {"widht": 3}}, "widht"),
        (CONVNEXT, {"any_size": True}, "cannot be resized for each view"),
    ],
)
def test_arguments_that_a_model_cannot_follow_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder(name, **options)


# --- published names -------------------------------------------------------------------------------------------------
def eva_clip(name: str) -> tuple[TimmEncoder, dict[str, Tensor]]:
    """Build an encoder, and its random weights in the authors' names, with all blocks, norm and head."""
    full = encoder(name, norm=True)
    for parameter in full.parameters():
        nn.init.normal_(parameter)
    state = maps.timm_to_eva_clip(full.state_dict())
    return full, state | {"head.weight": torch.ones(2, 32), "rope.freqs_cos": torch.ones(4, 8)}


@pytest.mark.parametrize("prefix", ["", "visual.", "visual_encoder."])
@pytest.mark.parametrize("name", [name for name in TOKENS if name.startswith("eva")])
def test_evas_published_names_load_through_a_reference(name: str, prefix: str, tmp_path: Path) -> None:
    full, state = eva_clip(name)
    if "large" in name:
        published = {"blocks.0.attn.inner_attn_ln.weight", "blocks.2.mlp.w3.bias", "blocks.1.attn.q_bias"}
        assert published <= state.keys()
    others = {"text.transformer.weight": torch.ones(1)} if prefix else {}
    torch.save({f"{prefix}{key}": tensor for key, tensor in state.items()} | others, tmp_path / "eva.pth")
    model = encoder(name, select_layer=-2)
    load_part(model, f"eva-clip:{tmp_path / 'eva.pth'}", "vision")
    ours = model.state_dict()
    assert all(torch.equal(tensor, full.state_dict()[key]) for key, tensor in ours.items())
    assert all(not tensor.any() for key, tensor in ours.items() if key.endswith("k_bias"))
    assert maps.timm_to_eva_clip(ours).keys() < state.keys()


def test_open_clips_published_names_load_and_come_back(tmp_path: Path) -> None:
    name = "vit_large_patch14_clip_224.laion2b"
    full = encoder(name, norm=True)
    state = maps.timm_to_open_clip(full.state_dict())
    assert state["class_embedding"].shape == (32,) and state["positional_embedding"].shape == (5, 32)
    assert "transformer.resblocks.2.attn.in_proj_weight" in state and "ln_post.bias" in state
    whole = {f"visual.{key}": tensor for key, tensor in state.items()}
    whole |= {"visual.proj": torch.ones(32, 4), "logit_scale": torch.ones(1)}
    torch.save(whole, tmp_path / "clip.pt")
    model = encoder(name, norm=True)
    nn.init.zeros_(model.model.pos_embed)
    load_part(model, f"open-clip:{tmp_path / 'clip.pt'}", "vision")
    assert all(torch.equal(tensor, full.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_a_table_of_another_image_size_is_resized_while_it_is_loaded() -> None:
    name = "vit_large_patch14_reg4_dinov2"
    model = reference(name)
    ours = loaded(model, name, image_size=56, position_size=28)
    assert ours.model.pos_embed.shape[1] == model.pos_embed.shape[1] + 12
    with pytest.raises(UserError, match=r"pos_embed: expected"):
        loaded(model, name, image_size=56)


def test_an_entry_that_no_map_knows_is_named() -> None:
    _, state = eva_clip("eva_giant_patch14_clip_224")
    with pytest.raises(UserError, match=r"rel_pos_bias\.table"):
        load_strict(
            encoder("eva_giant_patch14_clip_224"),
            maps.eva_clip_to_timm(state | {"rel_pos_bias.table": torch.zeros(1)}),
        )


def test_a_key_bias_is_not_lost_in_names_that_have_none() -> None:
    model = encoder("eva_giant_patch14_clip_224")
    nn.init.ones_(model.model.blocks[1].attn.k_bias)
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.k_bias is not zero"):
        maps.timm_to_eva_clip(model.state_dict())
