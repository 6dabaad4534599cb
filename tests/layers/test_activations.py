"""Activation checkpointing: what is computed twice, what is kept, and who gets a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_mm.layers.activations import outer_layers, prepare_layers


class Layer(GradientCheckpointingLayer):
    """x + w1 (GELU(w2 x) + memory), which counts its runs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.runs = 0

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        self.runs += 1
        hidden = nn.functional.gelu(self.up(x))
        return x + self.down(hidden if memory is None else hidden + memory)


class Stack(nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, memory=memory)
        return x


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack(Layer(), Layer()).train()


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_parameters_inputs_and_named_tensors_get_the_gradients_that_they_get_without(
    memory: bool, needs_gradient: bool
) -> None:
    gradients = []
    for checkpointing in ("none", "full"):
        model = stack()
        prepare_layers(model, checkpointing)
        x = X.clone().requires_grad_(needs_gradient)
        named = torch.ones(8, requires_grad=True) if memory else None
        model(x, None if named is None else named * 2).square().sum().backward()
        gradients.append([x.grad, None if named is None else named.grad, *(p.grad for p in model.parameters())])
        assert [layer.runs for layer in model.layers] == [1 + (checkpointing == "full")] * 2
    for without, with_it in zip(*gradients, strict=True):
        assert (without is None and with_it is None) or torch.equal(without, with_it)


def test_a_layer_through_which_no_gradient_flows_runs_once() -> None:
    model = stack()
    prepare_layers(model, "full")
    model.layers[0].requires_grad_(False)
    model(X).sum().backward()
    with torch.no_grad():
        model(X)
    assert [layer.runs for layer in model.layers] == [2, 3]
    model.eval()(X.clone().requires_grad_()).sum().backward()
    assert [layer.runs for layer in model.layers] == [3, 4]


def test_a_checkpointed_layer_calls_no_hook_for_the_tensors_that_it_saves() -> None:
    """Such hooks are what makes torch's other kind of checkpoint slow; one around the model sees the inputs alone."""
    model = stack()
    prepare_layers(model, "full")
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        y = model(X.clone().requires_grad_())
    assert [size for size in sizes if size] == [X.numel()] * 2
    y.sum().backward()


def test_a_layer_inside_of_another_one_is_left_to_that() -> None:
    class Around(GradientCheckpointingLayer):
        def __init__(self) -> None:
            super().__init__()
            self.base = Layer()

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x)

    model = nn.Sequential(Around(), Layer())
    prepare_layers(model, "full")
    assert list(outer_layers(model)) == list(model)
    assert model[0].gradient_checkpointing and model[1].gradient_checkpointing
    assert not model[0].base.gradient_checkpointing
    prepare_layers(model, "none")
    assert not any(layer.gradient_checkpointing for layer in model)
