"""Converts conversations in the released formats to turns of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import UserError

PLACEHOLDER = "<ImageHere>"
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


def conversation_to_document(
    conversation: Sequence[Mapping[str, str]],
    pictures: Sequence[Picture],
    *,
    id: str,
    source: str = "",
    skill: str = "",
) -> Document:
    """Convert a conversation of `{"from": ..., "value": ...}` turns, with one `<ImageHere>` per picture.

    A single picture without a placeholder goes to the very front, before BOS: the document then starts with a page
    turn that contains this picture alone. Values are stripped of surrounding white space, as in the released code.

    Raises:
        UserError: an unknown speaker, a turn without its two keys, or placeholders and pictures differ in number. One
            picture and no placeholder is allowed. The released code does not fail: a picture is shifted or missing.
    Source: `conv2text` and `Mix_dataset` in finetune/data_mix.py of the released code, `interleav_wrap` of the model.
    """
    turns: list[Turn] = []
    values: list[str] = []
    for number, sentence in enumerate(conversation):
        if not {"from", "value"} <= sentence.keys():
            raise UserError(
                f"document {id!r}, turn {number}: needs the keys 'from' and 'value', got {sorted(sentence)}"
            )
        if sentence["from"].lower() not in SPEAKERS:
            raise UserError(
                f"document {id!r}, turn {number}: 'from' is one of {sorted(SPEAKERS)}, got {sentence['from']!r}"
            )
        values.append(sentence["value"].strip())
    slots = sum(value.count(PLACEHOLDER) for value in values)
    unplaced = slots == 0 and len(pictures) == 1
    if slots != len(pictures) and not unplaced:
        raise UserError(
            f"document {id!r}: {len(pictures)} pictures and {slots} {PLACEHOLDER} in its text. Write one for "
            "each picture. Only a single picture needs none; it is placed in front"
        )
    if unplaced:
        turns.append(Turn("page", (pictures[0],)))
    left = iter(() if unplaced else pictures)
    for sentence, value in zip(conversation, values, strict=True):
        head, *rest = value.split(PLACEHOLDER)
        parts = chain((head,), *((next(left), text) for text in rest))
        turns.append(Turn(SPEAKERS[sentence["from"].lower()], tuple(part for part in parts if part != "")))
    return Document(id=id, turns=tuple(turns), source=source, skill=skill)
