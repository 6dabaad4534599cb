"""LoRA equals peft's; initial values, places, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.lora import XCOMPOSER_LINEARS, LoRALinear, apply_lora
from lit_mm.language.partial_lora import apply_partial_lora
from tests import rows
from tests.tiny import language


def hidden(model: Llama) -> Tensor:
    return rows.hidden(model, list(torch.arange(10).view(2, 5)))


def drawn(model: Llama) -> Llama:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def test_it_is_pefts_linear() -> None:
    base = nn.Sequential()
    base.linear = nn.Linear(6, 10)
    ours = LoRALinear(nn.Linear(6, 10), rank=4, alpha=10, dropout=0.0)
    ours.base.load_state_dict(base.linear.state_dict())
    nn.init.normal_(ours.lora_b.weight)
    theirs = get_peft_model(base, LoraConfig(r=4, lora_alpha=10, target_modules=["linear"])).base_model.model.linear
    theirs.lora_A["default"].weight.data = ours.lora_a.weight.data
    theirs.lora_B["default"].weight.data = ours.lora_b.weight.data
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def test_a_new_model_is_its_base_model() -> None:
    assert torch.equal(hidden(apply_lora(language().eval(), rank=3)), hidden(language().eval()))


def test_it_acts_at_every_position() -> None:
    moved = (hidden(drawn(apply_lora(language().eval(), rank=3))) - hidden(language().eval())).abs().sum(-1)
    assert (moved > 1e-3).all()


@pytest.mark.parametrize("linears", [XCOMPOSER_LINEARS, ("k_proj", "gate_proj")])
def test_it_sits_on_the_named_linears_alone(linears: tuple[str, ...]) -> None:
    model = apply_lora(language(), rank=3, linears=linears)
    for layer in model.decoder_layers:
        for owner in (layer.self_attn, layer.mlp):
            for name, module in owner.named_children():
                assert isinstance(module, LoRALinear) == (name in linears), name
    assert sum(".lora_" in name for name, _ in model.named_parameters()) == 2 * 2 * len(linears)


def test_only_what_is_named_learns() -> None:
    model = drawn(apply_lora(language(), rank=3))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    hidden(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".lora_" in name), name


def test_its_dropout_acts_in_training_alone() -> None:
    model = drawn(apply_lora(language(), rank=3, dropout=0.5))
    assert not torch.equal(hidden(model.train()), hidden(model))
    assert torch.equal(hidden(model.eval()), hidden(model))


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda: apply_lora(language(), rank=0), "`rank` of at least 1"),
        (lambda: apply_lora(language(), rank=2, linears=["q"]), r"LoRA on 'q': .*there is none; it has \['down_proj'"),
        (lambda: apply_lora(apply_lora(language(), rank=2), rank=2), "it is a LoRALinear"),
        (lambda: apply_lora(apply_partial_lora(language(), rank=2), rank=2), "it is a PartialLoRALinear"),
        (lambda: apply_lora(language(), rank=2, linears=["act_fn"]), "'act_fn': .* it is a SiLU"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(apply: Callable[[], Llama], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply()
