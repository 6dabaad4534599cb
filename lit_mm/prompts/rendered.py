"""Conversion of rendered text to runs. Exactly the tokens that generation produces after a prompt are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.vocabularies import encode_inside


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of rendered text. Neighbouring pieces are tokenised together.

    Attributes:
        text: text from the template, with special tokens.
        learn: True if the prediction of the text carries loss.
        lead: number of characters at the front of a learnt text that belong to the template (the space between
            `ASSISTANT:` and an answer). Generation has to produce them, so that they are learnt with the answer.
    """

    text: str
    learn: bool = False
    lead: int = 0


Part = Text | int  # a text, or the number of a picture


@lru_cache(maxsize=64)
def template_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokenise a text of the template. The ids are cached, because the text is the same in every document."""
    return tuple(tokenizer.encode(text))


def encode_seam(prompt: str, answer: str, tokenizer: Tokenizer, before: str = "") -> tuple[list[int], list[int], bool]:
    """Tokenise a prompt and the answer that follows it, such that the prompt's ids do not depend on the answer.

    The two are tokenised as one text if the ids of the prompt alone are a prefix of the result. An answer whose first
    characters merge with the end of the prompt is tokenised apart: `assistant\\n` + `\\nfoo` has one token `\\n\\n` in
    many vocabularies, but generation starts behind the single newline.

    Args:
        prompt, answer: texts to tokenise.
        tokenizer: tokenizer of the language model.
        before: special token that precedes the prompt, the end of the round before; "" for none.
    Returns:
        Ids of the prompt, ids of the answer, and whether they were tokenised apart.
    """
    start = len(template_ids(before, tokenizer))
    head = tokenizer.encode(before + prompt)[start:]
    whole = tokenizer.encode(before + prompt + answer)[start:]
    if whole[: len(head)] == head:
        return head, whole[len(head) :], False
    return head, encode_inside(tokenizer.encode, answer), True


def encode_rounds(text: str, tokenizer: Tokenizer, opening: str, closing: str) -> tuple[list[int], int]:
    """Tokenise rounds of a chat, each answer by `encode_seam`.

    Args:
        opening: the text after which the assistant speaks; an answer is what follows it.
        closing: the text that ends an answer; it contains a special token.
    Returns:
        Ids of the text, and the number of answers that were tokenised apart.
    """
    ids: list[int] = []
    before, apart = "", 0
    while opening in text:
        prompt, _, rest = text.partition(opening)
        answer, end, text = rest.partition(closing)
        head, tail, is_apart = encode_seam(prompt + opening, answer + end, tokenizer, before)
        ids += head + tail
        apart += is_apart
        before = end
    if text:
        ids += tokenizer.encode(before + text)[len(template_ids(before, tokenizer)) :]
    return ids, apart


def to_runs(parts: Sequence[Part], tokenizer: Tokenizer, end: str = "", *, bos: bool = True) -> list[Run]:
    """Convert parts to runs: BOS, which is not learnt, then the parts in order. Text between two pictures is one run.

    The ids of the prompt that generation starts from are a prefix of the ids of prompt and answer. All later tokens up
    to the end of the answer are learnt, and no others. With a Llama-kind vocabulary `ASSISTANT:` + ` 2019</s>` has the
    tokens `:`, `▁`, `2`, ... and `▁` is the first learnt token. See `encode_seam` for answers that merge with the
    prompt.

    Args:
        parts: rendered document.
        tokenizer: tokenizer of the language model.
        end: special token that ends a learnt text which is followed by text that is not learnt.
        bos: False leaves out BOS, for parts that contain it.
    """
    runs: list[Run] = [TextRun([tokenizer.bos_id], [False])] if bos and tokenizer.bos_id is not None else []
    for is_text, stretch in groupby(parts, key=lambda part: isinstance(part, Text)):
        if is_text:
            runs += _stretch(list(stretch), tokenizer, end)
        else:
            runs += [PictureRun(number) for number in stretch]
    return runs


def _stretch(texts: Sequence[Text], tokenizer: Tokenizer, end: str) -> list[Run]:
    """Convert the text between two pictures to a run; an empty text gives no run."""
    ids: list[int] = []
    learn: list[bool] = []
    before, prompt, apart = "", "", 0
    for learnt, pieces in groupby(texts, key=lambda text: text.learn):
        joined = "".join(piece.text for piece in pieces)
        if not learnt:
            prompt = joined
            continue
        head, tail, is_apart = encode_seam(prompt, joined, tokenizer, before)
        ids += head + tail
        learn += [False] * len(head) + [True] * len(tail)
        apart += is_apart
        prompt, before = "", end
    if prompt:
        assert before or not ids, "a learnt text that more text follows ends with a special token: give `end`"
        head = tokenizer.encode(before + prompt)[len(template_ids(before, tokenizer)) :]
        ids += head
        learn += [False] * len(head)
    return [TextRun(ids, learn, apart)] if ids else []


def to_text(parts: Sequence[Part], placeholder: str) -> tuple[str, list[tuple[int, int]]]:
    """Join parts to one string with `placeholder` for each picture; also return the [start, end) spans of answers.

    Spans count characters and leave out the `lead` of their text.
    """
    text = ""
    spans: list[tuple[int, int]] = []
    for part in parts:
        piece = part.text if isinstance(part, Text) else placeholder
        if isinstance(part, Text) and part.learn and piece:
            start, stop = len(text) + part.lead, len(text) + len(piece)
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((start, stop))
        text += piece
    return text, spans
