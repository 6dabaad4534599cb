"""The table of skills of the nano world. A skill has functions that draw, transcribe, ask about and place facts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

from lit_mm.nano import chart, reading, scenes
from lit_mm.nano.elements import Element
from lit_mm.nano.page import FINE, SHORTEST
from lit_mm.nano.reading import Groups

Facts = Any  # a tuple; each skill defines its fields


def _shortest(facts: Facts) -> int:
    return SHORTEST


def _shortest_list(facts: reading.List) -> int:
    return FINE if facts[1] else SHORTEST


class Skill(NamedTuple):
    """A skill generates the pages of one kind.

    Attributes:
        instruction: request for the transcript, in words.
        draw: random numbers -> facts. It is cheap, because each split rejects most draws.
        transcribe: facts -> text in raster order.
        ask: facts -> weighted groups of (question, answer) pairs.
        place: random numbers, facts, squeeze -> elements in raster order.
        identify: facts -> identity of the page as text; no identity occurs in two splits.
        shortest: facts -> smallest native side, pixels.
    """

    instruction: str
    draw: Callable[[Random], Facts]
    transcribe: Callable[[Facts], str]
    ask: Callable[[Facts], Groups]
    place: Callable[[Random, Facts, float], list[Element]]
    identify: Callable[[Facts], str]
    shortest: Callable[[Facts], int] = _shortest


def _skill(
    instruction: str, draw: Callable, transcribe: Callable, ask: Callable, place: Callable, **more: Callable
) -> Skill:
    return Skill(instruction, draw, transcribe, ask, place, **{"identify": transcribe, **more})


TABLE_OF_SKILLS: dict[str, Skill] = {
    "read_large": _skill(
        "read the page", reading.draw_sign, reading.transcribe_sign, reading.ask_sign, reading.place_sign
    ),
    "read_small": _skill(
        "read the page",
        reading.draw_list,
        reading.transcribe_list,
        reading.ask_list,
        reading.place_list,
        shortest=_shortest_list,
    ),
    "form": _skill("read the page", reading.draw_form, reading.transcribe_form, reading.ask_form, reading.place_form),
    "table": _skill(
        "read the page", reading.draw_table, reading.transcribe_table, reading.ask_table, reading.place_table
    ),
    "chart": _skill("read the page", chart.draw_chart, chart.transcribe_chart, chart.ask_chart, chart.place_chart),
    "count": _skill(
        "name every shape",
        scenes.draw_count,
        scenes.transcribe_count,
        scenes.ask_count,
        scenes.place_count,
        identify=scenes.identify_count,
    ),
    "shape": _skill(
        "name every colour and shape",
        scenes.draw_named,
        scenes.transcribe_named,
        scenes.ask_named,
        scenes.place_named,
    ),
    "locate": _skill(
        "find every shape", scenes.draw_located, scenes.transcribe_located, scenes.ask_located, scenes.place_located
    ),
    "story": _skill("read the pages", scenes.draw_scene, scenes.transcribe_scene, scenes.ask_scene, scenes.place_scene),
}
SKILLS: tuple[str, ...] = tuple(TABLE_OF_SKILLS)


def order_questions(rng: Random, groups: Groups) -> tuple[tuple[str, str], ...]:
    """Shuffle the questions: draw a group by weight, then any question left in it, until none is left.

    Groups of weight 0 come last.
    """
    left = [(weight, list(questions)) for weight, questions in groups]
    ordered: list[tuple[str, str]] = []
    while left:
        point = rng.random() * sum(weight for weight, _ in left)
        sums = accumulate(weight for weight, _ in left)
        place_of_point = next((place for place, reached in enumerate(sums) if point < reached), 0)
        questions = left[place_of_point][1]
        ordered.append(questions.pop(int(rng.random() * len(questions))))
        if not questions:
            left.pop(place_of_point)
    return tuple(ordered)
