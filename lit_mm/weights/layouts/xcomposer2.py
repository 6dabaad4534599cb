"""The layouts of XComposer2 and XComposer2-4KHD."""

from __future__ import annotations

from lit_mm.weights.layouts.layout import Config, Described, Layout, State
from lit_mm.weights.layouts.sizes import clip_part, component, llama_part, tokenizer
from lit_mm.weights.xcomposer2 import xcomposer2_to_model
from lit_mm.weights.xcomposer2_4khd import xcomposer2_4khd_to_model

PROJECTOR, SEPARATOR, BRANCH = "vision_proj.0.weight", "plora_glb_GN", "attention.wo.Plora_A.weight"
STAGE = {
    "vision": {"lr": 5e-5, "layer_decay": 0.9, "weight_decay": 0.1},
    "connector": {"lr": 5e-5, "weight_decay": 0.1},
    "partial_lora": {"lr": 5e-5, "weight_decay": 0.1},
    "language": {"lr": 1e-5, "weight_decay": 0.1},
}


def shared(described: Described) -> Config:
    """Build the arguments that both families have. The rank is that of the branches in the files."""
    rank = described.shape(BRANCH)[0]
    return {
        "vision": clip_part(described, select_layer=-1),
        "language": llama_part(described.config),
        "tokenizer": tokenizer(described),
        "rank": rank,
        "alpha": rank,
        "dropout": 0.05,
    }


def model(described: Described) -> Config:
    """Build the `model` section of XComposer2; the position table shows the size of its images."""
    arguments = shared(described)
    side = arguments["vision"]["init_args"]["image_size"]
    inputs = {"max_length": 4096}
    return {
        "class_path": "lit_mm.families.XComposer2",
        "init_args": arguments | {"image_size": side, "inputs": inputs},
    }


def model_4khd(described: Described) -> Config:
    """Build the `model` section of XComposer2-4KHD, with up to 55 tiles."""
    arguments = shared(described)
    side = arguments["vision"]["init_args"]["image_size"]
    inputs = {"tiling": component("lit_mm.tiling.Hd", max_tiles=55, tile=side), "max_length": 16384}
    return {
        "class_path": "lit_mm.families.XComposer2HD",
        "init_args": arguments | {"tile": side, "inputs": inputs},
    }


def heads(model: Config) -> dict[str, int]:
    """Return the numbers of heads that the key maps need."""
    sizes = model["init_args"]["language"]["init_args"]
    return {"heads": sizes["heads"], "kv_heads": sizes["kv_heads"]}


def rename(state: State, model: Config) -> State:
    """Rename a checkpoint of XComposer2."""
    return xcomposer2_to_model(state, **heads(model))


def rename_4khd(state: State, model: Config) -> State:
    """Rename a checkpoint of XComposer2-4KHD."""
    return xcomposer2_4khd_to_model(state, **heads(model))


LAYOUTS = (
    Layout(
        "xcomposer2/authors",
        "internlm/internlm-xcomposer2-vl-7b",
        lambda described: PROJECTOR in described.stored and SEPARATOR not in described.stored,
        model,
        rename,
        STAGE,
    ),
    Layout(
        "xcomposer2_4khd/authors",
        "internlm/internlm-xcomposer2-4khd-7b",
        lambda described: PROJECTOR in described.stored and SEPARATOR in described.stored,
        model_4khd,
        rename_4khd,
        STAGE,
    ),
)
