"""The prompts of Qwen-VL: plain text for its pre-training stages and for Monkey, and ChatML for its chat model."""

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
    """The markers around the visual tokens of a picture. The release has one token each, `<img>` and `</img>`.

    The release fills the 256 slots between them with the bytes of the file's path, reads the path back from the ids and
    overwrites the slots' embeddings. Here pixels travel separately, and the slots hold only visual tokens.
    """

    image_start: str
    image_end: str

    def check(self, document: Document, tokenizer: Tokenizer, *markers: str) -> None:
        """Check the markers of a template.

        Raises:
            UserError: the tokenizer breaks a marker up, or a text contains a marker, which only the template may write.
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
    """Collects runs and counts pictures. Each piece of text is tokenised separately, as in the release."""

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
    """Writes texts without roles: pictures, question, answer, end-of-text. Qwen-VL's first two stages use it.

    - A user turn is a question, which is not learnt. The answer and the end-of-text after it are learnt. Each turn is
      tokenised separately. A further round follows the end-of-text of the round before (the release has one round per
      document).
    - A page is learnt from start to end, except its pictures; its end-of-text is learnt, too.

    Args:
        question, answer: templates of a turn's text. The data of the release already contain their templates: VQA
            `{question} Answer:` and ` {answer}` (Monkey: ` {question} Answer: `), captions `Describe the image in
            English:`. The defaults leave texts unchanged.
        image_start, image_end: markers around the visual tokens of a picture; "" for none.
    Raises:
        UserError: a template does not hold its placeholder once.
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
                raise UserError(f"QwenPlain: `{name}` must contain {{{name}}} once, got {template!r}")
        self.question, self.answer = question.split("{question}"), answer.split("{answer}")
        self.tags = _Tags(image_start, image_end)

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: turns do not alternate, there is a system turn, an answer has a picture, or a text has a marker.
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
                runs.text(tokenizer.eos, learn=True)  # not after pictures alone, as the model is to write their text
        return runs.runs

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.eos_id})


class QwenChat:
    """Writes ChatML for Qwen-VL-Chat: `<|im_start|>role\\n...<|im_end|>\\n` per turn, after a system turn.

    - The answers are learnt and, in all turns, `<|im_start|>`, `<|im_end|>` and the newline behind it. Roles and the
      newline behind them are not learnt. No other token ends a conversation.
    - A picture becomes `Picture k: <img>...</img>` and a newline, with k counted from 1 through the conversation. Text
      that ends in `Picture k: ` right before a picture does not change. Nor does a document in Qwen-VL's own format
      (`Document.text_format`), whose text already holds labels and line ends.
    - A leading system turn replaces the template's. A leading answer, which has no question, is left out.

    Args:
        system: text of the system turn; "" means no system turn.
        image_start, image_end: markers around the visual tokens of a picture; "" for none.
    Source: finetune.py, `preprocess`, and tokenization_qwen.py of the release. `from_list_format` leaves out the space
        behind the colon; we follow the documentation and the chat, which have it.
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
            UserError: turns do not alternate, there is a page, an answer has a picture, or a text has a marker.
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
    """Check the role and the parts of a turn.

    Raises:
        UserError: the role is not one of `roles`, turns do not alternate, or an answer has a picture.
    """
    turn, where = document.turns[number], f"document {document.id!r}, turn {number}"
    before = document.turns[number - 1].role if number else None
    if turn.role not in roles:
        raise UserError(f"{where}: this template has the roles {list(roles)}, got {turn.role!r}")
    if (turn.role == "assistant") != (before == "user"):
        raise UserError(
            f"{where}: user and assistant must alternate, starting with the user; {turn.role!r} follows {before!r}"
        )
    if turn.role == "assistant" and any(not isinstance(part, str) for part in turn.parts):
        raise UserError(f"{where}: an answer contains a picture, but the model writes only text")


def _around(parts: tuple, before: str, after: str) -> list:
    """Put the template of a question around its text; pictures before the text stay before the template."""
    pieces = list(parts)
    first = next((at for at, part in enumerate(pieces) if isinstance(part, str)), len(pieces))
    pieces[first:] = [part for part in (before, *pieces[first:], after) if part != ""]
    return _joined(pieces)


def _label_pictures(parts: tuple, preceding: int) -> list:
    """Put `Picture k: ` before every picture and a newline behind it, unless the text already has the label.

    Args:
        parts: parts of a turn.
        preceding: number of pictures in earlier turns.
    """
    pieces: list = []
    ends = 0  # 1 after a picture with a new label
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
    """Join neighbouring texts, so that they are tokenised together."""
    pieces: list = []
    for part in parts:
        if isinstance(part, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += part
        elif part != "":
            pieces.append(part)
    return pieces
