"""Monkey's filters and the form in which it writes descriptions. Everything here is arithmetic on texts and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_mm.annotation.description import Box, Description, Verdict
from lit_mm.errors import UserError


@dataclass(frozen=True)
class MonkeyRules:
    """Thresholds of Monkey's filters. All comparisons are strict.

    Attributes:
        region_score: a caption of a region passes above this match score. The paper has 0.5, the release 0.4.
        text_score: a string passes above this confidence of the reader.
        segment_score: a caption of a segment passes above this match score.
        segment_overlap: a repeated caption of a segment passes below this overlap with the first one.
        largest_segments: number of segments that are captioned, the largest first.
        pixel_overlap: True computes the overlap as released, see `overlap`; False as usual.
    Raises:
        UserError: a threshold is not in 0 to 1, or no segment is captioned.
    Source: data_generation/ of github.com/Yuliang-Liu/Monkey.
    """

    region_score: float = 0.4
    text_score: float = 0.85
    segment_score: float = 0.5
    segment_overlap: float = 0.6
    largest_segments: int = 20
    pixel_overlap: bool = True

    def __post_init__(self) -> None:
        thresholds = (self.region_score, self.text_score, self.segment_score, self.segment_overlap)
        if not all(0 <= threshold <= 1 for threshold in thresholds) or self.largest_segments < 1:
            raise UserError(f"MonkeyRules: thresholds are 0 to 1 and `largest_segments` at least 1, got {self}")


def overlap(a: Box, b: Box, *, pixel_convention: bool = True) -> float:
    """Compute the intersection over union of two boxes.

    Args:
        a, b: boxes, shares of the image.
        pixel_convention: True adds 1 to every width and height, as the released code does, although its boxes are
            shares: boxes that only touch score 0.71, and distant ones more than 0. False adds nothing.
    """
    extra = 1.0 if pixel_convention else 0.0

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + extra, 0.0) * max(bottom - top + extra, 0.0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union > 0 else 0.0


def filter_by_score(descriptions: Sequence[Description], threshold: float) -> list[Verdict]:
    """Pass descriptions whose score is above a threshold.

    Raises:
        UserError: a description has no score.
    """
    return [_by_score(description, threshold) for description in descriptions]


def _by_score(description: Description, threshold: float) -> Verdict:
    if description.score is None:
        raise UserError(
            f"the description {description.text!r} has no score, which the filter needs. Add a `score` expert"
        )
    if description.score > threshold:
        return Verdict(description)
    return Verdict(description, "score", f"its score {description.score:g} is not above {threshold:g}")


def filter_segments(descriptions: Sequence[Description], rules: MonkeyRules) -> list[Verdict]:
    """Filter captions of segments by score, and then repeated ones by overlap.

    A caption whose text passed before in this image passes only if its overlap with the first box of that text is
    below `rules.segment_overlap`.
    """
    first_boxes: dict[str, Box] = {}
    verdicts: list[Verdict] = []
    for description in descriptions:
        verdict = _by_score(description, rules.segment_score)
        earlier = first_boxes.get(description.text)
        if verdict.passed and earlier is not None:
            share = overlap(description.box, earlier, pixel_convention=rules.pixel_overlap)
            if share >= rules.segment_overlap:
                reason = (
                    f"its overlap {share:.3g} with the first box of this text is not below {rules.segment_overlap:g}"
                )
                verdict = Verdict(description, "overlap", reason)
        elif verdict.passed:
            first_boxes[description.text] = description.box
        verdicts.append(verdict)
    return verdicts


def write_block(descriptions: Sequence[Description]) -> str:
    """Write descriptions with their boxes as released: `a tree: [0.483, 0.336, 0.703, 0.714]; `."""
    return "".join(f"{description.text}: {list(description.box)}; " for description in descriptions)
