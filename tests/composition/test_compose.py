# ruff: noqa: RUF001 (the released prompts are Chinese, and so is their punctuation)
"""A scripted model goes through all steps of a composition: every question and every failure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pytest
from PIL import Image

from lit_mm.composition.compose import (
    Question,
    captions_so_far,
    compose,
    letter_in,
    number_lines,
    places_in,
    spread,
    steps,
)
from lit_mm.composition.template import TEMPLATES, XCOMPOSER, XCOMPOSER2
from lit_mm.documents.document import Document
from lit_mm.errors import UserError

ARTICLE = "# Whales\n\n They sing. \nThey dive.\n  \nThey travel far."
LINES = ("# Whales", "They sing.", "They dive.", "They travel far.")


@dataclass(frozen=True)
class Named:
    name: str
    width: int = 8
    height: int = 8

    def read(self) -> Image.Image:
        raise AssertionError("a composition reads no pixels")


POOL = [Named(f"picture {number}") for number in range(6)]


class Script:
    """A model with a fixed answer for each step, which records the questions."""

    def __init__(self, **says: str | list[str]) -> None:
        self.says = {step: list(said) if isinstance(said, list) else [said] for step, said in says.items()}
        self.asked: list[Question] = []

    def __call__(self, question: Question) -> str:
        self.asked.append(question)
        return self.says[question.step].pop(0)

    @property
    def steps(self) -> list[str]:
        return [question.step for question in self.asked]

    def texts(self, step: str) -> list[str]:
        """Write the questions of a step as text: <name> for a picture, "=>" before the opening of the answer."""
        return [shown(question.document) for question in self.asked if question.step == step]


def shown(document: Document) -> str:
    user = "".join(part if isinstance(part, str) else f"<{part.name}>" for part in document.turns[0].parts)
    return f"{user}=>{document.answer}"


def in_order(caption: str, count: int, exclude: Collection[int]) -> Sequence[int]:
    return [number for number in range(len(POOL)) if number not in exclude][:count]


def run(script: Script, template: str = "xcomposer2", **options: object):
    retrieve = options.pop("retrieve", in_order)
    pool = options.pop("pool", POOL)
    return compose("whales", pool, script, retrieve, TEMPLATES[template], **options)


# --- the whole way ---------------------------------------------------------------------------------------------------
def test_a_composition_goes_through_its_steps_and_asks_the_released_questions() -> None:
    script = Script(
        article=ARTICLE,
        spot="<Seg3>, <Seg1>",
        caption=['a whale far away" and more', 'a singing whale"'],
        select=[": C", "B"],
    )
    article = run(script)
    assert script.steps == ["article", "spot", "caption", "caption", "select", "select"]
    assert script.texts("article") == ["whales=>"]
    whole = "<Seg0> # Whales\n<Seg1> They sing.\n<Seg2> They dive.\n<Seg3> They travel far.\n"
    part = "<Seg0> # Whales\n<Seg1> They sing.\n<Seg2> They dive.\n"
    assert script.texts("spot") == [f'给定文章"{whole}" 根据上述文章，选择适合插入图像的行=>适合插入图像的行是']
    assert script.texts("caption") == [
        f'给定文章"{whole}" 给出适合在<Seg3>后插入的图像对应的标题。=>标题是"',
        f'给定文章"{part}" 现在<Seg3>后插入图像对应的标题是"a whale far away"。'
        '给出适合在<Seg1>后插入的图像对应的标题。=>标题是"',
    ]
    assert script.texts("select") == [
        "根据给定上下文和候选图像，选择合适的配图：# Whales\nThey sing.\n候选图像包括: "
        "A.<picture 0>\nB.<picture 1>\nC.<picture 2>\nD.<picture 3>=>最合适的图是",
        "根据给定上下文和候选图像，选择合适的配图：# Whales\nThey sing.\n<picture 2>They dive.\nThey travel far.\n"
        "候选图像包括: "
        "A.<picture 0>\nB.<picture 1>\nC.<picture 3>\nD.<picture 4>=>最合适的图是",
    ]
    assert article.lines == LINES
    assert [(slot.after, slot.caption, slot.candidates, slot.image) for slot in article.slots] == [
        (1, "a singing whale", (0, 1, 2, 3), 2),
        (3, "a whale far away", (0, 1, 3, 4), 1),
    ]
    assert article.notes == ()


def test_the_first_template_has_its_own_spaces_and_newlines() -> None:
    script = Script(article=ARTICLE, spot="<Seg0>", caption='a whale"', select="A")
    run(script, "xcomposer", candidates=2)
    assert script.texts("article") == ["根据给定标题写一个图文并茂，不重复的文章：whales=>"]
    (spot,), (caption,), (select,) = (script.texts(step) for step in ("spot", "caption", "select"))
    assert spot.endswith("选择适合插入图像的行 =>适合插入图像的行是")
    assert caption.startswith(' 给定文章"<Seg0>') and caption.endswith('的标题。 => 标题是"')
    assert select.endswith("# Whales\n\n\n候选图像包括: A.<picture 0>\nB.<picture 1>\n=>最合适的图是")


def test_each_step_is_decoded_as_released() -> None:
    def decoding(template: str) -> list[tuple]:
        script = Script(article=ARTICLE, spot="<Seg0>", caption='a"', select="A")
        run(script, template)
        return [
            (d.max_new_tokens, d.sample, d.beams, d.repetition_penalty, d.top_p, d.top_k)
            for d in (question.decoding for question in script.asked)
        ]

    assert decoding("xcomposer") == [
        (1000, False, 5, 5.0, 1.0, 0),
        (300, False, 5, 1.0, 1.0, 0),
        (100, False, 1, 5.0, 1.0, 0),
        (10, False, 5, 1.0, 1.0, 0),
    ]
    assert decoding("xcomposer2") == [(n, True, 1, 1.005, 0.8, 40) for n in (4096, 200, 200, 10)]
    assert (XCOMPOSER.context, XCOMPOSER2.context) == (1680, 4096)


def test_the_machine_can_be_run_step_by_step() -> None:
    machine = steps("whales", POOL, in_order, XCOMPOSER2)
    assert next(machine).step == "article"
    assert machine.send(ARTICLE).step == "spot"
    assert machine.send("<Seg2>").step == "caption"
    assert machine.send('diving"').step == "select"
    with pytest.raises(StopIteration) as end:
        machine.send("D")
    assert end.value.value.slots[0].image == 3


# --- the article -----------------------------------------------------------------------------------------------------
def test_braces_and_markers_of_the_instruction_and_the_article_are_text() -> None:
    script = Script(article="{slot} {0}\n<Seg0> {", spot="<Seg1>", caption='{x}"', select="A")
    article = compose("{instruction} {", POOL, script, in_order, XCOMPOSER2)
    assert script.texts("article") == ["{instruction} {=>"]
    assert article.lines == ("{slot} {0}", "<Seg0> {")
    assert article.slots[0].caption == "{x}"


def test_a_long_article_keeps_its_first_sixty_lines() -> None:
    script = Script(article="\n".join(map(str, range(70))), spot="<Seg59><Seg60>", caption='a"', select="A")
    article = run(script)
    assert article.lines == tuple(map(str, range(60)))
    assert [slot.after for slot in article.slots] == [59]
    assert article.notes == (
        "the article had 70 lines; the first 60 were kept",
        "the model named lines that do not exist: 60",
    )


@pytest.mark.parametrize("said", ["", " \n\n "])
def test_an_empty_article_is_refused(said: str) -> None:
    with pytest.raises(UserError, match="the model wrote nothing about 'whales'"):
        run(Script(article=said))


@pytest.mark.parametrize(
    ("instruction", "pool", "options", "message"),
    [
        (" ", POOL, {}, "instruction is empty"),
        ("whales", [], {}, "no images"),
        ("whales", POOL, {"candidates": 0}, "`candidates` is 1 to 26"),
        ("whales", POOL, {"candidates": 27}, "`candidates` is 1 to 26"),
        ("whales", POOL, {"slots": -1}, "`slots` at least 0"),
    ],
)
def test_what_cannot_begin_is_refused(instruction: str, pool: list, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(instruction, pool, Script(), in_order, XCOMPOSER2, **options)


# --- slots -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reply", "places", "odd"),
    [
        ("<Seg1><Seg3>", (1, 3), ()),
        ("<Seg3>, <Seg1>, <Seg3>", (3, 1), ()),  # each once, in their order
        ("<Seg4> <Seg0> <Seg99>", (0,), (4, 99)),
        ("<Seg> Seg1 <seg2> 3", (), ()),
        ("", (), ()),
    ],
)
def test_slots_are_read_from_the_reply(reply: str, places: tuple, odd: tuple) -> None:
    assert places_in(reply, 4) == (places, odd)


@pytest.mark.parametrize(
    ("count", "slots", "expected"),
    [(9, 2, (3, 6)), (4, 1, (2,)), (1, 1, (0,)), (3, 5, (0, 1, 2)), (2, 2, (0, 1)), (5, 4, (1, 2, 3, 4))],
)
def test_slots_are_spread_where_the_model_names_none(count: int, slots: int, expected: tuple) -> None:
    assert spread(count, slots) == expected


@pytest.mark.parametrize(("slots", "places"), [(None, [2]), (2, [1, 2])])
def test_no_slot_named_is_noted_and_made_up_for(slots: int | None, places: list[int]) -> None:
    script = Script(article=ARTICLE, spot="none", caption=['a"', 'b"'], select=["A", "A"])
    article = run(script, slots=slots)
    assert [slot.after for slot in article.slots] == places
    assert len(article.notes) == 1 and "named no line" in article.notes[0]


def test_more_slots_than_asked_for_are_cut() -> None:
    script = Script(article=ARTICLE, spot="<Seg3><Seg0><Seg1>", caption=['a"', 'b"'], select=["A", "A"])
    article = run(script, slots=2)
    assert "插入图像的2行" in script.texts("spot")[0]
    assert [slot.after for slot in article.slots] == [0, 3]
    assert article.notes == ("the model named 3 lines, 2 were asked for; the first 2 were kept",)


def test_no_images_wanted_asks_for_the_article_alone() -> None:
    script = Script(article=ARTICLE)
    assert run(script, slots=0).slots == ()
    assert script.steps == ["article"]


def test_segments_are_numbered_from_where_they_stand() -> None:
    assert number_lines(["a", "b"], 3) == "<Seg3> a\n<Seg4> b\n"


# --- captions --------------------------------------------------------------------------------------------------------
def test_earlier_captions_are_told_in_one_sentence() -> None:
    told = captions_so_far(XCOMPOSER2, [(3, "x"), (1, "y")])
    assert told == '现在<Seg3>后插入图像对应的标题是"x"， <Seg1>后插入图像对应的标题是"y"。'
    assert captions_so_far(XCOMPOSER2, []) == ""


def test_an_empty_caption_is_replaced_by_the_end_of_its_line() -> None:
    long = "x" * 40 + " " + "y" * 45
    script = Script(article=long, spot="<Seg0>", caption='" whatever', select="A")
    article = run(script)
    assert article.slots[0].caption == "xxxx " + "y" * 45
    assert "no caption after line 0" in article.notes[0]


def test_the_search_gets_the_first_53_characters() -> None:
    asked = []

    def retrieve(caption: str, count: int, exclude: Collection[int]) -> Sequence[int]:
        asked.append((caption, count, set(exclude)))
        return in_order(caption, count, exclude)

    script = Script(article=ARTICLE, spot="<Seg0><Seg1>", caption=["z" * 80, ' b\n c "'], select=["B", "A"])
    article = run(script, retrieve=retrieve, candidates=3)
    assert asked == [("z" * 53, 3, set()), ("b c", 3, {1})]
    assert article.slots[0].caption == "z" * 80


# --- selection -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reply", "at"),
    [
        ("A", 0),
        (" D.", 3),
        (": C", 2),
        ("\uff1aB", 1),
        ("E", None),  # only four
        ("b", None),
        ("the best is B", None),
        ("", None),
        (" : ", None),
    ],
)
def test_a_reply_names_a_candidate_by_its_first_letter(reply: str, at: int | None) -> None:
    assert letter_in(reply, 4) == at


def test_any_other_reply_selects_the_first_candidate() -> None:
    script = Script(article=ARTICLE, spot="<Seg0>", caption='a"', select="I like them all")
    article = run(script)
    assert article.slots[0].image == 0
    assert article.notes == ("the model named no candidate after line 0; A was taken",)


def test_a_single_candidate_is_taken_without_asking_and_then_none_is_left() -> None:
    script = Script(article=ARTICLE, spot="<Seg0><Seg1>", caption=['a"', 'b"'])
    article = run(script, retrieve=lambda caption, count, exclude: [] if exclude else [4])
    assert [slot.image for slot in article.slots] == [4, None]
    assert script.steps == ["article", "spot", "caption", "caption"]
    assert article.notes == ("no image is left for the place after line 1",)


@pytest.mark.parametrize("found", [[0, 0], [6], [-1, 2]])
def test_what_a_retriever_may_not_propose_is_refused(found: list[int]) -> None:
    script = Script(article=ARTICLE, spot="<Seg0>", caption='a"')
    with pytest.raises(UserError, match="the retriever returned"):
        run(script, retrieve=lambda caption, count, exclude: found)


def test_a_used_image_may_not_be_proposed_again() -> None:
    script = Script(article=ARTICLE, spot="<Seg0><Seg1>", caption=['a"', 'b"'], select="A")
    with pytest.raises(UserError, match=r"without the used ones \[0\]"):
        run(script, retrieve=lambda caption, count, exclude: [0, 1])


# --- what does not fit -----------------------------------------------------------------------------------------------
def at_most(text: int, pictures: int = 99) -> Callable[[Document], bool]:
    return lambda document: len(shown(document)) <= text and len(document.pictures) <= pictures


def test_a_long_article_is_shown_as_far_as_it_fits() -> None:
    script = Script(article="\n".join("abcdefghij" for _ in range(20)), spot="<Seg1><Seg15>", caption='a"', select="A")
    article = run(script, fits=at_most(250))
    (spot,) = script.texts("spot")
    assert "<Seg8>" in spot and "<Seg12>" not in spot and len(spot) <= 250
    assert [slot.after for slot in article.slots] == [1]
    assert "too long to be shown whole" in article.notes[0] and "do not exist: 15" in article.notes[1]


def test_a_caption_keeps_the_text_near_its_slot() -> None:
    script = Script(article="\n".join(f"line {n}" for n in range(9)), spot="<Seg7>", caption='a"', select="A")
    fits = at_most(120)
    run(script, fits=lambda document: document.id != "compose/caption" or fits(document))
    (caption,) = script.texts("caption")
    assert "<Seg8> line 8\n" in caption and "<Seg0>" not in caption and len(caption) <= 120


def test_a_selection_drops_far_text_with_its_images_and_then_candidates() -> None:
    def selected(limit: int) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
        script = Script(article=ARTICLE, spot="<Seg0><Seg3>", caption=['a"', 'b"'], select=["A", "B"])
        fits = at_most(9999, limit)
        article = run(script, fits=lambda document: document.id != "compose/select" or fits(document))
        return (script.texts("select") or [""])[-1], article.slots[1].candidates, article.notes

    text, among, notes = selected(5)
    assert "<picture 0>" in text and len(among) == 4 and notes == ()
    text, among, notes = selected(4)  # the image of the first slot goes, and the line before it
    assert "<picture 0>" not in text and "They sing." in text and len(among) == 4
    text, among, notes = selected(2)
    assert among == (1, 2) and text.endswith("A.<picture 1>\nB.<picture 2>=>最合适的图是")
    assert notes[1] == "2 of 4 candidates after line 3 fit into the model's context"
    text, among, notes = selected(1)
    assert text == "" and among == (1,)  # taken without asking
    assert notes[1] == "1 of 4 candidates after line 3 fit into the model's context"
