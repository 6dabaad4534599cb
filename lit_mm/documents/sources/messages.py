"""Conversations in the forms of other tools: `messages` of chat clients, and `query` with `response`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_mm.documents.document import Turn
from lit_mm.documents.printable import brief
from lit_mm.documents.sources.cells import cells_in
from lit_mm.documents.sources.chat import role_of, spoken_turns, system_of, with_system
from lit_mm.documents.sources.conversations import Conversations
from lit_mm.documents.sources.forms import format_of
from lit_mm.documents.sources.keys import PICTURES
from lit_mm.documents.sources.listed import list_of
from lit_mm.documents.sources.picture import SourcePicture
from lit_mm.documents.sources.sample import Sample

TEXTS = ("text", "input_text", "output_text")  # values of a part's key `type`
IMAGES = ("image", "image_url", "input_image")
KEYS = ("messages", "conversations", "conversation")  # of a list of messages
PICTURE_KEYS = ("image", "image_url", "url", "path", "data", "base64")  # of a part that is a picture


class MessageConversations(Conversations):
    """Reads messages of `{"role": ..., "content": ...}`, the form of chat clients, TRL and the tools of Qwen2-VL.

    `content` is a text, or a list of parts. A part is `{"type": "text", "text": ...}` or a picture: `{"type": "image",
    "image": ...}`, `{"type": "image_url", "image_url": {"url": ...}}`, or an image with `{"source": {"data": ...}}` or
    a `url` there. A picture stays at the place of its part. A picture's part without a name, and `<image>` in a text,
    stand for the next picture in `images` of the entry. If there is neither, the only picture of `images` stands in
    front of the first question.

    An entry has one of three forms: `messages` (or `conversations` or `conversation`, if the turns have roles);
    `prompt` and `completion`, which are two lists of messages; or `texts`, rounds of `{"user": ..., "assistant": ...}`
    about all `images`, which stand in front.

    Args:
        path, images, name, limit_pixels, literal_placeholders, limit_group, places: see `Conversations`.
    """

    format_name = "messages"
    has_ids = False

    def spoken(self, sample: Sample) -> list[tuple[str, str]]:
        return [
            (role, "".join(part for part in parts if isinstance(part, str))) for role, parts in self.parts_of(sample)
        ]

    def cells(self, sample: Sample) -> list[Any]:
        cells = [part["cell"] for _, parts in self.parts_of(sample) for part in parts if not isinstance(part, str)]
        listed = super().cells(sample)
        num_open = sum(cell is None for cell in cells)
        if num_open and num_open != len(listed):
            raise sample.error(
                f"{num_open} parts are pictures without a name, and `images` names {len(listed)}",
                "placeholder_mismatch",
                "Name one for each",
            )
        if cells and listed and not num_open and cells != listed:
            raise sample.error("its parts name pictures, and so does `images`", "bad_entry", "Keep one of them")
        rest = iter(listed)
        return [next(rest) if cell is None else cell for cell in cells] if cells else listed

    def arrange(
        self, sample: Sample, spoken: list[tuple[str, str]], pictures: Sequence[SourcePicture | None]
    ) -> tuple[Turn, ...]:
        turns = self.parts_of(sample)
        rest = iter(pictures)
        if any(not isinstance(part, str) for _, parts in turns for part in parts):
            if any(role != "assistant" and self.placeholder in text for role, text in spoken):
                raise sample.error(
                    f"its parts are pictures, and its text has {self.placeholder} too",
                    "placeholder_mismatch",
                    "Keep one of them",
                )
            return tuple(
                Turn(role, tuple(part if isinstance(part, str) else next(rest) for part in parts if part != ""))
                for role, parts in turns
            )
        if self.is_literal(sample):
            return tuple(Turn(role, (text,)) for role, text in spoken)
        num_places = sum(text.count(self.placeholder) for _, text in spoken)
        is_front = isinstance(sample.entry.get("texts"), list) or len(pictures) == 1
        if pictures and not num_places and is_front and any(role == "user" for role, _ in spoken):
            return _in_front(spoken, pictures)
        self.count_places(sample, spoken, len(pictures))
        return self.place(spoken, pictures)

    def parts_of(self, sample: Sample) -> list[tuple[str, list[Any]]]:
        """Return (role, parts) of every turn. A sample is parsed once, see `_turns`."""
        return sample.once("parts", lambda: self._turns(sample))

    def _turns(self, sample: Sample) -> list[tuple[str, list[Any]]]:
        """Parse (role, parts) of every turn. A part is a text or `{"cell": ...}`; None is the next cell of `images`."""
        entry = sample.entry if isinstance(sample.entry, Mapping) else {}
        key = next((key for key in KEYS if _has_roles(entry.get(key))), KEYS[0])
        has_messages = entry.get(key) is not None
        if not has_messages and isinstance(entry.get("texts"), list):
            turns = _rounds(entry["texts"], sample)
        elif not has_messages and isinstance(entry.get("prompt"), list):
            turns = _messages(
                [*entry["prompt"], *sample.field("completion", list, "beside `prompt` there is a list `completion`")],
                sample,
            )
        else:
            turns = _messages(sample.field(key, list, "an entry is an object with a list `messages`"), sample)
        system = system_of(sample, has_turn=bool(turns) and turns[0][0] == "system")
        return [("system", [system]), *turns] if system else turns


def _has_roles(messages: Any) -> bool:
    """Return True for a list whose first message has a role."""
    messages = list_of(messages)
    return isinstance(messages, list) and bool(messages) and isinstance(messages[0], Mapping) and "role" in messages[0]


# Keys of a question and its answer, in the forms of ms-swift, Alpaca, LLaMA-Factory, TRL and question answering
PAIRS = (
    ("query", "response"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
)


class QueryResponseConversations(Conversations):
    """Reads `{"query": ..., "response": ..., "history": [[query, response], ...], "system": ..., "images": [...]}`.

    Other names of the two texts are those of `PAIRS`. Alpaca's `input` follows its `instruction` in a new line, as in
    LLaMA-Factory. `<image>` stands for a picture of `images`. If no text has a placeholder, the pictures stand in front
    of the first query.

    Args:
        path, images, name, limit_pixels, literal_placeholders, limit_group, places: see `Conversations`.
    Source: `AlpacaDatasetConverter` in src/llamafactory/data/converter.py of LLaMA-Factory, for `input`.
    """

    format_name = "query_response"
    has_ids = False

    def spoken(self, sample: Sample) -> list[tuple[str, str]]:
        entry = sample.entry if isinstance(sample.entry, Mapping) else {}
        filled = [pair for pair in PAIRS if all(entry.get(key) is not None for key in pair)]
        if len(filled) > 1 and filled[0] != PAIRS[0]:  # the format's own pair; other columns may be of any kind
            names = " and ".join(f"`{key}`" for key in dict.fromkeys(key for pair in filled for key in pair))
            raise sample.error(f"has {names}, more than one question with its answer", "bad_entry", "Keep one pair")
        if not filled:
            names = ", ".join(f"`{question}` and `{answer}`" for question, answer in PAIRS)
            guess = format_of(sample.entry)
            raise sample.error(
                f"an entry is an object with the texts {names}, got {brief(sample.entry)}",
                "bad_entry",
                f"Is its `format` {guess}?"
                if guess
                else "Rename the keys of its question and its answer"
                if entry
                else "",
            )
        pair = filled[0]
        query, response = (sample.field(key, str, "a question and an answer are texts") for key in pair)
        if pair[0] == "instruction" and entry.get("input"):
            details = sample.field("input", str, "`input` is a text")
            query = f"{query}\n{details}" if query else details
        rounds = list_of(entry.get("history") or [])
        turns: list[tuple[str, str]] = []
        for number, pair in enumerate(rounds if isinstance(rounds, list) else [rounds]):
            if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise sample.error(
                    f"history[{number}] is a pair of texts, got {brief(pair)}", "bad_entry", "Write [question, answer]"
                )
            turns += [("user", pair[0]), ("assistant", pair[1])]
        return with_system([*turns, ("user", query), ("assistant", response)], sample)

    def arrange(
        self, sample: Sample, spoken: list[tuple[str, str]], pictures: Sequence[SourcePicture | None]
    ) -> tuple[Turn, ...]:
        if self.is_literal(sample):
            return tuple(Turn(role, (text,)) for role, text in spoken)
        if pictures and not any(self.placeholder in text for _, text in spoken):
            return _in_front(spoken, pictures)
        self.count_places(sample, spoken, len(pictures))
        return self.place(spoken, pictures)


def _in_front(spoken: list[tuple[str, str]], pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
    """Return the turns with all pictures in front of the first question."""
    first = next(number for number, (role, _) in enumerate(spoken) if role == "user")
    return tuple(
        Turn(role, (*pictures, text) if number == first else (text,)) for number, (role, text) in enumerate(spoken)
    )


def _rounds(texts: list[Any], sample: Sample) -> list[tuple[str, list[Any]]]:
    turns: list[tuple[str, list[Any]]] = []
    for number, pair in enumerate(texts):
        if not isinstance(pair, Mapping) or not all(isinstance(pair.get(key), str) for key in ("user", "assistant")):
            raise sample.error(f"texts[{number}] has the texts `user` and `assistant`, got {brief(pair)}", "bad_entry")
        turns += [("user", [pair["user"]]), ("assistant", [pair["assistant"]])]
    return turns


def _messages(messages: list[Any], sample: Sample) -> list[tuple[str, list[Any]]]:
    turns: list[tuple[str, list[Any]]] = []
    for number, message in enumerate(messages):
        if isinstance(message, Mapping) and "role" in message and isinstance(message.get("content"), list):
            role = role_of(message, number, sample, "role")
            turns.append((role, [_part(part, number, sample) for part in message["content"]]))
        else:
            ((role, text),) = spoken_turns([message], sample, first=number)
            turns.append((role, [text]))
    return turns


def _part(part: Any, number: int, sample: Sample) -> Any:
    """Return the text of a message's part, or the cell of its picture.

    Raises:
        SampleError: the part is neither a text nor a picture.
    """
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    filled = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    if kind in TEXTS or (kind is None and isinstance(filled.get("text"), str)):
        if isinstance(filled.get("text"), str):
            return filled["text"]
    elif kind in IMAGES or (kind is None and filled.keys() & set(PICTURES)):
        source = filled.get("source")  # {"type": "base64", "data": ...} or {"type": "url", "url": ...}
        filled = {**filled, **source} if isinstance(source, Mapping) else filled
        cell = next((filled[key] for key in PICTURE_KEYS if filled.get(key)), None)
        return {"cell": next(cells_in(cell), None)}
    raise sample.error(
        f"turn {number} has a part of type {brief(kind)}, and a part is a text or a picture; got {brief(part)}",
        "bad_entry",
        "Leave the sample out, or correct the part",
    )
