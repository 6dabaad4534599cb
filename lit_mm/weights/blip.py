"""These key maps rename BLIP checkpoints, of the authors and of Hugging Face, to the children of BLIP's network.

The children are `vision` (`TimmViT`), `text` (`MED`), `contrast` (projections and temperature), `matching` (the head),
and for a checkpoint of the pre-training `momentum` and `queue`. Names of a released file that encoder and decoder
share stand once or twice in it; both must be equal. Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_mm.errors import UserError

LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
ATTENTION = {
    "self.query": "query",
    "self.key": "key",
    "self.value": "value",
    "output.dense": "out",
    "output.LayerNorm": "norm",
}
SHARED = {f"crossattention.{piece}": f"cross.{name}" for piece, name in ATTENTION.items()} | {
    "intermediate.dense": "ffn.fc1",
    "output.dense": "ffn.fc2",
    "output.LayerNorm": "ffn.norm",
}
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "words.weight",
    "embeddings.position_embeddings.weight": "positions.weight",
    "embeddings.LayerNorm.weight": "norm.weight",
    "embeddings.LayerNorm.bias": "norm.bias",
}
HEAD = {
    "cls.predictions.bias": "head.bias",
    "cls.predictions.transform.dense.weight": "head.dense.weight",
    "cls.predictions.transform.dense.bias": "head.dense.bias",
    "cls.predictions.transform.LayerNorm.weight": "head.norm.weight",
    "cls.predictions.transform.LayerNorm.bias": "head.norm.bias",
}
COPIES = (  # tensors that repeat others: constants 0, 1, 2, ..., and the tied projection to the vocabulary
    "embeddings.position_ids",
    "bert.embeddings.position_ids",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
)
TOP = {
    "vision_proj": "contrast.vision",
    "text_proj": "contrast.text",
    "itm_head": "matching.head",
}
NO_IMAGE = -100  # number of the image of an entry of the queue without one
QUEUES = {  # the retrieval model has its pointer under another name
    "image_queue": "queue.image",
    "text_queue": "queue.text",
    "queue_ptr": "queue.pointer",
    "ptr_queue": "queue.pointer",
    "idx_queue": "queue.images",
}
HF_VISION = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
}
HF_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
HF_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def blip_to_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a BLIP checkpoint (pre-trained, captioner or retrieval model, either naming) to the network's children.

    Raises:
        UserError: a tensor that encoder and decoder share has two different values.
    """
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = network_name(name)
        if new is None:
            continue
        if new == "contrast.temperature":
            tensor = tensor.reshape(1)
        elif new in ("queue.image", "queue.text"):
            tensor = tensor.T.contiguous()
        elif new == "queue.images":
            tensor = tensor.reshape(-1)
        if new in mapped and not torch.equal(mapped[new], tensor):
            raise UserError(
                f"BLIP checkpoint: {name} should equal its copy in the other stack, since encoder and decoder share "
                f"{new}. Does the file belong to a model with another sharing?"
            )
        mapped[new] = tensor
    if "queue.image" in mapped and "queue.images" not in mapped:  # a queue of the pre-training
        mapped["queue.images"] = torch.full((len(mapped["queue.image"]),), NO_IMAGE)
    if any(name.startswith("momentum.") for name in mapped):
        mapped["momentum.updates"] = torch.ones(1, dtype=torch.int64)  # the copies are no longer fresh
    return mapped


def network_to_blip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of the network's children to the authors' names, without the copies of tied tensors.

    The shared tensors get the names of the encoder if the state has one (retrieval, pre-training), else of the decoder.
    """
    encodes = any(".encoder_attention." in name for name in state)
    back: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "momentum.updates" or (name == "queue.images" and not (tensor != NO_IMAGE).any()):
            continue
        if name == "contrast.temperature":
            tensor = tensor.reshape(())
        elif name in ("queue.image", "queue.text"):
            tensor = tensor.T.contiguous()
        elif name == "queue.images":
            tensor = tensor[None]
        back[_released_name(name, encodes)] = tensor
    return back


def blip_part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Select the tensors of one child of the network, such as "vision", from a BLIP checkpoint."""
    return {
        name.removeprefix(f"{part}."): tensor
        for name, tensor in blip_to_network(state).items()
        if name.startswith(f"{part}.")
    }


def bert_to_med(state: Mapping[str, Tensor], text: nn.Module) -> dict[str, Tensor]:
    """Rename Hugging Face's BERT to `MED`: both self-attentions start from BERT's.

    BERT has no cross-attention and no rows for [DEC] and [ENC] at the end of the table of words. They keep the random
    values that `text` has. The token types and the pooler are dropped, as in BLIP.
    """
    fresh = text.state_dict()
    mapped = {name: tensor for name, tensor in fresh.items() if ".cross." in name}
    for full_name, tensor in state.items():
        name = full_name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name.startswith(("pooler.", "embeddings.token_type", "cls.seq_relationship.")) or name in COPIES:
            continue
        for mode in ("encoder", "decoder"):
            mapped[_med_name(name, mode) or full_name] = tensor
    for name in ("words.weight", "head.bias"):
        if name in mapped:
            mapped[name] = torch.cat([mapped[name], fresh[name][len(mapped[name]) :].to(mapped[name])])
    return mapped


def deit_to_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename DeiT's and timm's ViT checkpoints to `TimmViT`, without the classifier."""
    weights = state.get("model", state)
    assert isinstance(weights, Mapping)
    return {f"vit.{name}": tensor for name, tensor in weights.items() if not name.startswith(("head.", "pre_logits."))}


def network_name(name: str) -> str | None:
    """Rename one tensor of a checkpoint; None if it repeats others. Unknown names are returned unchanged."""
    for old in ("visual_encoder_m.", "text_encoder_m."):
        if name.startswith(old):
            new = network_name(old.replace("_m.", ".") + name.removeprefix(old))
            return new and f"momentum.{new}"
    module, _, kind = name.rpartition(".")
    if module.removesuffix("_m") in TOP:
        return ("momentum." if module.endswith("_m") else "") + f"{TOP[module.removesuffix('_m')]}.{kind}"
    if name == "temp":
        return "contrast.temperature"
    if name in QUEUES:
        return QUEUES[name]
    if name.startswith("visual_encoder."):
        return "vision.vit." + name.removeprefix("visual_encoder.")
    if name.startswith("vision_model."):
        return _hf_vision(name.removeprefix("vision_model.")) or name
    for stack, mode in (("text_encoder.", "encoder"), ("text_decoder.", "decoder")):
        if name.startswith(stack):
            inner = name.removeprefix(stack)
            if inner in COPIES:
                return None
            new = _med_name(inner.removeprefix("bert."), mode)
            return f"text.{new}" if new else name
    return name


def _hf_vision(name: str) -> str | None:
    if name in HF_VISION:
        return f"vision.vit.{HF_VISION[name]}"
    match = HF_LAYER.fullmatch(name)
    if match and match[2] in HF_BLOCK:
        return f"vision.vit.blocks.{match[1]}.{HF_BLOCK[match[2]]}.{match[3]}"
    return None


def _med_name(name: str, mode: str) -> str | None:
    """Rename one tensor of a BERT, below its top module, to `MED`; None if the name is unknown."""
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    if name in HEAD:
        return HEAD[name]
    match = LAYER.fullmatch(name)
    if not match:
        return None
    piece = match[2]
    new = SHARED.get(piece)
    if piece.startswith("attention.") and piece.removeprefix("attention.") in ATTENTION:
        new = f"{mode}_attention.{ATTENTION[piece.removeprefix('attention.')]}"
    return f"layers.{match[1]}.{new}.{match[3]}" if new else None


def _released_name(name: str, encodes: bool) -> str:
    """Rename one tensor of the network to the authors' names; see `network_to_blip`."""
    child, _, rest = name.partition(".")
    if name == "contrast.temperature":
        return "temp"
    if child == "queue":
        return {"pointer": "queue_ptr", "image": "image_queue", "text": "text_queue", "images": "idx_queue"}[rest]
    if child == "momentum":
        module, _, kind = _released_name(rest, encodes=True).partition(".")
        return f"{module}_m.{kind}"
    if child == "vision":
        return f"visual_encoder.{rest.removeprefix('vit.')}"
    if child == "text":
        return _released_text(rest, encodes)
    module, _, kind = name.rpartition(".")
    released = {new: old for old, new in TOP.items()}[module]
    return f"{released}.{kind}"


def _released_text(name: str, encodes: bool) -> str:
    """Rename one tensor of `MED` to the authors' names."""
    for table in (HEAD, EMBEDDINGS):
        for old, new in table.items():
            if new == name:
                return ("text_decoder." if table is HEAD else _stack(encodes)) + old
    _, number, module, rest = name.split(".", 3)
    place = f"encoder.layer.{number}"
    piece, kind = rest.split(".")
    if module in ("encoder_attention", "decoder_attention"):
        released = {new: old for old, new in ATTENTION.items()}[piece]
        return f"{_stack(module == 'encoder_attention')}{place}.attention.{released}.{kind}"
    released = {new: old for old, new in SHARED.items()}[f"{module}.{piece}"]
    return f"{_stack(encodes)}{place}.{released}.{kind}"


def _stack(encoder: bool) -> str:
    return "text_encoder." if encoder else "text_decoder.bert."
