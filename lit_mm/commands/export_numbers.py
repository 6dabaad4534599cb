"""The numbers of a run beside those of the program that reads its export: epsilons, activations, rotary positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from lit_mm.errors import UserError
from lit_mm.weights.agreement import agree, spelt
from lit_mm.weights.convert import shorten

# Attributes that change no logits, or only the speed, or that the shapes of the tensors show
UNUSED = frozenset(
    {
        *("training", "weights", "by_file", "attention", "activation_checkpointing", "compiled", "compile"),
        *("p", "drop", "dropout", "drop_prob", "drop_path", "inplace", "gradient_checkpointing", "grad_checkpointing"),
        *("in_features", "out_features", "num_embeddings", "embedding_dim", "padding_idx", "vocab_size"),
        *("max_length", "max_positions", "max_seq_len_cached", "original_max_seq_len", "fused_attn", "layer_idx"),
        *("use_cache", "initializer_range", "initializer_factor", "init_std", "layerdrop", "layer_drop"),
        *("max_position_embeddings", "pretraining_tp", "dtype", "model_type", "transformers_version", "architectures"),
        *("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "problem_type"),
        *("attention_dropout", "hidden_dropout", "dropout_rate", "classifier_dropout", "id2label", "label2id"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "is_decoder", "_name_or_path"),
        *("any_size", "any_view", "dynamic_img_size", "strict_img_size", "flatten", "output_fmt"),  # how views are run
        "decoder_id",  # it starts the captions that a Q-Former predicts in training
    }
)
TRAINING = ("momentum",)  # parts of training alone, which files do not hold
CLASSES = {"ResizingTransformer": "VisionTransformer"}  # class -> class that differs in the views that it takes
EPSILONS = ("eps", "epsilon")  # ends of the names of numbers that only keep a norm from dividing by zero


def differences(run: nn.Module, exported: nn.Module, layout: str) -> tuple[str, ...]:
    """Compare the numbers of a run's network with those of the network that an import of its files builds.

    Args:
        run, exported: networks, possibly without weights.
        layout: name of the layout, for the messages.
    Returns:
        One line for each epsilon of a norm that differs.
    Raises:
        UserError: another number differs.
    """
    before, after = dict(numbers(run)), dict(numbers(exported))
    pairs = {name: (value, after[name]) for name, value in before.items() if name in after}
    pairs = {name: pair for name, pair in pairs.items() if not agree(*pair)}
    others = [name for name in pairs if not name.endswith(EPSILONS)]
    if others:
        texts = [f"{name} is {spelt(pairs[name][0])} in the run and {spelt(pairs[name][1])} there" for name in others]
        raise UserError(
            f"{layout} cannot express {len(others)} numbers of this run: {shorten(texts)}. A program that "
            "opens the files would compute something else. Train with the numbers of the layout, or export "
            "to another format"
        )
    by_values: dict[tuple[Any, Any], list[str]] = {}
    for name, pair in pairs.items():
        by_values.setdefault(pair, []).append(name)
    return tuple(
        f"{layout} has the epsilon {spelt(there)} where the run has {spelt(here)} ({shorten(names)})"
        for (here, there), names in by_values.items()
    )


def numbers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of the numbers, words and truth values of a network's modules, and of their classes.

    Configs of transformers are read, too, each once.
    """
    configs: set[int] = set()
    for path, module in network.named_modules():
        if path.partition(".")[0] in TRAINING:
            continue
        yield path, CLASSES.get(type(module).__name__, type(module).__name__)
        for key, value in vars(module).items():
            if isinstance(value, PretrainedConfig) and id(value) not in configs:
                configs.add(id(value))
                yield from plain(value.to_dict(), f"{path}.{key}")
        yield from plain(vars(module), path)


def plain(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of the values that are numbers, words or truth values, in mappings inside, too."""
    for key, value in values.items():
        if not isinstance(key, str) or key.startswith("_") or key in UNUSED:
            continue
        if isinstance(value, Mapping) and key.startswith("rope"):
            yield from plain(value, f"{path}.{key}")
        elif isinstance(value, bool | int | float | str):
            yield f"{path}.{key}", value
        elif isinstance(value, tuple | list) and all(isinstance(entry, int | float) for entry in value):
            yield f"{path}.{key}", tuple(value)
