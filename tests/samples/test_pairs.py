"""Pairs in packed rows."""

from __future__ import annotations

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.pairs import PairBatch, collate_pairs, split_pair
from lit_mm.samples.processor import Processor, Sample

PROCESSOR = Processor(load_tokenizer("nano"), TextToText())
TEXT = PROCESSOR.tokenizer.decode


def sample(question: str, answer: str) -> Sample:
    turns = (Turn("user", (question,)), Turn("assistant", (answer,)))
    return PROCESSOR.sample(Document(question, turns))


def batch() -> PairBatch:
    rows = [
        [sample("what is the code?", "42"), sample("what is the name?", "KALO")],
        [sample("read the page", "MIRU SI")],
    ]
    return collate_pairs(rows, PROCESSOR, step_tokens=99)


def test_a_sample_is_cut_before_its_answer() -> None:
    source, target = split_pair(sample("what is the code?", "42"))
    assert TEXT(source.input_ids, skip_special=False) == "what is the code?</s>"
    assert TEXT(target, skip_special=False) == "42</s>"
    assert source.length.supervised == 0


def test_source_and_target_of_a_sample_share_row_and_segment() -> None:
    made = batch()
    assert made.source.input_ids.shape[1] % 8 == 0 == made.target_ids.shape[1] % 8
    told = {
        (row, segment): tuple(
            TEXT(ids[row][segments[row] == segment].tolist())
            for ids, segments in [
                (made.source.input_ids, made.source.segment_ids),
                (made.target_ids, made.target_segments),
            ]
        )
        for row, segment in [(0, 1), (0, 2), (1, 1)]
    }
    assert told == {
        (0, 1): ("what is the code?", "42"),
        (0, 2): ("what is the name?", "KALO"),
        (1, 1): ("read the page", "MIRU SI"),
    }
    assert made.source.segment_ids.max() == made.target_segments.max() == 2
    assert made.sample_ids == ("what is the code?", "what is the name?", "read the page")


def test_counts_are_those_of_the_samples() -> None:
    made, rows = batch(), [("what is the code?", "42"), ("what is the name?", "KALO"), ("read the page", "MIRU SI")]
    lengths = [sample(*row).length for row in rows]
    assert made.num_supervised == sum(length.supervised for length in lengths)
    assert made.num_tokens == sum(length.tokens for length in lengths) == int((made.segment_ids > 0).sum())
    assert made.step_tokens == 99


def test_padding_is_the_padding_token() -> None:
    made = batch()
    assert set(made.target_ids[made.target_segments == 0].tolist()) == {PROCESSOR.tokenizer.pad_id}


def test_moving_a_batch_moves_everything() -> None:
    moved = batch().to("meta")
    assert moved.source.input_ids.is_meta and moved.target_ids.is_meta and moved.target_segments.is_meta
    assert moved.step_tokens == 99


def test_a_document_without_an_answer_is_refused() -> None:
    asked = PROCESSOR.sample(Document("a", (Turn("user", ("what is the code?",)),)))
    with pytest.raises(UserError, match="0 are learnt"):
        split_pair(asked)


def test_a_prompt_that_learns_in_between_is_refused() -> None:
    turns = tuple(
        Turn(role, (text,)) for role, text in [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    )
    chat = Processor(PROCESSOR.tokenizer, XComposer2Prompt(turn_start="<|im_start|>", turn_end="<|im_end|>"))
    with pytest.raises(UserError, match="TextToText"):
        split_pair(chat.sample(Document("chat", turns)))


@pytest.mark.gpu
def test_a_pinned_batch_is_pinned_in_all_its_parts() -> None:
    pinned = batch().pin_memory()
    assert pinned.source.input_ids.is_pinned() and pinned.target_ids.is_pinned() and pinned.target_segments.is_pinned()
