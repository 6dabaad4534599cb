"""Vocabularies of three kinds behind one protocol: tokenizer.json, sentencepiece and byte pairs of tiktoken."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Protocol

import sentencepiece
import tiktoken
import tokenizers

from lit_mm.errors import UserError

ANCHORS = ("a", "\n", ".", "1")  # characters before a text; a text that merges with all of them is tokenised alone


def encode_inside(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Tokenise a text as in the middle of a line, without the space that Llama's vocabularies put before a text.

    The text is tokenised behind a character that does not merge with it.
    """
    for character in ANCHORS:
        anchor, ids = encode(character), encode(character + text)
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
    return encode(text)


class Vocabulary(Protocol):
    """Converts text to ids and back. It adds no token to a text and can be pickled.

    Attributes:
        size: highest id plus one.
        special: special tokens as text; they are recognised inside a text.
    """

    size: int
    special: tuple[str, ...]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int], skip_special: bool) -> str: ...

    def find(self, token: str) -> int | None:
        """Return the id of a token; None if the vocabulary lacks it."""
        ...


class FastVocabulary:
    """The vocabulary of a `tokenizer.json`.

    Args:
        backend: tokenizer of the file; its truncation and padding are switched off.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self.special = tuple(t.content for t in backend.get_added_tokens_decoder().values() if t.special)

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special: bool) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def find(self, token: str) -> int | None:
        return self.backend.token_to_id(token)


class SentencePieceVocabulary:
    """The vocabulary of a `tokenizer.model`, tokenised by sentencepiece.

    Text between two special tokens is tokenised separately. sentencepiece puts a space before a text, and with `legacy`
    also behind a special token. transformers 5 rebuilds such a file from its pieces with merges ranked by id; texts
    with two spaces or with indentation then get other ids.

    Args:
        model: bytes of the file.
        added: further token in the files beside the model -> id; None for none.
        legacy: True puts a space before every text between special tokens, False only before the first text. It is the
            key of that name in tokenizer_config.json, and True if the file lacks the key.
        ordinary: added tokens that are ordinary text; decoding never leaves them out.
        sentinels: number of T5's tokens <extra_id_0>, <extra_id_1>, ..., whose ids follow the pieces, highest number
            first.
    """

    def __init__(
        self,
        model: bytes,
        added: Mapping[str, int] | None = None,
        legacy: bool = True,
        ordinary: Collection[str] = (),
        sentinels: int = 0,
    ) -> None:
        self.legacy, self.ordinary = legacy, frozenset(ordinary)
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        count = self.pieces.vocab_size()
        control = {self.pieces.id_to_piece(n): n for n in range(count) if self.pieces.is_control(n)}
        extra = {f"<extra_id_{number}>": count + sentinels - 1 - number for number in range(sentinels)}
        self.added = {**control, **extra, **(added or {})}
        self.special = tuple(token for token in self.added if token not in self.ordinary)
        self.size = 1 + max(count - 1, *self.added.values())
        self.texts = {number: token for token, number in self.added.items()}
        longest_first = sorted(self.added, key=len, reverse=True)
        self.cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if self.added else None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self.cut.split(text) if self.cut else [text]:
            if piece in self.added:
                ids.append(self.added[piece])
            else:
                ids += (
                    encode_inside(self.pieces.encode, piece) if ids and not self.legacy else self.pieces.encode(piece)
                )
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool) -> str:
        text = ""
        for number, (special, group) in enumerate(groupby(ids, key=self.texts.__contains__)):
            stretch = list(group)
            if not special:
                spaced = number and not self.legacy and self.pieces.id_to_piece(stretch[0]).startswith("▁")
                text += " " * bool(spaced) + self.pieces.decode(stretch)
            else:
                tokens = [self.texts[token] for token in stretch]
                text += "".join(token for token in tokens if not skip_special or token in self.ordinary)
        return text

    def find(self, token: str) -> int | None:
        if token in self.added:
            return self.added[token]
        number = self.pieces.piece_to_id(token)
        return number if self.pieces.id_to_piece(number) == token else None


class BytePairVocabulary:
    """A vocabulary of byte pairs with a splitting pattern, tokenised by tiktoken.

    Args:
        ranks: token as bytes -> its id.
        pattern: regular expression that cuts a text into words.
        specials: special token -> its id.
        nfc: True converts texts to Unicode's form NFC first.
    """

    def __init__(self, ranks: Mapping[bytes, int], pattern: str, specials: Mapping[str, int], nfc: bool) -> None:
        self.ranks, self.pattern, self.specials, self.nfc = dict(ranks), pattern, dict(specials), nfc
        self.special = tuple(specials)
        self.size = 1 + max(*self.ranks.values(), *self.specials.values())
        self.special_ids = frozenset(self.specials.values())

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "lit_mm", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.specials
        )

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "encoding"}  # copies rebuild it

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode(unicodedata.normalize("NFC", text) if self.nfc else text, allowed_special="all")

    def decode(self, ids: Iterable[int], skip_special: bool) -> str:
        return self.encoding.decode([n for n in ids if not (skip_special and n in self.special_ids)])

    def find(self, token: str) -> int | None:
        if token in self.specials:
            return self.specials[token]
        return self.ranks.get(token.encode())


QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)))
QWEN_IMAGES = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")


def read_qwen(file: Path, images: bool = True) -> BytePairVocabulary:
    """Read a `qwen.tiktoken`, which has a token in base64 and its id on each line. Special tokens follow the last id.

    Args:
        file: path of the file.
        images: True adds the nine special tokens of pictures and boxes of Qwen-VL to Qwen's 208.
    Raises:
        UserError: the file does not have this form.
    Source: tokenization_qwen.py of the release, which holds pattern and special tokens; its code is not run.
    """
    try:
        lines = (line.split() for line in file.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(number) for token, number in lines}
    except ValueError as error:
        raise UserError(f"tokenizer file {str(file)!r} is no list of base64 tokens and ids ({error})") from error
    if not ranks:
        raise UserError(f"tokenizer file {str(file)!r} is empty; copy the published file again")
    specials = QWEN_CHAT + (QWEN_IMAGES if images else ())
    return BytePairVocabulary(ranks, QWEN_PATTERN, {t: len(ranks) + n for n, t in enumerate(specials)}, nfc=True)


TEKKEN_CONTROL = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
]


def read_tekken(file: Path) -> BytePairVocabulary:
    """Read a tekken json. Special tokens have the first ids; byte pairs follow in the order of their ranks.

    A file of version 3 does not list its special tokens; they are those of mistral-common 1.13.

    Raises:
        UserError: the file does not have this form.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        config = table["config"]
        first = int(config["default_num_special_tokens"])
        count = int(config["default_vocab_size"]) - first
        ranks = {base64.b64decode(row["token_bytes"]): first + row["rank"] for row in table["vocab"][:count]}
        listed = table.get("special_tokens") or [{"rank": n, "token_str": t} for n, t in enumerate(TEKKEN_CONTROL)]
        names = {int(row["rank"]): str(row["token_str"]) for row in listed}
        pattern = config["pattern"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"tokenizer file {str(file)!r} is neither a tokenizer.json nor a tekken json ({error!r})"
        ) from error
    specials = {names.get(n, f"<SPECIAL_{n}>"): n for n in range(first)}
    return BytePairVocabulary(ranks, pattern, specials, nfc=False)
