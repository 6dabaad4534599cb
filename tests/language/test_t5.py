"""The T5 encoder-decoder: agreement with transformers, flat rows, cached decoding and activation checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.language.t5 import T5
from lit_mm.weights.convert import load_strict
from tests.rows import flat, transformers_t5

ATOL = 2e-5  # fp32, the same sums in another order: measured 2e-6 on logits of size 3
SIZES = {"width": 32, "layers": 2, "heads": 4, "ffn_width": 48, "vocab_size": 40, "decoder_layers": 3}


def tiny(**changes: object) -> T5:
    return T5(**SIZES | changes).eval()


def predict(language: T5, sources: Sequence[Tensor], answers: Sequence[Tensor]) -> Tensor:
    """[T, vocabulary] logits at every token of the answers to sources in one flat row."""
    batch = flat(sources, answers=answers)
    return language.logits(language.learn(language.embed(batch.ids), batch).hidden)


@torch.inference_mode()
def test_it_agrees_with_the_forward_of_transformers() -> None:
    """The reference uses the attention, masks, shift and projection of transformers; sources differ in length."""
    language = tiny(buckets=8, max_distance=12)  # some distances of the longer source share the last bucket
    theirs = transformers_t5(language)
    source, target = torch.randint(2, 40, (2, 17)), torch.randint(2, 40, (2, 5))
    real = torch.ones_like(source)
    real[1, 6:] = 0
    expected = theirs(input_ids=source, attention_mask=real, labels=target).logits
    ours = predict(language, [source[0], source[1, :6]], list(target))
    torch.testing.assert_close(ours, expected.flatten(0, 1), rtol=0, atol=ATOL)


def test_gradients_agree_with_those_of_transformers() -> None:
    """They include the position bias, which all layers and segments share."""
    language = tiny()
    theirs = transformers_t5(language)
    sources = [torch.randint(2, 40, (length,)) for length in (9, 4)]
    answers = [torch.randint(2, 40, (length,)) for length in (3, 6)]
    predict(language, sources, answers).logsumexp(-1).sum().backward()
    for source, answer in zip(sources, answers, strict=True):
        theirs(input_ids=source[None], labels=answer[None]).logits.logsumexp(-1).sum().backward()
    for (name, ours), (_, expected) in zip(language.lm.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_the_projection_is_not_the_embedding_table() -> None:
    language = tiny()
    assert language.lm.lm_head.weight.data_ptr() != language.lm.shared.weight.data_ptr()
    predict(language, [torch.tensor([3, 4])], [torch.tensor([5, 6])]).sum().backward()
    assert not torch.equal(language.lm.lm_head.weight.grad, language.lm.shared.weight.grad)


def test_the_activation_is_the_one_asked_for() -> None:
    x = torch.linspace(-3, 3, 7)
    for name, expected in [
        ("gelu", torch.nn.functional.gelu(x)),
        ("gelu_new", torch.nn.functional.gelu(x, approximate="tanh")),
    ]:
        gate = tiny(activation=name).lm.encoder.block[0].layer[-1].DenseReluDense
        torch.testing.assert_close(gate.act(x), expected)


@torch.inference_mode()
def test_samples_of_a_flat_row_have_the_logits_they_have_alone() -> None:
    language = tiny()
    sources = [torch.randint(2, 40, (length,)) for length in (5, 8, 3)]
    answers = [torch.randint(2, 40, (length,)) for length in (4, 2, 6)]
    alone = [predict(language, [source], [answer]) for source, answer in zip(sources, answers, strict=True)]
    torch.testing.assert_close(predict(language, sources, answers), torch.cat(alone), rtol=0, atol=ATOL)


@torch.inference_mode()
def test_hidden_states_are_those_of_the_supervised_places_alone() -> None:
    language = tiny()
    sources, answers = [torch.tensor([3, 4]), torch.tensor([5])], [torch.tensor([6, 7, 8]), torch.tensor([9, 4])]
    batch = flat(sources, answers=answers)
    some = replace(batch, supervised=torch.tensor([1, 4]), labels=torch.tensor([7, 4]))
    hidden, ids = language.learn(language.embed(some.ids), some)
    every, _ = language.learn(language.embed(batch.ids), batch)
    assert torch.equal(hidden, every[[1, 4]]) and ids.tolist() == [7, 4]


@torch.inference_mode()
def test_decoding_token_by_token_equals_the_whole_answer_also_when_samples_leave() -> None:
    language = tiny(start_id=6)
    sources = [torch.randint(2, 40, (length,)) for length in (7, 4, 5)]
    answers = list(torch.randint(2, 40, (3, 4)))
    expected = [
        language.learn(language.embed(b.ids), b).hidden
        for b in (flat([s], answers=[a]) for s, a in zip(sources, answers, strict=True))
    ]
    batch = flat(sources)
    hidden, state = language.begin(language.embed(batch.ids), batch)
    samples = [0, 1, 2]
    for step in range(4):
        for place, number in enumerate(samples):
            torch.testing.assert_close(hidden[place], expected[number][step], rtol=0, atol=ATOL)
        if step == 1:
            state.reorder(torch.tensor([2, 0]))
            samples = [2, 0]
        if step < 3:
            hidden = language.step(torch.stack([answers[number][step] for number in samples]), state)


def test_a_row_without_its_lengths_is_refused() -> None:
    with pytest.raises(UserError, match="segments"):
        tiny().lm.encoder(inputs_embeds=torch.randn(2, 5, 32))


def test_training_without_answers_is_refused() -> None:
    language, batch = tiny(), flat([torch.tensor([3])])
    with pytest.raises(UserError, match="row of their own"):
        language.learn(language.embed(batch.ids), batch)


def test_activation_checkpointing_leaves_the_gradients_alone() -> None:
    gradients = []
    for checkpointing in ("none", "full"):
        torch.manual_seed(1)
        language = tiny(activation_checkpointing=checkpointing).train()
        predict(language, list(torch.randint(40, (2, 6))), list(torch.randint(40, (2, 4)))).logsumexp(
            -1
        ).sum().backward()
        gradients.append({name: p.grad for name, p in language.named_parameters()})
    # not bit for bit: what the decoder layers give back to the encoder is summed in another order; measured 4e-7
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=5e-6)


def test_decoding_in_checkpointed_training_is_refused() -> None:
    language, batch = tiny(activation_checkpointing="full").train(), flat([torch.zeros(2, dtype=torch.long)])
    with pytest.raises(UserError, match="eval"):
        language.begin(language.embed(batch.ids), batch)


def test_it_runs_under_bf16_autocast_with_dropout() -> None:
    language = tiny(dropout=0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = predict(language, list(torch.randint(40, (2, 6))), [torch.tensor([3, 4, 5]), torch.tensor([6])])
        logits.float().logsumexp(-1).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in language.parameters())


def test_dropout_changes_training_and_not_evaluation() -> None:
    language, sources, answers = tiny(dropout=0.5), [torch.tensor([3, 4])], [torch.tensor([5, 6])]
    assert torch.equal(predict(language, sources, answers), predict(language, sources, answers))
    language.train()
    assert not torch.equal(predict(language, sources, answers), predict(language, sources, answers))


def test_flan_t5_xl_has_the_published_parameter_count_and_is_built_on_meta() -> None:
    with torch.device("meta"):
        language = T5(width=2048, layers=24, heads=32, head_width=64, ffn_width=5120, vocab_size=32128)
    assert sum(p.numel() for p in language.parameters()) == 2_849_757_184


def test_the_nano_size_is_small_enough_to_be_stored() -> None:
    with torch.device("meta"):
        language = T5(width=96, layers=2, heads=3, ffn_width=192, vocab_size=512)
    assert sum(p.numel() for p in language.parameters()) == 542_016


@torch.inference_mode()
def test_a_model_built_on_meta_comes_to_life_from_a_checkpoint() -> None:
    source, answer = torch.randint(40, (5,)), torch.randint(40, (3,))
    language = tiny()
    with torch.device("meta"):
        empty = tiny()
    load_strict(empty, {k: v for k, v in language.state_dict().items() if "embed_tokens" not in k})  # the tied copies
    assert torch.equal(predict(empty, [source], [answer]), predict(language, [source], [answer]))


@pytest.mark.parametrize(
    ("changes", "named"), [({"heads": 5}, "heads"), ({"buckets": 6}, "buckets"), ({"max_distance": 16}, "max_distance")]
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        T5(**SIZES | changes)
