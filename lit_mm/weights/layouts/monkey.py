"""The layout of Monkey: that of Qwen-VL with adapters for each window."""

from __future__ import annotations

import re

from lit_mm.errors import UserError
from lit_mm.weights.layouts.layout import Config, Described, Layout, State
from lit_mm.weights.layouts.qwen_vl import ADAPTER, VISUAL, parts
from lit_mm.weights.layouts.sizes import component
from lit_mm.weights.monkey import monkey_to_model

WINDOW = re.compile(r"resblocks\.0\.attn\.in_proj_lora\.(\d+)\.lora_a\.weight$")
GRIDS = {4: (2, 2), 6: (2, 3)}  # number of windows -> (rows, columns), as published
RANKS = {"qkv": "attn.in_proj_lora.0", "out": "attn.out_proj_lora.0", "mlp": "mlp_lora.0"}
STAGE = {
    "window_adapters": {"lr": 1e-5, "weight_decay": 0.1},
    "connector": {"lr": 1e-5, "weight_decay": 0.1},
    "language": {"lr": 1e-5, "weight_decay": 0.1},
}


def model(described: Described) -> Config:
    """Build the `model` section; the adapters show the windows.

    Raises:
        UserError: the number of windows is none of the published ones.
    """
    windows = sum(WINDOW.search(name) is not None for name in described.stored)
    if windows not in GRIDS:
        raise UserError(f"{str(described.folder)!r} has adapters for {windows} windows; published are {list(GRIDS)}")
    side = described.config["visual"].get("image_size", 448)
    rows, columns = GRIDS[windows]
    ranks = {part: described.shape(f"resblocks.0.{name}.lora_a.weight")[0] for part, name in RANKS.items()}
    arguments = {
        "size": [rows * side, columns * side],
        "window": side,
        "ranks": ranks,
        "dropout": 0.05,
        "inputs": {"prompt": component("lit_mm.prompts.qwen_vl.QwenPlain"), "max_length": 2048},
    }
    return {"class_path": "lit_mm.families.Monkey", "init_args": parts(described) | arguments}


def rename(state: State, model: Config) -> State:
    """Rename a checkpoint of Monkey."""
    return monkey_to_model(state, heads=model["init_args"]["vision"]["init_args"]["heads"])


LAYOUTS = (
    Layout(
        "monkey/authors",
        "echo840/Monkey",
        lambda described: VISUAL in described.stored and any(ADAPTER in name for name in described.stored),
        model,
        rename,
        STAGE,
    ),
)
