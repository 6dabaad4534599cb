"""The T5 encoder-decoder: agreement with transformers, packing, padding, cached decoding and checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.language.t5 import T5, cross_mask, encoder_mask
from lit_mm.weights.convert import load_strict

ATOL = 2e-5  # fp32, the same sums in another order: measured 2e-6 on logits of size 3
SIZES = {"width": 32, "layers": 2, "heads": 4, "ffn_width": 48, "vocab_size": 40, "decoder_layers": 3}


def tiny(**changes: object) -> T5:
    return T5(**SIZES | changes).eval()


def answer(language: T5, source: Tensor, read: Tensor, segments: Tensor | None = None) -> Tensor:
    """Logits of one source and one target a row; `segments` marks padding of the source."""
    segments = torch.ones_like(source) if segments is None else segments
    encoded = language.encode(language.embed(source), segment_ids=segments)
    hidden = language(
        language.embed(read), segment_ids=torch.ones_like(read), encoded=encoded, encoded_segments=segments
    )
    return language.logits(hidden)


def test_the_encoder_sees_both_ways_inside_a_sample_and_padding_sees_itself() -> None:
    mask = encoder_mask(torch.tensor([[1, 1, 2, 0]]))
    assert mask[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_a_decoder_position_sees_what_its_own_sample_encoded() -> None:
    mask = cross_mask(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 1, 2, 0]]))
    assert mask[0, 0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


@torch.inference_mode()
def test_it_agrees_with_the_forward_of_transformers() -> None:
    """Their own masks, shift and projection, on the module that they would build but for the untied projection."""
    language = tiny()
    source, target = torch.randint(2, 40, (2, 9)), torch.randint(2, 40, (2, 5))
    seen = torch.ones_like(source)
    seen[1, 6:] = 0
    language.lm.config.scale_decoder_outputs = False  # as in Flan-T5
    language.lm.config.decoder_start_token_id = language.lm.config.pad_token_id = 0
    theirs = language.lm(input_ids=source, attention_mask=seen, labels=target).logits
    ours = answer(language, source, language.shift(target, torch.ones_like(target)), seen)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)


def test_the_projection_is_not_the_embedding_table() -> None:
    language = tiny()
    assert language.lm.lm_head.weight.data_ptr() != language.lm.shared.weight.data_ptr()
    answer(language, torch.tensor([[3, 4]]), torch.tensor([[0, 5]])).sum().backward()
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
def test_packed_samples_have_the_logits_they_have_alone() -> None:
    language = tiny()
    sources = [torch.randint(2, 40, (1, length)) for length in (5, 8, 3)]
    targets = [torch.randint(2, 40, (1, length)) for length in (4, 2, 6)]
    pad = torch.zeros(1, 2, dtype=torch.long)
    source, target = torch.cat([*sources, pad], dim=1), torch.cat([*targets, pad], dim=1)
    source_segments = torch.tensor([[1] * 5 + [2] * 8 + [3] * 3 + [0] * 2])
    target_segments = torch.tensor([[1] * 4 + [2] * 2 + [3] * 6 + [0] * 2])
    encoded = language.encode(language.embed(source), segment_ids=source_segments)
    hidden = language(
        language.embed(language.shift(target, target_segments)),
        segment_ids=target_segments,
        encoded=encoded,
        encoded_segments=source_segments,
    )
    assert torch.isfinite(hidden).all()
    alone = [answer(language, s, language.shift(t, torch.ones_like(t))) for s, t in zip(sources, targets, strict=True)]
    torch.testing.assert_close(language.logits(hidden)[:, :12], torch.cat(alone, dim=1), rtol=0, atol=ATOL)


def test_targets_are_shifted_inside_their_sample() -> None:
    shifted = tiny(start_id=6).shift(torch.tensor([[7, 8, 9, 5, 0]]), torch.tensor([[1, 1, 2, 2, 0]]))
    assert shifted.tolist() == [[6, 7, 6, 9, 6]]


def test_one_row_of_one_sample_starts_with_the_start_token() -> None:
    assert tiny().shift(torch.tensor([[7, 8]]), torch.ones(1, 2, dtype=torch.long)).tolist() == [[0, 7]]


@torch.inference_mode()
def test_cached_greedy_decoding_equals_decoding_without_a_cache() -> None:
    language = tiny()
    source = torch.randint(2, 40, (3, 7))
    segments = torch.ones_like(source)
    segments[1, :3] = 0  # padded on the left
    segments[2, 5:] = 0
    encoded = language.encode(language.embed(source), segment_ids=segments)
    made = language.greedy(encoded, encoded_segments=segments, stop_ids=(), max_new_tokens=6)
    read = torch.zeros(3, 1, dtype=torch.long)
    for _ in range(6):
        token = answer(language, source, read, segments)[:, -1].argmax(-1, keepdim=True)
        read = torch.cat([read, token], dim=1)
    assert made.shape == (3, 6)
    assert torch.equal(made, read[:, 1:])
    assert len(torch.unique(made)) > 1


@torch.inference_mode()
def test_decoding_ends_when_every_row_has_stopped() -> None:
    language = tiny()
    encoded = language.encode(language.embed(torch.tensor([[5, 9, 3]])), segment_ids=torch.ones(1, 3, dtype=torch.long))
    ones = torch.ones(1, 3, dtype=torch.long)
    free = language.greedy(encoded, encoded_segments=ones, stop_ids=(), max_new_tokens=8)[0].tolist()
    stop = free[2]
    ended = language.greedy(encoded, encoded_segments=ones, stop_ids=[stop], max_new_tokens=8)[0].tolist()
    assert ended == free[: free.index(stop) + 1]


@torch.inference_mode()
def test_a_left_padded_source_encodes_as_it_does_alone() -> None:
    language, source = tiny(), torch.randint(2, 40, (1, 5))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), source], dim=1)
    segments = torch.tensor([[0] * 4 + [1] * 5])
    alone = language.encode(language.embed(source), segment_ids=torch.ones_like(source))
    together = language.encode(language.embed(padded), segment_ids=segments)
    torch.testing.assert_close(together[:, 4:], alone, rtol=0, atol=ATOL)


def test_activation_checkpointing_leaves_the_gradients_alone() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        language = tiny(activation_checkpointing=checkpointing).train()
        answer(language, torch.randint(40, (2, 6)), torch.randint(40, (2, 4))).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in language.named_parameters()})
    # not bit for bit: what the decoder layers give back to the encoder is summed in another order; measured 4e-7
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=5e-6)


def test_a_cache_in_checkpointed_training_is_refused() -> None:
    language, ids = tiny(activation_checkpointing=True).train(), torch.zeros(1, 2, dtype=torch.long)
    encoded = language.encode(language.embed(ids), segment_ids=ids + 1)
    with pytest.raises(UserError, match="eval"):
        language(
            language.embed(ids),
            segment_ids=ids + 1,
            encoded=encoded,
            encoded_segments=ids + 1,
            cache=language.new_cache(),
        )


def test_it_runs_under_bf16_autocast_with_padding_and_dropout() -> None:
    language = tiny(dropout=0.1).train()
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    ids = torch.randint(40, (2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        encoded = language.encode(language.embed(ids), segment_ids=segments)
        hidden = language(language.embed(ids), segment_ids=segments, encoded=encoded, encoded_segments=segments)
        language.logits(hidden[segments > 0]).float().logsumexp(-1).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in language.parameters())


def test_dropout_changes_training_and_not_evaluation() -> None:
    language, source, read = tiny(dropout=0.5), torch.tensor([[3, 4]]), torch.tensor([[0, 5]])
    assert torch.equal(answer(language, source, read), answer(language, source, read))
    language.train()
    assert not torch.equal(answer(language, source, read), answer(language, source, read))


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
    source, read = torch.randint(40, (1, 5)), torch.randint(40, (1, 3))
    language = tiny()
    with torch.device("meta"):
        empty = tiny()
    load_strict(empty, {k: v for k, v in language.state_dict().items() if "embed_tokens" not in k})  # the tied copies
    torch.testing.assert_close(answer(empty, source, read), answer(language, source, read), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "named"), [({"heads": 5}, "heads"), ({"buckets": 6}, "buckets"), ({"max_distance": 16}, "max_distance")]
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        T5(**SIZES | changes)
