"""This key map renames EVA-CLIP ViT-g, as its authors release it, to `EvaViT`.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
PARTS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
BIASES = {"attn.q_bias": "q_bias", "attn.v_bias": "v_bias"}
PATCHES = {"patch_embed.proj.weight": "patches.weight", "patch_embed.proj.bias": "patches.bias"}
TABLES = {"cls_token": "cls", "pos_embed": "positions"}
UNUSED = ("norm.", "fc_norm.", "head.")  # applied after the features


def eva_to_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename checkpoints of modeling_vit.py (XComposer) and eva_vit.py (LAVIS, file eva_vit_g.pth) to `EvaViT`."""
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(UNUSED):
            continue
        if name in TABLES:
            mapped[TABLES[name]] = tensor.flatten(0, -2).squeeze(0)  # [1, 1, D] -> [D], [1, P, D] -> [P, D]
            continue
        match = BLOCK.fullmatch(name)
        piece, _, kind = match[2].rpartition(".") if match else ("", "", "")
        if match and match[2] in BIASES:
            mapped[f"blocks.{match[1]}.{BIASES[match[2]]}"] = tensor
        elif piece in PARTS:
            mapped[f"blocks.{match[1]}.{PARTS[piece]}.{kind}"] = tensor
        else:
            mapped[PATCHES.get(name, name)] = tensor
    return mapped
