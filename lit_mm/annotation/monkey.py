"""Monkey's engine: experts describe an image, filters drop what does not match, a language model merges the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lit_mm.annotation.description import (
    DIGITS,
    Account,
    Description,
    Output,
    Row,
    Segment,
    Statement,
    Verdict,
    crop,
)
from lit_mm.annotation.engine import Engine, draw_seed
from lit_mm.annotation.experts import (
    Blocks,
    Expert,
    MergeExpert,
    OverallExpert,
    RegionExpert,
    ScoreExpert,
    SegmentExpert,
    TextExpert,
)
from lit_mm.annotation.filters import MonkeyRules, filter_by_score, filter_segments
from lit_mm.errors import UserError

DESCRIBED = "described"


class Monkey(Engine):
    """Writes a detailed description of every image.

    | block | published expert | filter |
    |---|---|---|
    | overall | BLIP-2 OPT-2.7B | none |
    | regions | GRiT-B, dense captions | match score |
    | segments | SAM; the largest 20, white outside, captioned by BLIP-2 | match score, then overlap of repeated texts |
    | text | PaddleOCR | confidence |
    | merge | gpt-3.5-turbo | |

    The match score compares the crop of the box with its caption and is rounded to three decimals. The text of the
    source is not used, as in the release. An expert that is left out gives an empty block.

    Args:
        overall: captions the whole image.
        merge: merges the descriptions.
        regions: finds and captions regions.
        text: reads text.
        segments: cuts the image into segments.
        segment_captions: captions segments; None for `overall`.
        score: scores captions of regions and segments.
        rules: thresholds.
    Raises:
        UserError: regions or segments have no expert that scores them.
    Source: arXiv:2311.06607, section 3.2; data_generation/ of github.com/Yuliang-Liu/Monkey.
    """

    def __init__(
        self,
        overall: OverallExpert,
        merge: MergeExpert,
        regions: RegionExpert | None = None,
        text: TextExpert | None = None,
        segments: SegmentExpert | None = None,
        segment_captions: OverallExpert | None = None,
        score: ScoreExpert | None = None,
        rules: MonkeyRules | None = None,
    ) -> None:
        super().__init__()
        if score is None and (regions is not None or segments is not None):
            raise UserError(
                "Monkey filters captions of regions and segments by their match score: name a `score` expert"
            )
        if segment_captions is not None and segments is None:
            raise UserError("Monkey: `segment_captions` captions the segments of `segments`, which is missing")
        self.overall, self.merge, self.regions, self.text = overall, merge, regions, text
        self.segments, self.segment_captions, self.score = segments, segment_captions, score
        self.rules = rules or MonkeyRules()

    @property
    def subsets(self) -> tuple[str, ...]:
        return (DESCRIBED,)

    def experts(self) -> Mapping[str, Expert]:
        experts = {
            "overall": self.overall,
            "regions": self.regions,
            "segments": self.segments,
            "segment_captions": self.segment_captions,
            "text": self.text,
            "score": self.score,
            "merge": self.merge,
        }
        return {name: expert for name, expert in experts.items() if expert is not None}

    def annotate(self, rows: Sequence[Row], seed: int) -> list[Account]:
        images = [row.image for row in rows]
        with self.clock("overall"):
            captions = self.overall.captions(images, [draw_seed(seed, row, "overall") for row in rows])
        overall = [judge_whole(Description(" ".join(caption.split()))) for caption in captions]
        regions, segments = self._scored(rows, self._regions(rows, seed), self._segments(rows, seed))
        rules = self.rules
        region_verdicts = [judge(of_row, lambda rest: filter_by_score(rest, rules.region_score)) for of_row in regions]
        segment_verdicts = [judge(of_row, lambda rest: filter_segments(rest, rules)) for of_row in segments]
        text_verdicts = [
            judge(of_row, lambda rest: filter_by_score(rest, rules.text_score)) for of_row in self._texts(rows)
        ]
        blocks = [
            Blocks(whole.description.text, *(tuple(passed(verdicts)) for verdicts in of_row))
            for whole, *of_row in zip(overall, region_verdicts, segment_verdicts, text_verdicts, strict=True)
        ]
        with self.clock("merge"):
            merged = self.merge.merge(blocks, [draw_seed(seed, row, "merge") for row in rows])
        accounts = []
        for number, text in enumerate(merged):
            statements = [Statement("overall", "overall", overall[number])]
            writer = "overall" if self.segment_captions is None else "segment_captions"
            for kind, expert, scorer, verdicts in (
                ("regions", "regions", "score", region_verdicts),
                ("segments", writer, "score", segment_verdicts),
                ("text", "text", "text", text_verdicts),
            ):
                statements += [
                    Statement(kind, expert, verdict, "" if verdict.rule == "empty" else scorer)
                    for verdict in verdicts[number]
                ]
            accounts.append(account_of(statements, "merge", text))
        return accounts

    def _regions(self, rows: Sequence[Row], seed: int) -> list[list[Description]]:
        if self.regions is None:
            return [[] for _ in rows]
        with self.clock("regions"):
            seeds = [draw_seed(seed, row, "regions") for row in rows]
            return self.regions.regions([row.image for row in rows], seeds)

    def _segments(self, rows: Sequence[Row], seed: int) -> list[list[Description]]:
        """Caption the largest segments of every row."""
        if self.segments is None:
            return [[] for _ in rows]
        with self.clock("segments"):
            segments = [
                largest(of_row, self.rules.largest_segments)
                for of_row in self.segments.segments([row.image for row in rows])
            ]
        name, writer = "segment_captions", self.segment_captions
        if writer is None:
            name, writer = "overall", self.overall
        crops = [segment.crop for of_row in segments for segment in of_row]
        seeds = [
            draw_seed(seed, row, "segments", number)
            for row, of_row in zip(rows, segments, strict=True)
            for number in range(len(of_row))
        ]
        with self.clock(name):
            captions = iter(writer.captions(crops, seeds) if crops else [])
        return [
            [Description(" ".join(next(captions).split()), segment.box) for segment in of_row] for of_row in segments
        ]

    def _texts(self, rows: Sequence[Row]) -> list[list[Description]]:
        if self.text is None:
            return [[] for _ in rows]
        with self.clock("text"):
            return self.text.texts([row.image for row in rows])

    def _scored(
        self, rows: Sequence[Row], *blocks: Sequence[Sequence[Description]]
    ) -> tuple[list[list[Description]], ...]:
        """Add the match score of the crop to every description that is not blank, with three decimals."""
        pairs = [
            (crop(row.image, description.box), description.text)
            for block in blocks
            for row, of_row in zip(rows, block, strict=True)
            for description in of_row
            if description.text.strip()
        ]
        if not pairs:
            return tuple([list(of_row) for of_row in block] for block in blocks)
        images, texts = zip(*pairs, strict=True)
        with self.clock("score"):
            scores = iter(self.score.scores(images, texts))
        return tuple(
            [
                [replace(entry, score=round(next(scores), DIGITS)) if entry.text.strip() else entry for entry in of_row]
                for of_row in block
            ]
            for block in blocks
        )


def judge_whole(description: Description) -> Verdict:
    """Drop a blank description, and pass every other one."""
    blank = not description.text.strip()
    return Verdict(description, "empty", "the expert wrote nothing") if blank else Verdict(description)


def judge(
    descriptions: Sequence[Description], rest: Callable[[Sequence[Description]], Sequence[Verdict]]
) -> list[Verdict]:
    """Drop blank descriptions, and judge the other ones by a filter.

    Args:
        descriptions: descriptions of one image.
        rest: filter of those that are not blank.
    """
    verdicts = iter(rest([entry for entry in descriptions if entry.text.strip()]))
    return [next(verdicts) if entry.text.strip() else judge_whole(entry) for entry in descriptions]


def passed(verdicts: Sequence[Verdict]) -> list[Description]:
    """Return the descriptions that passed."""
    return [verdict.description for verdict in verdicts if verdict.passed]


def largest(segments: Sequence[Segment], count: int) -> list[Segment]:
    """Return the segments with the most pixels, the largest first; equal ones stay in order."""
    return sorted(segments, key=lambda segment: -segment.area)[:count]


def account_of(statements: Sequence[Statement], writer: str, text: str) -> Account:
    """Build the account of a row with one merged text; a blank text is dropped."""
    text = text.strip()
    verdict = Verdict(Description(text)) if text else Verdict(Description(text), "empty", "the merged text is empty")
    outputs = (Output(DESCRIBED, writer, text),) if text else ()
    return Account((*statements, Statement("merge", writer, verdict)), outputs)
