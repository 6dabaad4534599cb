"""Converts the messages of the chat-completions protocol to a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import UserError

# Fields of a request that litserve drops, and that would change an answer -> values beside null that ask for nothing
UNREAD: Mapping[str, Sequence[Any]] = {
    "seed": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"], []),
    # of vLLM
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
}
MOST_ANSWERS = 128  # of one request
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse fields of a request that litserve drops, and numbers of answers that it cannot give.

    Raises:
        UserError: the request has such a field with a value that asks for something, or `n` is out of range.
    """
    refused = [
        name
        for name, neutral in UNREAD.items()
        if (value := fields.get(name)) is not None
        and not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)
    ]
    if refused:
        raise UserError(f"the request sets {', '.join(refused)}, which this server does not support; leave it out")
    count = fields.get("n", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_ANSWERS:
        raise UserError(f"`n` is a number of answers from 1 to {MOST_ANSWERS}, got {count}")


def document_of(
    messages: Sequence[Mapping[str, Any]], picture: Callable[[Any], Picture], *, id: str = "chat", source: str = ""
) -> Document:
    """Convert messages to a document; the last message is the user's.

    Args:
        messages: messages with a `role` and a `content`, which is a text or a list of parts: `{"type": "text", "text":
            ...}`, `{"type": "image_url", "image_url": {"url": ...}}` or `{"type": "image", "url": ...}`.
        picture: function that opens the picture of an address, such as `lit_mm.documents.inline.picture_of_uri`.
        id, source: see `Document`.
    Raises:
        UserError: there is no message, the last one is not the user's, or a role or a part is of another kind.
    """
    turns = tuple(_turn(message, number, picture) for number, message in enumerate(messages))
    if not turns or turns[-1].role != "user":
        raise UserError(f"the last message must be the user's, got the roles {[turn.role for turn in turns]}")
    return Document(id, turns, source=source)


def _turn(message: Mapping[str, Any], number: int, picture: Callable[[Any], Picture]) -> Turn:
    """Convert one message."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"message {number}: `role` is one of {list(ROLES)}, got {role!r}")
    if isinstance(content, str):
        return Turn(ROLES[role], (content,))
    parts: list[str | Picture] = []
    for part in content or ():
        kind = part.get("type")
        if kind == "text":
            parts.append(part["text"])
        elif kind == "image_url":
            address = part["image_url"]
            parts.append(picture(address["url"] if isinstance(address, Mapping) else address))
        elif kind == "image":
            parts.append(picture(part["url"]))
        else:
            raise UserError(f"message {number}: a part of a message is a text or an image, got {kind!r}")
    return Turn(ROLES[role], tuple(parts))
