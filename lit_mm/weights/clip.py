"""CLIP vision checkpoints -> our ViT.

Pure renaming; what a map does not know it hands on unchanged, so that `load_strict` names it.
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
    "pre_layrnorm.weight": "pre_norm.weight",  # the misspelling is theirs
    "pre_layrnorm.bias": "pre_norm.bias",
}
HF_PARTS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "out",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
HF_UNUSED = ("post_layernorm.", "embeddings.position_ids")  # after the features; 0, 1, 2, ...
# Of a whole CLIPModel, what is not its vision encoder
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
    """Hugging Face's CLIPVisionModel, or the vision half of its CLIPModel -> `ViT`; q, k, v become one linear.

    Names may start with `vision_model.`. The post layer-norm is left out: features are taken before it. Of a whole
    CLIPModel the text half, the two projections and the temperature are left out, too.

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
            raise UserError(f"CLIP checkpoint: {name} is made of q, k and v, the checkpoint has only {sorted(rows)}")
        mapped[name] = torch.cat([rows["q"], rows["k"], rows["v"]])
    return mapped


def openai_clip_to_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's own names -> `ViT`. From a whole CLIP (`visual.` names) the text half is left out, and so are the post
    layer-norm and the projection, which come after the features."""
    norm, projection = OPENAI_UNUSED
    features = without(below(state, "visual.") or state, norm)
    features.pop(projection, None)
    return openai_to_vit(features)


def openai_to_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names of a vision transformer's layers -> `ViT`; whoever started from that code has them, too."""
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
