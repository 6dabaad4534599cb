"""Key maps of BLIP-2, InstructBLIP and MiniGPT-4: names of LAVIS and of Hugging Face, to the network and back.

The names of the network start with `vision.`, `connector.` (a `PairedQFormer`) and `language.`. Unknown keys pass
through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.names import add_prefix, below, without
from lit_mm.weights.qformer import PARTS as QFORMER_PARTS
from lit_mm.weights.qformer import QUERIES, TOP, lavis_to_qformer
from lit_mm.weights.t5 import COPIES
from lit_mm.weights.timm import eva_clip_to_timm, hf_blip2_to_timm, timm_to_eva_clip, timm_to_hf_blip2

VISION, QFORMER = "visual_encoder.", "Qformer."
LANGUAGES = {"opt_model.": "opt_proj", "t5_model.": "t5_proj", "llm_model.": "llm_proj", "llama_model.": "llama_proj"}
HEADS = {
    "ln_vision": "norm",
    "vision_proj": "contrast.vision",
    "text_proj": "contrast.text",
    "itm_head": "matching.head",
    **dict.fromkeys(LANGUAGES.values(), "projection"),
}
TEMPERATURE = "contrast.temperature"


# --- LAVIS -------------------------------------------------------------------------------------------------------
def lavis_to_blip2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of LAVIS or MiniGPT-4 to the network.

    The language model (`opt_model`, `t5_model`, `llm_model` or `llama_model`) becomes `language.lm`.

    Source: blip2_pretrained*.pth and instruct_blip_*.pth of github.com/salesforce/LAVIS; their `model` entry.
    """
    mapped: dict[str, Tensor] = {}
    mapped |= add_prefix(eva_clip_to_timm(below(state, VISION)), "vision")
    qformer = below(state, QFORMER) | {name: tensor for name, tensor in state.items() if name == QUERIES}
    mapped |= add_prefix(lavis_to_qformer(qformer), "connector.qformer")
    for prefix in LANGUAGES:
        mapped |= add_prefix(_language(below(state, prefix)), "language")
    for name, tensor in without(state, VISION, QFORMER, QUERIES, *LANGUAGES).items():
        module, _, kind = name.rpartition(".")
        if name == "temp":
            mapped[f"connector.{TEMPERATURE}"] = tensor.reshape(1)
        elif module in HEADS:
            mapped[f"connector.{HEADS[module]}.{kind}"] = tensor
        else:
            mapped[name] = tensor
    return mapped


def _language(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a Llama, OPT or T5 of transformers. T5's copies of its embeddings are dropped."""
    return llama_to_llama({name: tensor for name, tensor in state.items() if name not in COPIES})


def blip2_to_lavis(state: Mapping[str, Tensor], projection: str = "opt_proj") -> dict[str, Tensor]:
    """Rename vision encoder and connector of the network to the names of LAVIS; other entries pass through.

    Args:
        state: state of the network.
        projection: name of the projection: "opt_proj", "t5_proj", "llm_proj" or "llama_proj".
    """
    pieces = {path: name for name, path in QFORMER_PARTS.items()}
    heads = {path: name for name, path in HEADS.items()} | {"projection": projection}
    top = {path: name for name, path in TOP.items()}
    renamed = add_prefix(timm_to_eva_clip(below(state, "vision.")), VISION.removesuffix("."))
    for name, tensor in without(state, "vision.").items():
        if name == "connector.qformer.queries":
            renamed[QUERIES] = tensor[None]
        elif name.startswith("connector.qformer."):
            inner = name.removeprefix("connector.qformer.")
            if match := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", inner):
                renamed[f"{QFORMER}bert.encoder.layer.{match[1]}.{_piece(match[2], pieces)}.{match[3]}"] = tensor
            else:
                renamed[QFORMER + top[inner]] = tensor
        elif name == f"connector.{TEMPERATURE}":
            renamed["temp"] = tensor.reshape(())
        elif name.startswith("connector."):
            module, _, kind = name.removeprefix("connector.").rpartition(".")
            renamed[f"{heads[module]}.{kind}"] = tensor
        else:
            renamed[name] = tensor
    return renamed


def _piece(piece: str, pieces: Mapping[str, str]) -> str:
    """Rename a module of a Q-Former layer to LAVIS: feed-forwards have `.dense` and their norms a name of their own."""
    norms = {"text_ffn.norm": "output.LayerNorm", "query_ffn.norm": "output_query.LayerNorm"}
    if piece in norms:
        return norms[piece]
    return f"{pieces[piece]}.dense" if "_ffn." in piece else pieces[piece]


# --- Hugging Face ------------------------------------------------------------------------------------------------
HF_VISION = "vision_model."
HF_HEADS = {
    f"{HF_VISION}post_layernorm": "ln_vision",
    "vision_projection": "vision_proj",
    "text_projection": "text_proj",
    "itm_head": "itm_head",
    "language_projection": "opt_proj",
}
# the text embeddings of a Q-Former, which Hugging Face keeps outside of it (retrieval) or inside (InstructBLIP)
HF_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight": "Qformer.bert.embeddings.position_embeddings.weight",
}
HF_NORMS = {f"qformer.layernorm.{kind}": f"Qformer.bert.embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")} | {
    f"qformer.embeddings.layernorm.{kind}": f"Qformer.bert.embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")
}


def hf_to_blip2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of transformers' BLIP-2 or InstructBLIP classes to the network."""
    lavis: dict[str, Tensor] = {}
    vision: dict[str, Tensor] = {}
    language: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if name.startswith("language_model."):
            language[name.removeprefix("language_model.")] = tensor
        elif module in HF_HEADS:
            lavis[f"{HF_HEADS[module]}.{kind}"] = tensor
        elif name in HF_NORMS:
            lavis[HF_NORMS[name]] = tensor
        elif name.removeprefix("qformer.") in HF_EMBEDDINGS:
            lavis[HF_EMBEDDINGS[name.removeprefix("qformer.")]] = tensor
        elif name.startswith("qformer.encoder."):
            inner = name.removeprefix("qformer.").replace("attention.attention.", "attention.self.")
            lavis[f"Qformer.bert.{inner}"] = tensor
        elif name.startswith(HF_VISION):
            vision[name.removeprefix(HF_VISION)] = tensor
        else:
            lavis[name] = tensor
    parts = add_prefix(hf_blip2_to_timm(vision), "vision") | add_prefix(_language(language), "language")
    return lavis_to_blip2(lavis) | parts


def blip2_to_hf(state: Mapping[str, Tensor], *, instruct: bool = False) -> dict[str, Tensor]:
    """Rename the network to the names of transformers.

    Args:
        state: state of the network.
        instruct: True for InstructBLIP, whose text embeddings are inside the Q-Former.
    """
    heads = {lavis: name for name, lavis in HF_HEADS.items()}
    embeddings = {lavis: ("qformer." if instruct else "") + name for name, lavis in HF_EMBEDDINGS.items()}
    norm = "qformer.embeddings.layernorm" if instruct else "qformer.layernorm"
    renamed = add_prefix(timm_to_hf_blip2(below(state, "vision.")), HF_VISION.removesuffix("."))
    for name, tensor in blip2_to_lavis(without(state, "vision.", "language.")).items():
        module, _, kind = name.rpartition(".")
        if module in heads:
            renamed[f"{heads[module]}.{kind}"] = tensor
        elif module == "Qformer.bert.embeddings.LayerNorm":
            renamed[f"{norm}.{kind}"] = tensor
        elif name in embeddings:
            renamed[embeddings[name]] = tensor
        elif name.startswith("Qformer.bert.encoder."):
            inner = name.removeprefix("Qformer.bert.").replace("attention.self.", "attention.attention.")
            renamed[f"qformer.{inner}"] = tensor
        else:
            renamed[name] = tensor
    language = {name.removeprefix("language.lm."): of for name, of in state.items() if name.startswith("language.")}
    return renamed | add_prefix(language, "language_model")


# --- parts -------------------------------------------------------------------------------------------------------
@runtime_checkable
class ReadsText(Protocol):
    """A connector that may read texts.

    Attributes:
        reads_text: True if it reads the second texts of the samples.
    """

    reads_text: bool


def blip2_part(state: Mapping[str, Tensor], part: str, module: nn.Module) -> dict[str, Tensor]:
    """Select the weights of one part out of a checkpoint; parameters that only the module has keep their start values.

    A checkpoint of the first stage has no projection, one of the second no text branch and no heads, and every
    checkpoint may have parts that the module does not use. So names of the module are taken where the checkpoint has
    them, and queries and cross-attention must be among them.

    Args:
        state: checkpoint with names of LAVIS or of Hugging Face.
        part: "vision", "connector" or "language".
        module: the part to fill.
    Raises:
        UserError: the module reads instructions and the checkpoint has no text branch.
    """
    is_hf = any(name.startswith(HF_VISION) for name in state)
    tensors = below(hf_to_blip2(state) if is_hf else lavis_to_blip2(state), f"{part}.")
    if part != "connector":
        return tensors
    if isinstance(module, ReadsText) and module.reads_text and not any(".text_ffn." in name for name in tensors):
        raise UserError(
            "the Q-Former reads instructions, and the checkpoint has no text branch, as after BLIP-2's second stage. "
            "Add the checkpoint of the first stage: `weights: blip2-connector:SECOND+FIRST`"
        )
    start = dict(module.state_dict())
    fresh = {name: of for name, of in start.items() if _is_optional(name)}
    return fresh | {name: of for name, of in tensors.items() if name in start or not _is_optional(name)}


def blip2_qformer(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Select norm and Q-Former of a checkpoint; projection and heads keep their start values.

    A checkpoint of the second stage has the projection for another language model, whose width may be the same.

    Args:
        state: see `blip2_part`.
        module: the `PairedQFormer` to fill.
    """
    tops = ("projection.", "contrast.", "matching.")
    start = {name: of for name, of in module.state_dict().items() if name.startswith(tops)}
    return blip2_part(state, "connector", module) | start


def bert_to_connector(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Start a Q-Former from BERT, as the first stage does.

    The feed-forwards of the queries are copies of BERT's. Rows of the embedding table behind BERT's vocabulary,
    queries, cross-attention and heads keep their start values.

    Args:
        state: transformers' BertForMaskedLM, such as bert-base-uncased.
        module: the `PairedQFormer` to fill.
    """
    start = dict(module.state_dict())
    texts = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): of for name, of in state.items()}
    mapped = add_prefix(lavis_to_qformer(texts), "qformer")
    mapped |= {name.replace("text_ffn", "query_ffn"): of for name, of in mapped.items() if ".text_ffn." in name}
    for name in ("qformer.words.weight", "qformer.head.bias"):
        if name in mapped and name in start:
            mapped[name] = torch.cat([mapped[name], start[name][len(mapped[name]) :].to(mapped[name])])
    return start | {name: of for name, of in mapped.items() if name in start}


def _is_optional(name: str) -> bool:
    """True for parameters of the connector that not every stage has: text branch, projection and heads."""
    tops = ("projection.", "contrast.", "matching.", "qformer.words.", "qformer.positions.", "qformer.head.")
    return name.startswith(tops) or ".text_ffn." in name
