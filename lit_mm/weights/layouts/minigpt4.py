"""The layout of MiniGPT-4, whose files hold the projection alone."""

from __future__ import annotations

from lit_mm.errors import UserError
from lit_mm.weights.blip2 import lavis_to_blip2
from lit_mm.weights.layouts.layout import Config, Described, Layout, State
from lit_mm.weights.layouts.sizes import QUERIES, component, eva_part, llama_part, qformer_sizes, tokenizer
from lit_mm.weights.names import add_prefix

PROJECTION = "llama_proj.weight"
PARTS = {  # part -> weights that belong there
    "vision": "eva_vit_g.pth of LAVIS",
    "language": "Vicuna version 0, or LLaMA-2 chat for a projection of groups of patches,",
    "connector": "blip2_pretrained_flant5xxl.pth of LAVIS",
}
STAGE = {"projection": {"lr": 3e-5, "weight_decay": 0.05}}


def part(described: Described, name: str) -> Described:
    """Return the description of a part that the file does not hold.

    Raises:
        UserError: `--with` names no place for it.
    """
    if name not in described.parts:
        raise UserError(
            f"{str(described.folder)!r} has no part {name!r}; {PARTS[name]} belongs there. Add --with {name}=PLACE, a "
            "folder or file of it"
        )
    return described.parts[name]


def model(described: Described) -> Config:
    """Build the `model` section. The width that the projection reads tells if there is a Q-Former.

    Raises:
        UserError: a part is missing, or the projection fits neither a Q-Former nor groups of patches.
    """
    _, inputs = described.stored[PROJECTION].shape
    language = llama_part(part(described, "language").config)
    vision = part(described, "vision").stored
    channels = vision["patch_embed.proj.weight"].shape[0]
    has_qformer = inputs % channels != 0
    if has_qformer:
        stored = part(described, "connector").stored
        if QUERIES not in stored or stored[QUERIES].shape[-1] != inputs:
            raise UserError(
                f"{str(described.folder)!r}: {PROJECTION} reads {inputs} channels, which are neither those of a "
                f"Q-Former with {QUERIES} in --with connector=, nor groups of patches of {channels} channels"
            )
        connector = component("lit_mm.connectors.qformer_paired.PairedQFormer", **qformer_sizes(stored))
    else:
        connector = component("lit_mm.connectors.grouped.GroupedProjector", group=inputs // channels)
    template = "vicuna_chat" if has_qformer else "llama_2_chat"
    encoder = eva_part(vision, cut=False, drop_cls=not has_qformer)
    return {
        "class_path": "lit_mm.families.MiniGPT4",
        "init_args": {
            "vision": encoder,
            "language": language,
            "connector": connector,
            "tokenizer": tokenizer(described),
            "image_size": encoder["init_args"]["image_size"],
            "inputs": {
                "prompt": component("lit_mm.prompts.minigpt4.MiniGPT4Prompt", template=template),
                "max_length": min(language["init_args"]["max_positions"], 2048),
            },
        },
    }


def rename(state: State, model: Config) -> State:
    """Rename the projection to the model."""
    return add_prefix(lavis_to_blip2(state), "network")


LAYOUTS = (
    Layout(
        "minigpt4/authors",
        "files of github.com/Vision-CAIR/MiniGPT-4",
        lambda described: PROJECTION in described.stored and len(described.stored) == 2,
        model,
        rename,
        STAGE,
        {"vision": ("eva-clip", ""), "connector": ("blip2-qformer", ""), "language": ("llama", "")},
    ),
)
