"""VILA-1.5's projector joins the same patches in the same order as the released block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lit_mm.connectors.downsample import DownsampleMLP, join_patches
from lit_mm.weights.convert import load_strict
from lit_mm.weights.vila import vila_to_model


def joined(side: int) -> list[list[int]]:
    """The patches of each token, numbered from 1, with 0 for padding."""
    numbered = torch.arange(1, side**2 + 1)[None, :, None]  # [1, N, 1]
    return join_patches(numbered)[0].tolist()


def test_the_patches_of_each_token_are_the_released_ones_in_the_released_order(golden: Any) -> None:
    grids = golden.json("vila_downsample")["grids"]
    assert grids
    for side, expected in grids.items():
        tokens = joined(int(side))
        if isinstance(expected, list):
            assert tokens == expected, side
            continue
        assert [len(tokens), len(tokens[0])] == expected["shape"]
        for key, value in expected.items():
            if key.startswith("first"):
                assert tokens[: len(value)] == value, key
            elif key.startswith("last"):
                assert tokens[-len(value) :] == value, key
            elif key.startswith("token_at_"):
                assert tokens[int(key.removeprefix("token_at_"))] == value, key
            else:
                assert key == "shape", key


def test_the_published_projectors_have_their_sizes_and_counts(golden: Any) -> None:
    models = golden.json("llava_params")["models"]
    published = {name: entry for name, entry in models.items() if "visual_tokens_384_patch14" in entry}
    for (name, entry), width in zip(sorted(published.items()), (2560, 4096), strict=True):
        with torch.device("meta"):
            projector = DownsampleMLP(1152, width)
        rows, columns = projector.token_grid((27, 27))
        assert sum(p.numel() for p in projector.parameters()) == entry["projector"], name
        assert rows * columns == entry["visual_tokens_384_patch14"], name


def test_a_released_projector_computes_what_its_layers_do() -> None:
    sizes = {"layers.1.weight": (24,), "layers.1.bias": (24,), "layers.2.weight": (10, 24), "layers.2.bias": (10,)}
    sizes |= {"layers.4.weight": (10, 10), "layers.4.bias": (10,)}
    state = {name: torch.randn(shape) for name, shape in sizes.items()}
    connector, x = DownsampleMLP(6, 10), torch.randn(2, 9, 6)
    ours = vila_to_model(state, network="n")
    load_strict(connector, {name.removeprefix("n.connector."): tensor for name, tensor in ours.items()})
    hidden = F.layer_norm(join_patches(x), (24,), state["layers.1.weight"], state["layers.1.bias"])
    hidden = F.gelu(F.linear(hidden, state["layers.2.weight"], state["layers.2.bias"]))
    expected = F.linear(hidden, state["layers.4.weight"], state["layers.4.bias"])
    torch.testing.assert_close(connector(x), expected, rtol=0, atol=1e-6)
