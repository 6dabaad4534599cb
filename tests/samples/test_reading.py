"""Second texts: caption or instruction, the side that is cut off, and padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import BertWordPieceTokenizer

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.source import load_tokenizer
from lit_mm.samples.collate import pad_texts
from lit_mm.samples.reading import Reading

TURNS = (Turn("user", ("what is it",)), Turn("assistant", ("a cat on a mat",)))
DOCUMENT = Document("d", TURNS)


@pytest.mark.parametrize(("text", "expected"), [("caption", "a cat on a mat"), ("instruction", "what is it")])
def test_a_reading_takes_the_caption_or_the_instruction(text: str, expected: str) -> None:
    ids = Reading("nano", text, first_id=1, last_id=2, max_length=64)(DOCUMENT)
    assert ids.tolist() == [1, *load_tokenizer("nano").encode(expected), 2]


def test_a_reading_of_none_has_no_token_and_is_padding_alone() -> None:
    ids = Reading("nano", "none")(DOCUMENT)
    assert ids.dtype == np.int64 and ids.tolist() == []
    assert pad_texts([ids, ids]).mask.tolist() == [[False], [False]]


def test_the_files_of_bert_name_no_end_and_are_read(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "##s", "?"]
    BertWordPieceTokenizer({word: number for number, word in enumerate(words)}).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    read = Reading(str(tmp_path), "instruction", first_id=2, last_id=3, max_length=5, cut="left")
    document = Document("d", (Turn("user", ("What is its?",)),))
    assert read(document).tolist() == [2, 7, 8, 9, 3]  # the release cuts the start, and keeps [CLS] and [SEP]


def test_a_reading_may_write_captions_in_lower_case_and_without_punctuation() -> None:
    document = Document("d", (Turn("assistant", ('A "red" Cat: (here).',)),))
    ids = Reading("nano", first_id=1, last_id=2, max_length=64, clean=True)(document)
    assert ids.tolist() == [1, *load_tokenizer("nano").encode("a red cat here"), 2]


@pytest.mark.parametrize(("cut", "place"), [("right", slice(0, 2)), ("left", slice(-2, None))])
def test_a_long_text_loses_tokens_at_one_side_and_keeps_first_and_last(cut: str, place: slice) -> None:
    ids = Reading("nano", first_id=1, last_id=2, max_length=4, cut=cut)(DOCUMENT)
    assert ids.tolist() == [1, *load_tokenizer("nano").encode("a cat on a mat")[place], 2]
    text = Reading("nano", first_id=1, last_id=2, max_length=4, cut=cut).decoded(DOCUMENT)
    assert "a cat on a mat".startswith(text.strip()) if cut == "right" else "a cat on a mat".endswith(text.strip())


def test_several_instructions_are_refused() -> None:
    with pytest.raises(UserError, match="'d': the Q-Former reads one instruction, got 2 user turns"):
        Reading("nano", "instruction")(Document("d", TURNS * 2))


def test_texts_are_padded_and_a_blank_view_reads_none() -> None:
    texts = pad_texts([np.array([5, 6, 7]), np.array([8])])
    assert texts.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert texts.of(torch.tensor([1, -1])).mask.tolist() == [[True, False, False], [False] * 3]
