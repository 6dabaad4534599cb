"""Questions of benchmarks, and the texts that ask them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import UserError

LETTERS = "ABCDEFGHIJ"
TEXTS = ("question", "hint", "hint_line", "options", "options_inline", "choices", "ocr")  # placeholders of templates


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        id: name of the question, unique in its benchmark.
        picture: image; None for a question about text alone.
        text: text of the question; "" for a caption.
        references: right answers; empty if they are not public. In multiple choice: the letters of the right options.
        group: name of the image.
        subset: name of the part of the benchmark, "" if it has none.
        choices: texts of the options A, B, C, ... in multiple choice.
        hint: text that a question is given beside the image, "" for none.
        ocr: words that a reader of text has found in the image.
        size: (height, width) of the image, pixels, if the metric needs it, else (0, 0).
        entry: the published entry, from which a submission copies its keys.
    """

    id: str
    picture: Picture | None
    text: str
    references: tuple[str, ...]
    group: str = ""
    subset: str = ""
    choices: tuple[str, ...] = ()
    hint: str = ""
    ocr: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    entry: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def option_texts(self) -> tuple[str, ...]:
        """Return the texts of the right options of a multiple-choice question."""
        return tuple(self.choices[LETTERS.index(letter)] for letter in self.references)


def check_template(template: str, where: str) -> None:
    """Refuse a template that cannot be filled.

    Raises:
        UserError: a placeholder is not in `TEXTS`, or a brace belongs to none.
    """
    try:
        unknown = [name for _, name, _, _ in Formatter().parse(template) if name is not None and name not in TEXTS]
        if not unknown:
            template.format(**dict.fromkeys(TEXTS, ""))
    except (ValueError, LookupError) as error:
        raise UserError(
            f"{where}: the prompt {template!r} cannot be filled ({error}). Write a brace of its text twice: {{{{"
        ) from error
    if unknown:
        raise UserError(f"{where}: unknown placeholder {{{unknown[0]}}}; there are {', '.join(TEXTS)}")


def prompt_text(question: Question, template: str) -> str:
    """Fill a template: {options} is one "A. text" per line, {options_inline} is "(A) text (B) text"."""
    lettered = list(zip(LETTERS, question.choices, strict=False))
    return template.format(
        question=question.text,
        hint=question.hint or "N/A",
        hint_line=f"{question.hint}\n" if question.hint else "",
        options="\n".join(f"{letter}. {text}" for letter, text in lettered),
        options_inline=" ".join(f"({letter}) {text}" for letter, text in lettered),
        choices=", ".join(question.choices),
        ocr=", ".join(question.ocr),
    )


def as_document(question: Question, template: str, source: str) -> Document:
    """Build the document that asks a question: the image, then the filled template.

    Args:
        question: question to ask.
        template: text with placeholders of `TEXTS`.
        source: name of the benchmark, by which a processor may choose its tiling.
    """
    text = prompt_text(question, template)
    parts = ((question.picture,) if question.picture is not None else ()) + ((text,) if text else ())
    return Document(question.id, (Turn("user", parts),), source=source, skill=question.subset)
