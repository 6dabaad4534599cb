"""InternLM2 (and Llama) checkpoints -> our Llama.

Pure renaming; what a map does not know it hands on unchanged, so that `load_strict` names it.
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
OURS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", *LINEARS.values())  # what partial LoRA wraps


def split_wqkv(packed: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed rows -> query, key and value rows.

    Rows are grouped by key/value head: its g = heads / kv_heads query heads, its key, its value. Rotary positions are
    half-split as in Llama, so no row moves inside a head. Also splits the packed B of partial LoRA and a packed bias.

    Args:
        packed: [(heads + 2 kv_heads) * head width, ...].
    Returns:
        [heads * head width, ...], [kv_heads * head width, ...] and the same again.
    Raises:
        UserError: the rows do not divide so.

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
    """InternLM2's names (hub files, with or without partial LoRA) -> those of `Llama`.

    The A of a packed wqkv becomes the A that q, k and v share.

    Args:
        heads, kv_heads: of the model; the packed rows do not tell.
        partial_lora: the model to load has partial LoRA, so its linears sit in wrappers. None: if the checkpoint has.
    Raises:
        UserError: the heads do not fit the packed rows.
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
    """Hugging Face's LlamaForCausalLM -> `Llama`. Old files carry rotary frequencies, which are recomputed: dropped.

    Args:
        partial_lora: the model to load has partial LoRA, so its linears sit in wrappers.
    """
    mapped = {f"lm.{name}": tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    return with_wrappers(mapped) if partial_lora else mapped


def with_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a plain `Llama` -> the names it has with partial LoRA (whose own A and B are not in it)."""
    linear = re.compile(rf"(.*\.(?:{'|'.join(map(re.escape, OURS))}))\.(weight|bias)")
    return {linear.sub(r"\1.base.\2", name): tensor for name, tensor in state.items()}
