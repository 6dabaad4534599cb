"""Activation checkpointing: activations are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Checkpointing = Literal["none", "full"]
ANCHOR = torch.empty(0, device="cpu", requires_grad=True)  # see `recompute`


def checkpoint_layers(model: nn.Module, checkpointing: Checkpointing) -> None:
    """Choose, in place, which activations the layers of a part keep for the backward pass.

    Args:
        model: part whose layers are instances of transformers' `GradientCheckpointingLayer`. Layers inside of another
            layer are recomputed with it.
        checkpointing: "none": each layer keeps its activations; "full": each layer keeps its inputs alone.
    """
    for layer in outer_layers(model):
        for inner in layer.modules():
            if isinstance(inner, GradientCheckpointingLayer):
                inner.gradient_checkpointing = inner is layer and checkpointing == "full"
        layer._gradient_checkpointing_func = recompute


def outer_layers(model: nn.Module) -> Iterator[GradientCheckpointingLayer]:
    """The outermost layers of a part, in order."""
    for child in model.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from outer_layers(child)


def recompute(forward: partial, *args: Any) -> Any:
    """Run a layer, keep its inputs alone, and run it again in the backward pass.

    This is torch's reentrant checkpoint. The other kind calls a hook for each saved tensor, which at small widths costs
    the host more than the layer. A reentrant checkpoint has two limits: without an input that needs a gradient it gives
    none, so an empty tensor that needs one is passed as well; and it gives none to keyword arguments, so tensors that
    need one are passed by position.

    Args:
        forward: forward of the layer, with the layer as its first argument and further arguments by name.
        args: inputs of the layer.
    """
    (layer,) = forward.args
    names = [name for name, value in forward.keywords.items() if isinstance(value, Tensor) and value.requires_grad]
    inputs = [*args, *(forward.keywords[name] for name in names)]
    needs_gradient = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
    if not torch.is_grad_enabled() or not (needs_gradient or any(p.requires_grad for p in layer.parameters())):
        return forward(*args)

    def run(_: Tensor, *inputs: Any) -> Any:
        return forward(*inputs[: len(args)], **dict(zip(names, inputs[len(args) :], strict=True)))

    return checkpoint(run, ANCHOR, *inputs, use_reentrant=True)
