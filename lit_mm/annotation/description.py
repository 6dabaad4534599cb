"""Descriptions: texts about an image or a place in it, and the verdict of a filter on each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from lit_mm.errors import UserError

Box = tuple[float, float, float, float]  # left, top, right, bottom; shares of the image's width and height
Rule = Literal["", "score", "overlap", "empty", "size"]
DIGITS = 3  # decimals of boxes and match scores, as released


@dataclass(frozen=True, slots=True)
class Description:
    """A text about an image.

    Attributes:
        text: the text.
        box: place of the text; None for the whole image.
        score: probability of a match, or confidence of a reader, 0 to 1; None without one.
    Raises:
        UserError: the box is not inside of the image, or its corners are not in order.
    """

    text: str
    box: Box | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
                raise UserError(
                    f"a box is (left, top, right, bottom) as shares of the image, 0 to 1, got {list(self.box)} for "
                    f"{self.text!r}. Correct the expert; `rounded_box` converts a box in pixels"
                )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a filter on a description.

    Attributes:
        description: the description.
        rule: rule that dropped it; "" if it passed.
        reason: sentence with the numbers of the rule; "" if it passed.
    """

    description: Description
    rule: Rule = ""
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.rule


@dataclass(frozen=True, slots=True)
class Identity:
    """The facts of an expert that stand beside its texts in the output.

    Attributes:
        expert: class of the expert.
        weights: digest of the weights; "" for an expert without weights.
        licence: licence of the weights or of the package; "" if nobody declared one.
        version: name and version of the prompt or package; "" for none.
        stands_for: published expert in whose place this one works; "" for none.
    """

    expert: str
    weights: str = ""
    licence: str = ""
    version: str = ""
    stands_for: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of an image.

    Attributes:
        box: place of the segment.
        area: number of its pixels.
        crop: pixels inside the box, white outside of the segment.
    """

    box: Box
    area: int
    crop: Image.Image


@dataclass(frozen=True, slots=True)
class Row:
    """One image to annotate.

    Attributes:
        number: number of the row, counted through all sources.
        source: name of the source.
        position: number of the row in its source.
        identity: id of the sample.
        image: RGB pixels, upright.
        text: text of the source; "" without one.
        is_human: True if the text is by human annotators and must not be changed.
    """

    number: int
    source: str
    position: int
    identity: str
    image: Image.Image
    text: str = ""
    is_human: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    """What an expert said about a row, and the verdict on it.

    Attributes:
        kind: name of the block, such as "regions" or "synthetic".
        expert: name of the expert in the engine, such as "overall"; "" for a text of the source.
        verdict: the text with the verdict.
        scorer: name of the expert that scored the text; "" for none.
    """

    kind: str
    expert: str
    verdict: Verdict
    scorer: str = ""

    def as_json(self) -> dict[str, Any]:
        description = self.verdict.description
        return {
            "kind": self.kind,
            "expert": self.expert,
            "scorer": self.scorer,
            "text": description.text,
            "box": None if description.box is None else list(description.box),
            "score": description.score,
            "kept": self.verdict.passed,
            "rule": self.verdict.rule,
            "reason": self.verdict.reason,
        }


@dataclass(frozen=True, slots=True)
class Output:
    """A text of the new data set.

    Attributes:
        subset: name of the output data set.
        expert: name of the expert that wrote the text; "" for a text of the source.
        text: the text.
    """

    subset: str
    expert: str
    text: str


@dataclass(frozen=True, slots=True)
class Account:
    """Everything that was said about a row, and the texts that go into the new data set."""

    statements: tuple[Statement, ...]
    outputs: tuple[Output, ...]


def rounded_box(box: tuple[float, float, float, float], height: float, width: float) -> Box:
    """Convert a box from pixels to shares with three decimals. Corners are ordered and limited to the image.

    Args:
        box: two opposite corners: x, y, x, y, pixels; numbers of Python or of NumPy.
        height, width: size of the image, pixels.
    """
    xs, ys = sorted((box[0], box[2])), sorted((box[1], box[3]))
    shares = (xs[0] / width, ys[0] / height, xs[1] / width, ys[1] / height)
    left, top, right, bottom = (round(min(max(float(share), 0.0), 1.0), DIGITS) for share in shares)
    return left, top, right, bottom


def crop(image: Image.Image, box: Box) -> Image.Image:
    """Cut a box out of an image, at least one pixel wide and high."""
    left, top = min(int(box[0] * image.width), image.width - 1), min(int(box[1] * image.height), image.height - 1)
    right, bottom = max(round(box[2] * image.width), left + 1), max(round(box[3] * image.height), top + 1)
    return image.crop((left, top, right, bottom))
