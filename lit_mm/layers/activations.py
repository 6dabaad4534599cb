"""Activations that are computed a second time in the backward pass, rather than kept."""

from __future__ import annotations

from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep the inputs of each of transformers' layers alone.

    Non-reentrant, so that gradients reach parameters behind inputs that need none.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
