"""What parts keep for the backward pass is counted before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from lit_mm.distributed.activations import Activations, activations_of
from lit_mm.families import EncoderDecoder
from lit_mm.language.t5 import T5
from lit_mm.layers.activations import Checkpointing, compiles_layers, prepare_layers
from lit_mm.stages.stage import Stage, Train
from tests.tiny import decoder, xcomposer2

LAYERS, WIDTH = 2, 32  # of the language model
VISION_LAYERS, VISION_WIDTH, PATCHES = 2, 16, 4


def planned(checkpointing: Checkpointing, *parts: str, compiled: bool = False) -> dict[str, Activations]:
    """The activations of a stage in which these parts learn."""
    with torch.device("meta"):
        module = xcomposer2()
    for part in (module.network.vision, module.network.language):
        part.activation_checkpointing = checkpointing
        prepare_layers(part, checkpointing, compiled)
    module.begin(Stage("s", {part: Train(lr=1e-3) for part in parts}), total_steps=1)
    activations = activations_of(module.network)
    assert compiles_layers(module.network.language) is compiled
    return activations


def test_full_checkpointing_keeps_the_inputs_of_layers_alone() -> None:
    full = planned("full", "vision", "connector", "partial_lora", "language")
    inputs = VISION_LAYERS * VISION_WIDTH * (PATCHES + 1) / PATCHES  # the class token has no patch
    norm = 2 * VISION_WIDTH * (PATCHES + 1) / PATCHES  # what stands before the blocks
    assert inputs < full["vision"].per_position < inputs + norm + 3 * 14 * 14 + 10
    assert LAYERS * WIDTH <= full["language"].per_position < (LAYERS + 2) * WIDTH + 10
    none = planned("none", "vision", "connector", "partial_lora", "language")
    assert none["vision"].per_position > 5 * full["vision"].per_position - 3 * 14 * 14 * 5
    assert none["language"].per_position > 5 * full["language"].per_position


def test_a_frozen_encoder_keeps_nothing_and_a_frozen_language_model_what_gradients_pass_through() -> None:
    align = planned("none", "connector")
    assert align["vision"].per_position == 0
    everything = planned("none", "vision", "connector", "partial_lora", "language")
    assert 0 < align["language"].per_position < everything["language"].per_position


def test_compiled_layers_are_counted_without_the_compiler() -> None:
    parts = ("connector", "language")
    assert (
        planned("full", *parts, compiled=True)["language"].per_position
        == planned("full", *parts)["language"].per_position
    )
    assert planned("selective", *parts, compiled=True)["language"].per_position is None


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_a_language_model_alone_is_counted(kind: str) -> None:
    with torch.device("meta"):
        if kind == "decoder":
            module = decoder()
        else:
            module = EncoderDecoder(T5(width=16, layers=1, heads=2, ffn_width=16, vocab_size=512), "nano")
    module.begin(Stage("s", {"language": Train(lr=1e-3)}), total_steps=1)
    activations = activations_of(module.network)
    assert activations.keys() == {"language"} and activations["language"].per_position > 0
