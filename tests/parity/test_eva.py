"""A tiny EVA ViT-g equals timm's EVA under the authors' names; there is no golden file for it."""

from __future__ import annotations

import pytest
import torch
from timm.models.eva import Eva
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.vision.eva import EvaViT
from lit_mm.weights.convert import load_strict
from lit_mm.weights.eva import eva_to_vit

ATOL = 1e-5  # fp32, biases added behind the packed linear: measured 2e-6 on features of size 4


@pytest.fixture
def theirs() -> Eva:
    """The reference: four blocks, with features of the third."""
    model = Eva(
        img_size=28,
        patch_size=7,
        embed_dim=24,
        depth=4,
        num_heads=3,
        qkv_bias=True,
        mlp_ratio=4.3637,
        num_classes=5,
        use_rot_pos_emb=False,
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def published(theirs: Eva) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in theirs.state_dict().items() if not name.endswith("k_bias")}


def ours(**options: object) -> EvaViT:
    return EvaViT(**{"image_size": 28, "patch": 7, "width": 24, "layers": 3, "heads": 3} | options).eval()


def test_the_features_are_those_of_the_last_block_but_one(theirs: Eva) -> None:
    assert theirs.blocks[0].norm1.eps == 1e-6 and theirs.blocks[0].mlp.fc1.out_features == int(24 * 4.3637)
    model, pixels = ours(), torch.randn(2, 3, 28, 28)
    load_strict(model, eva_to_vit(published(theirs)))
    with torch.inference_mode():
        expected = theirs.forward_intermediates(
            pixels, indices=[2], norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
        )
        features = model(pixels)
    ((patches, cls),) = expected
    torch.testing.assert_close(features, torch.cat([cls, patches], dim=1), rtol=1e-5, atol=ATOL)


def test_only_one_block_too_many_is_left_out(theirs: Eva) -> None:
    with pytest.raises(UserError, match=r"not in the model: blocks\.3\."):
        load_strict(ours(layers=2), eva_to_vit(published(theirs)))


def test_a_checkpoint_of_another_image_size_is_resized(theirs: Eva) -> None:
    state = eva_to_vit(published(theirs))
    model = ours(image_size=42, position_size=28)
    load_strict(model, state)
    assert model.positions.shape == (1 + 36, 24)
    assert torch.equal(model.positions[0], state["positions"][0])
    with pytest.raises(UserError, match="positions: expected"):
        load_strict(ours(image_size=42), state)


def test_an_entry_the_map_does_not_know_is_named(theirs: Eva) -> None:
    with pytest.raises(UserError, match=r"rel_pos_bias\.table"):
        load_strict(ours(), eva_to_vit(published(theirs) | {"rel_pos_bias.table": torch.zeros(1)}))
