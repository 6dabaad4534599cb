"""This module turns an instruction into an article with images, as a state machine that asks a model questions.

It imports neither a model nor files. `steps` is a generator that yields questions and receives answers; `compose`
drives it with a function.
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

MOST_LINES = 60  # most lines of an article, as in the released demos
CAPTION_LENGTH = 53  # characters of a caption that are used for the search
SEGMENT = re.compile(r"<Seg\s*(\d+)>")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Step = Literal["article", "spot", "caption", "select"]


@dataclass(frozen=True)
class Question:
    """A question to the model.

    Attributes:
        step: the step that asks.
        document: the conversation. The last turn is the user's question, or the opening of the assistant's answer.
        decoding: decoding options for the answer.
    """

    step: Step
    document: Document
    decoding: Decoding


class Retriever(Protocol):
    """A search in a pool of images."""

    def __call__(self, caption: str, count: int, exclude: Collection[int]) -> Sequence[int]:
        """Find at most `count` images of the pool for a caption, none of them in `exclude`. Numbers, best first."""
        ...


@dataclass(frozen=True)
class Slot:
    """A place for an image in an article.

    Attributes:
        after: number of the line that the image follows, from 0.
        caption: caption by the model.
        candidates: numbers of the proposed images, best first.
        image: number of the selected image; None if there was no candidate.
    """

    after: int
    caption: str
    candidates: tuple[int, ...] = ()
    image: int | None = None


@dataclass(frozen=True)
class Article:
    """The result of a composition.

    Attributes:
        instruction: the user's instruction.
        lines: paragraphs and headings, without line breaks.
        slots: places for images, in reading order.
        notes: deviations from the request, in words.
    """

    instruction: str
    lines: tuple[str, ...]
    slots: tuple[Slot, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Talk:
    """State that all steps share.

    Attributes:
        template: texts of the questions.
        pictures: pool of images.
        fits: function that returns True if a question is short enough for the model.
        notes: deviations from the request so far.
    """

    template: Template
    pictures: Sequence[Picture]
    fits: Callable[[Document], bool]
    notes: list[str] = field(default_factory=list)

    def document(self, step: Step, *parts: str | Picture, opening: str = "") -> Document:
        """Build a question of one user turn, and an assistant turn with the opening of the answer if there is one."""
        turns = (Turn("user", tuple(part for part in parts if part != "")),)
        return Document(f"compose/{step}", turns + ((Turn("assistant", (opening,)),) if opening else ()))


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
        pictures: pool of images.
        ask: function that answers a question. The answer is taken as text, whatever it contains.
        retrieve: function that finds candidates in the pool.
        template: texts of the questions.
        slots: number of images; None lets the model decide.
        candidates: number of images among which the model chooses at each slot.
        fits: function that returns True if a question is short enough for the model.
    Raises:
        UserError: the instruction or the pool is empty, `slots` or `candidates` is out of range, or the model writes
            nothing.
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
    """Run `compose` as a generator that yields questions and receives answers.

    1. The model writes the article. Blank lines are removed, and at most 60 lines are kept.
    2. The model names the lines after which an image suits. If it names none, `slots` places (one if None) are spread
       evenly.
    3. The model writes one caption per named line, in the order in which it named them. It sees the article up to one
       line after the slot, and the captions so far. An empty caption is replaced by the end of the line.
    4. For each slot in reading order, up to `candidates` images are retrieved by the first 53 characters of the
       caption. The model sees the article so far with its images and answers with a letter; any other answer selects
       A. A single candidate is selected without a question. A selected image is not proposed again.

    Source: arXiv:2309.15112, section 3, arXiv:2401.16420, section 3, and the released demos. The demos search the web
        and exclude all images fetched before, selected or not, which would soon exhaust a folder. They cut the end of
        a question that is too long, and so lose candidates; here lines far from the slot are left out (in step 2, the
        last lines).
    """
    if not instruction.strip():
        raise UserError("compose: the instruction is empty. Describe the topic of the article")
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


def write(talk: _Talk, instruction: str) -> Generator[Question, str, tuple[str, ...]]:
    """Ask for the article and return its lines.

    Raises:
        UserError: the model writes nothing.
    """
    template = talk.template
    question = talk.document("article", template.article.format(instruction=instruction))
    lines = lines_of((yield Question("article", question, template.decode_article)))
    if not lines:
        raise UserError(
            f"compose: the model wrote nothing about {instruction[:60]!r}. Train it further, or use another instruction"
        )
    if len(lines) > MOST_LINES:
        talk.notes.append(f"the article had {len(lines)} lines; the first {MOST_LINES} were kept")
    return lines[:MOST_LINES]


def lines_of(text: str) -> tuple[str, ...]:
    """Split a text into lines; blank lines and surrounding white space are removed."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def spot(talk: _Talk, lines: Sequence[str], slots: int | None) -> Generator[Question, str, tuple[int, ...]]:
    """Ask which lines an image should follow. Returns line numbers in the order in which the model names them."""
    (text, opening), count = talk.template.spot, "" if slots is None else str(slots)

    def question(number: int) -> Document:
        return talk.document("spot", text.format(article=number_lines(lines[:number]), count=count), opening=opening)

    number = _most(len(lines), lambda count: talk.fits(question(count)))
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


def number_lines(lines: Sequence[str], first: int = 0) -> str:
    """Write each line as `<Seg i> line` with a newline at the end; the first i is `first`."""
    return "".join(f"<Seg{number}> {line}\n" for number, line in enumerate(lines, start=first))


def places_in(reply: str, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the line numbers in `<Seg i>` marks. Returns distinct numbers below `count`, and distinct others."""
    numbers = dict.fromkeys(int(digits) for digits in SEGMENT.findall(reply))
    return tuple(n for n in numbers if n < count), tuple(n for n in numbers if n >= count)


def spread(count: int, slots: int) -> tuple[int, ...]:
    """Spread `slots` line numbers evenly over `count` lines; if there are fewer lines, return all. (9, 2) -> 3, 6."""
    slots = min(slots, count)
    if slots == count:
        return tuple(range(count))
    return tuple((number + 1) * count // (slots + 1) for number in range(slots))


def caption(
    talk: _Talk, lines: Sequence[str], places: Sequence[int]
) -> Generator[Question, str, tuple[tuple[int, str], ...]]:
    """Ask for a caption of each place. Returns (line, caption) pairs in the order of `places`."""
    template = talk.template
    text, opening = template.caption
    captions: list[tuple[int, str]] = []
    for place in places:
        end = min(place + 2, len(lines))

        def question(count: int, place: int = place, end: int = end) -> Document:
            article = number_lines(lines[end - count : end], end - count)
            words = text.format(article=article, before=captions_so_far(template, captions), slot=place)
            return talk.document("caption", words, opening=opening)

        count = _most(end, lambda count, question=question: talk.fits(question(count)))
        reply = yield Question("caption", question(count), template.decode_caption)
        words = reply.partition('"')[0].strip()
        if not words:
            words = lines[place][-50:].strip()
            talk.notes.append(f"the model wrote no caption after line {place}; the end of the line stands in for it")
        captions.append((place, " ".join(words.split())))
    return tuple(captions)


def captions_so_far(template: Template, captions: Sequence[tuple[int, str]]) -> str:
    """List the earlier captions for the question of the next one; "" for the first."""
    sentences = [
        (template.next_caption if number else template.first_caption).format(slot=place, caption=caption)
        for number, (place, caption) in enumerate(captions)
    ]
    return template.between.join(sentences) + template.after if sentences else ""


def select(
    talk: _Talk, lines: Sequence[str], captions: Sequence[tuple[int, str]], retrieve: Retriever, candidates: int
) -> Generator[Question, str, tuple[Slot, ...]]:
    """Ask for the image of each slot. Returns the slots in reading order.

    Raises:
        UserError: the retriever proposes an image twice, one that is used, or one outside of the pool.
    """
    slots: list[Slot] = []
    for place, caption in sorted(captions):
        used = {slot.image for slot in slots if slot.image is not None}
        images = tuple(retrieve(caption[:CAPTION_LENGTH], candidates, used))
        if len(set(images)) < len(images) or used & set(images) or any(not 0 <= n < len(talk.pictures) for n in images):
            raise UserError(
                f"compose: the retriever returned {list(images)} for {caption!r}; expected different numbers "
                f"below {len(talk.pictures)}, without the used ones {sorted(used)}"
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
    """Build the question which candidate suits. Returns it and the candidates in it.

    As many candidates as fit the context come first; then the most recent lines of the text that still fit.
    """
    template = talk.template
    images = {slot.after: talk.pictures[slot.image] for slot in slots if slot.image is not None}

    def question(count: int, among: tuple[int, ...]) -> Document:
        parts: list[str | Picture] = [template.select]
        for number in range(place + 1 - count, place + 1):
            parts.append(f"{lines[number]}\n")
            if number in images:
                parts.append(images[number])
        # The slot has no image yet, so its line is followed directly by the candidates, as in the released prompt
        parts.append(template.candidates)
        for at, candidate in enumerate(among):
            parts.append(("\n" if at else "") + template.candidate.format(letter=LETTERS[at]))
            parts.append(talk.pictures[candidate])
        end, opening = template.candidates_end
        return talk.document("select", *parts, end, opening=opening)

    while len(candidates) > 1 and not talk.fits(question(0, candidates)):
        candidates = candidates[:-1]
    count = _most(place + 1, lambda count: talk.fits(question(count, candidates)))
    return question(count, candidates), candidates


def letter_in(reply: str, count: int) -> int | None:
    """Return the number of the candidate, below `count`, that the first letter of a reply names; else None.

    White space and colons may precede the letter: XComposer2 answers ": C".
    """
    at = LETTERS.find(reply.lstrip(" \t\n:\uff1a")[:1] or "?")
    return at if 0 <= at < count else None


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `count` that fits. If it is 0, the model refuses the question as too long."""
    return next((number for number in range(count, 0, -1) if fits(number)), 0)
