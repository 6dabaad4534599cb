"""The parser's complaints about values in one to three lines, with the key, its line, and the values that it takes.

Keys and classes are compared with signatures before the parser runs (see `signatures`). The parser checks the types of
values. It nests its complaints and prints the whole config at each level; the deepest complaint is the cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml

from lit_mm.commands.config_text import Entry, spoken
from lit_mm.commands.options import unrecognized
from lit_mm.errors import UserError, nearest

KEY = re.compile(r"Parser key \"(?P<key>[^\"]+)\":(?P<inline>.*)")
CLASS = re.compile(r"Problem with given class_path '[^']+':")
EXPECTED = re.compile(r"Expected an? (?P<type>typing\.Literal\[[^\]]*\]|<class '[^']+'>|[\w.]+(?:\[.*?\])?)")
VALUE = re.compile(
    r"(?:Got value|Given value): (?:NestedArg\(key='[^']*', val=')?(?P<value>.*?)(?:'\))?$", re.MULTILINE
)
UNION = "Does not validate against any of the Union subtypes"
SPOKEN = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


def cause_of(error: BaseException) -> UserError | None:
    """Return the `UserError` of a part's constructor inside a parser's error; None without one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def refused_by_constructor(message: str, config: Entry) -> str | None:
    """Explain the error of a constructor under a key that takes several types; None for any other message.

    The parser joins the errors of all types there, and drops their exceptions.
    """
    if not message.startswith(UNION):
        return None
    errors = message.partition("Errors:")[2].partition("Given value type:")[0].split("\n  - ")
    reasons = [" ".join(error.split()) for error in errors if error.strip() and not error.startswith("Expected a")]
    class_path = re.search(r"class_path='([^']+)'", message)
    if not reasons or class_path is None:
        return None
    place = next((spoken(entry, path) for path, entry in _below(config) if entry.value == class_path[1]), class_path[1])
    return f"{place}: {'; '.join(reasons)}"


def _below(entry: Entry, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Entry]]:
    """Yield (keys, entry) of an entry and of all entries below it."""
    yield path, entry
    for name, inner in entry.items:
        yield from _below(inner, (*path, name))


def explain(message: str, config: Entry, options: Iterable[str], base: str = "", words: Sequence[str] = ()) -> str:
    """Explain a parser's error in one to three lines.

    Args:
        message: text of the parser's error.
        config: the merged config that was parsed.
        options: the parser's options, such as `--trainer.max_time`.
        base: dotted key in place of the parser's first key, because a stage's `data` is parsed as part of `data`.
        words: words of the command line.
    """
    problem = Problem.of(message)
    if problem.complaint.startswith("unrecognized arguments:"):
        return unrecognized(problem.complaint.partition(":")[2].split(), list(options))
    if no_value := re.match(r"argument (?:-\w/)?(?P<option>--[\w.]+): expected one argument", problem.complaint):
        typed = (word for word, value in pairwise([*words, "--"]) if value.startswith("--") and "=" not in word)
        return (
            f"{next((word for word in typed if word.startswith(no_value['option'])), no_value['option'])} needs a value"
        )
    if missing := re.match(r"the following arguments are required: (?P<keys>.+)", problem.complaint):
        if not config.keys:
            return "no config was given. Add --config, such as: --config experiments/xcomposer2.yaml"
        keys = ", ".join(f"`{key}:`" for key in missing["keys"].split(", "))
        return f"{config.place.partition(', line')[0]}: {keys} missing. A recipe has model, stages and data"
    names = [*base.split("."), *problem.names[1:]] if base else list(problem.names)
    values = [match["value"].strip() for match in VALUE.finditer(problem.complaint)]
    place = locate(config, names, values[0] if values else None)
    types = list(dict.fromkeys(match["type"] for match in EXPECTED.finditer(problem.complaint)))
    if not types:
        lines = [line for line in problem.complaint.splitlines() if line and not line.startswith("Given value")]
        return f"{place}: " + "\n  ".join(line[:200] for line in lines[:3])
    choices = [choice for kind in types for choice in _choices(kind)]
    expected = [f"one of {', '.join(map(repr, choices))}"] if choices else []
    names_of_types = [_class_name(kind) for kind in types if "Literal" not in kind]
    expected += [SPOKEN.get(name, name) for name in names_of_types if not (choices and name in SPOKEN)]
    guess = nearest(values[0], map(str, choices)) if values else ""
    received = f", got {values[0]!r}{guess}" if values else ""
    return f"{place}: expected {' or '.join(dict.fromkeys(expected))}{received}"


@dataclass(frozen=True)
class Problem:
    """The deepest complaint of a parser's message.

    Attributes:
        names: keys from the top; `init_args` and the items of lists are left out.
        complaint: the parser's words about the value.
    """

    names: tuple[str, ...]
    complaint: str

    @classmethod
    def of(cls, message: str) -> Problem:
        lines = [(len(line) - len(line.lstrip(" -")), line.lstrip(" -")) for line in message.splitlines()]
        marks = [at for at, (_, text) in enumerate(lines) if KEY.match(text) or CLASS.match(text)]
        if not marks:
            return cls((), message.strip())
        deepest = max(marks, key=lambda at: (lines[at][0], -at))
        names: list[str] = []
        inline, depth = "", lines[deepest][0] + 1
        for at in reversed(marks[: marks.index(deepest) + 1]):
            indent, text = lines[at]
            if indent < depth:
                depth = indent
                if key := KEY.match(text):
                    names = [*key["key"].split("."), *names]
                    inline = inline if at != deepest else key["inline"].strip()
        below = []
        for indent, text in lines[deepest + 1 :]:
            if text and indent <= lines[deepest][0]:
                break
            below.append(text)
        return cls(tuple(name for name in names if name != "init_args"), "\n".join([inline, *below]).strip())


def locate(config: Entry, names: Sequence[str], value: str | None) -> str:
    """Return the dotted key of a value with its file and line.

    Args:
        names: keys from the top, without `init_args` and the items of lists.
        value: text of the scalar; None if it is unknown.
    """
    if not names:
        return "the command line"
    for path, entry in _entries(config, tuple(names)):
        if not isinstance(entry.value, str) or value is None or _same(value, entry.value):
            return spoken(entry, path)
    return ".".join(names)


def _same(value: str, text: str) -> bool:
    """Return True if a parsed value may come from a text, such as 100.0 from 1e2."""
    try:
        return value == text or float(value) == float(text)
    except ValueError:
        return False


def _entries(
    entry: Entry, names: tuple[str, ...], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Entry]]:
    """Find entries by name, depth first: in a mapping, in its `init_args`, and then in all its items."""
    if not names:
        yield path, entry
        return
    matching = [(name, inner) for name, inner in entry.items if name == names[0]]
    wrapped = [(name, inner) for name, inner in entry.items if name == "init_args"]
    for name, inner in matching or wrapped or entry.items:
        yield from _entries(inner, names[1:] if matching else names, (*path, name))


def _choices(kind: str) -> list[Any]:
    """Return the values of a `typing.Literal[...]`."""
    listed = re.match(r"typing\.Literal\[(.*)\]", kind)
    return yaml.safe_load(f"[{listed[1]}]") if listed else []


def _class_name(kind: str) -> str:
    return re.sub(r"<class '([^']+)'>", r"\1", kind)
