"""The nano tokenizer reproduces any text, and spells text of pages sign by sign."""

import re

import pytest
from tokenizers import Tokenizer as Backend

from lit_mm.assets import NANO_TOKENIZER
from lit_mm.nano.tokenizer import SPECIAL, VOCABULARY, main, train_tokenizer
from lit_mm.nano.world import SKILLS, text_document
from lit_mm.prompts.source import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("nano")


def test_special_tokens_come_first_and_the_vocabulary_keeps_its_bound(tokenizer):
    assert [tokenizer.id_of(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert 500 < tokenizer.size <= VOCABULARY


@pytest.mark.parametrize(
    "text", ["KALO 7 ; red star", "Größe: 3 €", "日本語", "tabs\tand\n\nlines", "  two  spaces ", "🙂"]
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_capitals_and_digits_are_spelt_sign_by_sign(tokenizer):
    for text in ("KALO", "2047", "A7B"):
        assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == list(text)
    assert [tokenizer.decode([i]) for i in tokenizer.encode(" KA 12")] == [" K", "A", " 1", "2"]


def test_the_words_of_questions_are_one_token_each(tokenizer):
    documents = [text_document(n, split="heldout", seed=0) for n in range(90)]
    texts = [turn.text for document in documents for turn in document.turns if turn.role == "user"]
    words = {word for text in texts for word in re.findall(r" [a-z]+", text)}
    assert len(words) > 30
    assert [word for word in words if len(tokenizer.encode(word)) > 1] == []


def test_a_marker_is_one_token_inside_a_text(tokenizer):
    ids = tokenizer.encode("<|im_start|>user\nred<|im_end|>\n")
    assert ids[0] == tokenizer.id_of("<|im_start|>")
    assert tokenizer.id_of("<|im_end|>") in ids
    assert tokenizer.decode(ids) == "user\nred\n"


@pytest.mark.parametrize("skill", SKILLS)
def test_documents_of_every_skill_survive(tokenizer, skill):
    for turn in text_document(3, split="heldout", seed=0, skill=skill).turns:
        assert tokenizer.decode(tokenizer.encode(turn.text)) == turn.text


def test_training_is_deterministic_and_writes_a_file_that_loads(tmp_path, monkeypatch, capsys):
    small = train_tokenizer(documents=60)
    assert small.to_str() == train_tokenizer(documents=60).to_str()
    monkeypatch.setattr("lit_mm.nano.tokenizer.train_tokenizer", lambda: small)
    main(tmp_path / "tokenizer.json")
    assert Backend.from_file(str(tmp_path / "tokenizer.json")).to_str() == small.to_str()
    assert f"tokenizer.json: {small.get_vocab_size()} tokens" in capsys.readouterr().out


@pytest.mark.slow
def test_the_stored_file_is_what_its_command_makes():
    assert train_tokenizer().to_str() == Backend.from_file(str(NANO_TOKENIZER)).to_str()
