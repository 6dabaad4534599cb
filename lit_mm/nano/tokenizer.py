"""This module trains the tokenizer of the nano language models: `python -m lit_mm.nano.tokenizer`.

It is a byte-level BPE, so it encodes any text. Capitals and digits are never merged: text read from a page is spelt
sign by sign, while each word of a question is one token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lit_mm.assets import NANO_TOKENIZER
from lit_mm.nano.world import SKILLS, caption_document, text_document

SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 512  # upper limit; the words of the nano world give fewer tokens
PIECES = Regex(r" ?[A-Z]| ?[0-9]| ?[a-z]+| ?[^\sA-Za-z0-9]+|\s")


def train_tokenizer(documents: int = 20_000) -> Tokenizer:
    """Train on the "text" split, which shares no page with the train and held-out splits.

    Args:
        documents: number of documents over all skills.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents), trainer)
    return tokenizer


def _texts(documents: int) -> Iterator[str]:
    words = "user\nassistant\nsystem\n describe the image\n picture\n page\n document\n"
    yield from [words] * (documents // 20)
    for number in range(documents):
        skill = SKILLS[number % len(SKILLS)]
        yield caption_document(number, split="text", seed=0, skill=skill).question
        for turn in text_document(number, split="text", seed=0, skill=skill).turns:
            yield turn.text


def main(path: Path = NANO_TOKENIZER) -> None:
    tokenizer = train_tokenizer()
    tokenizer.save(str(path), pretty=False)
    print(f"{path}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
