"""Pre-training texts of the nano language models: transcripts of pages, without images."""

from __future__ import annotations

from random import Random

from lit_mm.documents.document import Document, Turn
from lit_mm.nano.world import caption_document, text_document
from lit_mm.stream.order import stable_hash


def reading_document(index: int, *, split: str, seed: int, questions: int = 3, skill: str | None = None) -> Document:
    """Generate a page as text with a task: questions for an even `index`, reading the page out for an odd one.

    Random line breaks stand between the items of the page. They teach a model to skip the empty patches that an image
    has between its items.

    Args:
        index: number of the document, from 0.
        split: split of the nano world.
        seed: seed of the nano world.
        questions: number of questions for an even `index`.
        skill: one of `SKILLS`; None takes them in turn.
    Raises:
        UserError: an unknown split or skill, a negative index, no question.
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
    """Add random line breaks between the items of a transcript.

    A gap gets one to three line breaks with a probability that is drawn once per text, from 0 to 0.8.
    """
    density = rng.random() * 0.8
    first, *items = text.split(" ; ")
    return first + "".join(
        " ;" + "\n" * (1 + int(rng.random() * 3)) * (rng.random() < density) + " " + i for i in items
    )
