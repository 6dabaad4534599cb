"""Layouts of BLIP: captioner and retrieval model in transformers and of the authors, and the authors' pre-training."""

from __future__ import annotations

import math
import re
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BlipConfig

from lit_mm.errors import UserError
from lit_mm.weights.blip import NO_IMAGE, blip_to_network, network_name
from lit_mm.weights.config_file import without_type
from lit_mm.weights.layouts.layout import Config, Described, Ids, Layout, Start, State, require
from lit_mm.weights.layouts.sizes import EVA_PATCHES, component, tokenizer
from lit_mm.weights.names import add_prefix

FIRST = "[CLS]"  # first token of the text encoder; [DEC] and [ENC] are the last two rows of the vocabulary
BERT = "google-bert/bert-base-uncased"
HEAD_WIDTH = 64  # width of an attention head in every published ViT and BERT
LARGE, DROP_PATH = 1024, 0.1  # width of ViT-L, and the drop path that it has
ENCODER, DECODER = "text_encoder.", "text_decoder."
BLOCK = re.compile(r"visual_encoder\.blocks\.(\d+)\.")
LAYER = re.compile(r"text_\w+\.(?:bert\.)?encoder\.layer\.(\d+)\.")
TIED = {"cls.predictions.decoder.weight": "text.words.weight", "cls.predictions.decoder.bias": "text.head.bias"}
CAPTION = {"lead": "a picture of ", "max_tokens": 40, "max_words": 50}  # as released, and so in the next line
PAIR = {"max_tokens": 35, "max_words": 30}
RATE = {"lr": 1e-5, "weight_decay": 0.05}
WRITES = dict.fromkeys(("vision", "text", "decoder"), RATE)
COMPARES = dict.fromkeys(("vision", "text", "encoder", "contrast", "matching"), RATE)
LM, FINETUNE = {"lm": 1.0}, {"itc_finetune": 1.0, "itm_finetune": 1.0}
PRETRAIN = {"itc": 1.0, "itm": 1.0, "lm": 1.0}


def section(described: Described, vision: Config, text: Config, caption: Config, **arguments: Any) -> Config:
    """Build the `model` section.

    Args:
        vision, text: arguments of `TimmViT` and `MED`.
        caption: arguments of the template but its first token.
        arguments: further arguments of the family.
    Raises:
        UserError: there is no tokenizer, or it lacks the first token of a text.
    """
    folder = tokenizer(described, BERT)
    file = f"{folder}/tokenizer.json"
    first = tokenizers.Tokenizer.from_file(file).token_to_id(FIRST)
    if first is None:
        raise UserError(f"{file!r} lacks {FIRST}, the first token of BLIP's text encoder. Use the tokenizer of {BERT}")
    writer, grounded = text["vocab_size"] - 2, text["vocab_size"] - 1
    inputs = {"prompt": component("lit_mm.prompts.caption.Caption", start_id=writer, **caption)}
    return {
        "class_path": "lit_mm.families.Blip",
        "init_args": {
            "vision": component("lit_mm.vision.timm_vit.TimmViT", **vision),
            "text": component("lit_mm.language.med.MED", **text),
            "tokenizer": folder,
            "encoder_id": first,
            "decoder_id": writer,
            "grounded_id": grounded,
            **arguments,
            "inputs": inputs if caption is CAPTION else inputs | {"image_ids": True},
        },
    }


def hf_model(described: Described, caption: Config) -> Config:
    """Build the `model` section from `config.json`; see `section`.

    Raises:
        UserError: the config has a value that cannot be imported.
    """
    sections = {key: described.config[key] for key in ("vision_config", "text_config")}
    config = BlipConfig(**without_type(described.config | sections)).to_dict()
    vision, text = config["vision_config"], config["text_config"]
    require(described, vision, {"hidden_act": ("gelu",)})
    require(described, text, {"hidden_act": ("gelu",), "encoder_hidden_size": (vision["hidden_size"],)})
    encoder = {
        "image_size": vision["image_size"],
        "patch": vision["patch_size"],
        "width": vision["hidden_size"],
        "layers": vision["num_hidden_layers"],
        "heads": vision["num_attention_heads"],
        "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        "eps": vision["layer_norm_eps"],
    }
    transformer = {
        "vision_width": vision["hidden_size"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "layers": text["num_hidden_layers"],
        "heads": text["num_attention_heads"],
        "ffn_width": text["intermediate_size"],
        "max_positions": text["max_position_embeddings"],
        "dropout": text["hidden_dropout_prob"],
        "eps": text["layer_norm_eps"],
    }
    return section(described, encoder, transformer, caption, width=config["image_text_hidden_size"])


def authors_model(described: Described, caption: Config) -> Config:
    """Build the `model` section from the shapes of the authors' file; see `section`."""
    stored = described.stored
    width, _, patch, _ = stored[f"visual_encoder.{EVA_PATCHES}"].shape
    blocks = 1 + max(int(match[1]) for name in stored if (match := BLOCK.match(name)))
    encoder = {
        "image_size": math.isqrt(stored["visual_encoder.pos_embed"].shape[1] - 1) * patch,
        "patch": patch,
        "width": width,
        "layers": blocks,
        "heads": width // HEAD_WIDTH,
        "mlp_ratio": stored["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0] / width,
        "drop_path": DROP_PATH if width == LARGE else 0.0,
    }
    vocabulary, inner = described.shape("embeddings.word_embeddings.weight")
    transformer = {
        "vision_width": width,
        "vocab_size": vocabulary,
        "width": inner,
        "layers": 1 + max(int(match[1]) for name in stored if (match := LAYER.match(name))),
        "heads": inner // HEAD_WIDTH,
        "ffn_width": described.shape("encoder.layer.0.intermediate.dense.weight")[0],
        "max_positions": described.shape("embeddings.position_embeddings.weight")[0],
    }
    sizes = {"width": stored["vision_proj.weight"].shape[0]} if "vision_proj.weight" in stored else {}
    sizes |= {"queue_size": stored["image_queue"].shape[1]} if "image_queue" in stored else {}
    return section(described, encoder, transformer, caption, **sizes)


def rename(state: State, model: Config) -> State:
    """Rename a checkpoint of either naming. The number of updates and an empty list of images are no tensors of it."""
    mapped = blip_to_network(state)
    mapped.pop("momentum.updates", None)
    if "idx_queue" not in state:
        mapped.pop("queue.images", None)
    return add_prefix(mapped, "network")


def copies(described: Described) -> dict[str, str]:
    """Name the tensors that repeat others: what encoder and decoder share, and the projection to the vocabulary."""
    first: dict[str, str] = {}
    repeats: dict[str, str] = {}
    tied = {name: place for name in described.stored for end, place in TIED.items() if name.endswith(end)}
    places = {name: place for name in described.stored if (place := network_name(name)) is not None} | tied
    for name, place in places.items():
        if name not in tied and first.setdefault(place, name) != name:
            repeats[name] = first[place]
    return repeats | {name: first[place] for name, place in tied.items() if place in first}


# --- start values of what a file lacks ---------------------------------------------------------------------------
def start_of_training(name: str, updates: int = 0) -> Start | None:
    """Return the start value of what only training reads: momentum copies, the queue, and the temperature.

    Args:
        updates: number of updates that the momentum copies of the file had.
    """
    rest = name.removeprefix("network.")
    if rest == "momentum.updates":
        return lambda shape: torch.full(shape, updates)
    if rest.startswith("momentum."):
        return "network." + rest.removeprefix("momentum.")
    if rest in ("queue.image", "queue.text"):
        return lambda shape: F.normalize(torch.randn(shape), dim=1)
    constants = {"queue.images": NO_IMAGE, "queue.pointer": 0, "contrast.temperature": 0.07}
    return (lambda shape: torch.full(shape, constants[rest])) if rest in constants else None


def start_of_file(name: str) -> Start | None:
    """Return the start value of what a file with momentum copies lacks: the number of their updates, and image ids."""
    return start_of_training(name, 1) if name in ("network.momentum.updates", "network.queue.images") else None


def start_of_encoder(name: str) -> Start | None:
    """Return the start value of what a captioner lacks; the encoder's self-attention starts as the decoder's."""
    if ".encoder_attention." in name and ".momentum." not in name:
        return name.replace(".encoder_attention.", ".decoder_attention.")
    if name.startswith(("network.contrast.vision.", "network.contrast.text.", "network.matching.")):
        return torch.zeros if name.endswith(".bias") else draw
    return start_of_training(name)


def start_of_decoder(name: str) -> Start | None:
    """Return the start value of what a retrieval model of the authors lacks; its self-attention is the encoder's."""
    if ".decoder_attention." in name:
        return name.replace(".decoder_attention.", ".encoder_attention.")
    if name.startswith("network.text.head."):
        if name.endswith("norm.weight"):
            return torch.ones
        return torch.zeros if name.endswith("bias") else draw
    return start_of_file(name)


def start_of_hf_retrieval(name: str) -> Start | None:
    """Return the start value of what a retrieval model of transformers lacks."""
    return start_of_decoder(name) or start_of_training(name)


def draw(shape: tuple[int, ...]) -> Tensor:
    """Draw the weight of a linear as BERT does."""
    return torch.randn(shape) * 0.02


# --- outputs beside transformers ---------------------------------------------------------------------------------
def caption_outputs(module: Any, reference: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the logits of both captioners at the supervised positions."""
    (pixels,) = batch.views.normalised()
    expected = reference(pixel_values=pixels, input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids)).logits[0]
    return module.network.language.logits(module.network(batch).hidden), expected[batch.supervised]


def pair_outputs(module: Any, reference: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Return what both models compute for a pair: the two logits of the match, and the similarity."""
    network = module.network
    (pixels,) = batch.views.normalised()
    pair = network.encode(batch)
    ids = pair.texts.ids
    grounded = ids.index_fill(1, ids.new_zeros(1), network.grounded_id)
    mask = pair.texts.visible.long()
    expected = [
        reference(pixel_values=pixels, input_ids=ids_of, attention_mask=mask, use_itm_head=head).itm_score
        for ids_of, head in ((grounded, True), (ids, False))
    ]
    logits = network.match(pair.texts, pair.features)
    return torch.cat([logits, pair.image @ pair.text.T], 1), torch.cat(expected, 1)


def caption_ids(module: Any, processor: Any, batch: Any, image: Any, question: str, answer: str) -> dict[str, Ids]:
    """Return the ids of a caption with its lead. Ours begin with the decoder's token, which transformers' model puts in
    place of the encoder's."""
    ids = [module.network.encoder_id, *batch.ids[0, 1:].tolist()]
    text = module.processor.prompt.lead + answer
    return {"caption": (ids, processor(images=image, text=text)["input_ids"])}


# --- recognition -------------------------------------------------------------------------------------------------
def has(described: Described, *starts: str) -> bool:
    """Return True if for each start some tensor's name begins with it."""
    return all(any(name.startswith(start) for name in described.stored) for start in starts)


def is_hf(described: Described) -> bool:
    return described.config.get("model_type") == "blip" and has(described, "vision_model.")


def is_authors(described: Described, *stacks: str) -> bool:
    """Return True for a file of the authors with these stacks of the text transformer and no other."""
    others = {ENCODER, DECODER}.difference(stacks)
    return has(described, "visual_encoder.", *stacks) and not any(has(described, other) for other in others)


LAYOUTS = (
    Layout(
        "blip/authors",
        "model_base_caption_capfilt_large.pth of github.com/salesforce/BLIP",
        lambda described: is_authors(described, DECODER),
        lambda described: authors_model(described, CAPTION),
        rename,
        WRITES,
        objectives=LM,
        copies=copies,
        start=start_of_encoder,
    ),
    Layout(
        "blip/hf",
        "Salesforce/blip-image-captioning-base",
        lambda described: is_hf(described) and has(described, DECODER) and not has(described, ENCODER),
        lambda described: hf_model(described, CAPTION),
        rename,
        WRITES,
        in_transformers=True,
        objectives=LM,
        copies=copies,
        start=start_of_encoder,
        outputs=caption_outputs,
        ids=caption_ids,
    ),
    Layout(
        "blip_pretrain/authors",
        "model_base.pth of github.com/salesforce/BLIP",
        lambda described: is_authors(described, ENCODER, DECODER) and "itm_head.weight" in described.stored,
        lambda described: authors_model(described, PAIR),
        rename,
        WRITES | COMPARES,
        objectives=PRETRAIN,
        copies=copies,
        start=start_of_file,
    ),
    Layout(
        "blip_retrieval/authors",
        "model_base_retrieval_coco.pth of github.com/salesforce/BLIP",
        lambda described: is_authors(described, ENCODER) and "itm_head.weight" in described.stored,
        lambda described: authors_model(described, PAIR),
        rename,
        COMPARES,
        objectives=FINETUNE,
        copies=copies,
        start=start_of_decoder,
    ),
    Layout(
        "blip_retrieval/hf",
        "Salesforce/blip-itm-base-coco",
        lambda described: is_hf(described) and "itm_head.weight" in described.stored,
        lambda described: hf_model(described, PAIR),
        rename,
        COMPARES,
        in_transformers=True,
        objectives=FINETUNE,
        copies=copies,
        start=start_of_hf_retrieval,
        outputs=pair_outputs,
        ids=caption_ids,
    ),
)
