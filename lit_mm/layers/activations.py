"""Activation checkpointing: activations are recomputed in the backward pass."""

from __future__ import annotations

from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let every layer of a transformers model keep its input alone, in place.

    The non-reentrant form is used, so that gradients reach parameters behind inputs that need none.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
