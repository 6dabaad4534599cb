"""How the layers of a part train: what they keep for the backward pass, and whether they are compiled."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

import lit_mm.layers.attention  # noqa: F401  registers the operation that is kept
from lit_mm.errors import UserError
from lit_mm.layers.attention.choice import HAS_VARLEN

Checkpointing = Literal["none", "full", "selective"]
BACKEND = "inductor"  # of torch.compile
ANCHOR = torch.empty(0, device="cpu", requires_grad=True)  # see `recompute`


def prepare_layers(model: nn.Module, checkpointing: Checkpointing, compiled: bool = False) -> None:
    """Set how the layers of a part run while they train. In evaluation they run as they are.

    | checkpointing | a layer keeps | it computes again |
    |---|---|---|
    | none | its activations | nothing |
    | full | its inputs | everything |
    | selective | its inputs, and the results of matrix products and attention | what lies between them |

    Compiled layers are whole graphs with dynamic lengths, shared by all layers of a part.

    Args:
        model: part whose layers are instances of transformers' `GradientCheckpointingLayer`. A layer inside of another
            one is left to that.
        checkpointing: what each layer keeps for the backward pass.
        compiled: compile the layers by `torch.compile`.
    Raises:
        UserError: selective checkpointing without compilation.
    """
    if checkpointing == "selective" and not compiled:
        raise UserError(
            f"{type(model).__name__}: `activation_checkpointing: selective` without `compile: true` would "
            "triple the host time of a step, because Python handles each operation. Set `compile: true`, or "
            "use `full`"
        )
    run = runner(checkpointing, compiled)
    for layer in outer_layers(model):
        for inner in layer.modules():
            if isinstance(inner, GradientCheckpointingLayer):
                inner.gradient_checkpointing = inner is layer and run is not None
        layer._gradient_checkpointing_func = run


def outer_layers(model: nn.Module) -> Iterator[GradientCheckpointingLayer]:
    """Return the outermost layers of a part, in order."""
    for child in model.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from outer_layers(child)


def runner(checkpointing: Checkpointing, compiled: bool) -> Callable[..., Any] | None:
    """Return the function that runs a layer in training, called as `recompute` is; None for the layer's own forward."""
    if not compiled:
        return recompute if checkpointing == "full" else None
    return {"none": run_compiled, "full": recompute_compiled, "selective": recompute_selected}[checkpointing]


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


def run_compiled(forward: partial, *args: Any) -> Any:
    """Run a layer compiled; see `recompute` for the arguments."""
    return compiled_forward(forward, args)(*args)


def recompute_compiled(forward: partial, *args: Any) -> Any:
    """Run a layer compiled, keep its inputs alone, and run it again; see `recompute` for the arguments."""
    return recompute(compiled_forward(forward, args), *args)


def recompute_selected(forward: partial, *args: Any) -> Any:
    """Run a layer compiled, and keep its inputs, matrix products and attention; see `recompute` for the arguments."""
    if has_lengths(args):
        return recompute(forward, *args)
    return compile_forward(selecting(forward.func))(*forward.args, *args, **forward.keywords)


def compiled_forward(forward: partial, args: tuple) -> partial:
    """Return the compiled forward of a layer, or the plain one if its inputs have lengths."""
    function = forward.func if has_lengths(args) else compile_forward(forward.func)
    return partial(function, *forward.args, **forward.keywords)


def has_lengths(args: tuple) -> bool:
    """Return True if a layer gets the lengths of padded views. They differ per batch, and so would the graphs."""
    return any(isinstance(value, tuple) for value in args)


def compiles_layers(model: nn.Module) -> bool:
    """Return True if a layer of a model is compiled while it trains."""
    compiling = (run_compiled, recompute_compiled, recompute_selected)
    return any(
        layer.gradient_checkpointing and layer._gradient_checkpointing_func in compiling
        for layer in outer_layers(model)
    )


@cache
def compile_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled forward of a class of layers: one graph for all lengths."""
    return torch.compile(forward, backend=BACKEND, fullgraph=True, dynamic=True)


@cache
def selecting(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward inside torch's selective checkpoint, which only the compiler handles at no cost."""
    # A routed layer leaves its routing in the layer; when it runs again, the graph holds the routing already
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True

    def run(layer: nn.Module, *args: Any, **keywords: Any) -> Any:
        bound = partial(forward, layer, **keywords)
        return checkpoint(bound, *args, use_reentrant=False, context_fn=kept_contexts)

    return run


def kept_contexts() -> Any:
    """Return the contexts of torch's selective checkpoint, which keep the results of `kept_operations`."""
    return create_selective_checkpoint_contexts(kept_operations())


@cache
def kept_operations() -> list[Any]:
    """Return the operations whose results selective checkpointing keeps: matrix products and attention."""
    aten = torch.ops.aten
    operations: list[Any] = [
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.lit_mm.attend_segments.default,
    ]
    if HAS_VARLEN:
        importlib.import_module("torch.nn.attention.varlen")  # registers the operation
        operations.append(torch.ops.torch_attn._varlen_attn.default)
    return operations
