"""Tokenizers by reference, and the tokens of separators in layouts."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from lit_mm.assets import NANO_TOKENIZER
from lit_mm.errors import UserError
from lit_mm.prompts.source import PublishedTokenizer, is_on_this_machine, load_tokenizer
from lit_mm.prompts.tokenizer import Tokenizer, token_inside

PIECES = ("<s>", "</s>", "<0x0A>", "▁", "a", ",", "b", "▁a", "▁,", "ab")


@pytest.fixture
def llama_like() -> Tokenizer:
    """A tokenizer like Llama's: it puts a space before a text, and the newline is a byte."""
    backend = tokenizers.Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(PIECES)},
            [("▁", "a"), ("▁", ","), ("a", "b")],
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.ByteFallback()
    return Tokenizer(backend, bos="<s>", eos="</s>")


def test_a_separator_is_the_token_that_it_is_inside_a_line(llama_like: Tokenizer) -> None:
    assert llama_like.encode(",") == [PIECES.index("▁,")]
    assert llama_like.encode("\n") == [PIECES.index("▁"), PIECES.index("<0x0A>")]
    assert token_inside(llama_like, ",") == PIECES.index(",")
    assert token_inside(llama_like, "\n") == PIECES.index("<0x0A>")


def test_the_nano_tokenizer_has_both_separators_of_slices() -> None:
    tokenizer = load_tokenizer("nano")
    assert [tokenizer.decode([token_inside(tokenizer, text)]) for text in (",", "\n")] == [",", "\n"]


def test_a_separator_of_several_tokens_is_refused(llama_like: Tokenizer) -> None:
    with pytest.raises(
        UserError, match=r"puts ',,' between visual tokens, so it must be one token .* becomes \[5, 5\]"
    ):
        token_inside(llama_like, ",,")


def test_a_published_tokenizer_is_read_when_it_is_first_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read(name: str) -> Tokenizer:
        asked.append(str(name))
        return load_tokenizer("nano")

    monkeypatch.setattr(Tokenizer, "from_pretrained", read)
    tokenizer = load_tokenizer("some-one/published")
    assert isinstance(pickle.loads(pickle.dumps(tokenizer)), PublishedTokenizer)
    assert not asked
    nano = load_tokenizer("nano")
    assert (tokenizer.eos_id, tokenizer.encode("red")) == (nano.eos_id, nano.encode("red"))
    assert pickle.loads(pickle.dumps(tokenizer)).encode("red") == nano.encode("red")
    assert asked == ["some-one/published"]


def test_one_that_cannot_be_read_says_so_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read once, when it is imported
    tokenizer = load_tokenizer("some-one/published")
    with pytest.raises(UserError, match=r"tokenizer 'some-one/published' cannot be read"):
        tokenizer.encode("red")


def test_a_folder_is_read_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_published_tokenizer_is_on_this_machine_if_the_cache_has_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    tokenizer = PublishedTokenizer("owner/words")
    assert is_on_this_machine(load_tokenizer("nano")) and not is_on_this_machine(tokenizer)
    snapshot = tmp_path / "models--owner--words/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--words/refs").mkdir()
    (tmp_path / "models--owner--words/refs/main").write_text("0123")
    assert not is_on_this_machine(tokenizer)
    (snapshot / "tokenizer.json").write_bytes(NANO_TOKENIZER.read_bytes())
    assert is_on_this_machine(tokenizer)
