"""The prompts of CogVLM and CogAgent: four templates of one line each."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.vocabularies import encode_inside

PLACEHOLDER = "<EOI>"


@dataclass(frozen=True, slots=True)
class Template:
    """The texts around a question.

    Attributes:
        before, after: texts before and behind the question.
        between: text before every round except the first; None if a document has one round.
    """

    before: str
    after: str
    between: str | None = None


# Source: github.com/THUDM/CogVLM f7283b2, utils/utils/language.py
TEMPLATES = {
    "base": Template("", ""),
    "vqa": Template("Question: ", " Short answer:"),
    "chat_old": Template("Question: ", " Answer:", between="\n"),
    "chat": Template(" [INST] ", " [/INST] ", between=""),
}


class CogVLMPrompt:
    """Writes BOS, the pictures of a turn, its question in a template, the answer, and eos behind the last answer.

    - The answers are learnt, and so is the eos. Training of the release has one round per document; here the answers of
      earlier rounds are learnt, too, and no eos follows them, as in the release's history of a chat.
    - A turn's pictures stand before its text. The texts of prompt and answer are tokenised separately, as in the
      release; an answer has a space before it.
    - A page (ours, for captions) has its pictures, then its text, which is learnt with the eos.

    Args:
        template: "base", "vqa" (`Question: ... Short answer:`), "chat_old" (`Question: ... Answer:`) or "chat"
            (` [INST] ... [/INST] `). "base" and "vqa" have one round.
    Raises:
        UserError: the template is unknown.
    Source: github.com/THUDM/CogVLM f7283b2, utils/utils/language.py, `llama2_text_processor`.
    """

    def __init__(self, template: str = "chat_old") -> None:
        if template not in TEMPLATES:
            raise UserError(f"CogVLMPrompt: `template` is one of {sorted(TEMPLATES)}, got {template!r}")
        self.name, self.template = template, TEMPLATES[template]

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: turns do not alternate, an answer holds a picture, a text has the end marker, or the template has
                no place for a second round or a system turn.
        """
        self._check(document, tokenizer)
        runs: list[Run] = [] if tokenizer.bos_id is None else [TextRun([tokenizer.bos_id], [False])]
        pictures = 0

        def write(ids: list[int], *, learn: bool) -> None:
            if ids:
                runs.append(TextRun(ids, [learn] * len(ids)))

        for number, turn in enumerate(document.turns):
            for part in turn.parts:
                if not isinstance(part, str):
                    runs.append(PictureRun(pictures))
                    pictures += 1
            if turn.role == "user":
                text = self.question(turn.text, first=number == 0)
                follows = number > 0 and not any(not isinstance(part, str) for part in turn.parts)
                write(encode_inside(tokenizer.encode, text) if follows else tokenizer.encode(text), learn=False)
            elif turn.text:
                write(encode_inside(tokenizer.encode, f" {turn.text}"), learn=True)
        last = document.turns[-1]
        if last.role != "user" and last.text:
            write([tokenizer.eos_id], learn=True)
        return runs

    def question(self, text: str, *, first: bool = True) -> str:
        """Render a question, with the text before it that separates it from the round before unless it is the first."""
        between = "" if first else self.template.between
        return f"{between}{self.template.before}{text}{self.template.after}"

    def text(self, document: Document) -> str:
        """Return the prompt as text, with `<EOI>` for each picture, without BOS and eos."""
        pieces: list[str] = []
        for number, turn in enumerate(document.turns):
            pieces += [PLACEHOLDER for part in turn.parts if not isinstance(part, str)]
            pieces.append(self.question(turn.text, first=number == 0) if turn.role == "user" else self._answer(turn))
        return "".join(pieces)

    def _answer(self, turn: Turn) -> str:
        space = "" if self.template.after.endswith(" ") or turn.role == "page" else " "
        return space + turn.text

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.eos_id})

    def _check(self, document: Document, tokenizer: Tokenizer) -> None:
        where = f"document {document.id!r}"
        if not document.turns:
            raise UserError(f"{where} has no turns")
        if document.turns[0].role == "page":
            if len(document.turns) > 1:
                raise UserError(
                    f"{where}: in CogVLM's templates a page is the only turn, got {len(document.turns)} turns"
                )
            kinds = [isinstance(part, str) for part in document.turns[0].parts]
            if kinds != sorted(kinds):
                raise UserError(
                    f"{where}: a picture follows text, but CogVLM's page has pictures first, then one caption"
                )
        for number, turn in enumerate(document.turns):
            expected = "page" if document.turns[0].role == "page" else ("user", "assistant")[number % 2]
            if turn.role != expected:
                raise UserError(
                    f"{where}: user and assistant must alternate, starting with the user; turn {number} should be the "
                    f"{expected}'s, got {turn.role!r}"
                )
            if turn.role == "assistant" and any(not isinstance(part, str) for part in turn.parts):
                raise UserError(f"{where}, turn {number}: an answer holds a picture, the model writes text only")
            if tokenizer.eos in turn.text:
                raise UserError(
                    f"{where}, turn {number}: its text contains the marker {tokenizer.eos!r}, which only the template "
                    "may write; clean the data"
                )
        if self.template.between is None and len(document.turns) > 2:
            raise UserError(
                f"{where} has {len(document.turns)} turns, the template {self.name!r} has one round. Use `chat_old` or "
                "`chat`, or split the document"
            )
