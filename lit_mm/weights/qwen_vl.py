"""These key maps rename Qwen-VL checkpoints: vision encoder, resampler and Qwen-7B.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.clip import openai_to_vit
from lit_mm.weights.names import add_prefix, below, without

VISUAL, POOL, NORM = "transformer.visual.", "attn_pool.", "ln_post."

PACKED = re.compile(r"transformer\.resblocks\.\d+\.attn\.in_proj\.(weight|bias)")

POOL_TOP = {"query": "query", "pos_embed": "positions", "kv_proj.weight": "kv_proj.weight"} | {
    f"{source}.{kind}": f"{target}.{kind}"
    for source, target in (("ln_q", "norm_q"), ("ln_kv", "norm_kv"), ("attn.out_proj", "out"))
    for kind in ("weight", "bias")
}
POOL_PACKED = re.compile(r"attn\.in_proj_(weight|bias)")

LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)")
LANGUAGE_TOP = {
    "transformer.wte.weight": "lm.model.embed_tokens.weight",
    "transformer.ln_f.weight": "lm.model.norm.weight",
    "lm_head.weight": "lm.lm_head.weight",
}
LAYER_PARTS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.w2": "mlp.gate_proj",  # Qwen computes w1(x) * silu(w2(x))
    "mlp.w1": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
RECOMPUTED = re.compile(r"transformer\.(rotary_emb\.inv_freq|h\.\d+\.attn\.(rotary_emb\.inv_freq|masked_bias|bias))")


def per_head_to_thirds(packed: Tensor, heads: int) -> Tensor:
    """Reorder rows from (q, k, v of head 0), (q, k, v of head 1), ... to all q, all k, all v.

    A packed bias and Monkey's adapters, which add to the packed rows, are reordered in the same way.

    Args:
        packed: [3 * heads * head width, ...] rows.
        heads: number of attention heads.
    Raises:
        UserError: the number of rows is no multiple of 3 x heads.
    """
    if len(packed) % (3 * heads):
        raise UserError(
            f"a packed qkv has {len(packed)} rows, which 3 x {heads} heads do not divide. Is `heads` right?"
        )
    return packed.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2).contiguous()


def qwen_visual_to_vit(state: Mapping[str, Tensor], *, heads: int) -> dict[str, Tensor]:
    """Rename the vision encoder (names below `transformer.visual.`) to `ViT(class_token=False, any_size=True)`.

    Args:
        heads: number of attention heads of the encoder; the packed qkv is laid out head by head. Published: 16.
    Raises:
        UserError: `heads` does not divide the packed rows.
    """
    return openai_to_vit(
        {
            name: per_head_to_thirds(tensor, heads) if PACKED.fullmatch(name) else tensor
            for name, tensor in state.items()
        }
    )


def qwen_pool_to_resampler(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the resampler (names below `attn_pool.`) to `Resampler`."""
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in POOL_TOP:
            mapped[POOL_TOP[name]] = tensor
        elif match := POOL_PACKED.fullmatch(name):
            mapped |= {f"{which}.{match[1]}": rows for which, rows in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            mapped[name] = tensor
    return mapped


def qwen_visual_to_parts(
    state: Mapping[str, Tensor], *, heads: int, vision: str = "vision", connector: str = "connector"
) -> dict[str, Tensor]:
    """Rename the whole module `transformer.visual` (names below it) to the encoder and `NormalisedResampler`.

    Args:
        heads: number of attention heads of the encoder.
        vision, connector: name prefixes of the parts in the target model.
    Raises:
        UserError: `heads` does not divide the packed rows.
    """
    encoder = without(state, POOL, NORM)
    matrix = encoder.pop("proj", None)  # features @ proj, so a linear holds the transpose
    return (
        add_prefix(below(state, NORM), f"{connector}.norm")
        | ({} if matrix is None else {f"{connector}.proj.weight": matrix.T.contiguous()})
        | add_prefix(qwen_pool_to_resampler(below(state, POOL)), f"{connector}.resampler")
        | add_prefix(qwen_visual_to_vit(encoder, heads=heads), vision)
    )


def qwen_to_llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Qwen-7B to `Llama(attention_bias="qkv")`. The packed `c_attn` holds all q, then all k, then all v.

    Rotary frequencies and causal masks of some files are dropped, because they are recomputed.
    """
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = LAYER.fullmatch(name)
        if RECOMPUTED.fullmatch(name):
            continue
        if name in LANGUAGE_TOP:
            mapped[LANGUAGE_TOP[name]] = tensor
        elif match and match[2] in LAYER_PARTS:
            mapped[f"lm.model.layers.{match[1]}.{LAYER_PARTS[match[2]]}.{match[3]}"] = tensor
        elif match and match[2] == "attn.c_attn":
            for which, rows in zip("qkv", tensor.chunk(3), strict=True):
                mapped[f"lm.model.layers.{match[1]}.self_attn.{which}_proj.{match[3]}"] = rows
        else:
            mapped[name] = tensor
    return mapped


def qwen_vl_to_model(state: Mapping[str, Tensor], *, heads: int, network: str = "network") -> dict[str, Tensor]:
    """Rename a whole Qwen-VL checkpoint to the model.

    Args:
        heads: number of attention heads of the vision encoder. Published: 16.
        network: name prefix of the network in the target model.
    Raises:
        UserError: heads that do not fit the packed rows of the encoder.
    """
    visual = below(state, VISUAL)
    mapped = qwen_visual_to_parts(visual, heads=heads, vision=f"{network}.vision", connector=f"{network}.connector")
    return mapped | add_prefix(qwen_to_llama(without(state, VISUAL)), f"{network}.language", only="lm.")


def qwen_vl_parts(state: Mapping[str, Tensor], *, heads: int = 1) -> dict[str, dict[str, Tensor]]:
    """Split a whole Qwen-VL checkpoint by part and rename it to `ViT`, `NormalisedResampler` and `Llama`.

    Models that start from Qwen-VL and have further parts, such as Monkey, load it part by part.

    Args:
        heads: number of attention heads of the vision encoder. The connector and the language model do not need it.
    Raises:
        UserError: a name belongs to none of the parts.
    """
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "connector": {}, "language": {}}
    for name, tensor in qwen_vl_to_model(state, heads=heads, network="model").items():
        pieces = name.split(".", 2)
        if pieces[0] != "model" or pieces[1] not in parts:
            raise UserError(f"Qwen-VL checkpoint: {name!r} belongs to no part. Is it a checkpoint of another model?")
        parts[pieces[1]][pieces[2]] = tensor
    return parts
