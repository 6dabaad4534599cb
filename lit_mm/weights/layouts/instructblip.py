"""Layouts of InstructBLIP: that of transformers, and LAVIS' files, which hold the trained parts alone."""

from __future__ import annotations

from lit_mm.weights.layouts.blip2 import (
    CONNECTOR,
    LAVIS_PARTS,
    RATE,
    WORDS,
    hf_connector,
    hf_copies,
    hf_encoder,
    hf_rename,
    is_lavis,
    lavis_connector,
    lavis_encoder,
    lavis_language,
    lavis_rename,
    reading,
    reading_folder,
)
from lit_mm.weights.layouts.layout import Config, Described, Layout, State
from lit_mm.weights.layouts.sizes import QUERIES, component, llama_part, t5_part, tokenizer

FOLDER = "qformer_tokenizer"  # of the tokenizer that the Q-Former's instruction has
CONSTANTS = "qformer.embeddings.position_ids"
LENGTH = 128  # tokens of the instruction in the Q-Former, as released
STAGE = dict.fromkeys(("connector", "text_branch", "projection"), RATE)


def section(vision: Config, connector: Config, language: Config, tokens: str, reads: Config) -> Config:
    """Build the `model` section.

    Args:
        tokens: folder of the language model's tokenizer.
        reads: the `reading` section.
    """
    writes_target = language["class_path"].endswith(".T5")
    prompt = component("lit_mm.prompts.instructblip.InstructBlipPrompt", writes_target=writes_target)
    return {
        "class_path": "lit_mm.families.InstructBlip",
        "init_args": {
            "vision": vision,
            "language": language,
            "connector": component(CONNECTOR, **connector, reads_text=True),
            "tokenizer": tokens,
            "reading": reads,
            "image_size": vision["init_args"]["image_size"],
            "inputs": {"prompt": prompt, "max_length": language["init_args"].get("max_positions", 2048)},
        },
    }


def hf_model(described: Described) -> Config:
    """Build the `model` section from `config.json`.

    Raises:
        UserError: the config has a value that cannot be imported, or the Q-Former's tokenizer is missing.
    """
    text = described.config["text_config"]
    kind = text.get("model_type", "llama")
    language = t5_part(text) if kind == "t5" else llama_part(text, kind)
    positions = described.config["qformer_config"].get("max_position_embeddings", 512)
    vocabulary = described.shape("qformer.embeddings.word_embeddings.weight")[0]
    connector = hf_connector(described) | {"vocab_size": vocabulary, "max_positions": positions}
    folder = described.folder / FOLDER
    reads = reading(folder, "instruction", min(LENGTH, positions), "left", clean=False)
    return section(hf_encoder(described), connector, language, tokenizer(described), reads)


def lavis_model(described: Described) -> Config:
    """Build the `model` section from the shapes of the file, and from the parts of `--with`.

    Raises:
        UserError: a part or a tokenizer is missing.
    """
    language, connector = lavis_language(described), lavis_connector(described)
    vision = lavis_encoder(described)
    length = min(LENGTH, connector["max_positions"])
    reads = reading(reading_folder(described), "instruction", length, "left", clean=False)
    return section(vision, connector, language, tokenizer(described), reads)


def rename(state: State, model: Config) -> State:
    """Rename a checkpoint of transformers; the constants 0, 1, 2, ... of older files are dropped."""
    return hf_rename({name: tensor for name, tensor in state.items() if name != CONSTANTS}, model)


LAYOUTS = (
    Layout(
        "instructblip/authors",
        "instruct_blip_vicuna7b_trimmed.pth of github.com/salesforce/LAVIS",
        lambda described: is_lavis(described, "llm_proj", "t5_proj") and WORDS in described.stored,
        lavis_model,
        lavis_rename,
        STAGE,
        LAVIS_PARTS,
    ),
    Layout(
        "instructblip/hf",
        "Salesforce/instructblip-vicuna-7b",
        lambda described: described.config.get("model_type") == "instructblip" and QUERIES in described.stored,
        hf_model,
        rename,
        STAGE,
        in_transformers=True,
        copies=hf_copies,
    ),
)
