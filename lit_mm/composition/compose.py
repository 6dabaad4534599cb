"""The steps from an instruction to an article with images: a state machine that asks, and is told, and asks again.

It knows neither a model nor files. `steps` is a generator: what it yields is a question to the model, what is sent back
is the answer; `compose` runs it with a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lit_mm.composition.template import Template
from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import UserError
from lit_mm.inference.decoding import Decoding

MOST_LINES = 60  # of an article, as in the released demos
CAPTION_LENGTH = 53  # characters of a caption that the search gets
SEGMENT = re.compile(r"<Seg\s*(\d+)>")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Step = Literal["article", "spot", "caption", "select"]


@dataclass(frozen=True)
class Question:
    """A question to the model.

    Attributes:
        step: what it is about.
        document: the conversation; its last turn is the user's, or the assistant's as far as it is written for it.
        decoding: how the answer is to be decoded.
    """

    step: Step
    document: Document
    decoding: Decoding


class Retriever(Protocol):
    def __call__(self, caption: str, count: int, exclude: Collection[int]) -> Sequence[int]:
        """Numbers of at most `count` images of the pool that suit a caption, the best first, none of `exclude`."""
        ...


@dataclass(frozen=True)
class Slot:
    """An image in its place.

    Attributes:
        after: line that it follows, from 0.
        caption: written by the model.
        candidates: numbers of the images that were proposed, the best first.
        image: number of the chosen one; None where no candidate was left.
    """

    after: int
    caption: str
    candidates: tuple[int, ...] = ()
    image: int | None = None


@dataclass(frozen=True)
class Article:
    """What came of a composition.

    Attributes:
        instruction: what was asked for.
        lines: paragraphs and headings, without line breaks.
        slots: in reading order.
        notes: what did not go as asked, in words.
    """

    instruction: str
    lines: tuple[str, ...]
    slots: tuple[Slot, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Talk:
    """What all steps share."""

    template: Template
    pictures: Sequence[Picture]
    fits: Callable[[Document], bool]
    notes: list[str] = field(default_factory=list)

    def document(self, step: Step, *parts: str | Picture, begun: str = "") -> Document:
        turns = (Turn("user", tuple(part for part in parts if part != "")),)
        return Document(f"compose/{step}", turns + ((Turn("assistant", (begun,)),) if begun else ()))


def compose(
    instruction: str,
    pictures: Sequence[Picture],
    ask: Callable[[Question], str],
    retrieve: Retriever,
    template: Template,
    *,
    slots: int | None = None,
    candidates: int = 4,
    fits: Callable[[Document], bool] = lambda document: True,
) -> Article:
    """Write an article and put images into it.

    Args:
        instruction: a title (XComposer) or a free instruction (XComposer2).
        pictures: the pool to choose from.
        ask: answers a question; what it says is taken as text, whatever it is.
        retrieve: finds candidates in the pool.
        template: the questions.
        slots: images wanted; None leaves it to the model.
        candidates: images that the model chooses among, at each slot.
        fits: whether a question is short enough for the model.
    Raises:
        UserError: nothing to do, or the model writes nothing.
    """
    machine = steps(instruction, pictures, retrieve, template, slots=slots, candidates=candidates, fits=fits)
    try:
        question = next(machine)
        while True:
            question = machine.send(ask(question))
    except StopIteration as end:
        return end.value


def steps(
    instruction: str,
    pictures: Sequence[Picture],
    retrieve: Retriever,
    template: Template,
    *,
    slots: int | None = None,
    candidates: int = 4,
    fits: Callable[[Document], bool] = lambda document: True,
) -> Generator[Question, str, Article]:
    """`compose`, one question after the other.

    1. The article is written; blank lines go, and at most 60 lines stay.
    2. The model names the lines after which an image suits. None named: as many as asked for (or one), evenly spread.
    3. Line by line, in the order named, it writes a caption, knowing the article up to one line behind the slot and the
       captions so far. An empty one is replaced by the end of its line.
    4. Slot by slot, in reading order, up to `candidates` images are looked up with the caption's first 53 characters,
       and the model, shown the article so far with its images, answers with a letter. Anything else selects A. A
       single candidate is taken without asking. A chosen image is not proposed again.

    Source: arXiv:2309.15112, section 3, arXiv:2401.16420, section 3, and the released demos. They search the web, and
        exclude all images fetched before, chosen or not; a folder would soon be used up. Where a question is too long
        they cut its end, and with it the candidates; here the far end of the article is left out.
    """
    if not instruction.strip():
        raise UserError("compose: the instruction is empty. Say what the article shall be about")
    if not pictures:
        raise UserError("compose: there are no images to choose from")
    if not 1 <= candidates <= len(LETTERS) or (slots is not None and slots < 0):
        raise UserError(
            f"compose: `candidates` is 1 to {len(LETTERS)} and `slots` at least 0, got {candidates} and {slots}"
        )
    talk = _Talk(template, pictures, fits)
    lines = yield from write(talk, instruction)
    if slots == 0:
        return Article(instruction, lines)
    places = yield from spot(talk, lines, slots)
    captions = yield from caption(talk, lines, places)
    image = yield from select(talk, lines, captions, retrieve, candidates)
    return Article(instruction, lines, image, tuple(talk.notes))


# --- 1. the article --------------------------------------------------------------------------------------------------
def write(talk: _Talk, instruction: str) -> Generator[Question, str, tuple[str, ...]]:
    """The lines of the article."""
    template = talk.template
    question = talk.document("article", template.article.format(instruction=instruction))
    lines = lines_of((yield Question("article", question, template.decode_article)))
    if not lines:
        raise UserError(
            f"compose: the model wrote nothing about {instruction[:60]!r}. Train it further, or ask for something else"
        )
    if len(lines) > MOST_LINES:
        talk.notes.append(f"the article had {len(lines)} lines; the first {MOST_LINES} were kept")
    return lines[:MOST_LINES]


def lines_of(text: str) -> tuple[str, ...]:
    """Its lines without white space around them and without blank ones."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


# --- 2. where images suit ------------------------------------------------------------------------------------------
def spot(talk: _Talk, lines: Sequence[str], slots: int | None) -> Generator[Question, str, tuple[int, ...]]:
    """Numbers of the lines that an image shall follow, in the order in which the model names them."""
    (text, begun), count = talk.template.spot, "" if slots is None else str(slots)

    def question(number: int) -> Document:
        return talk.document("spot", text.format(article=numbered(lines[:number]), count=count), begun=begun)

    number = _most(len(lines), lambda some: talk.fits(question(some)))
    if number < len(lines):
        talk.notes.append(f"the article is too long to be shown whole: lines from {number} on get no image")
    places, odd = places_in((yield Question("spot", question(number), talk.template.decode_spot)), number)
    if odd:
        talk.notes.append(f"the model named lines that do not exist: {', '.join(map(str, odd))}")
    if not places:
        places = spread(number, slots or 1)
        talk.notes.append(f"the model named no line for an image; placed after {', '.join(map(str, places))}, evenly")
    if slots is not None and len(places) > slots:
        talk.notes.append(f"the model named {len(places)} lines, {slots} were asked for; the first {slots} were kept")
        places = places[:slots]
    return places


def numbered(lines: Sequence[str], first: int = 0) -> str:
    """`<Seg i> line` for each line, each ended by a newline."""
    return "".join(f"<Seg{number}> {line}\n" for number, line in enumerate(lines, start=first))


def places_in(reply: str, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lines named by `<Seg i>`: those below `count`, each once, and those that do not exist."""
    numbers = dict.fromkeys(int(digits) for digits in SEGMENT.findall(reply))
    return tuple(n for n in numbers if n < count), tuple(n for n in numbers if n >= count)


def spread(count: int, slots: int) -> tuple[int, ...]:
    """`slots` line numbers out of `count`, evenly spread; all of them where there are fewer. (9, 2) -> 3, 6."""
    slots = min(slots, count)
    if slots == count:
        return tuple(range(count))
    return tuple((number + 1) * count // (slots + 1) for number in range(slots))


# --- 3. captions -----------------------------------------------------------------------------------------------------
def caption(
    talk: _Talk, lines: Sequence[str], places: Sequence[int]
) -> Generator[Question, str, tuple[tuple[int, str], ...]]:
    """(line, caption) of each place, in the order of `places`."""
    template = talk.template
    text, begun = template.caption
    captions: list[tuple[int, str]] = []
    for place in places:
        end = min(place + 2, len(lines))

        def question(count: int, place: int = place, end: int = end) -> Document:
            article = numbered(lines[end - count : end], end - count)
            words = text.format(article=article, before=captions_so_far(template, captions), slot=place)
            return talk.document("caption", words, begun=begun)

        count = _most(end, lambda some, question=question: talk.fits(question(some)))
        reply = yield Question("caption", question(count), template.decode_caption)
        words = reply.partition('"')[0].strip()
        if not words:
            words = lines[place][-50:].strip()
            talk.notes.append(f"the model wrote no caption after line {place}; the end of the line stands in for it")
        captions.append((place, " ".join(words.split())))
    return tuple(captions)


def captions_so_far(template: Template, captions: Sequence[tuple[int, str]]) -> str:
    """What a caption's question says about the earlier ones; nothing for the first."""
    sayings = [
        (template.next_caption if number else template.first_caption).format(slot=place, caption=caption)
        for number, (place, caption) in enumerate(captions)
    ]
    return template.between.join(sayings) + template.after if sayings else ""


# --- 4. images -------------------------------------------------------------------------------------------------------
def select(
    talk: _Talk, lines: Sequence[str], captions: Sequence[tuple[int, str]], retrieve: Retriever, candidates: int
) -> Generator[Question, str, tuple[Slot, ...]]:
    """The slots in reading order, each with its image."""
    slots: list[Slot] = []
    for place, caption in sorted(captions):
        used = {slot.image for slot in slots if slot.image is not None}
        images = tuple(retrieve(caption[:CAPTION_LENGTH], candidates, used))
        if len(set(images)) < len(images) or used & set(images) or any(not 0 <= n < len(talk.pictures) for n in images):
            raise UserError(
                f"compose: the retriever proposed {list(images)} for {caption!r}; expected different numbers below "
                f"{len(talk.pictures)} without the used {sorted(used)}"
            )
        images = images[:candidates]
        image: int | None = None
        if not images:
            talk.notes.append(f"no image is left for the place after line {place}")
        elif len(images) == 1:
            image = images[0]
        else:
            question, fitting = _selection(talk, lines, slots, place, images)
            if len(fitting) < len(images):
                talk.notes.append(
                    f"{len(fitting)} of {len(images)} candidates after line {place} fit into the model's context"
                )
            images, image = fitting, fitting[0]
            if len(images) > 1:
                reply = yield Question("select", question, talk.template.decode_select)
                at = letter_in(reply, len(images))
                if at is None:
                    talk.notes.append(f"the model named no candidate after line {place}; A was taken")
                image = images[at or 0]
        slots.append(Slot(place, caption, images, image))
    return tuple(slots)


def _selection(
    talk: _Talk, lines: Sequence[str], slots: Sequence[Slot], place: int, candidates: tuple[int, ...]
) -> tuple[Document, tuple[int, ...]]:
    """The question which candidate suits, and the candidates in it: as many as fit, and as much of the text as fits."""
    template = talk.template
    images = {slot.after: talk.pictures[slot.image] for slot in slots if slot.image is not None}

    def question(count: int, among: tuple[int, ...]) -> Document:
        parts: list[str | Picture] = [template.select]
        for number in range(place + 1 - count, place + 1):
            parts.append(f"{lines[number]}\n")
            if number in images:
                parts.append(images[number])
        # The place itself holds no image: the text before it joins the candidates, as in the released prompt
        parts.append(template.candidates)
        for at, candidate in enumerate(among):
            parts.append(("\n" if at else "") + template.candidate.format(letter=LETTERS[at]))
            parts.append(talk.pictures[candidate])
        end, begun = template.candidates_end
        return talk.document("select", *parts, end, begun=begun)

    while len(candidates) > 1 and not talk.fits(question(0, candidates)):
        candidates = candidates[:-1]
    count = _most(place + 1, lambda some: talk.fits(question(some, candidates)))
    return question(count, candidates), candidates


def letter_in(reply: str, count: int) -> int | None:
    """Which of `count` candidates a reply names by its first letter; None for anything else.

    Spaces and a colon may precede it: XComposer2 answers ": C".
    """
    at = LETTERS.find(reply.lstrip(" \t\n:\uff1a")[:1] or "?")
    return at if 0 <= at < count else None


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `count` that fits; 0 where none does, so that the model itself says what is too long."""
    return next((some for some in range(count, 0, -1) if fits(some)), 0)
