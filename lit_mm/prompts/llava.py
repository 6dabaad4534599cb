"""LLaVA's chats, rendered with one of the templates."""

from __future__ import annotations

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import Run
from lit_mm.prompts.rendered import Part, Text, to_runs, to_text
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.vicuna import TEMPLATES

PLACEHOLDER = "<image>"


class ChatPrompt:
    """A chat in one of LLaVA's templates; each answer and the marker that ends it are learnt.

    - Pictures of a user turn go to its front, each with a newline behind it, and the text is stripped.
    - A leading system turn replaces the template's system text; VILA's FLAN-style data gives an empty one.

    Args:
        template: a name of `lit_mm.prompts.vicuna.TEMPLATES`. The tokenizer must have its markers as tokens.
    Raises:
        UserError: an unknown template.
    Source: github.com/haotian-liu/LLaVA c121f04, llava/train/train.py, `preprocess_multimodal` and `preprocess_v1`.
        Its rule counts tokens: of each round, the `len(tokens(text up to the answer, space included)) - 2` first ones
        are masked, where 2 stands for a BOS and the token of that space. In the first round of a vocabulary with a BOS
        this gives our labels. In later rounds, or without a BOS, the counts are off by one or more; that code then
        shifts the labels or masks the whole sample, and is not followed.
    """

    def __init__(self, template: str = "vicuna_v1") -> None:
        if template not in TEMPLATES:
            raise UserError(f"ChatPrompt: `template` is one of {sorted(TEMPLATES)}, got {template!r}")
        self.template = TEMPLATES[template]

    def parts(self, document: Document) -> list[Part]:
        """The rendered document.

        Raises:
            UserError: turns that do not alternate, an answer with a picture, or a text that contains the end marker.
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
                    f"{where}: user and assistant speak by turns, starting with the user; turn {number} is the "
                    f"{expected}'s, got {turn.role!r}" + ("" if turn.role != "page" else ". Pages are `Interleaved`'s")
                )
            if (end := template.end.strip()) in turn.text:
                raise UserError(
                    f"{where}, turn {number}: its text contains the marker {end!r}, which only the template may write; "
                    "clean the data"
                )
            num_pictures = sum(not isinstance(part, str) for part in turn.parts)
            if turn.role == "assistant":
                if num_pictures:
                    raise UserError(f"{where}, turn {number}: an answer holds a picture, the model writes text only")
                parts.append(Text(space + turn.text + template.end, learn=True, lead=len(space)))
                continue
            parts.append(Text((template.again if number else "") + template.user))
            question = turn.text.strip() if num_pictures else turn.text
            for left in range(num_pictures, 0, -1):
                parts += [pictures, Text("\n" if question or left > 1 else "")]
                pictures += 1
            parts.append(Text(question + opening))
        return parts

    def text(self, document: Document) -> tuple[str, list[tuple[int, int]]]:
        """The prompt with `<image>` for each picture, and the learnt [start, end) spans of its characters."""
        return to_text(self.parts(document), PLACEHOLDER)

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: as `parts`, or the tokenizer lacks the template's end marker.
        """
        end = self.template.end.strip()
        tokenizer.id_of(end)
        return to_runs(self.parts(document), tokenizer, end)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.id_of(self.template.end.strip()), tokenizer.eos_id})
