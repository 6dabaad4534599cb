"""Fixtures for prompts: a small byte-level tokenizer, trained here, and pictures without pixels."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tokenizers
from PIL import Image
from tokenizers import decoders, models, pre_tokenizers, trainers

from lit_mm.prompts.tokenizer import Tokenizer

CORPUS = ["What is in the picture? A red dog and two cats.\nHow many? Three.", "user\nassistant\nsystem\n"] * 4


@dataclass(frozen=True)
class NoPixels:
    name: str = ""
    width: int = 64
    height: int = 48

    def read(self) -> Image.Image:
        raise AssertionError("a prompt read pixels")


@pytest.fixture(scope="session")
def backend_json() -> str:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>", "<turn>", "</turn>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


@pytest.fixture
def tokenizer(backend_json: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(backend_json), bos="<s>", eos="</s>", pad="<pad>")


@pytest.fixture
def picture() -> NoPixels:
    return NoPixels()
