"""These key maps rename published vision encoders to `lit_mm.vision.timm_encoder.TimmEncoder`, and back.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.names import add_prefix, below, without

PREFIXES = ("visual_encoder.", "visual.trunk.", "visual.", "model.visual.")  # of the encoder in a whole model
RECOMPUTED = re.compile(r"(.*\.)?rope\.freqs_(cos|sin)")

# Pairs (published name, timm's name); "*" is the number of a block, and a pair of modules stands for all their tensors
EVA_CLIP = (
    ("blocks.*.attn.inner_attn_ln.", "blocks.*.attn.norm."),
    ("blocks.*.mlp.ffn_ln.", "blocks.*.mlp.norm."),
    ("blocks.*.mlp.w1.", "blocks.*.mlp.fc1_g."),
    ("blocks.*.mlp.w2.", "blocks.*.mlp.fc1_x."),
    ("blocks.*.mlp.w3.", "blocks.*.mlp.fc2."),
)
SPLIT_BIASES = (
    ("blocks.*.attn.q_bias", "blocks.*.attn.q_proj.bias"),
    ("blocks.*.attn.v_bias", "blocks.*.attn.v_proj.bias"),
)
OPEN_CLIP = (
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("conv1.", "patch_embed.proj."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    ("transformer.resblocks.*.ln_1.", "blocks.*.norm1."),
    ("transformer.resblocks.*.ln_2.", "blocks.*.norm2."),
    ("transformer.resblocks.*.attn.in_proj_", "blocks.*.attn.qkv."),
    ("transformer.resblocks.*.attn.out_proj.", "blocks.*.attn.proj."),
    ("transformer.resblocks.*.mlp.c_fc.", "blocks.*.mlp.fc1."),
    ("transformer.resblocks.*.mlp.c_proj.", "blocks.*.mlp.fc2."),
)
HF_BLIP2 = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("encoder.layers.*.layer_norm1.", "blocks.*.norm1."),
    ("encoder.layers.*.layer_norm2.", "blocks.*.norm2."),
    ("encoder.layers.*.self_attn.qkv.", "blocks.*.attn.qkv."),
    ("encoder.layers.*.self_attn.projection.", "blocks.*.attn.proj."),
    ("encoder.layers.*.mlp.", "blocks.*.mlp."),
)
HF_SIGLIP = (
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("encoder.layers.*.layer_norm1.", "blocks.*.norm1."),
    ("encoder.layers.*.layer_norm2.", "blocks.*.norm2."),
    ("encoder.layers.*.self_attn.out_proj.", "blocks.*.attn.proj."),
    ("encoder.layers.*.mlp.", "blocks.*.mlp."),
    ("post_layernorm.", "norm."),
)
HF_SIGLIP_UNUSED = ("head.", "embeddings.position_ids")  # behind the features; the constants 0, 1, 2, ...
HF_PIECE = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
COGVLM = (
    ("patch_embedding.cls_embedding", "cls_token"),
    ("patch_embedding.position_embedding.weight", "pos_embed"),
    ("patch_embedding.proj.", "patch_embed.proj."),
    ("transformer.layers.*.input_layernorm.", "blocks.*.norm1."),
    ("transformer.layers.*.post_attention_layernorm.", "blocks.*.norm2."),
    ("transformer.layers.*.attention.query_key_value.", "blocks.*.attn.qkv."),
    ("transformer.layers.*.attention.dense.", "blocks.*.attn.proj."),
    ("transformer.layers.*.mlp.", "blocks.*.mlp."),
)
Pairs = Iterable[tuple[str, str]]


def eva_clip_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename EVA-CLIP encoders of their authors, of LAVIS (eva_vit_g.pth) and of XComposer.

    Names may start with `visual.` or `visual_encoder.`; the rest of such a model is dropped. Rotary angles are
    recomputed.
    """
    plain = {name: tensor for name, tensor in _encoder(state).items() if not RECOMPUTED.fullmatch(name)}
    return _to_model(_renamed(plain, _eva_pairs(plain)))


def timm_to_eva_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder back to the names of `eva_clip_to_timm`.

    Raises:
        UserError: a key bias is not zero; the authors' names have no place for it.
    """
    inner = below(state, "model.")
    lost = [name for name, tensor in inner.items() if name.endswith("attn.k_bias") and tensor.any()]
    if lost:
        raise UserError(f"EVA-CLIP's format has no key bias, but {lost[0]} is not zero. Export to another format")
    plain = {name: tensor for name, tensor in inner.items() if not name.endswith("attn.k_bias")}
    return _renamed(plain, _reversed(_eva_pairs(plain)))


def open_clip_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the encoder of an OpenCLIP model; the text half, the projections and the temperature are dropped.

    A model whose encoder is timm's (`visual.trunk.`, such as ConvNeXt's and SigLIP's) has timm's names already.
    """
    plain = without(_encoder(state), "head.")
    plain.pop("proj", None)
    if "class_embedding" in plain:
        plain |= {
            "class_embedding": plain["class_embedding"][None, None],  # [D] -> [1, 1, D]
            "positional_embedding": plain["positional_embedding"][None],  # [P, D] -> [1, P, D]
        }
    return _to_model(_renamed(plain, OPEN_CLIP))


def timm_to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder back to OpenCLIP's vision transformer, without the projection, which is not part of it."""
    mapped = _renamed(below(state, "model."), _reversed(OPEN_CLIP))
    tables = ("class_embedding", "positional_embedding")
    return {name: tensor.flatten(0, -2).squeeze(0) if name in tables else tensor for name, tensor in mapped.items()}


def timm_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put timm's own names below `model`."""
    return _to_model(_encoder(state))


def hf_blip2_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' Blip2VisionModel (names below `vision_model.`); its last norm belongs to the connector.

    A fused bias of q, k and v is split; the key's part is kept.
    """
    return _to_model(_split_biases(_renamed(state, HF_BLIP2)))


def timm_to_hf_blip2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder back to the names of `hf_blip2_to_timm`."""
    return _renamed(_fused_biases(below(state, "model.")), _reversed(HF_BLIP2))


def hf_siglip_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' SiglipVisionModel, or the vision half of SiglipModel; q, k and v become one linear.

    Names may start with `vision_model.`. The pooling head is dropped, because features are taken before it, and so are
    the text half and the two scalars of a whole SiglipModel.

    Raises:
        UserError: a block lacks one of q, k and v.
    """
    plain = below(state, "vision_model.") or dict(state)
    packed: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        if match := HF_PIECE.fullmatch(name):
            packed.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = tensor
        elif not name.startswith(HF_SIGLIP_UNUSED):
            rest[name] = tensor
    mapped = _renamed(rest, HF_SIGLIP)
    if "pos_embed" in mapped:
        mapped["pos_embed"] = mapped["pos_embed"][None]  # [N, D] -> [1, N, D]
    for name, pieces in packed.items():
        if len(pieces) != 3:
            raise UserError(f"SigLIP checkpoint: {name} needs q, k and v, but the checkpoint has only {sorted(pieces)}")
        mapped[name] = torch.cat([pieces[which] for which in "qkv"])
    return _to_model(mapped)


def cogvlm_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename CogVLM's EVA2-CLIP-E (names below `model.vision.`) without its adapter; the key bias is kept."""
    mapped = _split_biases(_renamed(state, COGVLM))
    ranks = {"cls_token": 3, "pos_embed": 3}
    return _to_model(
        {n: tensor.reshape(1, -1, tensor.shape[-1]) if n in ranks else tensor for n, tensor in mapped.items()}
    )


def timm_to_cogvlm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder back to the names of `cogvlm_to_timm`."""
    mapped = _fused_biases(below(state, "model."))
    tables = ("cls_token", "pos_embed")
    return _renamed({n: t.squeeze(0) if n in tables else t for n, t in mapped.items()}, _reversed(COGVLM))


def _encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the encoder of a whole model; a state without such a prefix is the encoder."""
    return next((inner for prefix in PREFIXES if (inner := below(state, prefix))), dict(state))


def _to_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return add_prefix(state, "model")


def _eva_pairs(state: Mapping[str, Tensor]) -> Pairs:
    """Return the renames of EVA02-CLIP-L and -B: they have separate q, k and v, whose biases timm calls by linears."""
    separate = any(name.endswith("attn.k_proj.weight") for name in state)
    return (*EVA_CLIP, *SPLIT_BIASES) if separate else EVA_CLIP


def _reversed(pairs: Pairs) -> Pairs:
    return [(target, source) for source, target in pairs]


def _renamed(state: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    """Rename the start of each name by the first pair that fits; other names pass through."""
    rules = [
        (re.compile(re.escape(source).replace(r"\*", r"(\d+)")), source.endswith((".", "_")), target)
        for source, target in pairs
    ]
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, is_start, target in rules:
            match = pattern.match(name)
            if match and (is_start or match.end() == len(name)):
                number = match[1] if pattern.groups else ""
                mapped[target.replace("*", number) + name[match.end() :]] = tensor
                break
        else:
            mapped[name] = tensor
    return mapped


FUSED = re.compile(r"(blocks\.\d+\.attn\.)qkv\.bias")


def _split_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split each fused bias [3 D] into timm's q_bias, k_bias and v_bias."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := FUSED.fullmatch(name):
            split |= {f"{match[1]}{which}_bias": rows for which, rows in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split


def _fused_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `_split_biases`."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        if kind == "q_bias":
            fused[f"{owner}.qkv.bias"] = torch.cat([state[f"{owner}.{which}_bias"] for which in "qkv"])
        elif kind not in ("k_bias", "v_bias"):
            fused[name] = tensor
    return fused
