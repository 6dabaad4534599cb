"""A tokenizer that a reference names as a file is copied under a name by which it is read again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_mm.prompts.save import save_tokenizer
from tests.prompts.published import qwen_file, sentencepiece_file


@pytest.mark.parametrize(
    ("source", "name", "target"),
    [
        (sentencepiece_file, "tokenizer.model", "tokenizer.model"),
        (sentencepiece_file, "llama.model", "tokenizer.model"),
        (qwen_file, "qwen.tiktoken", "qwen.tiktoken"),
        (qwen_file, "mine.tiktoken", "qwen.tiktoken"),
    ],
)
def test_a_file_of_a_tokenizer_has_a_name_that_says_its_kind(
    source: Callable[[], Path], name: str, target: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(source(), tmp_path / name)
    save_tokenizer(str(tmp_path / name), tmp_path / "out")
    assert (tmp_path / "out" / target).read_bytes() == source().read_bytes()
