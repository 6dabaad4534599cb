from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import tokenizers

from lit_mm.errors import UserError
from lit_mm.prompts.tokenizer import Tokenizer

TEXT = "What is in the picture?\nA red dog."


def test_nothing_is_added_to_a_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.encode("") == []


def test_special_tokens_inside_a_text_are_recognised(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<turn></s>") == [tokenizer.id_of("<turn>"), tokenizer.eos_id]


def test_decoding_leaves_special_tokens_out_unless_asked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<turn>dog</s>")
    assert tokenizer.decode(ids) == "dog"
    assert tokenizer.decode(ids, skip_special=False) == "<turn>dog</s>"


def test_size_is_one_more_than_the_highest_id(tokenizer: Tokenizer) -> None:
    tokenizer.vocabulary.backend.add_special_tokens(["<late>"])
    again = Tokenizer(tokenizer.vocabulary.backend, bos="<s>", eos="</s>", pad="<pad>")
    assert again.size == tokenizer.id_of("<late>") + 1 == tokenizer.size + 1


def test_an_unknown_token_is_a_users_mistake(tokenizer: Tokenizer, backend_json: str) -> None:
    with pytest.raises(UserError, match=r"no token '<nope>'"):
        tokenizer.id_of("<nope>")
    with pytest.raises(UserError, match=r"no token '<eot>'"):
        Tokenizer(tokenizers.Tokenizer.from_str(backend_json), bos="<s>", eos="<eot>")


def test_padding_is_eos_and_bos_may_be_absent(backend_json: str) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(backend_json), bos=None, eos="</s>")
    assert (tokenizer.bos_id, tokenizer.pad_id) == (None, tokenizer.eos_id)


def test_a_file_that_truncates_or_pads_does_neither_here(tokenizer: Tokenizer, tmp_path: Path) -> None:
    expected = tokenizer.encode(TEXT)
    tokenizer.vocabulary.backend.enable_truncation(2)
    tokenizer.vocabulary.backend.enable_padding(length=500)
    tokenizer.vocabulary.backend.save(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer.encode(TEXT)) == 500
    again = Tokenizer.from_file(tmp_path / "tokenizer.json", bos="<s>", eos="</s>", pad="<pad>")
    assert again.encode(TEXT) == expected


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json"):
        Tokenizer.from_file(tmp_path / "nowhere.json", bos=None, eos="</s>")


def test_a_worker_gets_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert (again.bos_id, again.eos_id, again.pad_id, again.size) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.size,
    )


def test_a_published_folder_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.vocabulary.backend, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.encode("<turn>" + TEXT) == tokenizer.encode("<turn>" + TEXT)
    assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_id)
