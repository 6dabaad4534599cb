"""The engines ask their experts as published, and account for every text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from lit_mm.annotation.capfilt import CapFilt
from lit_mm.annotation.description import Account, Description, Row
from lit_mm.annotation.experts import Blocks
from lit_mm.annotation.filters import MonkeyRules
from lit_mm.annotation.language_models import Template
from lit_mm.annotation.merge_prompt import merge_prompt
from lit_mm.annotation.monkey import Monkey
from lit_mm.errors import UserError
from tests.annotation.stubs import Captions, Halves, Scores, Stripes, Words
from tests.tiny import Noise


class Recorder(Template):
    """Keeps the blocks that it merges, and writes `text`."""

    def __init__(self, text: str = "a description") -> None:
        self.text = text
        self.blocks: list[Blocks] = []

    def merge(self, blocks: Sequence[Blocks], seeds: Sequence[int]) -> list[str]:
        self.blocks += blocks
        return [self.text for _ in blocks]


def row(number: int = 0, text: str = "", is_human: bool = False) -> Row:
    return Row(number, "web", number, f"image {number}", Noise(number).read(), text, is_human)


def monkey(merge: Template | None = None, **options: Any) -> Monkey:
    experts = {"regions": Halves(), "text": Words(), "segments": Stripes(), "score": Scores()}
    return Monkey(Captions(), merge or Template(), **experts | options)


def statements(account: Account, kind: str) -> list[tuple[str, bool]]:
    return [
        (statement.verdict.description.text, statement.verdict.passed)
        for statement in account.statements
        if statement.kind == kind
    ]


def account_regions(account: Account) -> tuple[Description, ...]:
    return tuple(
        statement.verdict.description
        for statement in account.statements
        if statement.kind == "regions" and statement.verdict.passed
    )


# --- Monkey ----------------------------------------------------------------------------------------------------------
def test_monkey_filters_regions_and_text_by_their_thresholds_and_keeps_the_dropped_ones() -> None:
    (account,) = monkey().annotate([row()], seed=0)
    assert statements(account, "regions") == [("region 0", False), ("region 1", False), ("region 2", False)]
    assert statements(account, "text") == [("STOP <b>", True), ("24h", False)]
    reasons = [statement.verdict.reason for statement in account.statements if statement.kind == "regions"]
    assert reasons[0] == "its score 0.05 is not above 0.4"


def test_monkey_scores_the_crop_of_every_box() -> None:
    scores = Scores()
    monkey(score=scores, segments=None).annotate([row()], seed=0)
    assert scores.sizes == [(15, 20), (15, 20), (30, 20)]  # of an image of 30 x 20


def test_monkey_captions_the_largest_segments_with_white_around_them() -> None:
    crops: list[Image.Image] = []

    class Watcher(Captions):
        def captions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
            crops.extend(images)
            return super().captions(images, seeds)

    engine = monkey(segment_captions=Watcher(), rules=MonkeyRules(largest_segments=3))
    (account,) = engine.annotate([row()], seed=0)
    assert [image.size for image in crops] == [(2, 20), (1, 20), (1, 20)]
    assert len(statements(account, "segments")) == 3
    assert {statement.expert for statement in account.statements if statement.kind == "segments"} == {
        "segment_captions"
    }


def test_monkey_merges_only_what_passed() -> None:
    merge = Recorder()
    (account,) = monkey(merge, rules=MonkeyRules(region_score=0.1)).annotate([row()], seed=0)
    (blocks,) = merge.blocks
    assert [entry.text for entry in blocks.regions] == ["region 1", "region 2"]
    assert [entry.text for entry in blocks.text] == ["STOP <b>"]
    assert blocks.overall.startswith("caption ")
    assert [(output.subset, output.text) for output in account.outputs] == [("described", "a description")]


def test_a_blank_description_is_dropped_with_its_reason() -> None:
    (account,) = monkey(Recorder(" \n")).annotate([row()], seed=0)
    assert not account.outputs
    assert account.statements[-1].verdict.reason == "the merged text is empty"


def test_blank_captions_are_dropped_and_not_scored() -> None:
    class Mute(Captions):
        def captions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
            return [" \n"] * len(images)

    class Blank(Halves):
        def regions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[Description]]:
            return [
                [Description("", (0.0, 0.0, 0.5, 1.0)), Description("a cat 9", (0.5, 0.0, 1.0, 1.0))] for _ in images
            ]

    scores, merge = Scores(), Recorder()
    engine = Monkey(Mute(), merge, Blank(), segments=Stripes(), score=scores)
    (account,) = engine.annotate([row()], seed=0)
    assert statements(account, "regions") == [("", False), ("a cat 9", True)]
    assert len(scores.sizes) == 1 and merge.blocks == [Blocks("", account_regions(account))]
    dropped = [statement for statement in account.statements if not statement.verdict.passed]
    assert len(dropped) == 1 + 1 + 20  # the whole, a region, the largest segments
    assert {(entry.verdict.rule, entry.verdict.reason) for entry in dropped} == {("empty", "the expert wrote nothing")}


def test_monkey_without_any_region_or_text_merges_the_overall_caption() -> None:
    class Nothing(Halves, Words):
        def regions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[Description]]:
            return [[] for _ in images]

        def texts(self, images: Sequence[Image.Image]) -> list[list[Description]]:
            return [[] for _ in images]

    merge = Recorder()
    (account,) = monkey(merge, regions=Nothing(), text=Nothing(), segments=None).annotate([row()], seed=0)
    assert [statement.kind for statement in account.statements] == ["overall", "merge"]
    assert merge.blocks[0].regions == merge.blocks[0].text == ()


def test_draws_depend_on_seed_and_row_and_not_on_the_other_rows() -> None:
    def said(rows: Sequence[Row], seed: int) -> dict[int, list[str]]:
        accounts = monkey().annotate(rows, seed)
        return {
            entry.number: [statement.verdict.description.text for statement in account.statements]
            for entry, account in zip(rows, accounts, strict=True)
        }

    together = said([row(0), row(1), row(2)], seed=3)
    assert together == said([row(2)], seed=3) | said([row(1), row(0)], seed=3)
    assert together[0][0] != together[1][0]
    assert together[0][0] != said([row(0)], seed=4)[0][0]


@pytest.mark.parametrize("options", [{"segments": None, "score": None}, {"regions": None, "score": None}])
def test_regions_and_segments_need_a_score(options: dict[str, None]) -> None:
    with pytest.raises(UserError, match="name a `score` expert"):
        monkey(**options)


def test_monkey_with_captions_alone_needs_no_other_expert() -> None:
    (account,) = Monkey(Captions(), Template()).annotate([row()], seed=0)
    assert [statement.kind for statement in account.statements] == ["overall", "merge"]


# --- the merge prompt ------------------------------------------------------------------------------------------------
def test_the_prompt_has_the_published_blocks_in_order_and_leaves_empty_texts_out() -> None:
    merge = Recorder()
    monkey(merge, rules=MonkeyRules(region_score=0.1)).annotate([row()], seed=0)
    prompt = merge_prompt(merge.blocks[0])
    labels = ("Overall caption: caption ", "Dense caption 1", "Dense caption 2", "Texts in the image", "Rules for")
    places = [prompt.index(label) for label in labels]
    assert places == sorted(places)
    assert "region 1: [0.5, 0.0, 1.0, 1.0];" in prompt and "STOP <b>: [0.1, 0.1, 0.4, 0.2];" in prompt
    assert "Texts in the image" not in merge_prompt(Blocks("a dog"))
    assert "places: none" in merge_prompt(Blocks("a dog"))


# --- CapFilt ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "passes"),
    [("a dog 9", True), ("a dog 5", True), ("a dog 4", False), ("", None), (" ", None)],  # scores 0.95, 0.55, 0.45
)
def test_web_texts_pass_above_the_threshold(text: str, passes: bool | None) -> None:
    (account,) = CapFilt(Captions(), Scores()).annotate([row(text=text)], seed=0)
    assert statements(account, "web") == ([] if passes is None else [(text, passes)])


def test_web_and_synthetic_texts_are_judged_independently() -> None:
    rows = [row(number, f"text {number}") for number in range(10)]
    accounts = CapFilt(Captions(), Scores()).annotate(rows, seed=0)
    fates = {tuple(sorted(output.subset for output in account.outputs)) for account in accounts}
    assert fates == {(), ("web",), ("synthetic",), ("synthetic", "web")}
    for account in accounts:
        for statement in account.statements:
            assert statement.verdict.passed == (statement.verdict.description.score > 0.5)


def test_human_texts_stay_and_no_expert_sees_them() -> None:
    captions = Captions()
    accounts = CapFilt(captions, Scores()).annotate([row(0, "people 0", is_human=True), row(1, "text 9")], seed=0)
    assert [output.text for output in accounts[0].outputs] == ["people 0"]
    assert accounts[0].outputs[0].subset == "human"
    assert captions.images == 1


def test_a_text_with_exactly_the_threshold_is_dropped() -> None:
    (account,) = CapFilt(None, Scores(), threshold=0.55).annotate([row(text="a dog 5")], seed=0)
    assert statements(account, "web") == [("a dog 5", False)]
    assert account.statements[0].verdict.reason == "its match probability 0.55 is not above 0.55"


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_human_row_without_a_text_gives_no_text(text: str) -> None:
    (account,) = CapFilt(Captions(), Scores()).annotate([row(text=text, is_human=True)], seed=0)
    assert not account.outputs
    assert [(entry.verdict.rule, entry.expert) for entry in account.statements] == [("empty", "")]


def test_a_human_text_stays_as_it_is() -> None:
    text = "  two  people\n山の写真 \U0001f5fb "
    (account,) = CapFilt(Captions(), Scores()).annotate([row(text=text, is_human=True)], seed=0)
    assert [output.text for output in account.outputs] == [text]


def test_a_synthetic_text_that_is_empty_is_dropped_without_a_score() -> None:
    class Mute(Captions):
        def captions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
            return [" "] * len(images)

    scores = Scores()
    (account,) = CapFilt(Mute(), scores).annotate([row(text="a dog 9")], seed=0)
    assert [(entry.kind, entry.verdict.rule, entry.scorer) for entry in account.statements] == [
        ("web", "", "filter"),
        ("synthetic", "empty", ""),
    ]
    assert len(scores.sizes) == 1


@pytest.mark.parametrize(
    ("options", "subsets"),
    [({"captioner": None}, set()), ({"filter": None}, {"web", "synthetic"})],  # the web text scores 0.15
)
def test_captioner_or_filter_alone(options: dict[str, None], subsets: set[str]) -> None:
    engine = CapFilt(**{"captioner": Captions(), "filter": Scores()} | options)
    (account,) = engine.annotate([row(text="text 1")], seed=0)
    assert {output.subset for output in account.outputs} == subsets


@pytest.mark.parametrize("options", [{}, {"filter": Scores(), "threshold": 2.0}])
def test_an_engine_that_can_do_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="CapFilt"):
        CapFilt(**options)
