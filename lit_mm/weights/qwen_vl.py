"""Qwen-VL checkpoints -> our model's names: vision encoder, resampler and Qwen-7B.

Pure renaming; what a map does not know it hands on unchanged, so that `load_strict` names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.clip import openai_to_vit
from lit_mm.weights.names import below, placed, without

VISUAL, POOL, NORM = "transformer.visual.", "attn_pool.", "ln_post."

PACKED = re.compile(r"transformer\.resblocks\.\d+\.attn\.in_proj\.(weight|bias)")

POOL_TOP = {"query": "query", "pos_embed": "positions", "kv_proj.weight": "kv_proj.weight"} | {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in (("ln_q", "norm_q"), ("ln_kv", "norm_kv"), ("attn.out_proj", "out"))
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
    """Rows in the order (q, k, v of head 0), (q, k, v of head 1), ... -> all q, all k, all v.

    Also for what is added to the packed rows (Monkey's adapters) and for a packed bias.

    Args:
        packed: [3 * heads * head width, ...].
    Raises:
        UserError: the rows do not divide so.
    """
    if len(packed) % (3 * heads):
        raise UserError(
            f"a packed qkv has {len(packed)} rows, which 3 x {heads} heads do not divide. Is `heads` right?"
        )
    return packed.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2).contiguous()


def qwen_visual_to_vit(state: Mapping[str, Tensor], *, heads: int) -> dict[str, Tensor]:
    """The names of Qwen-VL's vision encoder (below `transformer.visual.`) -> `ViT(class_token=False, any_size=True)`.

    Args:
        heads: of the encoder; its packed qkv is laid out head by head. Published: 16.
    Raises:
        UserError: heads that do not fit the packed rows.
    """
    return openai_to_vit(
        {
            name: per_head_to_thirds(tensor, heads) if PACKED.fullmatch(name) else tensor
            for name, tensor in state.items()
        }
    )


def qwen_pool_to_resampler(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of Qwen-VL's resampler (below `attn_pool.`) -> `Resampler`."""
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
    """The names of the whole vision tower (below `transformer.visual.`) -> encoder and `NormalisedResampler`.

    Args:
        heads: of the encoder.
        vision, connector: where the parts sit in the model to be loaded.
    Raises:
        UserError: heads that do not fit the packed rows.
    """
    encoder = without(state, POOL, NORM)
    matrix = encoder.pop("proj", None)  # that features are multiplied by from the left
    return (
        placed(below(state, NORM), f"{connector}.norm")
        | ({} if matrix is None else {f"{connector}.proj.weight": matrix.T.contiguous()})
        | placed(qwen_pool_to_resampler(below(state, POOL)), f"{connector}.resampler")
        | placed(qwen_visual_to_vit(encoder, heads=heads), vision)
    )


def qwen_to_llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Qwen-7B's names -> `Llama(attention_bias="qkv")`. The packed `c_attn` is all q, all k, all v.

    Rotary frequencies and causal masks, which some files carry, are recomputed: dropped.
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
    """The names of a whole Qwen-VL -> ours.

    Args:
        heads: of the vision encoder. Published: 16.
        network: where the parts sit in the model to be loaded.
    Raises:
        UserError: heads that do not fit the packed rows of the encoder.
    """
    visual = below(state, VISUAL)
    mapped = qwen_visual_to_parts(visual, heads=heads, vision=f"{network}.vision", connector=f"{network}.connector")
    return mapped | placed(qwen_to_llama(without(state, VISUAL)), f"{network}.language", only="lm.")


def qwen_vl_parts(state: Mapping[str, Tensor], *, heads: int = 1) -> dict[str, dict[str, Tensor]]:
    """The names of a whole Qwen-VL -> those of `ViT`, `NormalisedResampler` and `Llama`, by part.

    For a model that starts from it and has other parts beside these (Monkey).

    Args:
        heads: of the vision encoder; matters to no other part.
    Raises:
        UserError: a name that belongs to no part.
    """
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "connector": {}, "language": {}}
    for name, tensor in qwen_vl_to_model(state, heads=heads, network="model").items():
        pieces = name.split(".", 2)
        if pieces[0] != "model" or pieces[1] not in parts:
            raise UserError(f"Qwen-VL checkpoint: {name!r} belongs to no part. Is it a checkpoint of another model?")
        parts[pieces[1]][pieces[2]] = tensor
    return parts
