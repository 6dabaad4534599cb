"""Adapters of peft: the base's outputs at first, places, gradients, merging, and parts that already have branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.layers.adapters import Kind, add_adapters, remove_adapters
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.vision.vit import ViT
from tests import rows
from tests.tiny import language

KINDS: tuple[Kind, ...] = ("lora", "rslora", "dora")
PART = "language_adapter"


def hidden(model: Llama) -> Tensor:
    return rows.hidden(model, list(torch.arange(10).view(2, 5)))


def adapted(kind: Kind = "lora", *, spread: float = 0.0, **options: Any) -> Llama:
    """Build a decoder with an adapter; `spread` draws the zero matrices B."""
    model = language().eval()
    add_adapters(model, PART, kind=kind, **{"rank": 4} | options)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name and spread:
            nn.init.normal_(parameter, std=spread)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_gives_the_outputs_of_its_base(kind: Kind) -> None:
    torch.testing.assert_close(hidden(adapted(kind)), hidden(language().eval()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_gives_the_outputs_of_the_adapter_and_a_dropped_one_those_of_the_base(kind: Kind) -> None:
    model = adapted(kind, spread=0.3)
    outputs, base = hidden(model), hidden(language().eval())
    assert not torch.allclose(outputs, base, atol=1e-3)
    remove_adapters(model, PART, merge=True)
    assert not any(isinstance(module, Linear) for module in model.modules())
    torch.testing.assert_close(hidden(model), outputs, rtol=1e-4, atol=1e-5)
    dropped = adapted(kind, spread=0.3)
    remove_adapters(dropped, PART, merge=False)
    assert torch.equal(hidden(dropped), base)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"rank": 4}, 1.0),
        ({"rank": 4, "alpha": 10}, 2.5),
        ({"rank": 4, "alpha": 10, "kind": "rslora"}, 5.0),
        ({"rank": 4, "alpha": 2, "kind": "dora"}, 0.5),
    ],
)
def test_the_scale_is_alpha_by_rank_or_by_its_square_root(options: dict[str, Any], scale: float) -> None:
    model = adapted(**options)
    scales = {module.scaling["default"] for module in model.modules() if isinstance(module, Linear)}
    assert scales == {scale}


def test_all_linear_is_every_linear_of_the_layers_and_never_embeddings_or_heads() -> None:
    model = adapted()
    names = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    linears = {name for name, module in language().named_modules() if isinstance(module, nn.Linear)}
    assert names == linears - {"lm.lm_head"} and len(names) == 2 * 7


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"]])
def test_named_linears_alone_are_wrapped(targets: list[str]) -> None:
    model = adapted(targets=targets)
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)}
    assert names == set(targets)


def timm() -> TimmEncoder:
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return TimmEncoder("eva_giant_patch14_clip_224", 28, overrides=sizes)


@pytest.mark.parametrize(
    ("make", "shape", "count"),
    [
        (lambda: ViT(image_size=28, patch=14, width=16, layers=2, heads=2), (2, 3, 28, 28), 2 * 4),
        (timm, (2, 3, 28, 28), 2 * 4),
        (lambda: MLPProjector(16, 24), (2, 4, 16), 2),
    ],
)
def test_every_branch_of_other_parts_gets_a_gradient(make: Any, shape: tuple[int, ...], count: int) -> None:
    model = make()
    assert add_adapters(model, "part", rank=2) == count
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.3)
        parameter.requires_grad_("lora_" in name)
    model(torch.randn(shape)).square().sum().backward()
    learnt = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(learnt) == 2 * count and all(dict(model.named_parameters())[name].grad.any() for name in learnt)


def test_an_adapter_goes_below_partial_lora_and_leaves_its_branches_alone() -> None:
    model = apply_partial_lora(language().eval(), rank=2)
    add_adapters(model, PART, rank=4)
    names = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    assert len(names) == 2 * 7 and all(name.endswith(".base") for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "`rank` is at least 1, got 0"),
        ({"targets": ["q"]}, r"named \['q'\]; there are \['down_proj'"),
        ({"targets": ["lm_head"]}, r"named \['lm_head'\]"),
        ({"targets": []}, r"named \[\]; there are"),
    ],
)
def test_linears_that_cannot_be_wrapped_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted(**options)
    with pytest.raises(UserError, match="no linear layer without an adapter"):
        add_adapters(adapted(), PART, rank=2)
    with pytest.raises(UserError, match=r"Conv2d has no linear layer without an adapter. Leave the adapter out"):
        add_adapters(nn.Conv2d(3, 4, 2), PART, rank=2, targets=["q_proj"])


def test_dropout_acts_in_training_alone() -> None:
    model = adapted(spread=0.3, dropout=0.5)
    assert not torch.equal(hidden(model.train()), hidden(model))
    assert torch.equal(hidden(model.eval()), hidden(model))


def test_an_adapter_on_the_meta_device_takes_no_memory() -> None:
    with torch.device("meta"):
        model = Llama(width=32, layers=1, heads=4, kv_heads=2, ffn_width=48, vocab_size=512)
    add_adapters(model, PART, kind="dora", rank=4)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_linear_with_lora_is_the_formula_of_the_release() -> None:
    model = adapted(spread=0.3, rank=2, alpha=10, targets=["q_proj"])
    layer = model.decoder_layers[0].self_attn.q_proj
    x = torch.randn(2, 3, 32)
    branch = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 5 * branch, rtol=0, atol=1e-5)
