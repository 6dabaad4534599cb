"""The prompt of Fuyu: pictures, BOS, question, beginning-of-answer token, answer, eos. A coordinate is one token."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer

TAGGED = re.compile(r"<(box|point)>(.*?)</\1>", re.DOTALL)
NUM_COORDINATES = {"box": 4, "point": 2}
STEP = 2  # pixels of the resized picture per unit of a coordinate token


def resize_factor(height: int, width: int, canvas: tuple[int, int]) -> float:
    """Return resized height / height of a picture that is shrunk to a canvas. Source: FuyuImageProcessor.

    Args:
        height, width: size of the picture, pixels.
        canvas: (height, width) of the largest view, pixels.
    """
    if height <= canvas[0] and width <= canvas[1]:
        return 1.0
    return max(1, int(height * min(canvas[0] / height, canvas[1] / width))) / height


def to_units(pixel: float, factor: float) -> int:
    """Convert a coordinate from pixels of the picture to units of two resized pixels, rounded half to even."""
    return round(pixel / STEP * factor)


def to_pixels(unit: int, factor: float) -> int:
    """Convert a coordinate back to pixels of the picture: 2 * int(unit / factor). Source: FuyuProcessor."""
    return STEP * int(unit / factor)


class FuyuPrompt:
    """Writes pictures, BOS, and for each round a question, the beginning-of-answer token, an answer and eos.

    - All pictures of the first user turn stand in front of BOS, in order, wherever the turn has them. The release has
      one picture a sample; several follow each other.
    - Each answer and its eos are learnt, nothing else. The release has one round a sample; a further round follows the
      eos of the round before. A page is a round without a question.
    - `<box>y1, x1, y2, x2</box>` and `<point>x, y</point>`, in pixels of the picture, become an opening token, a token
      for each number and a closing token. A number is halved, multiplied by the factor by which the picture shrinks,
      and rounded. Text around them is tokenised piece by piece. `answer_text` converts answers back to pixels.
      transformers 5.23 computes these tokens and drops them.

    Args:
        canvas: (height, width) of the largest view, pixels; that of the tiling.
        question: template of a question. The examples of the release end with a newline.
        answer_start: the beginning-of-answer token.
        box: opening and closing token of a box.
        point: opening and closing token of a point.
    Raises:
        UserError: the template does not hold its placeholder once.
    Source: the model card of adept/fuyu-8b; transformers' FuyuProcessor. The release publishes no training; labels are
        ours.
    """

    def __init__(
        self,
        canvas: tuple[int, int] = (1080, 1920),
        question: str = "{question}\n",
        answer_start: str = "<0x04>",
        box: tuple[str, str] = ("<0x00>", "<0x01>"),
        point: tuple[str, str] = ("<0x02>", "<0x03>"),
    ) -> None:
        if question.count("{question}") != 1:
            raise UserError(f"FuyuPrompt: `question` must contain {{question}} once, got {question!r}")
        self.canvas, self.question, self.answer_start = canvas, question, answer_start
        self.tags = {"box": box, "point": point}

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: turns do not alternate, there is a system turn, a picture stands behind the first turn or in an
                answer, a text contains a marker, or coordinates cannot be converted.
        """
        self._check(document, tokenizer)
        runs: list[Run] = [PictureRun(number) for number in range(len(document.pictures))]
        ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        learn = [False] * len(ids)
        start = tokenizer.id_of(self.answer_start)

        def add(new: list[int], learnt: bool) -> None:
            ids.extend(new)
            learn.extend([learnt] * len(new))

        for turn in document.turns:
            if turn.role == "user":
                text = self.question.replace("{question}", turn.text.strip("\n")) if turn.text else ""
                add([*self._encode(text, document, tokenizer), start], False)
                continue
            if turn.role == "page":
                add([start], False)
                if not turn.text:
                    continue  # the model is to write the text
            add([*self._encode(turn.text, document, tokenizer), tokenizer.eos_id], True)
        return [*runs, TextRun(ids, learn)]

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.eos_id})

    def answer_text(self, ids: Sequence[int], document: Document, tokenizer: Tokenizer) -> str:
        """Convert generated ids to text, with the coordinates of boxes and points in pixels of the document's picture.

        A cut or malformed box stays as the tokenizer decodes it, and so do all boxes of a document without a picture or
        with several.
        """
        if len(document.pictures) != 1:
            return tokenizer.decode(ids).strip()
        picture = document.pictures[0]
        factor = resize_factor(picture.height, picture.width, self.canvas)
        vocabulary = tokenizer.vocabulary
        spans = {vocabulary.find(opening): (tag, vocabulary.find(end)) for tag, (opening, end) in self.tags.items()}
        text, start, at = "", 0, 0
        while at < len(ids):
            tag, end = spans.get(ids[at], ("", None))
            stop = at + 1 + NUM_COORDINATES.get(tag, 0)
            if tag and stop < len(ids) and ids[stop] == end:
                numbers = [tokenizer.decode([number]).strip() for number in ids[at + 1 : stop]]
                if all(number.isdecimal() for number in numbers):
                    pixels = ", ".join(str(to_pixels(int(number), factor)) for number in numbers)
                    text += f"{tokenizer.decode(ids[start:at])}<{tag}>{pixels}</{tag}>"
                    start = at = stop + 1
                    continue
            at += 1
        return (text + tokenizer.decode(ids[start:])).strip()

    def settled(self, ids: Sequence[int], tokenizer: Tokenizer) -> int:
        """See `lit_mm.prompts.prompt.Settles`. A box or point is settled when it is complete."""
        openings = {tokenizer.vocabulary.find(opening): tag for tag, (opening, _) in self.tags.items()}
        places = (at for at, token in enumerate(ids) if token in openings)
        return next((at for at in places if at + 1 + NUM_COORDINATES[openings[ids[at]]] >= len(ids)), len(ids))

    def _encode(self, text: str, document: Document, tokenizer: Tokenizer) -> list[int]:
        """Tokenise a text whose boxes and points become single tokens."""
        ids: list[int] = []
        end = 0
        for match in TAGGED.finditer(text):
            if before := text[end : match.start()]:
                ids += tokenizer.encode(before)
            opening, closing = self.tags[match[1]]
            units = (str(unit) for unit in self._units(match, document))
            ids += [tokenizer.id_of(token) for token in (opening, *units, closing)]
            end = match.end()
        return ids + (tokenizer.encode(text[end:]) if text[end:] else [])

    def _units(self, match: re.Match[str], document: Document) -> list[int]:
        """Convert the coordinates of a tag to units of the resized picture.

        Raises:
            UserError: the document has not exactly one picture, or the tag has not its number of coordinates.
        """
        tag, content = match.groups()
        where = f"document {document.id!r}, {match[0]!r}"
        if len(document.pictures) != 1:
            raise UserError(
                f"{where}: coordinates refer to one picture, the document has {len(document.pictures)}. Remove the "
                "coordinates or the other pictures"
            )
        try:
            pixels = [float(number) for number in content.split(",")]
        except ValueError:
            pixels = []
        if len(pixels) != NUM_COORDINATES[tag] or min(pixels) < 0:
            form = "<box>y1, x1, y2, x2</box>" if tag == "box" else "<point>x, y</point>"
            raise UserError(f"{where}: expected {form}, numbers of pixels of the picture. Correct the data")
        picture = document.pictures[0]
        factor = resize_factor(picture.height, picture.width, self.canvas)
        return [to_units(pixel, factor) for pixel in pixels]

    def _check(self, document: Document, tokenizer: Tokenizer) -> None:
        """Check roles, places of pictures, and that no text contains a marker.

        Raises:
            UserError: see `runs`.
        """
        before = None
        for number, turn in enumerate(document.turns):
            where = f"document {document.id!r}, turn {number} ({turn.role})"
            _check_role(turn, before, where)
            if any(not isinstance(part, str) for part in turn.parts) and (number or turn.role == "assistant"):
                raise UserError(
                    f"{where}: it contains a picture, but Fuyu reads pictures only before the first question"
                )
            for marker in (self.answer_start, tokenizer.eos):
                if marker in turn.text:
                    raise UserError(
                        f"{where}: its text contains the marker {marker!r}, which only the template may write; clean "
                        "the data"
                    )
            before = turn.role


def _check_role(turn: Turn, before: str | None, where: str) -> None:
    """Check that user and assistant speak by turns, the user first, or that the document is a single page.

    Raises:
        UserError: the role cannot stand there.
    """
    expected = {None: ("user", "page"), "user": ("assistant",), "assistant": ("user",)}.get(before, ())
    if turn.role not in expected:
        place = before or "the start"
        raise UserError(
            f"{where}: Fuyu's template takes alternating questions and answers, or one page; after {place} it "
            f"takes {list(expected) or 'nothing'}. Change the data, or use another template"
        )
