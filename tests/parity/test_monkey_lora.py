"""Monkey's vision tower, with an adapter set per window, equals the released code through the key map."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.model import MultimodalModel
from lit_mm.samples.batch import Views
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.tiling.plan import TilePlan
from lit_mm.tiling.windows import plan_windows
from lit_mm.vision.vit import ViT
from lit_mm.vision.window_adapters import apply_window_adapters
from lit_mm.weights.convert import load_strict
from lit_mm.weights.monkey import monkey_visual_to_parts

FILE = "monkey_lora"


class NoLanguage(nn.Module):
    """A language model that the bank does not use."""


@pytest.fixture
def config(golden: Any) -> dict[str, Any]:
    return golden.json("monkey_tiles")["lora_file"]["config"]


@pytest.fixture
def network(golden: Any, config: dict[str, Any]) -> MultimodalModel:
    """Encoder and connector with the sizes of the golden file and the weights of the release, loaded strictly."""
    weights = golden.tensors(FILE, "w.")
    side, pool, eps = math.isqrt(len(weights["positional_embedding"])), config["resampler"], config["layer_norm_eps"]
    vision = ViT(
        image_size=side * config["patch_size"],
        patch=config["patch_size"],
        width=config["width"],
        layers=config["layers"],
        heads=config["heads"],
        ffn_width=config["mlp_width"],
        activation="gelu",
        eps=eps,
        class_token=False,
        any_size=True,
    )
    attention, mlp = config["lora_rank_attention"], config["lora_rank_mlp"]
    apply_window_adapters(vision, config["lora_repeat_num"], {"qkv": attention, "out": attention, "mlp": mlp})
    connector = NormalisedResampler(
        pool["kv_dim"], pool["embed_dim"], pool["grid_size"], heads=pool["num_heads"], eps=eps
    )
    network = MultimodalModel(NoLanguage(), vision, connector, fusion=lambda *parts: parts[0])
    load_strict(network, monkey_visual_to_parts(weights, heads=config["heads"]))
    return network.eval()


def assert_close(golden: Any, ours: Tensor, theirs: Tensor) -> None:
    golden.assert_close(ours, theirs, golden.json("monkey_tiles")["lora_file"]["tolerance"])


def cut(golden: Any, config: dict[str, Any]) -> tuple[TilePlan, Tensor]:
    """Plan and views of the stored image of int8 / 32; as uint8 it is 128 more: the mean is 128, the deviation 32."""
    image = (golden.tensors(FILE)["image_int8"][0].int() + 128).to(torch.uint8)
    size = tuple(image.shape[1:])
    plan = plan_windows(*size, size=size, window=config["image_size"])
    return plan, torch.stack(cut_views(image, plan.views, Normalise((128 / 255,) * 3, (32 / 255,) * 3)))


@torch.inference_mode()
def test_all_windows_and_the_whole_in_one_call_make_the_tokens_of_the_release(
    golden: Any, network: MultimodalModel, config: dict[str, Any]
) -> None:
    plan, views = cut(golden, config)
    assert plan.tile_numbers == [*range(len(views) - 1), -1] and len(views) - 1 <= config["lora_repeat_num"]
    count = len(views) * config["resampler"]["grid_size"] ** 2
    owners, tiles = torch.zeros(len(views), dtype=torch.long), torch.tensor(plan.tile_numbers)
    tokens = network.bank(Views((views,), owners, tiles, count))
    assert_close(golden, tokens, golden.tensors(FILE)["visual_tokens"][0])


@torch.inference_mode()
def test_one_window_through_every_adapter_set_is_as_released(
    golden: Any, network: MultimodalModel, config: dict[str, Any]
) -> None:
    tensors = golden.tensors(FILE, "tile0_lora_")
    assert tensors.keys() == {"None", *map(str, range(config["lora_repeat_num"]))}
    _, views = cut(golden, config)
    sets = torch.tensor([-1 if name == "None" else int(name) for name in tensors])
    tokens = network.connector(network.vision(views[:1].expand(len(sets), -1, -1, -1), sets))
    assert_close(golden, tokens, torch.cat(list(tensors.values())))


@torch.inference_mode()
def test_a_block_with_an_adapter_set_is_as_released(golden: Any, network: MultimodalModel) -> None:
    tensors = golden.tensors(FILE, "block.")
    x, block = tensors.pop("x").transpose(0, 1), network.vision.blocks[0]
    assert tensors
    for name, expected in tensors.items():
        number = name.removeprefix("y_lora_")
        tiles = torch.tensor([-1 if number == "None" else int(number)])
        assert_close(golden, block(x, None, tiles).transpose(0, 1), expected)
        if number == "None":
            assert torch.equal(block(x), block(x, None, tiles))


def test_the_tower_has_the_released_number_of_parameters(
    golden: Any, network: MultimodalModel, config: dict[str, Any]
) -> None:
    published = golden.json("monkey_tiles")["lora_file"]["params"]
    count = {name: p.numel() for name, p in network.named_parameters()}
    assert sum(n for name, n in count.items() if ".adapters." in name) == published["lora"]
    assert sum(count.values()) == published["total"]
