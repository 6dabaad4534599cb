"""InternLM-XComposer2's chat template, its picture placeholders and its label rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count, groupby

from lit_mm.documents.document import Document, Turn
from lit_mm.documents.turns import PLACEHOLDER
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PICTURE, PictureRun, Run, TextRun
from lit_mm.prompts.rendered import encode_rounds, template_ids
from lit_mm.prompts.tokenizer import Tokenizer

Piece = str | int  # text, or the number of a picture


def label_mask(ids: Sequence[int], *, turn_end_id: int, eos_id: int, bridge: int = 6) -> list[bool]:
    """Return a flag per position of a conversation: the answers, each with its end of turn, carry loss.

    Turn ends are counted from 0: an even one closes a user turn, an odd one an answer. Three kinds of positions are not
    learnt: those from the end of the previous answer to `bridge` tokens after the end of a user turn; those after the
    first eos; and pictures. So only the newline after the last answer is learnt. A sequence that was cut inside a
    question is not learnt after the newline that follows its last answer.

    Example, with turn end 92542, newline 364, eos 2; the bridge is end, newline, start, "ass", "istant", newline:
        [1, 92543, 100, 92542, 364, 92543, 525, 11353, 364, 300, 92542, 364, 2] learns the last four.

    Args:
        ids: token ids, `PICTURE` at the positions of pictures.
        turn_end_id, eos_id: ids of the two markers. Padding has the id of eos.
        bridge: number of tokens from the user's turn end (included) to the answer; 6 for InternLM2.

    Source: `mask_human_targets` of the released XComposer2 model file.
    """
    learn = [token != PICTURE for token in ids]

    def hide(start: int, stop: int) -> None:
        stop = min(stop, len(learn))
        learn[start:stop] = [False] * (stop - start)

    ends = 0
    after_answer = 0
    for position, token in enumerate(ids):
        if token == turn_end_id:
            if ends % 2 == 0:
                hide(after_answer, position + bridge)
            else:
                after_answer = position + 1
            ends += 1
        elif token == eos_id:
            hide(position + 1, len(learn))
            return learn
    if ends % 2 == 0:
        hide(after_answer + 1, len(learn))
    return learn


@dataclass(frozen=True, slots=True)
class XComposer2Prompt:
    """Writes `<start>role\\n ... <end>\\n` per turn, then eos. BOS precedes the first text, not a leading picture.

    Text between pictures is tokenised piece by piece; no token marks the start or end of a picture.

    - Roles user and assistant must alternate and start with the user; `label_mask` gives their labels.
    - Role system is never learnt, and `label_mask` does not count it. Training text of the released recipe has none.
    - Role page (ours, for captions and interleaved pages; the released code has no such role) has the bare text, learnt
      from start to end, with eos at the end of the document. A page with only pictures adds no token.

    Args:
        turn_start, turn_end: markers as text, one token each.
    Source: arXiv:2401.16420, released finetune/data_mix.py and the model's `interleav_wrap`. Ids are not fixed as
        there: the length of the bridge from question to answer (six tokens for InternLM2) is measured with the
        tokenizer.
    """

    turn_start: str = "[UNUSED_TOKEN_146]"
    turn_end: str = "[UNUSED_TOKEN_145]"

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`. An answer that would share a token with the newline before it is tokenised apart."""
        if tokenizer.bos_id is None:
            raise UserError(
                "XComposer2Prompt needs a tokenizer with a beginning-of-sequence token, and this one names none. "
                "Choose another, or write `bos_token` into its tokenizer_config.json"
            )
        document = document.without_line_ends()
        bridge = self._bridge(tokenizer)
        opening, closing = f"{self.turn_start}assistant\n", f"{self.turn_end}\n"
        runs: list[Run] = []
        begun = False
        for kind, pieces in self._blocks(document, tokenizer):
            encoded: list[list[int]] = []
            apart: list[int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    encoded.append([PICTURE])
                    apart.append(0)
                else:
                    tokens, number = encode_rounds(piece, tokenizer, opening, closing)
                    encoded.append(tokens if begun else [tokenizer.bos_id, *tokens])
                    apart.append(number)
                    begun = True
            ids = list(chain.from_iterable(encoded))
            if kind == "page":
                learn = [token not in (PICTURE, tokenizer.bos_id) for token in ids]
            elif kind == "system":
                learn = [False] * len(ids)
            else:
                turn_end_id = tokenizer.id_of(self.turn_end)
                learn = label_mask(ids, turn_end_id=turn_end_id, eos_id=tokenizer.eos_id, bridge=bridge)
            start = 0
            for piece, tokens, number in zip(pieces, encoded, apart, strict=True):
                stop = start + len(tokens)
                runs.append(PictureRun(piece) if isinstance(piece, int) else TextRun(tokens, learn[start:stop], number))
                start = stop
        if not begun:  # after a page of pictures alone the model writes its caption
            runs.append(TextRun([tokenizer.bos_id], [False]))
        return runs

    def text(self, document: Document, tokenizer: Tokenizer) -> str:
        """Return the prompt as text, with `<ImageHere>` for each picture, without BOS and with eos."""
        pieces = chain.from_iterable(pieces for _, pieces in self._blocks(document, tokenizer))
        return "".join(PLACEHOLDER if isinstance(piece, int) else piece for piece in pieces)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.id_of(self.turn_end), tokenizer.eos_id})

    def _bridge(self, tokenizer: Tokenizer) -> int:
        """Count the tokens from the end of a user turn to the first token of the answer."""
        text = f"{self.turn_end}\n{self.turn_start}assistant\n"
        ids = template_ids(text, tokenizer)
        markers = [tokenizer.id_of(self.turn_end), tokenizer.id_of(self.turn_start)]
        if ids[0] != markers[0] or markers[1] not in ids:
            raise UserError(
                f"the tokenizer breaks the turn markers {self.turn_end!r} (id {markers[0]}) and {self.turn_start!r} "
                f"(id {markers[1]}) into pieces: {text!r} became {list(ids)}; make them added tokens of the tokenizer"
            )
        return len(ids)

    def _blocks(self, document: Document, tokenizer: Tokenizer) -> list[tuple[str, list[Piece]]]:
        """Group neighbouring turns with the same label rule: ("page" | "system" | "chat", pieces)."""
        self._check(document, tokenizer)
        numbers = count()
        blocks: list[tuple[str, list[Piece]]] = []
        for kind, turns in groupby(document.turns, key=_kind):
            pieces: list[Piece] = []
            for turn in turns:
                turn_parts = turn.parts
                if kind != "page":
                    turn_parts = (f"{self.turn_start}{turn.role}\n", *turn_parts, f"{self.turn_end}\n")
                for part in turn_parts:
                    _append(pieces, part if isinstance(part, str) else next(numbers))
            blocks.append((kind, pieces))
        pieces = blocks[-1][1]
        if document.turns[-1].role == "user":
            _append(pieces, f"{self.turn_start}assistant\n")
        elif any(isinstance(piece, str) for piece in pieces):  # not after a page of pictures alone: its text may follow
            _append(pieces, tokenizer.eos)
        return blocks

    def _check(self, document: Document, tokenizer: Tokenizer) -> None:
        """Refuse documents that would shift the count of turn ends, and with it the labels."""
        where = f"document {document.id!r}"
        if not document.turns:
            raise UserError(f"{where} has no turns")
        for number, turn in enumerate(document.turns):
            for marker in (self.turn_start, self.turn_end, tokenizer.bos, tokenizer.eos):
                if marker and marker in turn.text:
                    raise UserError(
                        f"{where}, turn {number} ({turn.role}): its text contains the marker {marker!r}, which only "
                        "the template may write; clean the data"
                    )
            before = document.turns[number - 1].role if number else None
            if turn.role == "assistant" and before != "user":
                raise UserError(
                    f"{where}, turn {number}: the assistant answers a user turn, but follows {before!r}. Join turns of "
                    "one speaker, or leave the sample out"
                )
            if before == "user" and turn.role != "assistant":
                raise UserError(
                    f"{where}, turn {number}: a user turn is followed by its answer, got {turn.role!r}. Join turns of "
                    "one speaker, or leave the sample out"
                )
        if document.turns[-1].role == "system":
            raise UserError(f"{where} ends with a system turn. Add a user turn")


def _kind(turn: Turn) -> str:
    return turn.role if turn.role in ("page", "system") else "chat"


def _append(pieces: list[Piece], part: Piece) -> None:
    """Add a part; a text joins the text before it, so that the two are tokenised together."""
    if isinstance(part, str) and pieces and isinstance(pieces[-1], str):
        pieces[-1] += part
    elif part != "":
        pieces.append(part)
