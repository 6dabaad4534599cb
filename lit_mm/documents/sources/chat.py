"""The turns of a conversation, in the forms in which files have them: roles and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_mm.documents.printable import brief
from lit_mm.documents.sources.keys import check_turn_keys
from lit_mm.documents.sources.sample import Sample
from lit_mm.documents.turns import SPEAKERS

TOOLS = frozenset(
    [
        "tool",
        "tools",
        "function",
        "function_call",
        "function_response",
        "observation",
        "tool_call",
        "tool_calls",
        "tool_response",
        "tool_result",
        "tool_results",
        "ipython",
    ]
)
WEIGHTS = ("weight", "loss", "train")  # 0 or false: the answer is not to be learnt
WORSE = ("rejected", "rejected_response")  # keys of preference training
GOOD = ("label", "kto_tag")  # False marks a bad answer
MASKS = ("mask", "masked", "loss_mask")


def role_of(turn: Any, number: int, sample: Sample, key: str) -> str:
    """Return the role of a turn's speaker: "user", "assistant" or "system".

    Args:
        key: key that names the speaker, `from` or `role`.
    Raises:
        SampleError: an unknown speaker, a tool, or an answer that is not to be learnt.
    """
    speaker = turn[key]
    role = SPEAKERS.get(str(speaker).lower())
    if role is None and str(speaker).lower() in TOOLS:
        raise sample.error(
            f"turn {number} is a tool's ({brief(speaker)}), and calls of tools are not read here",
            "bad_entry",
            "Leave the sample out, or write the call as text of the user and the assistant",
        )
    if role is None:
        raise sample.error(
            f"turn {number}: {key!r} is one of {sorted(SPEAKERS)}, got {brief(speaker)}",
            "bad_entry",
            "Rename the speaker",
        )
    if len(turn) == 2:  # a speaker and a text
        return role
    check_turn_keys(sample, turn, number)
    if turn.get("tool_calls") or turn.get("function_call"):
        raise sample.error(
            f"turn {number} calls a tool, and calls of tools are not read here", "bad_entry", "Leave the sample out"
        )
    if role == "assistant":
        _check_weight(turn, number, sample)
    return role


def _check_weight(turn: Mapping[str, Any], number: int, sample: Sample) -> None:
    for key in (*WEIGHTS, *MASKS):
        value = turn.get(key)
        plain = 1 if key in WEIGHTS else 0  # the value that says nothing; True and False are 1 and 0
        if isinstance(value, int | float) and value != plain:
            raise sample.error(
                f"turn {number} has `{key}: {brief(value)}`, which is not read: every answer is learnt with weight 1",
                "unread_key",
                "Leave the sample out, or cut it behind the last answer that is to be learnt",
            )


def spoken_turns(turns: list[Any], sample: Sample, first: int = 0) -> list[tuple[str, str]]:
    """Return (role, text) of turns of the form `{"from": ..., "value": ...}` or `{"role": ..., "content": ...}`.

    Args:
        first: number of the first turn, in errors.
    Raises:
        SampleError: a turn lacks a key, or see `role_of`.
    """
    spoken = []
    for number, turn in enumerate(turns, first):
        has_role = isinstance(turn, dict) and turn.get("role") is not None
        speaker, text = ("role", "content") if has_role else ("from", "value")
        if not isinstance(turn, dict) or speaker not in turn or not isinstance(turn.get(text), str):
            if isinstance(turn, dict) and speaker in turn and turn.get(text) is None:
                role_of(turn, number, sample, speaker)  # a call of a tool has no text
            is_parted = isinstance(turn, dict) and speaker in turn and isinstance(turn.get("content"), list)
            raise sample.error(
                f"turn {number} needs the keys {speaker!r} and {text!r}, both text, got {brief(turn)}",
                "bad_entry",
                "Is its `format` messages?" if is_parted else "",
            )
        spoken.append((role_of(turn, number, sample, speaker), turn[text]))
    return spoken


def check_answers(turns: list[tuple[str, str]], sample: Sample) -> None:
    """Refuse an empty answer.

    Raises:
        SampleError: an answer is empty.
    """
    for number, (role, text) in enumerate(turns):
        if role == "assistant" and not text.strip():
            raise sample.error(f"the answer in turn {number} is empty", "empty_answer", "Write it, or remove the turn")


def _check_preference(sample: Sample) -> None:
    """Refuse samples of preference training, whose answers are not all to be learnt.

    Raises:
        SampleError: the entry has a worse answer beside a better one, or an answer that is marked as bad.
    """
    worse = next((key for key in WORSE if sample.entry.get(key)), None)
    if worse is not None:
        raise sample.error(
            f"its `{worse}` is a worse answer, for preference training, which is not read here",
            "unread_key",
            f"Write the better answer as the last turn, and remove `{worse}`",
        )
    # Beside a conversation, `label` is usually the class of an image
    marks = GOOD if "completion" in sample.entry else ("kto_tag",)
    mark = next((key for key in marks if sample.entry.get(key) is False), None)
    if mark is not None:
        raise sample.error(
            f"has `{mark}: false`, so its answer is not to be learnt", "unread_key", "Leave the sample out"
        )


def system_of(sample: Sample, *, has_turn: bool) -> str:
    """Return the text under the key `system` of an entry; "" if there is none.

    Args:
        has_turn: True if the conversation begins with a system turn.
    Raises:
        SampleError: the value is not a text, there is a system turn as well, or the entry has `tools` or is one of
            preference training.
    """
    if sample.entry.get("tools") not in (None, "", "[]", []):
        raise sample.error("it has `tools`, which are not read here", "unread_key", "Leave the sample out")
    _check_preference(sample)
    system = sample.entry.get("system")
    if system is None or system == "":
        return ""
    if not isinstance(system, str):
        raise sample.error(f"`system` is a text, got {brief(system)}", "bad_entry")
    if has_turn:
        raise sample.error("it has `system` and a system turn", "bad_entry", "Keep one of them")
    return system


def with_system(turns: list[tuple[str, str]], sample: Sample) -> list[tuple[str, str]]:
    """Return the turns with the text under `system` as the first one.

    Raises:
        SampleError: see `system_of`.
    """
    system = system_of(sample, has_turn=bool(turns) and turns[0][0] == "system")
    return [("system", system), *turns] if system else turns
