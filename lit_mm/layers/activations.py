"""Activations that are computed a second time in the backward pass, rather than kept."""

from __future__ import annotations

from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep the inputs of each of transformers' layers alone.

    Non-reentrant, so that gradients reach parameters behind inputs that need none. transformers renamed the method in
    5.23; the older name is there until 6.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
