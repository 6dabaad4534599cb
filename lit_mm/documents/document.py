"""Documents: ordered text and image segments with roles. Caption pairs, chats and interleaved pages are documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

ROLES = ("system", "user", "assistant", "page")


class Picture(Protocol):
    """An image that knows its size before its pixels are read."""

    width: int
    height: int

    def read(self) -> Image.Image:
        """Decode. RGB, `height` x `width` pixels."""
        ...


@runtime_checkable
class Decodable(Protocol):
    """A picture that can return its pixels as a tensor without Pillow. A picture need not support this."""

    def pixels(self, at_least: tuple[int, int] | None = None) -> Tensor:
        """Decode. [3, H, W] uint8 RGB; the caller may not write to it.

        Args:
            at_least: smallest sufficient (height, width), pixels; None for the whole image. See
                `lit_mm.documents.decode.decode`.
        """
        ...


@runtime_checkable
class FromFile(Protocol):
    """A picture that knows its file. A picture need not support this.

    Attributes:
        path: path of the file; for a URL, the part after the scheme.
    """

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn is the text and pictures of one role, in the order they appear.

    `role` is one of `ROLES`; "page" is running text that is trained on from start to end (captions, web pages).

    Raises:
        ValueError: the role is not in `ROLES`.
    """

    role: str
    parts: tuple[str | Picture, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"a turn's role is one of {ROLES}, got {self.role!r}")

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Document:
    """One training or evaluation document.

    Attributes:
        id: unique within its source; it names the document in every error and in the ledger.
        turns: turns of the document, in reading order.
        source: name of the data set that contains the document.
        skill: skill that an evaluation document tests; "" for none.
        text_format: name of the format, such as "qwen_vl", if the text already contains the marks around each picture;
            the template of that family then adds none. "" for none.
    """

    id: str
    turns: tuple[Turn, ...]
    source: str = ""
    skill: str = ""
    text_format: str = ""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if not isinstance(part, str))

    @property
    def answer(self) -> str:
        """Text of the last assistant turn."""
        return self.turns[-1].text if self.turns and self.turns[-1].role == "assistant" else ""

    @property
    def question(self) -> str:
        """Text of the last user turn."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")

    def without_answer(self) -> Document:
        """Return the same document without its last assistant turn."""
        return replace(self, turns=self.turns[:-1]) if self.turns and self.turns[-1].role == "assistant" else self

    def without_line_ends(self) -> Document:
        """Return the same document without the line ends that LLaVA's format writes between a picture and text.

        A template other than LLaVA's own calls this: what it asks a trained model has no such line end either.
        """
        if self.text_format != "llava":
            return self
        turns = []
        for turn in self.turns:
            parts = list(turn.parts)
            for number, part in enumerate(turn.parts):
                if isinstance(part, str):
                    if number and not isinstance(turn.parts[number - 1], str):
                        part = part.removeprefix("\n")
                    if turn.parts[number + 1 :] and not isinstance(turn.parts[number + 1], str):
                        part = part.removesuffix("\n")
                    parts[number] = part
            turns.append(Turn(turn.role, tuple(part for part in parts if part != "")))
        return replace(self, turns=tuple(turns), text_format="")

    def with_pictures(self, pictures: Iterator[Picture]) -> Document:
        """Return the same text with other pictures in the same places. Each slot takes the next picture."""
        turns = tuple(
            Turn(turn.role, tuple(part if isinstance(part, str) else next(pictures) for part in turn.parts))
            for turn in self.turns
        )
        return replace(self, turns=turns)
