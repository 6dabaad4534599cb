"""The nano world generates documents; each is a pure function of (seed, split, skill, index).

Splits share no page: a checksum of the content of a page decides its split (`SHARES`), and a split draws until it gets
a page that belongs to it. So no transcript of `heldout` occurs in `train`, under any seed or index. Counting pages are
the exception: their content includes the positions of the shapes, because a transcript such as "circle circle" occurs
in every split.
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
SHARES = {"heldout": (0, 1), "train": (1, 6), "text": (6, 8), "pixels": (8, 10)}  # range of the checksum's last digit
CAPTION = "/caption"  # end of the id of a document that asks for the transcript
SQUEEZE = (0.85, 1.15)  # limits of the width of letters relative to the font, after the page is stretched to a square


def question_document(index: int, *, split: str, seed: int, skill: str | None = None, questions: int = 1) -> Document:
    """Generate a document of one or more pictures and questions about them, with short answers, one turn each.

    Args:
        index: number of the document, from 0.
        split: one of `SPLITS`.
        seed: seed of the nano world.
        skill: one of `SKILLS`; None takes them in turn by `index`.
        questions: largest number of questions; a page may offer fewer.
    Raises:
        UserError: an unknown split or skill, a negative index, no question.
    """
    name, pages, pairs = _draw_document(index, split, seed, skill, questions)
    turns = _turns(pages, pairs)
    return Document(f"{split}/{name}/{index:06d}", turns, source="nano", skill=name)


def caption_document(index: int, *, split: str, seed: int, skill: str | None = None) -> Document:
    """Generate a document with the pictures of `question_document`, an instruction, and the transcript in raster order.

    Raises:
        UserError: an unknown split or skill, a negative index.
    """
    name, pages, _ = _draw_document(index, split, seed, skill, 1)
    instruction = TABLE_OF_SKILLS[name].instruction
    turns = _turns(pages, ((instruction, _transcript(pages)),))
    return Document(f"{split}/{name}/{index:06d}{CAPTION}", turns, source="nano", skill=name)


def text_document(index: int, *, split: str, seed: int, questions: int = 3, skill: str | None = None) -> Document:
    """Generate `question_document` with the transcript in place of the pictures, for training language models alone.

    Raises:
        UserError: an unknown split or skill, a negative index, no question.
    """
    name, pages, pairs = _draw_document(index, split, seed, skill, questions)
    turns = _turns((f"{_transcript(pages)} ; ",), pairs)
    return Document(f"{split}/{name}/{index:06d}/text", turns, source="nano", skill=name)


def page(index: int, *, split: str, seed: int, kind: str) -> Page:
    """Generate the page that `question_document` shows at the same index; for "story", the first of its pages.

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
    """Generate (skill, pages, (question, answer) pairs)."""
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
        if all(scene[1] != other[1] and scene[2] != other[2] for other in scenes):  # each shape and word on one page
            scenes.append(scene)
            pages.append(_build_page(rng, name, scene))
    return name, tuple(pages), order_questions(rng, ask_story(tuple(scenes)))[:questions]


def _draw_facts(rng: Random, skill: Skill, split: str) -> Facts:
    """Draw facts until they belong to the split."""
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
    """Transcribe the pages; several are numbered: `page 1 KALO ; red star ; page 2 blue cross ; MIRU`."""
    if len(pages) == 1:
        return pages[0].transcript
    return " ; ".join(f"page {number} {entry.transcript}" for number, entry in enumerate(pages, 1))


def _turns(opening: tuple[str | Page, ...], questions: tuple[tuple[str, str], ...]) -> tuple[Turn, ...]:
    """Build alternating turns of user and assistant; `opening` precedes the first question."""
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(questions):
        turns.append(Turn("user", (question,) if number else (*opening, question)))
        turns.append(Turn("assistant", (answer,)))
    return tuple(turns)


def _rng(seed: int, split: str, kind: str, index: int) -> Random:
    """Return the random numbers for one document, the same in every process (Python's `hash` is not)."""
    name = f"nano/{seed}/{split}/{kind}/{index}".encode()
    return Random(int.from_bytes(blake2b(name, digest_size=8).digest(), "little"))


def _check(index: int, split: str, kind: str) -> None:
    if split not in SPLITS:
        raise UserError(f"the nano world has the splits {', '.join(SPLITS)}, got split={split!r}")
    if kind not in TABLE_OF_SKILLS:
        raise UserError(f"the nano world has the skills {', '.join(SKILLS)}, got {kind!r}")
    if index < 0:
        raise UserError(f"documents of the nano world are numbered from 0, got index={index}")
