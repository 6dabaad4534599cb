"""These key maps rename the vision encoder of CLIP checkpoints to `lit_mm.vision.vit.ViT`.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.names import below, without

HF_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
HF_TOP = {
    "embeddings.class_embedding": "cls",
    "embeddings.patch_embedding.weight": "patches.weight",
    "embeddings.position_embedding.weight": "positions",
    "pre_layrnorm.weight": "pre_norm.weight",  # transformers misspells it
    "pre_layrnorm.bias": "pre_norm.bias",
}
HF_PARTS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "out",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
HF_UNUSED = ("post_layernorm.", "embeddings.position_ids")  # applied after the features; the constants 0, 1, 2, ...
# Prefixes of everything else in a whole CLIPModel
HF_TEXT = ("text_model.embeddings.", "text_model.encoder.", "text_model.final_layer_norm.")
HF_CONTRAST = ("text_projection.weight", "visual_projection.weight", "logit_scale")

OPENAI_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
OPENAI_TOP = {
    "class_embedding": "cls",
    "conv1.weight": "patches.weight",
    "positional_embedding": "positions",
    "ln_pre.weight": "pre_norm.weight",
    "ln_pre.bias": "pre_norm.bias",
}
OPENAI_PARTS = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj": "qkv",
    "attn.out_proj": "out",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
}
OPENAI_UNUSED = ("ln_post.", "proj")


def hf_clip_to_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' CLIPVisionModel, or the vision half of CLIPModel, to `ViT`; q, k and v become one linear.

    Names may start with `vision_model.`. The post layer-norm is dropped, because features are taken before it. The
    text half, the two projections and the temperature of a whole CLIPModel are dropped, too.

    Raises:
        UserError: a block lacks one of q, k and v.
    """
    mapped: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in state.items():
        name = full_name.removeprefix("vision_model.")
        match = HF_LAYER.fullmatch(name)
        if name.startswith(HF_UNUSED) or full_name.startswith(HF_TEXT) or full_name in HF_CONTRAST:
            continue
        if name in HF_TOP:
            mapped[HF_TOP[name]] = tensor
        elif match and match[2] in HF_PARTS:
            mapped[f"blocks.{match[1]}.{HF_PARTS[match[2]]}.{match[3]}"] = tensor
        elif match and match[2] in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            packed.setdefault(f"blocks.{match[1]}.qkv.{match[3]}", {})[match[2][10]] = tensor
        else:
            mapped[full_name] = tensor
    for name, rows in packed.items():
        if len(rows) != 3:
            raise UserError(f"CLIP checkpoint: {name} needs q, k and v, but the checkpoint has only {sorted(rows)}")
        mapped[name] = torch.cat([rows["q"], rows["k"], rows["v"]])
    return mapped


def openai_clip_to_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename OpenAI's checkpoints to `ViT`.

    The post layer-norm and the projection are dropped, because they come after the features. The text half of a whole
    CLIP, whose vision names start with `visual.`, is dropped, too.
    """
    norm, projection = OPENAI_UNUSED
    features = without(below(state, "visual.") or state, norm)
    features.pop(projection, None)
    return openai_to_vit(features)


def openai_to_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename layers of OpenAI's vision transformer to `ViT`. Models built on that code, such as Qwen-VL, share them."""
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = OPENAI_LAYER.fullmatch(name)
        if name in OPENAI_TOP:
            mapped[OPENAI_TOP[name]] = tensor
        elif match and match[2] in OPENAI_PARTS:
            mapped[f"blocks.{match[1]}.{OPENAI_PARTS[match[2]]}.{match[3]}"] = tensor
        else:
            mapped[name] = tensor
    return mapped
