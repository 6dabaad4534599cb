"""The visual expert: visual positions use the expert, text the base, under packing, checkpointing and caching."""

from __future__ import annotations

import copy
from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.language.routed import Routing
from lit_mm.language.t5 import T5
from lit_mm.language.visual_expert import apply_visual_expert
from lit_mm.weights.convert import load_strict
from lit_mm.weights.source import ADDED, load_part
from tests.rows import flat, hidden, logits

SIZES = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 40}
SAMPLES = list(torch.arange(16).view(2, 8))
VISUAL = (1, 2, 3, 13, 14, 15)


def expert(**changes: object) -> Llama:
    """A tiny Llama whose experts differ from their base."""
    language = apply_visual_expert(Llama(**SIZES | changes))
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if ".expert." in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return language


def run(language: Llama, visual: Collection[int] | None) -> Tensor:
    return logits(language, SAMPLES, visual)


def gradients(language: Llama, kind: str) -> list[Tensor | None]:
    return [parameter.grad for name, parameter in language.named_parameters() if f".{kind}." in name]


def test_a_row_is_split_and_joined_at_its_visual_positions() -> None:
    x = torch.arange(6.0).view(1, 6, 1)
    routing = Routing.of(torch.tensor([1, 2, 5]), 6)
    text, visual = routing.split(x)
    assert (text.flatten().tolist(), visual.flatten().tolist()) == ([0, 3, 4], [1, 2, 5])
    assert torch.equal(routing.join(text, visual), x)


def test_a_new_expert_computes_what_the_base_does() -> None:
    base = Llama(**SIZES)
    wrapped = apply_visual_expert(copy.deepcopy(base))
    torch.testing.assert_close(run(wrapped, VISUAL), run(base, None), rtol=0, atol=2e-6)


@pytest.mark.parametrize("visual", [None, ()], ids=["no pictures", "all text"])
def test_text_has_the_bits_of_the_base_model_though_the_experts_differ(visual: Collection[int] | None) -> None:
    language = expert()
    base = Llama(**SIZES)
    base.load_state_dict({n.replace(".base.", "."): p for n, p in language.state_dict().items() if ".expert." not in n})
    with torch.no_grad():
        assert torch.equal(run(language, visual), run(base, None))
        assert not torch.isclose(run(language, VISUAL), run(base, None)).all()


def test_visual_positions_read_the_expert_alone() -> None:
    language = expert().eval()
    with torch.no_grad():
        before = run(language, range(16))
        for name, parameter in language.named_parameters():
            if ".base." in name:
                parameter.fill_(torch.nan)
        assert torch.equal(run(language, range(16)), before)


def test_no_position_is_computed_twice() -> None:
    counts = []
    for language in (expert(), Llama(**SIZES)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(language, VISUAL)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_a_batch_of_text_gives_experts_zero_gradients_and_not_missing_ones() -> None:
    language = expert()
    run(language, ()).logsumexp(-1).sum().backward()
    assert all(g is not None and not g.any() for g in gradients(language, "expert"))
    language.zero_grad()
    run(language, VISUAL).logsumexp(-1).sum().backward()
    assert all(g is not None and g.any() for g in gradients(language, "expert") + gradients(language, "base"))


def test_activation_checkpointing_leaves_the_gradients_alone() -> None:
    results = []
    for checkpointing in ("none", "full"):
        torch.manual_seed(3)
        language = expert(activation_checkpointing=checkpointing).train()
        loss = run(language, VISUAL).logsumexp(-1).sum() + 2 * run(language, (0, 4, 8)).logsumexp(-1).sum()
        run(language, None)  # a forward of text alone between forward and backward must not matter
        loss.backward()
        results.append({name: parameter.grad for name, parameter in language.named_parameters()})
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_samples_of_a_flat_row_have_the_logits_they_have_alone() -> None:
    language = expert().eval()
    alone = [logits(language, SAMPLES[:1], (1, 2, 3)), logits(language, SAMPLES[1:], (5, 6, 7))]
    torch.testing.assert_close(run(language, VISUAL), torch.cat(alone), rtol=0, atol=2e-5)


@torch.inference_mode()
def test_cached_decoding_after_an_image_equals_the_full_forward() -> None:
    language = expert().eval()
    expected = hidden(language, SAMPLES, (1, 2, 3, 13, 14))
    batch = flat([ids[:-1] for ids in SAMPLES], (1, 2, 3, 12, 13))
    _, state = language.begin(language.embed(batch.ids), batch)
    states = language.step(torch.stack([ids[-1] for ids in SAMPLES]), state)
    torch.testing.assert_close(states, expected[[7, 15]], rtol=0, atol=2e-5)


def equal_to_base(language: nn.Module) -> list[bool]:
    state = language.state_dict()
    return [torch.equal(state[n], state[n.replace(".expert.", ".base.")]) for n in state if ".expert." in n]


def test_experts_start_as_copies_of_loaded_weights_that_no_checkpoint_filled(tmp_path: object) -> None:
    source, language = Llama(**SIZES), expert()
    plain = {name.removeprefix("lm."): tensor for name, tensor in source.state_dict().items()}
    torch.save(plain, f"{tmp_path}/base.pt")
    load_part(language, f"llama:{tmp_path}/base.pt", "language")
    assert all(equal_to_base(language))
    assert torch.equal(
        language.decoder_layers[0].mlp.expert.up_proj.weight, source.decoder_layers[0].mlp.up_proj.weight
    )


def test_experts_that_a_checkpoint_fills_keep_its_values() -> None:
    language, published = expert(), expert().state_dict()
    load_strict(language, published)
    assert all(torch.equal(tensor, published[name]) for name, tensor in language.state_dict().items())
    part = {name: t for name, t in published.items() if "layers.0.mlp.expert" in name or ".expert." not in name}
    load_strict(language, part, allow_missing=ADDED)
    assert equal_to_base(language.decoder_layers[1]) == [True] * 7
    assert equal_to_base(language.decoder_layers[0]) == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("language", "message"),
    [
        (T5(width=16, layers=1, heads=2, ffn_width=16, vocab_size=8), "needs a decoder, got T5"),
        (apply_partial_lora(Llama(**SIZES), rank=2), "already routed"),
    ],
    ids=["encoder-decoder", "routed"],
)
def test_models_without_a_place_for_experts_are_refused(language: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_visual_expert(language)
