"""InternLM-XComposer 1.0's chat template and its label rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PICTURE, PictureRun, Run, TextRun
from lit_mm.prompts.rendered import encode_rounds, template_ids
from lit_mm.prompts.tokenizer import Tokenizer

PLACEHOLDER = "<ImageHere>"
USER, BOT = " <|User|>:", " <|Bot|>:"  # text, of several tokens each

Piece = str | int  # text, or the number of a picture


def label_mask_v1(
    ids: Sequence[int], *, end_of_human_id: int, end_of_assistant_id: int, eos_id: int, bridge: int = 6
) -> list[bool]:
    """Return a flag per position: the answers, each with its end-of-assistant token, and the first eos carry loss.

    Each speaker has a marker, so nothing is counted, unlike in XComposer2's rule. Three kinds of positions are not
    learnt: those from the start, or from the end of the last answer, to `bridge` tokens after an end-of-human
    (included in `bridge`); those after the first eos; and pictures. A sequence without eos whose last marker ends an
    answer was cut inside the next question and is not learnt after that answer.

    Args:
        ids: token ids, `PICTURE` at the positions of pictures.
        end_of_human_id, end_of_assistant_id, eos_id: ids of the three markers. Padding has the id of eos.
        bridge: number of tokens from the end-of-human (included) to the answer; 6 for InternLM's ` <|Bot|>:`.

    Source: `mask_human_targets` of the released XComposer 1.0 model file.
    """
    learn = [token != PICTURE for token in ids]

    def hide(start: int, stop: int) -> None:
        stop = min(stop, len(learn))
        learn[start:stop] = [False] * (stop - start)

    hidden_from = 0
    answer_end, question_end = 0, 0
    for position, token in enumerate(ids):
        if token == end_of_human_id:
            hide(hidden_from, position + bridge)
            hidden_from, question_end = position + bridge, position
        elif token == end_of_assistant_id:
            hidden_from, answer_end = position + 1, position
        elif token == eos_id:
            hide(position + 1, len(learn))
            return learn
    if answer_end > question_end:
        hide(answer_end + 1, len(learn))
    return learn


@dataclass(frozen=True, slots=True)
class XComposerPrompt:
    """Writes ` <|User|>:` question, newline, end of human, ` <|Bot|>:` answer, end of assistant a round, then ` </s>`.

    - Roles user and assistant alternate and start with the user. `label_mask_v1` gives the labels, so the space and the
      eos after the last answer are learnt, and nothing is learnt after an earlier answer.
    - Role system is the text before the first user marker, if there is any. The release trains without it and chats
      with the text of its `meta_instruction`.
    - Role page (ours, for captions and interleaved pages; the released code has no such role) has BOS, text and
      pictures in their order, and eos; the text is learnt from start to end. A page is a separate document. Only a page
      of pictures may precede a conversation; its pictures then stand right after the first user marker, where the
      released loader puts its single picture.

    BOS comes first, then text and pictures in their order; text between pictures is tokenised piece by piece.

    Args:
        end_of_human, end_of_assistant: markers as text, one token each.
    Source: `align_text`, `wrap_text` and `mask_human_targets` of the release's modeling_InternLM_XComposer.py. Its
        training text has one more space around questions and answers than its prompts; we use the form of the prompts.
        The length of the bridge from question to answer (six tokens for InternLM) is measured with the tokenizer.
    """

    end_of_human: str = "<TOKENS_UNUSED_0>"
    end_of_assistant: str = "<TOKENS_UNUSED_1>"

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`."""
        if tokenizer.bos_id is None:
            raise UserError(
                "XComposerPrompt needs a tokenizer with a beginning-of-sequence token, and this one names none. Choose "
                "another, or write `bos_token` into its tokenizer_config.json"
            )
        document = document.without_line_ends()
        bridge = self._bridge(tokenizer)
        pieces = self._pieces(document, tokenizer)
        opening = self.end_of_human + BOT
        encoded: list[list[int]] = []
        apart: list[int] = []
        for piece in pieces:
            tokens, number = (
                ([PICTURE], 0)
                if isinstance(piece, int)
                else encode_rounds(piece, tokenizer, opening, self.end_of_assistant)
            )
            encoded.append(tokens)
            apart.append(number)
        ids = [tokenizer.bos_id, *chain.from_iterable(encoded)]
        if document.turns[-1].role == "page":
            learn = [token not in (PICTURE, tokenizer.bos_id) for token in ids]
        else:
            learn = label_mask_v1(
                ids,
                end_of_human_id=tokenizer.id_of(self.end_of_human),
                end_of_assistant_id=tokenizer.id_of(self.end_of_assistant),
                eos_id=tokenizer.eos_id,
                bridge=bridge,
            )
        runs: list[Run] = [TextRun([tokenizer.bos_id], [False])]
        start = 1
        for piece, tokens, number in zip(pieces, encoded, apart, strict=True):
            stop = start + len(tokens)
            runs.append(PictureRun(piece) if isinstance(piece, int) else TextRun(tokens, learn[start:stop], number))
            start = stop
        return runs

    def text(self, document: Document, tokenizer: Tokenizer) -> str:
        """Return the prompt as text, with `<ImageHere>` for each picture, without BOS and with eos."""
        return "".join(PLACEHOLDER if isinstance(p, int) else p for p in self._pieces(document, tokenizer))

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.id_of(self.end_of_human), tokenizer.id_of(self.end_of_assistant), tokenizer.eos_id})

    def _bridge(self, tokenizer: Tokenizer) -> int:
        """Count the tokens from the end of a question to the first token of the answer."""
        ids = template_ids(self.end_of_human + BOT, tokenizer)
        if ids[0] != (marker := tokenizer.id_of(self.end_of_human)):
            raise UserError(
                f"the tokenizer breaks the marker {self.end_of_human!r} (id {marker}) into pieces: "
                f"{self.end_of_human + BOT!r} became {list(ids)}; make it an added token of the tokenizer"
            )
        return len(ids)

    def _pieces(self, document: Document, tokenizer: Tokenizer) -> list[Piece]:
        """Return text and numbers of pictures in order; neighbouring texts are joined and tokenised together."""
        self._check(document, tokenizer)
        numbers = count()
        pieces: list[Piece] = []
        waiting: list[Piece] = []  # pictures in front of a conversation
        for turn in document.turns:
            turn_parts = [part if isinstance(part, str) else next(numbers) for part in turn.parts]
            if turn.role == "page" and document.turns[-1].role != "page":
                waiting += turn_parts
                continue
            if turn.role == "user":
                turn_parts = [USER, *waiting, *turn_parts, f"\n{self.end_of_human}{BOT}"]
                waiting = []
            elif turn.role == "assistant":
                turn_parts = [*turn_parts, self.end_of_assistant]
            for part in turn_parts:
                if isinstance(part, str) and pieces and isinstance(pieces[-1], str):
                    pieces[-1] += part
                elif part != "":
                    pieces.append(part)
        role = document.turns[-1].role
        if role == "assistant":
            pieces[-1] += f" {tokenizer.eos}"
        elif role == "page" and any(
            isinstance(piece, str) for piece in pieces
        ):  # of pictures alone: a caption may follow
            pieces.append(tokenizer.eos)
        return pieces

    def _check(self, document: Document, tokenizer: Tokenizer) -> None:
        """Refuse documents that the template cannot express, and markers in a text, which would shift the labels."""
        where = f"document {document.id!r}"
        turns = list(document.turns)
        if not turns:
            raise UserError(f"{where} has no turns")
        for number, turn in enumerate(turns):
            for marker in (self.end_of_human, self.end_of_assistant, tokenizer.bos, tokenizer.eos):
                if marker and marker in turn.text:
                    raise UserError(
                        f"{where}, turn {number} ({turn.role}): its text contains the marker {marker!r}, which only "
                        "the template may write; clean the data"
                    )
        if all(turn.role == "page" for turn in turns):
            return
        while turns and turns[0].role == "page" and all(not isinstance(part, str) for part in turns[0].parts):
            turns.pop(0)
        roles = [turn.role for turn in turns]
        if "page" in roles:
            raise UserError(f"{where}: a page with text and a conversation must be two documents here, got {roles}")
        spoken = roles[1:] if roles[:1] == ["system"] else roles
        if not spoken or any(role != ("user", "assistant")[n % 2] for n, role in enumerate(spoken)):
            raise UserError(
                f"{where}: user and assistant must alternate, starting with the user, after at most one system "
                f"turn; got {roles}"
            )
