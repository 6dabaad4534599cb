"""The partial LoRA linear equals the PLoRA class of the release in outputs and gradients of every golden case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lit_mm.language.partial_lora import PartialLoRALinear
from lit_mm.language.routed import Routing
from lit_mm.weights.convert import load_strict
from lit_mm.weights.internlm2 import internlm2_to_llama

GRADIENT_ATOL = 1e-4  # golden/README.md: for the gradients of another implementation


@pytest.mark.golden_cases("plora")
def test_the_linear_agrees_with_the_release(golden: Any, case: dict[str, Any]) -> None:
    atol = golden.tolerance(golden.json("plora")["tolerance"])
    tensors = golden.tensors("plora", f"{case['name']}.")
    published = {name: value for name, value in tensors.items() if name.endswith(("weight", "bias"))}
    del published["loss_weight"]
    ours = internlm2_to_llama(
        {f"model.layers.0.attention.wo.{name}": value for name, value in published.items()}, heads=1, kv_heads=1
    )
    ours = {name.removeprefix("lm.model.layers.0.self_attn.o_proj."): value for name, value in ours.items()}

    base = nn.Linear(case["in_features"], case["out_features"], bias=case["bias"])
    linear = PartialLoRALinear(base, rank=case["r"], alpha=case["alpha"]).eval()
    load_strict(linear, ours)
    assert linear.scale == case["scaling"]
    flagged = tensors["im_mask"].bool()
    assert flagged.nonzero().tolist() == case["image_positions"]

    linear.route.routing = Routing.of(flagged.flatten().nonzero()[:, 0], flagged.numel())
    x = tensors["x"].requires_grad_()
    y = linear(x.flatten(0, 1)[None]).view_as(tensors["y"])  # one flat row
    (y * tensors["loss_weight"]).sum().backward()

    torch.testing.assert_close(y, tensors["y"], rtol=0, atol=atol)
    gradients = {"grad_x": x.grad, "grad_W": linear.base.weight.grad}
    gradients |= {"grad_A": linear.lora_a.weight.grad, "grad_B": linear.lora_b.weight.grad}
    if linear.base.bias is not None and "grad_bias" in tensors:
        gradients["grad_bias"] = linear.base.bias.grad
    assert gradients.keys() == {name for name in tensors if name.startswith("grad_")}
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, tensors[name], rtol=0, atol=GRADIENT_ATOL, msg=lambda m, n=name: f"{n}: {m}"
        )
