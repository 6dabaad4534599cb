"""These key maps rename InternLM2 and Llama checkpoints to `lit_mm.language.llama.Llama`.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.errors import UserError

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
TOP = {
    "model.tok_embeddings.weight": "lm.model.embed_tokens.weight",
    "model.norm.weight": "lm.model.norm.weight",
    "output.weight": "lm.lm_head.weight",
}
NORMS = {"attention_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight"}
LINEARS = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
WRAPPED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", *LINEARS.values())  # wrapped by partial LoRA


def split_wqkv(packed: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split packed rows into query, key and value rows. The packed B of partial LoRA and a packed bias split alike.

    The rows form one group per key/value head, with g = heads / kv_heads query heads, one key and one value. Rotary
    positions are half-split as in Llama, so no row moves inside a head.

    Args:
        packed: [(heads + 2 kv_heads) * head width, ...] rows of wqkv.
        heads: number of query heads.
        kv_heads: number of key/value heads.
    Returns:
        Query [heads * head width, ...], key and value [kv_heads * head width, ...].
    Raises:
        UserError: the number of rows is no multiple of heads + 2 kv_heads, or kv_heads does not divide heads.

    Example: 4 heads, 2 kv heads -> groups (q0 q1 k0 v0), (q2 q3 k1 v1) -> (q0 q1 q2 q3), (k0 k1), (v0 v1).
    """
    group = heads // kv_heads + 2
    if heads % kv_heads or len(packed) % (kv_heads * group):
        raise UserError(f"wqkv has {len(packed)} rows, which {heads=} and {kv_heads=} do not divide. Are both right?")
    rows = packed.unflatten(0, (kv_heads, group, -1))  # [kv heads, g + 2, head width, ...]
    q, k, v = rows[:, :-2].flatten(0, 2), rows[:, -2].flatten(0, 1), rows[:, -1].flatten(0, 1)
    return q.contiguous(), k.contiguous(), v.contiguous()


def internlm2_to_llama(
    state: Mapping[str, Tensor], *, heads: int, kv_heads: int, partial_lora: bool | None = None
) -> dict[str, Tensor]:
    """Rename InternLM2 checkpoints of the hub, with or without partial LoRA, to `Llama`.

    The A of a packed wqkv becomes the A that q, k and v share.

    Args:
        heads, kv_heads: numbers of query and key/value heads; the packed rows do not determine them.
        partial_lora: True if the target model has partial LoRA, which wraps its linears. None follows the checkpoint.
    Raises:
        UserError: the heads do not divide the packed rows.
    """
    wrapped = any(".Plora_" in name for name in state) if partial_lora is None else partial_lora
    base = "base." if wrapped else ""
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = LAYER.fullmatch(name)
        if match is None:
            mapped[TOP.get(name, name)] = tensor
            continue
        layer, rest = f"lm.model.layers.{match[1]}", match[2]
        if rest in NORMS:
            mapped[f"{layer}.{NORMS[rest]}"] = tensor
            continue
        linear, _, kind = rest.partition(".Plora_") if ".Plora_" in rest else rest.rpartition(".")
        kind = {"A.weight": "lora_a.weight", "B.weight": "lora_b.weight"}.get(kind, base + kind)
        if linear in LINEARS:
            mapped[f"{layer}.{LINEARS[linear]}.{kind}"] = tensor
        elif linear == "attention.wqkv" and kind == "lora_a.weight":
            mapped[f"{layer}.self_attn.lora_a.weight"] = tensor
        elif linear == "attention.wqkv":
            for which, rows in zip("qkv", split_wqkv(tensor, heads, kv_heads), strict=True):
                mapped[f"{layer}.self_attn.{which}_proj.{kind}"] = rows
        else:
            mapped[name] = tensor
    return mapped


def llama_to_llama(state: Mapping[str, Tensor], *, partial_lora: bool = False) -> dict[str, Tensor]:
    """Rename transformers' LlamaForCausalLM to `Llama`. Rotary frequencies of old files are dropped and recomputed.

    Args:
        partial_lora: True if the target model has partial LoRA, which wraps its linears.
    """
    mapped = {f"lm.{name}": tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    return with_wrappers(mapped) if partial_lora else mapped


def with_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of a plain `Llama` to that of a `Llama` with partial LoRA; A and B of LoRA are not included."""
    linear = re.compile(rf"(.*\.(?:{'|'.join(map(re.escape, WRAPPED))}))\.(weight|bias)")
    return {linear.sub(r"\1.base.\2", name): tensor for name, tensor in state.items()}
