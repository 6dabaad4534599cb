"""The prompt of LLaVA's chats, with a choice of templates."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mm.documents.document import Document, Picture
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import Run
from lit_mm.prompts.rendered import Part, Text, to_runs, to_text
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.vicuna import TEMPLATES, chat_template

PLACEHOLDER = "<image>"


class ChatPrompt:
    """Writes a chat in one of LLaVA's templates; each answer and its end marker are learnt.

    - A single picture of a user turn goes to its front with a newline behind it, and the text is stripped.
    - Several pictures of a turn keep their places in the text, which does not change: `Image A: <image> or <image>?`.
      In a document that is not in LLaVA's own format, each picture in front of the question gets a line.
    - A leading system turn replaces the template's system text; in VILA's FLAN-style data it is empty.

    Args:
        template: name in `lit_mm.prompts.vicuna.TEMPLATES`. The tokenizer must have the template's markers as tokens.
        keep_leading: True leaves a turn in LLaVA's own format (`Document.text_format`) unchanged if its single picture
            already stands in front, with or without a newline behind it, as LLaVA-NeXT does.
        bos: False leaves out the tokenizer's BOS, as for Nous-Hermes-2-Yi-34B, whose tokenizer writes none.
    Raises:
        UserError: the template is unknown.
    Source: github.com/haotian-liu/LLaVA c121f04, llava/train/train.py, `preprocess_multimodal` and `preprocess_v1`.
        Its rule counts tokens: in each round it masks the first `len(tokens(text up to the answer, space included)) -
        2` tokens, where 2 stands for a BOS and the token of that space. In the first round of a vocabulary with a BOS
        this gives our labels. In later rounds, or without a BOS, the counts are off by one or more, and that code
        shifts the labels or masks the whole sample; we do not follow it there. That code also writes one placeholder
        for several pictures of a turn; our places follow VILA (arXiv:2312.07533) and LLaVA-NeXT's code.
    """

    def __init__(self, template: str = "vicuna_v1", keep_leading: bool = False, bos: bool = True) -> None:
        if template not in TEMPLATES:
            raise UserError(f"ChatPrompt: `template` is one of {sorted(TEMPLATES)}, got {template!r}")
        self.template, self.keep_leading, self.bos = TEMPLATES[template], keep_leading, bos

    def parts(self, document: Document) -> list[Part]:
        """Render a document.

        Raises:
            UserError: turns do not alternate, an answer has a picture, or a text contains the end marker.
        """
        template, where = self.template, f"document {document.id!r}"
        turns, pictures = list(document.turns), 0
        system = template.system
        if turns and turns[0].role == "system" and all(isinstance(part, str) for part in turns[0].parts):
            system = turns.pop(0).text
        if not turns:
            raise UserError(f"{where} has no user turn")
        parts: list[Part] = [Text(template.opening.format(system=system))]
        opening = template.assistant.rstrip(" ")  # generation starts here, so the space belongs to the answer
        space = template.assistant[len(opening) :]
        for number, turn in enumerate(turns):
            expected = ("user", "assistant")[number % 2]
            if turn.role != expected:
                raise UserError(
                    f"{where}: user and assistant must alternate, starting with the user; turn {number} should be "
                    f"the {expected}'s, got {turn.role!r}"
                    + ("" if turn.role != "page" else ". Use `Interleaved` for pages")
                )
            if end := next((token for token in self._stop_tokens if token in turn.text), None):
                raise UserError(
                    f"{where}, turn {number}: its text contains the marker {end!r}, which only the template may write; "
                    "clean the data"
                )
            num_pictures = sum(not isinstance(part, str) for part in turn.parts)
            if turn.role == "assistant":
                if num_pictures:
                    raise UserError(
                        f"{where}, turn {number}: an answer contains a picture, but the model writes only text"
                    )
                end = template.end_of_chat if number == len(turns) - 1 else template.end
                parts.append(Text(space + turn.text + end, learn=True, lead=len(space)))
                continue
            parts.append(Text((template.again if number else "") + template.user))
            for part in self._question(turn.parts, is_rendered=document.text_format == "llava"):
                if isinstance(part, str):
                    parts.append(Text(part))
                else:
                    parts.append(pictures)
                    pictures += 1
            parts.append(Text(opening))
        return parts

    def _question(self, parts: Sequence[str | Picture], *, is_rendered: bool) -> list[str | Picture]:
        """Arrange the parts of a user turn, with its pictures in the places that the model expects.

        Args:
            parts: parts of the turn.
            is_rendered: True if the text already holds the separators around its pictures.
        """
        pictures = [part for part in parts if not isinstance(part, str)]
        question = "".join(part for part in parts if isinstance(part, str))
        leads = not any(isinstance(part, str) for part in parts[: len(pictures)])
        if len(pictures) == 1 and not (leads and is_rendered and self.keep_leading):
            return [pictures[0], f"\n{question.strip()}".rstrip("\n")]
        if len(pictures) > 1 and leads and not is_rendered:
            lines: list[str | Picture] = [part for picture in pictures for part in ("\n", picture)]
            return [*lines[1:], question if question.startswith("\n") or not question else f"\n{question}"]
        return list(parts)

    def text(self, document: Document) -> tuple[str, list[tuple[int, int]]]:
        """Return the prompt with `<image>` for each picture, and the learnt [start, end) spans of its characters."""
        return to_text(self.parts(document), PLACEHOLDER)

    def jinja(self, bos: str = "") -> str:
        """Return the template as transformers reads it, see `lit_mm.prompts.vicuna.chat_template`."""
        return chat_template(self.template, PLACEHOLDER, bos if self.bos else "")

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: see `parts`, or the tokenizer lacks an end marker of the template.
        """
        for token in self._stop_tokens:
            tokenizer.id_of(token)
        return to_runs(self.parts(document), tokenizer, self.template.stop_token, bos=self.bos)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({*map(tokenizer.id_of, self._stop_tokens), tokenizer.eos_id})

    @property
    def _stop_tokens(self) -> tuple[str, ...]:
        """The special tokens that end an answer."""
        return tuple(filter(None, (self.template.stop_token, self.template.last)))
