"""Qwen-VL's prompts: the bare one of its pre-training stages, which is also Monkey's, and ChatML for the chat."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer

LABEL = re.compile(r"Picture \d+: ?$")
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, slots=True)
class _Tags:
    """What stands around the visual tokens of a picture. Released: one token each, `<img>` and `</img>`.

    The release fills the 256 slots between them with the bytes of the file's path, reads the path back from the ids and
    overwrites the slots' embeddings. Here pixels travel by themselves, and the slots hold visual tokens alone.
    """

    image_start: str
    image_end: str

    def check(self, document: Document, tokenizer: Tokenizer, *markers: str) -> None:
        """Raises:
        UserError: a marker that the tokenizer breaks up, or one inside a text: only the template may write it.
        """
        for marker in (*markers, self.image_start, self.image_end):
            if not marker:
                continue
            tokenizer.id_of(marker)
            for number, turn in enumerate(document.turns):
                if marker in turn.text:
                    raise UserError(
                        f"document {document.id!r}, turn {number} ({turn.role}): its text contains the marker "
                        f"{marker!r}, which only the template may write; clean the data"
                    )


class _Runs:
    """Collects runs; each piece of text is tokenised by itself, as released, and pictures are counted."""

    def __init__(self, tags: _Tags, tokenizer: Tokenizer) -> None:
        self.tags, self.tokenizer, self.pictures = tags, tokenizer, 0
        self.runs: list[Run] = []
        if tokenizer.bos_id is not None:
            self.runs.append(TextRun([tokenizer.bos_id], [False]))

    def text(self, text: str, *, learn: bool) -> None:
        ids = self.tokenizer.encode(text)
        if ids:
            self.runs.append(TextRun(ids, [learn] * len(ids)))

    def picture(self) -> None:
        self.text(self.tags.image_start, learn=False)
        self.runs.append(PictureRun(self.pictures))
        self.pictures += 1
        self.text(self.tags.image_end, learn=False)


class QwenPlain:
    """Text as it stands, without roles: pictures, what is asked, the answer, end-of-text. Qwen-VL's first two stages.

    - A user turn is what is asked: not learnt. The answer is, and the end-of-text after it. Each turn is tokenised by
      itself. A further round follows the end-of-text of the one before (the release has one round a document).
    - A page is learnt from start to end, its pictures excepted, and so is its end-of-text.

    Args:
        question, answer: what is made of a turn's text. The release's data has them in its text already: VQA
            `{question} Answer:` and ` {answer}` (Monkey: ` {question} Answer: `), captions `Describe the image in
            English:`. Left out, texts stay as they are.
        image_start, image_end: stand around the visual tokens of a picture; "" for none.
    Raises:
        UserError: a template without its place.
    Source: arXiv:2308.12966, appendix B; Monkey's finetune_multitask.py, `preprocess`.
    """

    def __init__(
        self,
        question: str = "{question}",
        answer: str = "{answer}",
        image_start: str = "<img>",
        image_end: str = "</img>",
    ) -> None:
        for name, template in (("question", question), ("answer", answer)):
            if template.count(f"{{{name}}}") != 1:
                raise UserError(f"QwenPlain: `{name}` holds {{{name}}} once, got {template!r}")
        self.question, self.answer = question.split("{question}"), answer.split("{answer}")
        self.tags = _Tags(image_start, image_end)

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: turns that do not alternate, a system turn, an answer with a picture, or a marker in a text.
        """
        self.tags.check(document, tokenizer, tokenizer.eos)
        runs = _Runs(self.tags, tokenizer)
        for number, turn in enumerate(document.turns):
            _check_role(document, number, ("page", "user", "assistant"))
            if turn.role == "assistant":
                runs.text(turn.text.join(self.answer), learn=True)
                runs.text(tokenizer.eos, learn=True)
                continue
            pieces = turn.parts
            if turn.role == "user":
                pieces = _around(pieces, *self.question)
            for part in pieces:
                if isinstance(part, str):
                    runs.text(part, learn=turn.role == "page")
                else:
                    runs.picture()
            last = number + 1 == len(document.turns)
            if turn.role == "page" and last and any(page.text for page in document.turns):
                runs.text(tokenizer.eos, learn=True)  # not after pictures alone: their text is asked for
        return runs.runs

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.eos_id})


class QwenChat:
    """ChatML: `<|im_start|>role\\n...<|im_end|>\\n` a turn, after a system turn. Qwen-VL-Chat.

    - Learnt are the answers and, in all turns, `<|im_start|>`, `<|im_end|>` and the newline behind it; not the roles
      and the newline behind them. Nothing else ends a conversation.
    - A picture becomes `Picture k: <img>...</img>` and a newline, counted from 1 through the whole conversation. Text
      that ends in `Picture k: ` right before a picture is left as it is. So is a document in Qwen-VL's own format
      (`Document.text_format`): its text holds the labels and line ends that it shall have.
    - A leading system turn replaces the template's; a leading answer, which nothing asks for, is left out.

    Args:
        system: what the system says; "": no system turn.
        image_start, image_end: stand around the visual tokens of a picture; "" for none.
    Source: finetune.py, `preprocess`, and tokenization_qwen.py of the release. `from_list_format` leaves out the space
        behind the colon; the documentation and the chat, which are followed here, have it.
    """

    def __init__(
        self,
        system: str = "You are a helpful assistant.",
        image_start: str = "<img>",
        image_end: str = "</img>",
    ) -> None:
        self.system, self.tags = system, _Tags(image_start, image_end)

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: turns that do not alternate, a page, an answer with a picture, or a marker in a text.
        """
        self.tags.check(document, tokenizer, TURN_START, TURN_END, tokenizer.eos)
        turns, system = list(document.turns), self.system
        if turns and turns[0].role == "system":
            system = turns.pop(0).text
        if turns and turns[0].role == "assistant":
            turns.pop(0)
        if not turns:
            raise UserError(f"document {document.id!r} has no user turn")
        runs = _Runs(self.tags, tokenizer)
        if system:
            self._turn(runs, Turn("system", (system,)))
        chat = Document(document.id, tuple(turns))
        for number, turn in enumerate(turns):
            _check_role(chat, number, ("user", "assistant"))
            self._turn(runs, turn, is_labelled=document.text_format == "qwen_vl")
        if turns[-1].role == "user":
            runs.text(TURN_START, learn=True)
            runs.text("assistant", learn=False)
            runs.text("\n", learn=False)
        return runs.runs

    def _turn(self, runs: _Runs, turn: Turn, *, is_labelled: bool = False) -> None:
        answer = turn.role == "assistant"
        runs.text(TURN_START, learn=True)
        runs.text(turn.role, learn=False)
        runs.text("\n", learn=False)
        for part in turn.parts if is_labelled else _label_pictures(turn.parts, runs.pictures):
            if isinstance(part, str):
                runs.text(part, learn=answer)
            else:
                runs.picture()
        runs.text(TURN_END, learn=True)
        runs.text("\n", learn=True)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.id_of(TURN_END), tokenizer.eos_id})


def _check_role(document: Document, number: int, roles: tuple[str, ...]) -> None:
    """Raises:
    UserError: the turn's role is not one of `roles`, not the one that follows, or an answer shows a picture.
    """
    turn, where = document.turns[number], f"document {document.id!r}, turn {number}"
    before = document.turns[number - 1].role if number else None
    if turn.role not in roles:
        raise UserError(f"{where}: this template has the roles {list(roles)}, got {turn.role!r}")
    if (turn.role == "assistant") != (before == "user"):
        raise UserError(f"{where}: user and assistant speak by turns, the user first; {turn.role!r} follows {before!r}")
    if turn.role == "assistant" and any(not isinstance(part, str) for part in turn.parts):
        raise UserError(f"{where}: an answer holds a picture, and the model writes text only")


def _around(parts: tuple, before: str, after: str) -> list:
    """The template of a question goes around its text, and pictures that stand before the text stay before it."""
    pieces = list(parts)
    first = next((at for at, part in enumerate(pieces) if isinstance(part, str)), len(pieces))
    pieces[first:] = [part for part in (before, *pieces[first:], after) if part != ""]
    return _joined(pieces)


def _label_pictures(parts: tuple, preceding: int) -> list:
    """`Picture k: ` before every picture and a newline behind it, unless its text has it already.

    Args:
        preceding: pictures in the turns before.
    """
    pieces: list = []
    ends = 0  # 1 after a picture that was named here
    for part in parts:
        if isinstance(part, str):
            pieces.append(part if part.startswith("\n") else "\n" * ends + part)
            ends = 0
            continue
        preceding += 1
        if pieces and isinstance(pieces[-1], str) and LABEL.search(pieces[-1]):
            pieces.append(part)
            ends = 0
            continue
        pieces += ["\n" * ends + f"Picture {preceding}: ", part]
        ends = 1
    return _joined([*pieces, "\n"] if ends else pieces)


def _joined(parts: list) -> list:
    """Neighbouring texts as one, so that they are tokenised together."""
    pieces: list = []
    for part in parts:
        if isinstance(part, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += part
        elif part != "":
            pieces.append(part)
    return pieces
