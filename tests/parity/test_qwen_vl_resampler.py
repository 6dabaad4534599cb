"""Qwen-VL's resampler and the position tables equal every golden case, through the key map."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.connectors.resampler import Resampler
from lit_mm.layers.position import resize_grid, sincos_table
from lit_mm.weights.convert import load_strict
from lit_mm.weights.qwen_vl import qwen_pool_to_resampler

FILE = "qwen_vl_resampler"


def build(golden: Any, prefix: str, config: dict[str, Any], eps: float) -> Resampler:
    """The resampler of `config` with the weights of the release."""
    resampler = Resampler(
        config["kv_dim"], config["embed_dim"], config["grid_size"], heads=config["num_heads"], eps=eps
    ).eval()
    load_strict(resampler, qwen_pool_to_resampler(golden.tensors(FILE, prefix)))
    return resampler


def assert_close(golden: Any, ours: Tensor, theirs: Tensor) -> None:
    golden.assert_close(ours, theirs, golden.json(FILE)["tolerance"])


@pytest.mark.golden_cases(FILE)
@torch.inference_mode()
def test_the_resampler_agrees_with_the_release_at_every_grid(golden: Any, case: dict[str, Any]) -> None:
    config, side = golden.json(FILE)["config"], case["input_grid"]
    resampler = build(golden, "w.", config, config["layer_norm_eps"])
    tensors = golden.tensors(FILE)
    x = tensors[f"x.grid{side}"]
    assert x.shape[1] == case["tokens"]
    assert_close(golden, resize_grid(resampler.positions, (side, side)), tensors[f"kv_pos.grid{side}"])
    assert_close(golden, resampler(x), tensors[f"y.grid{side}"])


@torch.inference_mode()
def test_the_resampler_without_a_projection_agrees_with_the_release(golden: Any) -> None:
    file = golden.json(FILE)
    resampler = build(golden, "w2.", file["second_config"], file["config"]["layer_norm_eps"])
    inputs, outputs = golden.tensors(FILE, "x2."), golden.tensors(FILE, "y2.")
    assert inputs and inputs.keys() == outputs.keys()
    for name, x in inputs.items():
        assert_close(golden, resampler(x), outputs[name])


def test_the_fixed_table_is_that_of_the_checkpoint_and_of_the_full_size(golden: Any) -> None:
    config, tensors = golden.json(FILE)["config"], golden.tensors(FILE)
    assert_close(golden, sincos_table(config["embed_dim"], config["grid_size"]), tensors["w.pos_embed"])
    tables = golden.tensors(FILE, "sincos.")
    checked = 0
    for name, expected in tables.items():
        dim, grid, *samples = name.split("_")
        table = sincos_table(int(dim.removeprefix("dim")), int(grid.removeprefix("grid")))
        if samples:  # some rows, at even distances along the channels
            side, every = math.isqrt(len(table)), table.shape[1] // expected.shape[1]
            table = table[[0, 1, side, side + 1, len(table) - 1], ::every]
        assert_close(golden, table, expected)
        checked += 1
    assert checked


def test_the_encoders_table_is_resized_as_released(golden: Any) -> None:
    tables = golden.tensors(FILE, "vit_pos.")
    source = next(table for name, table in tables.items() if name.startswith("src_"))
    wanted = {name: table for name, table in tables.items() if name.startswith("at_")}
    assert wanted
    for name, expected in wanted.items():
        side = math.isqrt(int(name.removeprefix("at_")))
        assert_close(golden, resize_grid(source, (side, side)), expected)
