"""LLaVA-UHD's resampler in both forms, its region pooling and CLIP's position table equal the released code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.connectors.region_pooling import pool_regions, pooled_shape
from lit_mm.connectors.slice_resampler import SliceResampler
from lit_mm.layers.position import resize_grid, sincos_table
from lit_mm.vision.position import resize_position_table
from lit_mm.vision.vit import ViT
from lit_mm.weights.convert import load_strict
from lit_mm.weights.llava_uhd import slice_resampler

FILE = "llava_uhd_resampler"
FORMS = {"scr": True, "perceiver": False}  # prefix in the file -> does each query read its region alone


@pytest.fixture
def facts(golden: Any) -> dict[str, Any]:
    return golden.json(FILE)


@pytest.fixture
def outputs(facts: dict[str, Any]) -> float:
    """Parse the tolerance of outputs from the golden file; the second number there is for tables."""
    return _tolerances(facts)[0]


@pytest.fixture
def tables(facts: dict[str, Any]) -> float:
    return _tolerances(facts)[1]


def _tolerances(facts: dict[str, Any]) -> list[float]:
    words = facts["tolerance"].replace("(", " ").replace(",", " ").split()
    return [float(word) for word in words if word[0].isdigit()]


def build(golden: Any, form: str) -> SliceResampler:
    """Load the released weights strictly through the key map."""
    config = golden.json(FILE)[form]["config"]
    ours = SliceResampler(
        config["kv_dim"],
        config["embed_dim"],
        side=config["grid_size"],
        heads=config["num_heads"],
        regions=FORMS[form],
        eps=config["ln_eps"],
    )
    load_strict(ours, slice_resampler(golden.tensors(FILE, f"{form}.param.")))
    return ours.eval()


def cases(golden: Any, form: str) -> list[tuple[tuple[int, int], dict[str, Tensor]]]:
    """Grid (rows, columns) and tensors of each case."""
    return [
        (tuple(case["tgt_size_h_w"]), golden.tensors(FILE, f"{form}.case{case['case']}."))
        for case in golden.json(FILE)[form]["cases"]
    ]


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_visual_tokens_are_those_of_the_release(golden: Any, form: str, outputs: float) -> None:
    ours = build(golden, form)
    for grid, tensors in cases(golden, form):
        got = ours(tensors["input"], [grid] * len(tensors["input"]))
        torch.testing.assert_close(got, tensors["output"], rtol=0, atol=outputs, msg=lambda m, g=grid: f"{g}: {m}")


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_views_of_all_shapes_in_one_call_are_what_they_are_alone(golden: Any, form: str, outputs: float) -> None:
    ours = build(golden, form)
    alone = cases(golden, form)
    longest = max(rows * columns for (rows, columns), _ in alone)
    padded, grids = [], []
    for (rows, columns), tensors in alone:
        x = torch.full((len(tensors["input"]), longest, tensors["input"].shape[-1]), 1e3)  # what follows is not read
        x[:, : rows * columns] = tensors["input"]
        padded.append(x)
        grids += [(rows, columns)] * len(x)
    got = ours(torch.cat(padded), grids)
    torch.testing.assert_close(got, torch.cat([tensors["output"] for _, tensors in alone]), rtol=0, atol=outputs)


def test_regions_are_pooled_as_the_release_pools_them(golden: Any, facts: dict[str, Any], outputs: float) -> None:
    side = facts["scr"]["config"]["grid_size"]
    for case, (grid, tensors) in zip(facts["scr"]["cases"], cases(golden, "scr"), strict=True):
        assert pooled_shape(grid) == tuple(case["pool_out_h_w"])
        assert math.isclose(grid[1] / grid[0], case["wh_ratio"])
        got = pool_regions(tensors["pool_in"], grid, side)
        expected = tensors["pool_out"].unflatten(0, (len(tensors["pool_in"]), -1))
        torch.testing.assert_close(got, expected, rtol=0, atol=outputs)


def test_positions_of_queries_and_keys_are_those_of_the_release(golden: Any, tables: float) -> None:
    for form in FORMS:
        expected = golden.tensors(FILE, f"{form}.param.")["pos_embed"]
        table = build(golden, form).positions
        torch.testing.assert_close(table, expected, rtol=0, atol=tables)
        for grid, tensors in cases(golden, form):
            if "key_pos" in tensors:
                torch.testing.assert_close(resize_grid(table, grid), tensors["key_pos"], rtol=0, atol=tables)


def test_sine_cosine_tables_are_those_of_the_release(golden: Any, tables: float) -> None:
    found = golden.tensors(FILE, "sincos.")
    assert found
    for expected in found.values():
        side, width = math.isqrt(len(expected)), expected.shape[1]
        torch.testing.assert_close(sincos_table(width, side), expected, rtol=0, atol=tables)


def test_clips_position_table_is_interpolated_as_the_release_does_and_so_in_the_encoder(
    golden: Any, facts: dict[str, Any], tables: float
) -> None:
    tensors = golden.tensors(FILE, "clip_pos.")
    source = tensors["source"][0]
    side, width = math.isqrt(len(source) - 1), source.shape[1]
    vision = ViT(side, 1, width, layers=1, heads=1, any_size=True)
    vision.positions.data.copy_(source)
    added: list[Tensor] = []
    vision.pre_norm.register_forward_pre_hook(lambda module, arguments: added.append(arguments[0]))
    vision.patches.weight.data.zero_()
    vision.cls.data.zero_()  # so that what enters the first norm is the table alone
    grids = [tuple(case["dst_h_w"]) for case in facts["clip_pos"]["cases"]]
    with torch.inference_mode():
        vision([torch.zeros(1, 3, *grid) for grid in grids])
    for number, (case, (rows, columns)) in enumerate(zip(facts["clip_pos"]["cases"], grids, strict=True)):
        expected = tensors[f"case{case['case']}.output"][0]
        resized = resize_position_table(source, (rows, columns))
        torch.testing.assert_close(resized, expected, rtol=0, atol=tables)
        got = added[0][number]
        torch.testing.assert_close(got[: 1 + rows * columns], expected, rtol=0, atol=tables)
        assert not got[1 + rows * columns :].any()
