"""One view of every fast tokenizer: text to ids without hidden additions, and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers

from lit_mm.errors import UserError

ANCHORS = ("a", "\n", ".", "1")  # a text that starts a token with all of them is tokenised alone


class Tokenizer:
    """A fast tokenizer that adds nothing of its own: special tokens are where the prompt puts them.

    Special token strings inside a text (`"</s>"`) are recognised. It can be pickled, so workers may hold one.

    Attributes:
        bos, eos, pad: the special tokens as text; `bos` is None where the vocabulary has none. Without a `pad` of its
            own, padding is `eos` (as in InternLM2).
        bos_id, eos_id, pad_id: their ids.
        size: rows an embedding table needs, the highest id plus one.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, bos: str | None, eos: str, pad: str | None = None):
        """Wrap `backend`; see `from_file` and `from_pretrained`.

        Raises:
            UserError: `bos`, `eos` or `pad` is not in the vocabulary.
        """
        # A tokenizer.json may carry these switched on, and would then shorten or lengthen texts in silence.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.bos, self.eos, self.pad = bos, eos, eos if pad is None else pad
        self.bos_id: int | None = None if bos is None else self.id_of(bos)
        self.eos_id: int = self.id_of(self.eos)
        self.pad_id: int = self.id_of(self.pad)
        self.size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values())

    @classmethod
    def from_file(cls, path: str | Path, *, bos: str | None, eos: str, pad: str | None = None) -> Tokenizer:
        """Read a `tokenizer.json`. Needs neither torch nor transformers.

        Raises:
            UserError: there is no such file, or a special token is not in its vocabulary.
        """
        if not Path(path).is_file():
            raise UserError(f"tokenizer file {str(path)!r} does not exist; give the path of a tokenizer.json")
        return cls(tokenizers.Tokenizer.from_file(str(path)), bos=bos, eos=eos, pad=pad)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, bos: str | None = None, eos: str | None = None, pad: str | None = None
    ) -> Tokenizer:
        """Load a published tokenizer, by name or from a folder, through transformers. Runs no remote code.

        Args:
            name: a published name or a local folder.
            bos, eos, pad: replace the special tokens that the tokenizer's own config names.

        Raises:
            UserError: it cannot be read or downloaded, has no fast form, or no end-of-sequence token.
        """
        from transformers import AutoTokenizer  # seconds to import, and nano runs do without

        try:
            published = AutoTokenizer.from_pretrained(str(name))
        except (OSError, ValueError) as error:  # transformers raises both for a name or folder that holds no tokenizer
            raise UserError(
                f"the tokenizer {str(name)!r} cannot be read ({_first_line(error)}). Give a folder with its files, a "
                "published name that can be downloaded, or 'nano'"
            ) from error
        backend = getattr(published, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"tokenizer {str(name)!r} has only a slow form ({type(published).__name__}), lit_mm needs a fast one; "
                "convert it to a tokenizer.json and give that folder"
            )
        eos = eos or published.eos_token
        if eos is None:
            raise UserError(f"tokenizer {str(name)!r} names no end-of-sequence token; set `eos`")
        return cls(backend, bos=bos or published.bos_token, eos=eos, pad=pad or published.pad_token)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; no special token is added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text`, and for each the characters [start, end) it stands for."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`, special tokens left out unless `skip_special` is False."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def id_of(self, token: str) -> int:
        """The id of one token.

        Raises:
            UserError: the vocabulary does not have it.
        """
        number = self.backend.token_to_id(token)
        if number is None:
            raise UserError(
                f"the tokenizer has no token {token!r} among its {self.backend.get_vocab_size()}; the prompt or the "
                "special tokens in the config were made for another tokenizer"
            )
        return number


def encode_inside(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of `text` in the middle of a line, without the space that Llama's vocabularies put before a text.

    The text is tokenised behind a character that does not merge with it.
    """
    for character in ANCHORS:
        anchor = tokenizer.encode(character)
        ids = tokenizer.encode(character + text)
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
    return tokenizer.encode(text)


def token_inside(tokenizer: Tokenizer, text: str) -> int:
    """The id of the one token that `text` is in the middle of a line.

    Alone it may be another: Llama's tokenizer puts a space before what starts a text, and so makes "," its token 1919
    and of "\\n" the two 29871 and 13. Inside they are 29892 and 13.

    Raises:
        UserError: it is not one token of its own there.
    """
    before = tokenizer.encode("a")
    after = tokenizer.encode(f"a{text}")
    if after[:-1] != before:
        raise UserError(
            f"a layout puts {text!r} between visual tokens, which must be one token of the tokenizer; behind 'a' it "
            f"becomes {after[len(before) :]}. Choose a layout without it, or another tokenizer"
        )
    return after[-1]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
