"""The nano world: generated documents, each a pure function of (seed, split, skill, index).

Splits share no page. What is on a page decides by a checksum which split may have it (`SHARES`), and a split draws
again until a page is its own; so no transcript of `heldout` occurs in `train`, whatever the seed or the index. (Pages
to count are told apart by the places of the shapes as well: "circle circle" is on some page of every split.)
"""

from __future__ import annotations

import zlib
from hashlib import blake2b
from random import Random

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.nano.page import Page, draw_size, draw_style
from lit_mm.nano.scenes import ask_story
from lit_mm.nano.skills import SKILLS, TABLE_OF_SKILLS, Facts, Skill, order_questions

__all__ = [
    "SKILLS",
    "SPLITS",
    "Page",
    "caption_document",
    "page",
    "question_document",
    "text_document",
]

SPLITS = ("train", "heldout", "text", "pixels")
SHARES = {"heldout": (0, 1), "train": (1, 6), "text": (6, 8), "pixels": (8, 10)}  # last digits of a page's checksum
CAPTION = "/caption"  # ends the id of a document whose answer is all that its page says
SQUEEZE = (0.85, 1.15)  # letters keep the font's proportions where that stays within this after stretching to a square


def question_document(index: int, *, split: str, seed: int, skill: str | None = None, questions: int = 1) -> Document:
    """Picture or pictures, then questions with short answers, one turn each.

    Args:
        index: 0 and up; each has a document.
        split: one of `SPLITS`.
        seed: a world for each number.
        skill: one of `SKILLS`; by default they take turns with the index.
        questions: how many to ask, fewer where the page does not offer as many.
    Raises:
        UserError: an unknown split or skill, a negative index, no question.
    """
    name, pages, pairs = _draw_document(index, split, seed, skill, questions)
    turns = _turns(pages, pairs)
    return Document(f"{split}/{name}/{index:06d}", turns, source="nano", skill=name)


def caption_document(index: int, *, split: str, seed: int, skill: str | None = None) -> Document:
    """The pictures of `question_document`, an instruction, and what is on them as text in raster order.

    Raises:
        UserError: as `question_document`.
    """
    name, pages, _ = _draw_document(index, split, seed, skill, 1)
    instruction = TABLE_OF_SKILLS[name].instruction
    turns = _turns(pages, ((instruction, _transcript(pages)),))
    return Document(f"{split}/{name}/{index:06d}{CAPTION}", turns, source="nano", skill=name)


def text_document(index: int, *, split: str, seed: int, questions: int = 3, skill: str | None = None) -> Document:
    """`question_document` with the transcript in place of the pictures: for language models alone.

    Raises:
        UserError: as `question_document`.
    """
    name, pages, pairs = _draw_document(index, split, seed, skill, questions)
    turns = _turns((f"{_transcript(pages)} ; ",), pairs)
    return Document(f"{split}/{name}/{index:06d}/text", turns, source="nano", skill=name)


def page(index: int, *, split: str, seed: int, kind: str) -> Page:
    """One page; for `story` the first of the document. `question_document` shows the same one under this index.

    Raises:
        UserError: an unknown split or kind, a negative index.
    """
    _check(index, split, kind)
    rng = _rng(seed, split, kind, index)
    skill = TABLE_OF_SKILLS[kind]
    if kind == "story":
        rng.random()  # the number of pages
    return _build_page(rng, kind, _draw_facts(rng, skill, split))


def _draw_document(
    index: int, split: str, seed: int, skill: str | None, questions: int
) -> tuple[str, tuple[Page, ...], tuple[tuple[str, str], ...]]:
    """(skill, pages, (question, answer) pairs to ask)."""
    if questions < 1:
        raise UserError(f"a nano document asks at least one question, got questions={questions}")
    name = SKILLS[index % len(SKILLS)] if skill is None else skill
    if name != "story":
        drawn_page = page(index, split=split, seed=seed, kind=name)
        return name, (drawn_page,), drawn_page.questions[:questions]
    _check(index, split, name)
    rng = _rng(seed, split, name, index)
    count = 2 if rng.random() < 0.5 else 3
    scenes: list[Facts] = []
    pages: list[Page] = []
    while len(scenes) < count:
        scene = _draw_facts(rng, TABLE_OF_SKILLS[name], split)
        if all(scene[1] != other[1] and scene[2] != other[2] for other in scenes):  # or "the star" were on two pages
            scenes.append(scene)
            pages.append(_build_page(rng, name, scene))
    return name, tuple(pages), order_questions(rng, ask_story(tuple(scenes)))[:questions]


def _draw_facts(rng: Random, skill: Skill, split: str) -> Facts:
    """Facts that belong to the split."""
    first, last = SHARES[split]
    while True:
        facts = skill.draw(rng)
        if first <= zlib.crc32(skill.identify(facts).encode()) % 10 < last:
            return facts


def _build_page(rng: Random, kind: str, facts: Facts) -> Page:
    skill = TABLE_OF_SKILLS[kind]
    height, width = draw_size(rng, skill.shortest(facts))
    squeeze = min(max(height / width, SQUEEZE[0]), SQUEEZE[1])
    elements = tuple(skill.place(rng, facts, squeeze))
    style = draw_style(rng, kind)
    questions = order_questions(rng, skill.ask(facts))
    return Page(kind, height, width, style, elements, skill.transcribe(facts), questions)


def _transcript(pages: tuple[Page, ...]) -> str:
    """Of one page as it is, of several with their numbers: `page 1 KALO ; red star ; page 2 blue cross ; MIRU`."""
    if len(pages) == 1:
        return pages[0].transcript
    return " ; ".join(f"page {number} {entry.transcript}" for number, entry in enumerate(pages, 1))


def _turns(opening: tuple[str | Page, ...], questions: tuple[tuple[str, str], ...]) -> tuple[Turn, ...]:
    """User and assistant by turns; the opening stands before the first question."""
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(questions):
        turns.append(Turn("user", (question,) if number else (*opening, question)))
        turns.append(Turn("assistant", (answer,)))
    return tuple(turns)


def _rng(seed: int, split: str, kind: str, index: int) -> Random:
    """Random numbers for one document: the same in every process, unlike Python's own hash."""
    name = f"nano/{seed}/{split}/{kind}/{index}".encode()
    return Random(int.from_bytes(blake2b(name, digest_size=8).digest(), "little"))


def _check(index: int, split: str, kind: str) -> None:
    if split not in SPLITS:
        raise UserError(f"the nano world has the splits {', '.join(SPLITS)}, got split={split!r}")
    if kind not in TABLE_OF_SKILLS:
        raise UserError(f"the nano world has the skills {', '.join(SKILLS)}, got {kind!r}")
    if index < 0:
        raise UserError(f"documents of the nano world are numbered from 0, got index={index}")
