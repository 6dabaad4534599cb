"""These key maps rename Monkey checkpoints: the maps of Qwen-VL, plus the adapters of every window.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.names import add_prefix, below, without
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
    """Rename the module `transformer.visual` (names below it) to the encoder with adapters and the resampler.

    The adapters of all windows are stacked into one tensor. Rows that adapters add to the packed q, k and v are
    reordered like the packed rows.

    Args:
        heads: number of attention heads of the encoder; the packed qkv is laid out head by head. Published: 16.
        vision, connector: name prefixes of the parts in the target model.
    Raises:
        UserError: `heads` does not divide the packed rows, or the windows are not numbered 0, 1, ... without a gap.
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
            raise UserError(f"Monkey checkpoint: {name} needs windows 0, 1, ... without a gap, got {sorted(windows)}")
        adapters[name] = torch.stack([windows[window] for window in range(len(windows))])
    parts = qwen_visual_to_parts(plain, heads=heads, vision=vision, connector=connector)
    return adapters | {
        f"{match[1]}base.{match[2]}" if name.startswith(vision) and (match := BLOCK.fullmatch(name)) else name: tensor
        for name, tensor in parts.items()
    }


def monkey_to_model(state: Mapping[str, Tensor], *, heads: int, network: str = "network") -> dict[str, Tensor]:
    """Rename a whole Monkey checkpoint to the model.

    Args:
        heads: number of attention heads of the vision encoder. Published: 16.
        network: name prefix of the network in the target model.
    Raises:
        UserError: `heads` does not divide the packed rows, or the windows are not numbered 0, 1, ... without a gap.
    """
    visual = below(state, VISUAL)
    mapped = monkey_visual_to_parts(visual, heads=heads, vision=f"{network}.vision", connector=f"{network}.connector")
    return mapped | add_prefix(qwen_to_llama(without(state, VISUAL)), f"{network}.language", only="lm.")
