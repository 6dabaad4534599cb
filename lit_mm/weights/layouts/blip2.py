"""Layouts of BLIP-2: both stages, in transformers and in LAVIS, whose files hold the trained parts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.blip2 import TEMPERATURE, VISION, hf_to_blip2, lavis_to_blip2
from lit_mm.weights.layouts.layout import Config, Described, Ids, Layout, Start, State, require
from lit_mm.weights.layouts.sizes import (
    EVA_PATCHES,
    QUERIES,
    component,
    eva_part,
    language_part,
    qformer_sizes,
    require_vicuna,
    tokenizer,
)
from lit_mm.weights.names import add_prefix, below
from lit_mm.weights.t5 import COPIES

FIRST, LAST = "[CLS]", "[SEP]"  # tokens around the text in the Q-Former
BERT = "google-bert/bert-base-uncased"
CAPTION_LENGTH = 32  # tokens of a caption in the Q-Former, as released
VISION_FILE = "eva_vit_g.pth of LAVIS"
WORDS, POSITIONS = (f"Qformer.bert.embeddings.{table}_embeddings.weight" for table in ("word", "position"))
HEAD = "Qformer.cls.predictions.bias"
TIED = {"Qformer.cls.predictions.decoder.weight": WORDS, "Qformer.cls.predictions.decoder.bias": HEAD}
HF_WORDS, HF_POSITIONS = (f"embeddings.{table}_embeddings.weight" for table in ("word", "position"))
LANGUAGES = {  # projection, its rows -> language model that belongs there
    ("opt_proj", 2560): "facebook/opt-2.7b",
    ("opt_proj", 4096): "facebook/opt-6.7b",
    ("t5_proj", 2048): "google/flan-t5-xl",
    ("t5_proj", 4096): "google/flan-t5-xxl",
    ("llm_proj", 4096): "lmsys/vicuna-7b-v1.1",
    ("llm_proj", 5120): "lmsys/vicuna-13b-v1.1",
}
ANY_LANGUAGE = "facebook/opt-2.7b or google/flan-t5-xl for the second stage, any small one for retrieval alone"
QUESTIONS = {True: "Question: {question} Short answer:", False: "Question: {question} Answer:"}
RATE = {"lr": 1e-5, "weight_decay": 0.05}
STAGE = dict.fromkeys(("connector", "projection"), RATE)
STAGE_PAIRS = dict.fromkeys(("connector", "text_branch", "contrast", "matching"), RATE)
ENCODER = "lit_mm.vision.timm_encoder.TimmEncoder"
CONNECTOR = "lit_mm.connectors.qformer_paired.PairedQFormer"


def part(described: Described, name: str, published: str) -> Described:
    """Return the description of a part that the file does not hold.

    Args:
        published: the weights that belong there, for the error.
    Raises:
        UserError: `--with` names no place for it.
    """
    if name not in described.parts:
        raise UserError(
            f"{str(described.folder)!r} has no part {name!r}; expected {published}. Add --with {name}=PLACE, "
            "a folder or file of it"
        )
    return described.parts[name]


def reading(folder: Path, text: str, length: int, cut: str, clean: bool) -> Config:
    """Build the `reading` section from a folder with BERT's tokenizer.

    Args:
        text, cut, clean: see `lit_mm.samples.reading.Reading`.
        length: largest number of tokens.
    Raises:
        UserError: there is no such tokenizer, or it lacks a token.
    """
    file = (folder / "tokenizer.json").absolute()
    if not file.is_file():
        raise UserError(
            f"{str(folder)!r} has no file {file.name}, the tokenizer of the text that the Q-Former reads. Put the one "
            f"of the published checkpoint there, or add --with reading={BERT}"
        )
    vocabulary = tokenizers.Tokenizer.from_file(str(file))
    ids = {"first_id": vocabulary.token_to_id(FIRST), "last_id": vocabulary.token_to_id(LAST)}
    if None in ids.values():
        raise UserError(f"{str(file)!r} lacks {FIRST} or {LAST}, which stand around the text that the Q-Former reads")
    return {"tokenizer": str(file.parent), "text": text, **ids, "max_length": length, "cut": cut, "clean": clean}


def section(vision: Config, connector: Config, language: Config, tokens: str, reads: Config, prompt: Config) -> Config:
    """Build the `model` section of BLIP-2.

    Args:
        tokens: folder of the language model's tokenizer.
        reads: the `reading` section.
        prompt: the `inputs` section but the longest sample.
    """
    arguments = language["init_args"]
    longest = arguments.get("config", {}).get("max_position_embeddings", 2048)
    return {
        "class_path": "lit_mm.families.Blip2",
        "init_args": {
            "vision": vision,
            "language": language,
            "connector": component(CONNECTOR, **connector),
            "tokenizer": tokens,
            "reading": reads,
            "image_size": vision["init_args"]["image_size"],
            "inputs": prompt | {"max_length": min(longest, 2048)},
        },
    }


def question_prompt(language: Config) -> Config:
    """Build the inputs of the second stage: the released question, and the newline that ends an answer of OPT."""
    writes_target = language["class_path"].endswith(".T5")
    end = {} if writes_target else {"end": "\n"}
    prompt = component(
        "lit_mm.prompts.instructblip.InstructBlipPrompt",
        writes_target=writes_target,
        question=QUESTIONS[writes_target],
        **end,
    )
    return {"prompt": prompt}


# --- transformers ------------------------------------------------------------------------------------------------
def hf_encoder(described: Described) -> Config:
    """Build the `vision` section from `vision_config`.

    Raises:
        UserError: the config has a value that cannot be imported.
    """
    vision = described.config["vision_config"]
    require(described, vision, {"hidden_act": ("gelu",), "qkv_bias": (True,)})
    return component(
        ENCODER,
        name="eva_giant_patch14_clip_224",
        image_size=vision.get("image_size", 224),
        drop_cls=False,
        eps=vision.get("layer_norm_eps", 1e-6),
        overrides={
            "patch_size": vision.get("patch_size", 14),
            "embed_dim": vision.get("hidden_size", 1408),
            "depth": vision.get("num_hidden_layers", 39),
            "num_heads": vision.get("num_attention_heads", 16),
            # timm rounds the product of width and ratio down
            "mlp_ratio": (vision.get("intermediate_size", 6144) + 0.5) / vision.get("hidden_size", 1408),
        },
    )


def hf_connector(described: Described) -> Config:
    """Return the arguments of the `PairedQFormer` without a text branch, from `qformer_config`.

    Raises:
        UserError: the config has a value that cannot be imported.
    """
    qformer = described.config["qformer_config"]
    require(described, qformer, {"hidden_act": ("gelu",), "layer_norm_eps": (1e-12,)})
    return {
        "queries": described.stored[QUERIES].shape[1],
        "width": qformer.get("hidden_size", 768),
        "layers": qformer.get("num_hidden_layers", 12),
        "heads": qformer.get("num_attention_heads", 12),
        "ffn_width": qformer.get("intermediate_size", 3072),
        "cross_every": qformer.get("cross_attention_frequency", 2),
        "dropout": qformer.get("hidden_dropout_prob", 0.1),
        "norm_eps": described.config["vision_config"].get("layer_norm_eps", 1e-6),
    }


def hf_model(described: Described) -> Config:
    """Build the `model` section of the second stage."""
    language = language_part(described.config["text_config"])
    tokens = tokenizer(described)
    reads = {"tokenizer": tokens, "text": "none"}  # the Q-Former has no text branch, so nothing is tokenised for it
    return section(hf_encoder(described), hf_connector(described), language, tokens, reads, question_prompt(language))


def hf_pairs(described: Described) -> Config:
    """Build the `model` section of the first stage, around a language model from elsewhere."""
    language = part(described, "language", ANY_LANGUAGE)
    vocabulary, positions = (described.stored[name].shape[0] for name in (HF_WORDS, HF_POSITIONS))
    text = {"vocab_size": vocabulary, "max_positions": positions, "decoder_id": vocabulary - 1}
    heads = {"contrast_width": described.stored["vision_projection.weight"].shape[0]}
    return section(
        hf_encoder(described),
        hf_connector(described) | text | heads,
        language_part(language.config),
        tokenizer(language),
        reading(described.folder, "caption", min(CAPTION_LENGTH, positions), "right", clean=True),
        {"image_ids": True},
    )


def hf_copies(described: Described) -> dict[str, str]:
    """Name the tensors of a language model of transformers that files from before version 5 repeat."""
    text = described.config.get("text_config") or {}
    prefix = "language_model."
    pairs = {f"{prefix}{name}": f"{prefix}shared.weight" for name in COPIES}
    if text.get("model_type", "opt") == "opt" and text.get("tie_word_embeddings", True):
        pairs[f"{prefix}lm_head.weight"] = f"{prefix}model.decoder.embed_tokens.weight"
    return {name: original for name, original in pairs.items() if name in described.stored}


def hf_rename(state: State, model: Config) -> State:
    """Rename a checkpoint of transformers."""
    return add_prefix(hf_to_blip2(state), "network")


def pair_outputs(module: Any, reference: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Return what both models compute for a pair: the two logits of the match, and the similarity."""
    network = module.network
    (views,) = batch.views.groups
    features = network.connector.norm(network.vision(views))
    sims = network.connector.encode_image(features) @ network.connector.encode_text(batch.texts).T
    logits = network.connector.match(features, batch.texts)
    ids, mask = batch.texts.ids, batch.texts.mask.long()
    if (token := reference.config.image_token_index) is not None:  # placeholders stand before the text
        queries = ids.new_full((len(ids), reference.config.num_query_tokens), token)
        ids, mask = torch.cat([queries, ids], 1), torch.cat([torch.ones_like(queries), mask], 1)
    expected = [
        reference(pixel_values=views, input_ids=ids, attention_mask=mask, use_image_text_matching_head=head)
        for head in (True, False)
    ]
    return torch.cat([logits, sims.amax(1)], 1), torch.cat([output.logits_per_image for output in expected], 1)


def pair_ids(module: Any, processor: Any, batch: Any, image: Any, question: str, answer: str) -> dict[str, Ids]:
    """Return the ids of a text that the Q-Former reads, alone and behind the places of an image."""
    ids = batch.texts.ids[0].tolist()
    (both,) = processor(images=image, text=answer)["input_ids"]
    return {
        "caption": (ids, processor(text=answer)["input_ids"][0]),
        "caption and image": (ids, both[processor.num_query_tokens :]),
    }


def start(name: str) -> Start | None:
    """Return the start value of what files of the first stage lack: projection, temperature, and head of captions."""
    if name == f"network.connector.{TEMPERATURE}":
        return lambda shape: torch.full(shape, 0.07)
    if name == "network.connector.projection.weight":
        return lambda shape: torch.empty(shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5)
    zero = name == "network.connector.projection.bias" or name.startswith("network.connector.qformer.head.")
    return torch.zeros if zero else None


def start_of_pairs(name: str) -> Start | None:
    """Return the start value of what the second stage lacks: text branch, head, and heads that compare."""
    rest = name.removeprefix("network.connector.")
    if ".text_ffn." in rest:
        return name.replace(".text_ffn.", ".query_ffn.")
    others = rest.startswith(("contrast.", "matching.", "qformer.words.", "qformer.positions.", "qformer.head."))
    return start(name) or torch.zeros if others else None


# --- LAVIS -------------------------------------------------------------------------------------------------------
def lavis_encoder(described: Described) -> Config:
    """Build the `vision` section from the file, if it holds the encoder, or from `--with vision=`.

    Raises:
        UserError: neither has an EVA encoder.
    """
    inside = below(described.stored, VISION)
    stored = inside or part(described, "vision", VISION_FILE).stored
    if EVA_PATCHES not in stored:
        raise UserError(
            f"{str(described.folder)!r}: the vision encoder has tensors such as {sorted(stored)[:3]}, and only EVA "
            f"ViT-g ({VISION_FILE}) can be imported"
        )
    return eva_part(stored, cut=bool(inside))


def lavis_connector(described: Described) -> Config:
    """Return the arguments of the `PairedQFormer` from the shapes of the file."""
    stored = described.stored
    arguments = qformer_sizes(stored)
    if WORDS in stored:
        vocabulary = stored[WORDS].shape[0]
        arguments |= {"vocab_size": vocabulary, "max_positions": stored[POSITIONS].shape[0]}
        arguments |= {"decoder_id": vocabulary - 1, "head": HEAD in stored}
    if "vision_proj.weight" in stored:
        arguments["contrast_width"] = stored["vision_proj.weight"].shape[0]
    return arguments


def lavis_language(described: Described) -> Config:
    """Build the `language` section from `--with language=`; LAVIS runs T5 with another activation than its config.

    Raises:
        UserError: the part is missing.
    """
    stored = described.stored
    shapes = {name: of.shape for name, _ in LANGUAGES if (of := stored.get(f"{name}.weight")) is not None}
    default = "the language model that it was trained with" if shapes else ANY_LANGUAGE
    published = next((LANGUAGES[name, of[0]] for name, of in shapes.items() if (name, of[0]) in LANGUAGES), default)
    language = part(described, "language", published)
    if "llm_proj" in shapes:
        require_vicuna(language, "1")
    config = language.config
    return language_part(config | {"dense_act_fn": "gelu"} if config.get("model_type") == "t5" else config)


def reading_folder(described: Described) -> Path:
    """Return the folder of the Q-Former's tokenizer: `--with reading=`, or that of the file."""
    return described.parts["reading"].folder if "reading" in described.parts else described.folder


def lavis_model(described: Described) -> Config:
    """Build the `model` section of the second stage."""
    language = lavis_language(described)
    tokens = tokenizer(described)
    reads = {"tokenizer": tokens, "text": "none"}
    vision = lavis_encoder(described)
    return section(vision, lavis_connector(described), language, tokens, reads, question_prompt(language))


def lavis_pairs(described: Described) -> Config:
    """Build the `model` section of the first stage, around a language model from elsewhere."""
    language, connector = lavis_language(described), lavis_connector(described)
    vision = lavis_encoder(described)
    length = min(CAPTION_LENGTH, connector["max_positions"])
    reads = reading(reading_folder(described), "caption", length, "right", clean=True)
    tokens = tokenizer(described.parts["language"])
    return section(vision, connector, language, tokens, reads, {"image_ids": True})


def lavis_copies(described: Described) -> dict[str, str]:
    """Name the tensors of the head that predicts text which repeat others."""
    return {name: original for name, original in TIED.items() if name in described.stored}


def lavis_rename(state: State, model: Config) -> State:
    """Rename a checkpoint of LAVIS."""
    return add_prefix(lavis_to_blip2(state), "network")


def is_lavis(described: Described, *projections: str) -> bool:
    """Return True for a Q-Former of LAVIS with one of these projections."""
    return QUERIES in described.stored and any(f"{name}.weight" in described.stored for name in projections)


def is_hf(described: Described, name: str) -> bool:
    """Return True for a checkpoint of transformers' BLIP-2 that has a tensor of this name."""
    return described.config.get("model_type") == "blip-2" and name in described.stored


LAVIS_PARTS = {"vision": ("eva-clip", ""), "language": ("language", "")}
PAIRS = {"itc": 1.0, "itm": 1.0}
LAYOUTS = (
    Layout(
        "blip2/authors",
        "blip2_pretrained_opt2.7b.pth of github.com/salesforce/LAVIS",
        lambda described: is_lavis(described, "opt_proj", "t5_proj") and WORDS not in described.stored,
        lavis_model,
        lavis_rename,
        STAGE,
        LAVIS_PARTS,
    ),
    Layout(
        "blip2/hf",
        "Salesforce/blip2-opt-2.7b, Salesforce/blip2-flan-t5-xl",
        lambda described: is_hf(described, "language_projection.weight"),
        hf_model,
        hf_rename,
        STAGE,
        in_transformers=True,
        copies=hf_copies,
        start=start_of_pairs,
    ),
    Layout(
        "blip2_retrieval/authors",
        "blip2_pretrained.pth of github.com/salesforce/LAVIS",
        lambda described: is_lavis(described, "vision_proj"),
        lavis_pairs,
        lavis_rename,
        STAGE_PAIRS | {"text_head": RATE},
        LAVIS_PARTS,
        objectives=PAIRS | {"itg": 1.0},
        copies=lavis_copies,
        start=start,
    ),
    Layout(
        "blip2_retrieval/hf",
        "Salesforce/blip2-itm-vit-g",
        lambda described: is_hf(described, "itm_head.weight"),
        hf_pairs,
        hf_rename,
        STAGE_PAIRS,
        {"language": ("language", "")},
        in_transformers=True,
        objectives=PAIRS,
        start=start,
        outputs=pair_outputs,
        ids=pair_ids,
    ),
)
