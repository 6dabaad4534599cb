"""The filters of Monkey's engine give what the released script gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lit_mm.annotation.description import Description, Verdict
from lit_mm.annotation.filters import MonkeyRules, filter_by_score, filter_segments, overlap, write_block
from tests.conftest import Golden

FILE = "monkey_caption_filter"


@pytest.fixture
def case(golden: Golden) -> dict[str, Any]:
    return golden.json(FILE)


def descriptions(case: dict[str, Any], kind: str, image: str) -> list[Description]:
    """Read the objects of an image."""
    objects = next((entry["objects"] for entry in case["input"][kind] if entry["img_id"] == image), [])
    return [Description(entry["caption"], tuple(entry["box"]), entry["score"]) for entry in objects]


def passed(verdicts: list[Verdict]) -> str:
    return write_block([verdict.description for verdict in verdicts if verdict.passed])


def rules_of(case: dict[str, Any]) -> MonkeyRules:
    names = ("region_score_gt", "ocr_score_gt", "segment_score_gt", "segment_iou_lt")
    return MonkeyRules(*(case["rules"][name] for name in names))


def blocks(case: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (image, block, text of the block) as our filters give it."""
    rules = rules_of(case)
    for entry in case["input"]["global_captions"]:
        image = entry["img_id"]
        yield image, "blip2cap", entry["blip2_caption"]
        yield image, "grit", passed(filter_by_score(descriptions(case, "regions", image), rules.region_score))
        yield image, "ocr", passed(filter_by_score(descriptions(case, "ocr", image), rules.text_score))
        yield image, "sam_blip", passed(filter_segments(descriptions(case, "segments", image), rules))


def test_every_block_of_every_image_is_the_released_one(case: dict[str, Any]) -> None:
    released = {(entry["img_id"], block): entry[block] for entry in case["output"] for block in case["output_keys"]}
    assert {(image, block): text for image, block, text in blocks(case)} == released
    assert [entry["img_id"] for entry in case["output"]] == [e["img_id"] for e in case["input"]["global_captions"]]


def test_the_overlap_is_the_released_one(case: dict[str, Any]) -> None:
    for a, b, expected in case["iou_samples"]:
        assert overlap(tuple(a), tuple(b)) == pytest.approx(expected, abs=1e-6)
