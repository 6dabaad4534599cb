"""What the nano language models are pre-trained on: transcripts as text. They never meet an image."""

from __future__ import annotations

from random import Random

from lit_mm.documents.document import Document, Turn
from lit_mm.nano.world import caption_document, text_document
from lit_mm.stream.order import stable_hash


def reading_document(index: int, *, split: str, seed: int, questions: int = 3, skill: str | None = None) -> Document:
    """A page as text, then either questions about it (even numbers) or the instruction to read it out (odd numbers).

    White space is strewn between the items of the page, as little or as much as an image has empty patches between
    them, so that a model learns to read past it.
    """
    rng = Random(stable_hash("reading", seed, split, index, skill))
    if index % 2:
        source = caption_document(index // 2, split=split, seed=seed, skill=skill)
        page, request = source.answer, source.question
        turns = (Turn("user", (f"{strew(page, rng)}\n{request}",)), Turn("assistant", (page,)))
        return Document(f"{source.id}/text", turns, source="nano", skill=source.skill)
    document = text_document(index // 2, split=split, seed=seed, skill=skill, questions=questions)
    page, request = document.turns[0].text.rsplit(" ; ", 1)
    first = Turn("user", (f"{strew(page, rng)}\n{request}",))
    return Document(document.id, (first, *document.turns[1:]), source="nano", skill=document.skill)


def strew(text: str, rng: Random) -> str:
    """Line breaks between the items of a page, none to three a gap, as often as one number for the whole text says."""
    density = rng.random() * 0.8
    first, *items = text.split(" ; ")
    return first + "".join(
        " ;" + "\n" * (1 + int(rng.random() * 3)) * (rng.random() < density) + " " + i for i in items
    )
