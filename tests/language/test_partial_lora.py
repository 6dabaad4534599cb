"""Partial LoRA changes visual positions only, under any packing, checkpointing and caching."""

from __future__ import annotations

import copy
from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import PartialLoRALinear, apply_partial_lora
from lit_mm.language.routed import Routing
from tests.rows import flat, hidden, logits

SIZES = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 40}
SAMPLES = list(torch.arange(16).view(2, 8))
VISUAL = (1, 2, 3, 13, 14, 15)  # places of the flat row: of the first sample, then of the second


def adapted(dropout: float = 0.0, **changes: object) -> Llama:
    """A tiny Llama with partial LoRA, with B not zero."""
    language = apply_partial_lora(Llama(**SIZES | changes), rank=4, alpha=8, dropout=dropout)
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if name.endswith("lora_b.weight"):
                parameter.normal_()
    return language


def run(language: Llama, visual: Collection[int] | None) -> Tensor:
    """[T, vocabulary] logits at every position of the two samples."""
    return logits(language, SAMPLES, visual)


def lora_gradients(language: Llama) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in language.named_parameters() if ".lora_" in name}


def test_a_new_model_is_its_base_model() -> None:
    base = Llama(**SIZES)
    wrapped = apply_partial_lora(copy.deepcopy(base), rank=4)
    assert torch.equal(run(wrapped, VISUAL), run(base, None))


@pytest.mark.parametrize("visual", [None, ()], ids=["no pictures", "all text"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_text_has_the_bits_of_the_base_model_though_b_is_not_zero(
    visual: Collection[int] | None, autocast: bool
) -> None:
    base = Llama(**SIZES)
    wrapped = apply_partial_lora(copy.deepcopy(base), rank=4, dropout=0.5)
    for name, parameter in wrapped.named_parameters():
        if name.endswith("lora_b.weight"):
            nn.init.normal_(parameter)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(run(wrapped, visual), run(base, None))
        assert not torch.equal(run(wrapped, VISUAL), run(base, None))


@torch.no_grad()
def test_text_before_an_image_keeps_its_bits_and_what_follows_does_not() -> None:
    language = adapted().eval()
    with_images, plain = run(language, VISUAL), run(language, None)
    assert torch.equal(with_images[:1], plain[:1])
    assert torch.equal(with_images[8:13], plain[8:13])
    assert not torch.isclose(with_images[1:8], plain[1:8]).all(-1).any()


def test_a_batch_of_text_gives_zero_gradients_and_not_missing_ones() -> None:
    language = adapted()
    run(language, ()).logsumexp(-1).sum().backward()
    gradients = lora_gradients(language)
    assert gradients and all(g is not None and not g.any() for g in gradients.values())


def test_visual_positions_give_every_branch_a_gradient() -> None:
    language = adapted()
    run(language, VISUAL).logsumexp(-1).sum().backward()
    assert all(g is not None and g.any() for g in lora_gradients(language).values())


def test_no_nan_of_an_unflagged_position_reaches_the_branch() -> None:
    linear = PartialLoRALinear(nn.Linear(6, 5), rank=2)
    nn.init.normal_(linear.lora_b.weight)
    x = torch.randn(1, 8, 6)
    x[0, 3] = torch.nan
    linear.route.routing = Routing.of(torch.tensor([0, 2, 4]), 8)
    linear(x)[0, [0, 2, 4]].sum().backward()
    assert torch.isfinite(linear.lora_a.weight.grad).all() and torch.isfinite(linear.lora_b.weight.grad).all()


def test_a_gpu_s_branch_at_all_positions_gives_what_a_cpu_s_at_the_visual_ones_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for alone in (True, False):
        monkeypatch.setattr("lit_mm.language.partial_lora.visual_alone", lambda x, alone=alone: alone)
        torch.manual_seed(0)
        language = adapted()
        states = run(language, VISUAL)
        states.logsumexp(-1).sum().backward()
        found.append({"states": states.detach(), **lora_gradients(language)})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_activation_checkpointing_leaves_the_gradients_alone(autocast: bool) -> None:
    """Two forwards precede one backward: recomputed layers must use the routes of their own forward, and the same
    dropout mask.
    """
    gradients = []
    for checkpointing in ("none", "full"):
        torch.manual_seed(3)
        language = adapted(dropout=0.3, activation_checkpointing=checkpointing).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            first, second = run(language, VISUAL), run(language, (0, 4, 8, 9, 10))
            loss = first.float().logsumexp(-1).sum() + 2 * second.float().logsumexp(-1).sum()
        run(language, None)  # a forward of text alone between forward and backward must not matter, either
        loss.backward()
        gradients.append({name: p.grad for name, p in language.named_parameters()})
    for name, expected in gradients[0].items():
        # In bf16 the gradients of two forwards are added in bf16 without recomputing, and in fp32 with it
        atol = 2**-7 * expected.abs().max().item() if autocast else 0
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@torch.inference_mode()
def test_samples_of_a_flat_row_have_the_logits_they_have_alone() -> None:
    language = adapted().eval()
    alone = [logits(language, SAMPLES[:1], (1, 2, 3)), logits(language, SAMPLES[1:], (5, 6, 7))]
    torch.testing.assert_close(run(language, VISUAL), torch.cat(alone), rtol=0, atol=2e-5)


@torch.inference_mode()
def test_cached_decoding_after_an_image_equals_the_full_forward() -> None:
    language = adapted().eval()
    expected = hidden(language, SAMPLES, (1, 2, 3, 13, 14))
    batch = flat([ids[:-1] for ids in SAMPLES], (1, 2, 3, 12, 13))
    _, state = language.begin(language.embed(batch.ids), batch)
    states = language.step(torch.stack([ids[-1] for ids in SAMPLES]), state)
    torch.testing.assert_close(states, expected[[7, 15]], rtol=0, atol=2e-5)


def test_a_copy_keeps_its_own_route() -> None:
    language = adapted().eval()
    twin = copy.deepcopy(language)
    with torch.no_grad():
        expected = run(language, VISUAL)
        assert torch.equal(run(twin, VISUAL), expected)
    routes = {id(module.route) for module in language.modules() if isinstance(module, PartialLoRALinear)}
    assert len(routes) == SIZES["layers"]
    assert routes.isdisjoint(id(module.route) for module in twin.modules() if isinstance(module, PartialLoRALinear))


def test_no_graph_is_held_after_the_forward() -> None:
    language = adapted()
    run(language, VISUAL)
    assert all(layer.self_attn.route.low_rank is None for layer in language.decoder_layers)


def test_q_k_and_v_share_one_a_that_is_listed_once() -> None:
    language = adapted()
    names = [name for name, _ in language.named_parameters() if "layers.0" in name and (".lora_" in name)]
    assert sorted(name.removeprefix("lm.model.layers.0.") for name in names) == [
        "mlp.down_proj.lora_a.weight",
        "mlp.down_proj.lora_b.weight",
        "mlp.gate_proj.lora_a.weight",
        "mlp.gate_proj.lora_b.weight",
        "mlp.up_proj.lora_a.weight",
        "mlp.up_proj.lora_b.weight",
        "self_attn.k_proj.lora_b.weight",
        "self_attn.lora_a.weight",
        "self_attn.o_proj.lora_a.weight",
        "self_attn.o_proj.lora_b.weight",
        "self_attn.q_proj.lora_b.weight",
        "self_attn.v_proj.lora_b.weight",
    ]
    assert language.state_dict().keys() == dict(language.named_parameters()).keys()


def test_dropout_is_on_the_branch_alone_and_only_in_training() -> None:
    language = adapted(dropout=0.5)
    with torch.no_grad():
        assert not torch.equal(run(language.train(), VISUAL), run(language, VISUAL))
        assert torch.equal(run(language.train(), None), run(language, None))
        assert torch.equal(run(language.eval(), VISUAL), run(language, VISUAL))


def test_at_7b_it_has_the_published_parameter_count() -> None:
    with torch.device("meta"):
        language = Llama(width=4096, layers=32, heads=32, kv_heads=8, ffn_width=14336, vocab_size=92544)
        apply_partial_lora(language, rank=256)
    added = {name: p.numel() for name, p in language.named_parameters() if ".lora_" in name}
    assert sum(added.values()) == 603_979_776
    assert sum(count for name, count in added.items() if ".layers.7." in name) == 18_874_368
    assert sum(p.numel() for p in language.parameters()) == 7_737_708_544 + 603_979_776


def test_applying_it_twice_or_without_a_rank_is_refused() -> None:
    with pytest.raises(UserError, match="once"):
        apply_partial_lora(adapted(), rank=4)
    with pytest.raises(UserError, match="rank"):
        apply_partial_lora(Llama(**SIZES), rank=0)
