"""This key map renames decoders that transformers publishes to `lit_mm.language.pretrained.Pretrained`.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.internlm2 import internlm2_to_llama
from lit_mm.weights.qwen_vl import qwen_to_llama

EXPERT = re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.experts\.(\d+)\.w([123])\.weight")
GATE = re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.gate\.weight")


def decoder_to_pretrained(
    state: Mapping[str, Tensor], *, model_type: str, heads: int, kv_heads: int
) -> dict[str, Tensor]:
    """Rename a published decoder to `Pretrained`.

    Experts of Mixtral, published one by one, are stacked: gate (w1) above up (w3) as one, and down (w2). Rotary
    frequencies of old files are dropped and recomputed.

    Args:
        model_type: the key `model_type` of the config.json; "qwen" and "internlm2" are renamed to Llama's names.
        heads, kv_heads: numbers of query and key/value heads.
    Raises:
        UserError: an expert is not complete.
    """
    if model_type == "internlm2":
        return internlm2_to_llama(state, heads=heads, kv_heads=kv_heads, partial_lora=False)
    if model_type == "qwen":
        return qwen_to_llama(state)
    mapped: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in state.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if match := EXPERT.fullmatch(name):
            experts.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
        elif match := GATE.fullmatch(name):
            mapped[f"lm.{match[1]}.mlp.gate.weight"] = tensor
        elif name.startswith("decoder."):  # OPT published without its head, which is tied
            mapped[f"lm.model.{name}"] = tensor
        else:
            mapped[f"lm.{name}"] = tensor
    for layer, matrices in experts.items():
        count = 1 + max(number for number, _ in matrices)
        missing = [
            key for number in range(count) for key in ((number, which) for which in "123") if key not in matrices
        ]
        if missing:
            raise UserError(f"Mixtral checkpoint: {layer} lacks matrices (expert, w) {missing[:4]}; is it complete?")
        gate_up = [torch.cat([matrices[number, "1"], matrices[number, "3"]]) for number in range(count)]
        mapped[f"lm.{layer}.mlp.experts.gate_up_proj"] = torch.stack(gate_up)
        mapped[f"lm.{layer}.mlp.experts.down_proj"] = torch.stack([matrices[number, "2"] for number in range(count)])
    return mapped
