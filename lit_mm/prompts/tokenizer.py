"""The tokenizer, which converts text to ids without hidden additions, and back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import tokenizers

from lit_mm.errors import UserError, first_line
from lit_mm.prompts.files import FILES, read_files
from lit_mm.prompts.vocabularies import FastVocabulary, Vocabulary
from lit_mm.weights.config_file import split_revision


class Tokenizer:
    """A tokenizer that adds no token to a text; prompts write special tokens explicitly.

    Special tokens inside a text (`"</s>"`) are recognised. The object can be pickled, so workers may hold one.

    Attributes:
        bos, eos, pad: special tokens as text; `bos` is None if the vocabulary has none. A vocabulary without a padding
            token pads with `eos` (as InternLM2 does).
        bos_id, eos_id, pad_id: ids of these tokens.
        special_tokens: all special tokens as text.
        chat_template: jinja text of the chat template in the tokenizer's files; None if they have none.
        size: number of rows of an embedding table, the highest id plus one.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | tokenizers.Tokenizer,
        *,
        bos: str | None,
        eos: str,
        pad: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Wrap a vocabulary; see `from_file` and `from_pretrained`.

        Raises:
            UserError: `bos`, `eos` or `pad` is not in the vocabulary.
        """
        if isinstance(vocabulary, tokenizers.Tokenizer):
            vocabulary = FastVocabulary(vocabulary)
        self.vocabulary = vocabulary
        self.bos, self.eos, self.pad = bos, eos, eos if pad is None else pad
        self.bos_id: int | None = None if bos is None else self.id_of(bos)
        self.eos_id: int = self.id_of(self.eos)
        self.pad_id: int = self.id_of(self.pad)
        self.special_tokens: tuple[str, ...] = vocabulary.special
        self.size: int = vocabulary.size
        self.chat_template = chat_template

    @classmethod
    def from_file(cls, path: str | Path, *, bos: str | None, eos: str, pad: str | None = None) -> Tokenizer:
        """Read a `tokenizer.json` whose special tokens are known.

        Raises:
            UserError: there is no such file, or a special token is not in its vocabulary.
        """
        if not Path(path).is_file():
            raise UserError(f"tokenizer file {str(path)!r} does not exist; give the path of a tokenizer.json")
        return cls(tokenizers.Tokenizer.from_file(str(path)), bos=bos, eos=eos, pad=pad)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Tokenizer:
        """Read a published tokenizer from a folder, a file, or by its published name. No code beside it is run.

        Args:
            name: see `lit_mm.prompts.files.read_files`; a published name is downloaded to Hugging Face's cache.

        Raises:
            UserError: the tokenizer cannot be read or downloaded, or its files name no end-of-sequence token.
        """
        path = Path(os.path.expanduser(name))
        vocabulary, special = read_files(path if path.exists() or isinstance(name, Path) else download(name))
        eos = special["eos_token"]
        assert eos is not None, "read_files gives an end-of-sequence token"
        return cls(
            vocabulary,
            bos=special["bos_token"],
            eos=eos,
            pad=special["pad_token"],
            chat_template=special["chat_template"],
        )

    def encode(self, text: str) -> list[int]:
        """Convert a text to token ids; no special token is added."""
        return self.vocabulary.encode(text)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Convert ids to text, without special tokens unless `skip_special` is False."""
        return self.vocabulary.decode([int(number) for number in ids], skip_special)

    def id_of(self, token: str) -> int:
        """Return the id of one token.

        Raises:
            UserError: the vocabulary does not have the token.
        """
        number = self.vocabulary.find(token)
        if number is None:
            raise UserError(
                f"the tokenizer has no token {token!r} among its {self.vocabulary.size}; the prompt or the special "
                "tokens in the config were made for another tokenizer"
            )
        return number


def download(name: str) -> Path:
    """Return the folder of a published tokenizer's files; files that are not in the cache are downloaded.

    Raises:
        UserError: there is no such tokenizer, or it is neither in the cache nor can be downloaded.
    """
    import huggingface_hub

    try:
        owner_and_name, revision = split_revision(name)
        return Path(huggingface_hub.snapshot_download(owner_and_name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # raised for names without a repository, and without a network
        reason = first_line(error)
        raise UserError(
            f"the tokenizer {name!r} cannot be read ({reason}). Give a folder with its files, one of the files, a "
            "published name that can be downloaded, or 'nano'"
        ) from error


def token_inside(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of the single token that `text` is in the middle of a line.

    A text alone may have other tokens: Llama's tokenizer puts a space before the start of a text, so "," alone is token
    1919 and "\\n" alone the two tokens 29871 and 13. In the middle of a line they are 29892 and 13.

    Raises:
        UserError: the text is not a single token there.
    """
    before = tokenizer.encode("a")
    after = tokenizer.encode(f"a{text}")
    if after[:-1] != before:
        raise UserError(
            f"a layout puts {text!r} between visual tokens, so it must be one token of the tokenizer; after "
            f"'a' it becomes {after[len(before) :]}. Choose a layout without it, or another tokenizer"
        )
    return after[-1]
