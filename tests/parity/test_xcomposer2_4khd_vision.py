"""XComposer2-4KHD's processor, encoder, merge and learned vectors together equal the release.

The order of tokens and tiles, and the global view alone, are tested in test_xcomposer2_4khd_tiling.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lit_mm.connectors.merge import MergeMLP, merge_patches
from lit_mm.documents.document import Document, Turn
from lit_mm.families.xcomposer2_4khd import XComposer2HD
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.pixels import shrink
from lit_mm.tiling import Hd
from lit_mm.vision.vit import ViT
from lit_mm.weights.convert import load_strict
from lit_mm.weights.xcomposer2_4khd import xcomposer2_4khd_to_model

FILE = "xcomposer2_4khd_vision"


@dataclass(frozen=True)
class Sized:
    """A picture that has a size and no pixels."""

    height: int
    width: int

    def read(self) -> Image.Image:
        raise AssertionError("the pixels are given")


def family(golden: Any, language_width: int, max_tiles: int) -> XComposer2HD:
    """The family with the sizes of the golden file, around an unused language model."""
    clip = golden.json(FILE)["tiny_clip_config"]
    vision = ViT(
        image_size=clip["image_size"],
        patch=clip["patch_size"],
        width=clip["hidden_size"],
        layers=clip["num_hidden_layers"],
        heads=clip["num_attention_heads"],
        ffn_width=clip["intermediate_size"],
        activation=clip["hidden_act"],
        eps=clip["layer_norm_eps"],
    )
    language = Llama(width=language_width, layers=1, heads=1, kv_heads=1, ffn_width=8, vocab_size=512)
    return XComposer2HD(
        vision,
        language,
        "nano",
        tile=clip["image_size"],
        rank=1,
        inputs=Inputs(Hd(max_tiles, clip["image_size"]), prompt=XComposer2Prompt("<|im_start|>", "<|im_end|>")),
    )


def batch_of(module: XComposer2HD, pictures: list[Sized], views: list[Tensor] | None = None) -> Batch:
    document = Document("golden", (Turn("page", tuple(pictures)),))
    sample = module.processor.sample(document)
    blank = [torch.zeros(3, *view.size) for plan in sample.plans for view in plan.views]
    return collate([sample], module.processor, views=[blank if views is None else views])


def test_the_real_merge_and_the_batchs_index_give_the_releases_order(golden: Any) -> None:
    file, clip = golden.json(FILE), golden.json(FILE)["tiny_clip_config"]
    tile, patches = clip["image_size"], (clip["image_size"] // clip["patch_size"]) ** 2
    cases = golden.tensors(FILE, "index_order.")
    assert cases
    for name, theirs in cases.items():
        grids = [tuple(map(int, pair)) for pair in re.findall(r"(?:rows)?(\d+)(?:_cols|x)(\d+)", name)]
        limit = max(math.prod(grid) for grid in grids)
        assert all(math.prod(grid) == limit for grid in grids), "pictures of one limit"
        module = family(golden, 8, limit)
        batch = batch_of(module, [Sized(rows * tile, columns * tile) for rows, columns in grids])
        assert batch.num_views == sum(math.prod(grid) + 1 for grid in grids)
        numbers = torch.arange(batch.num_views * patches, dtype=torch.float32).view(batch.num_views, patches, 1)
        merged = merge_patches(numbers, math.isqrt(theirs.shape[1])).flatten(0, 1)
        bank = torch.cat([merged, torch.full_like(merged[:1], -1), torch.full_like(merged[:1], -2)])
        assert torch.equal(bank[batch.bank].to(theirs.dtype), theirs), name
    assert file["token_counts"]["rows1_cols1"] == len(cases["rows1_cols1"])


def tower(golden: Any) -> tuple[XComposer2HD, MultimodalModel]:
    """The family with encoder, projector, newline and separator of the release."""
    tensors = golden.tensors(FILE, "tiny.")
    rows, columns = (length * 14 // 336 for length in tensors["input_lowres"].shape[-2:])
    module = family(golden, tensors["projected"].shape[1], rows * columns).eval()
    state = {
        name.replace("clip.", "vit.vision_tower.", 1): tensor
        for name, tensor in tensors.items()
        if name.startswith(("clip.", "vision_proj.", "plora_"))
    }
    parts = nn.ModuleDict({"vision": module.network.vision, "connector": module.network.connector})
    ours = xcomposer2_4khd_to_model(state, heads=1, kv_heads=1, network="parts")
    load_strict(parts, {name.removeprefix("parts."): tensor for name, tensor in ours.items()})
    return module, module.network


@pytest.fixture
def views(golden: Any) -> tuple[Sized, list[Tensor]]:
    """Size of the picture, and its views: the global view as the release shrinks it, then the tiles row by row."""
    lowres, clip = golden.tensors(FILE, "tiny.")["input_lowres"][0], golden.json(FILE)["tiny_clip_config"]
    tile = clip["image_size"]
    image = lowres.repeat_interleave(14, dim=1).repeat_interleave(14, dim=2)
    height, width = image.shape[1:]
    tiles = [image[:, y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
    return Sized(height, width), [shrink(image, (tile, tile)), *tiles]


@torch.inference_mode()
def test_tower_and_projector_agree_with_the_release(golden: Any, views: tuple[Sized, list[Tensor]]) -> None:
    module, network = tower(golden)
    tensors, atol = golden.tensors(FILE, "tiny."), golden.tolerance(golden.json(FILE)["tolerance"])
    picture, pixels = views
    batch = batch_of(module, [picture], pixels)
    order = batch.bank
    projected = network.bank(batch.views)[order]
    torch.testing.assert_close(projected, tensors["projected"], rtol=0, atol=atol)

    connector: MergeMLP = network.connector
    merged = merge_patches(network.vision(batch.views.groups[0]), connector.merge).flatten(0, 1)
    before = torch.cat([merged, connector.newline[None], connector.separator[None]])[order]
    torch.testing.assert_close(before[::9], tensors["tokens_every_9"], rtol=0, atol=atol)
