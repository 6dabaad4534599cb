"""Monkey checkpoints -> our model's names: Qwen-VL's, and the adapters of every window.

Pure renaming; what a map does not know it hands on unchanged, so that `load_strict` names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.names import below, placed, without
from lit_mm.weights.qwen_vl import VISUAL, per_head_to_thirds, qwen_to_llama, qwen_visual_to_parts

ADAPTER = re.compile(
    r"transformer\.resblocks\.(\d+)\.(attn\.in_proj|attn\.out_proj|mlp)_lora\.(\d+)"
    r"\.(lora_a\.weight|lora_b\.weight|lora_scale)"
)
PLACES = {"attn.in_proj": "qkv", "attn.out_proj": "out", "mlp": "mlp"}
PIECES = {"lora_a.weight": "down", "lora_b.weight": "up", "lora_scale": "scale"}
BLOCK = re.compile(r"(.*\bblocks\.\d+\.)(.+)")


def monkey_visual_to_parts(
    state: Mapping[str, Tensor], *, heads: int, vision: str = "vision", connector: str = "connector"
) -> dict[str, Tensor]:
    """The names of the vision tower (below `transformer.visual.`) -> encoder with adapters and `NormalisedResampler`.

    The adapters of all windows become one stack; what they add to the packed q, k and v follows its order.

    Args:
        heads: of the encoder; its packed qkv is laid out head by head. Published: 16.
        vision, connector: where the parts sit in the model to be loaded.
    Raises:
        UserError: heads that do not fit the packed rows, or windows that are not numbered from 0 without a gap.
    """
    stacks: dict[str, dict[int, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = ADAPTER.fullmatch(name)
        if not match:
            plain[name] = tensor
            continue
        block, place, piece = match[1], PLACES[match[2]], PIECES[match[4]]
        if (place, piece) == ("qkv", "up"):
            tensor = per_head_to_thirds(tensor, heads)
        target = f"{vision}.blocks.{block}.adapters.{place}.{piece}"
        stacks.setdefault(target, {})[int(match[3])] = tensor.squeeze(0) if piece == "scale" else tensor
    adapters: dict[str, Tensor] = {}
    for name, windows in stacks.items():
        if sorted(windows) != list(range(len(windows))):
            raise UserError(f"Monkey checkpoint: {name} is made of windows 0, 1, ..., it has {sorted(windows)}")
        adapters[name] = torch.stack([windows[window] for window in range(len(windows))])
    parts = qwen_visual_to_parts(plain, heads=heads, vision=vision, connector=connector)
    return adapters | {
        f"{match[1]}base.{match[2]}" if name.startswith(vision) and (match := BLOCK.fullmatch(name)) else name: tensor
        for name, tensor in parts.items()
    }


def monkey_to_model(state: Mapping[str, Tensor], *, heads: int, network: str = "network") -> dict[str, Tensor]:
    """The names of a whole Monkey -> ours.

    Args:
        heads: of the vision encoder. Published: 16.
        network: where the parts sit in the model to be loaded.
    Raises:
        UserError: see `monkey_visual_to_parts`.
    """
    visual = below(state, VISUAL)
    mapped = monkey_visual_to_parts(visual, heads=heads, vision=f"{network}.vision", connector=f"{network}.connector")
    return mapped | placed(qwen_to_llama(without(state, VISUAL)), f"{network}.language", only="lm.")
