"""Configs as their author wrote them: a tree of entries, each of which knows its file and line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lit_mm.errors import UserError

COMMAND_LINE = ""  # the place of an entry that no file contains


@dataclass(frozen=True)
class Entry:
    """A value of a config.

    Attributes:
        value: entries by key, a list of entries, the text of a scalar, or None for null.
        place: file and line, such as "recipe.yaml, line 3"; empty for the command line.
    """

    value: dict[str, Entry] | list[Entry] | str | None
    place: str

    @property
    def keys(self) -> dict[str, Entry]:
        """The entries of a mapping; no entry for any other value."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[tuple[str, Entry]]:
        """(name, entry) of a mapping or a list. A stage has its name; any other item of a list has its number."""
        if isinstance(self.value, list):
            return [(item_name(item, number), item) for number, item in enumerate(self.value)]
        return list(self.keys.items())


def item_name(item: Entry, number: int) -> str:
    """What messages call an item of a list: the value of its key `name`, else its number."""
    name = item.keys.get("name")
    return name.value if name is not None and isinstance(name.value, str) else str(number)


def spoken(entry_or_place: Entry | str, path: Sequence[str]) -> str:
    """An entry as messages write it: file, line and dotted key, or the key of the command line."""
    place = entry_or_place.place if isinstance(entry_or_place, Entry) else entry_or_place
    dotted = ".".join(path)
    return f"{place}: {dotted}" if place != COMMAND_LINE else f"{dotted} (on the command line)"


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`. Did you mean 'width'?`, or nothing if no candidate is similar."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f". Did you mean {close[0]!r}?" if close else ""


# --- reading ---------------------------------------------------------------------------------------------------------
def read_config(path: str) -> Entry:
    """Read a config file.

    Raises:
        UserError: the file does not exist, is not YAML, is not a mapping, or gives a key twice.
    """
    file = Path(path)
    if file.is_dir():
        raise UserError(f"the config {path!r} is a folder; --config needs a YAML file")
    if not file.is_file():
        raise UserError(f"there is no config file {path!r}{_near_file(file)}")
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise UserError(f"{path}{where} is not YAML: {problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML text: {str(error).splitlines()[0]}") from error
    if not isinstance(root, yaml.MappingNode):
        content = "nothing" if root is None else f"a {root.id}"
        raise UserError(f"the config {path!r} holds {content}; expected keys such as `model:`, `stages:` and `data:`")
    return _entry(root, path, root.start_mark.line, numbered=True)


def config_of(config: Mapping[str, Any], label: str) -> Entry:
    """A config that is in no file, such as the one inside a checkpoint.

    Args:
        label: the place that messages name.
    """
    return _entry(yaml.compose(yaml.safe_dump(dict(config)), Loader=yaml.SafeLoader), label, 0, numbered=False)


def _entry(node: yaml.Node, label: str, line: int, *, numbered: bool, path: tuple[str, ...] = ()) -> Entry:
    """A YAML node as an entry.

    Args:
        label: the file's name.
        line: where the key of this node stands, counted from 0.
        numbered: whether the lines mean anything to the user.
        path: keys above this node.
    """
    place = f"{label}, line {line + 1}" if numbered else label
    if isinstance(node, yaml.SequenceNode):
        entries = [
            _entry(item, label, item.start_mark.line, numbered=numbered, path=(*path, str(number)))
            for number, item in enumerate(node.value)
        ]
        return Entry(entries, place)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Entry] = {}
        inherited: dict[str, Entry] = {}  # through `<<`: the keys of other mappings, which this one overrides
        for key, value in node.value:
            inner = _entry(value, label, key.start_mark.line, numbered=numbered, path=(*path, key.value))
            if key.tag == "tag:yaml.org,2002:merge":
                for other in reversed(inner.value) if isinstance(inner.value, list) else [inner]:
                    inherited |= other.keys
            elif key.value in mapping:
                raise UserError(
                    f"{spoken(inner, (*path, key.value))}: the key {key.value!r} is also in "
                    f"{mapping[key.value].place.rpartition(', ')[2]}. Remove one of the two"
                )
            else:
                mapping[key.value] = inner
        return Entry(inherited | mapping, place)
    return Entry(None if node.tag.endswith(":null") else node.value, place)


def _near_file(file: Path) -> str:
    siblings = [path.name for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
    close = difflib.get_close_matches(file.name, siblings, n=1)
    return f". Did you mean {str(file.parent / close[0])!r}?" if close else ". Correct --config"


# --- the command line ------------------------------------------------------------------------------------------------
def config_files(arguments: Sequence[str]) -> list[str]:
    """The files that `--config` names, in order."""
    return [value for key, value in _options(arguments) if key in ("--config", "-c") and value]


def overrides(arguments: Sequence[str]) -> Iterator[Entry]:
    """The dotted options of a command line, each as a config of one key: `--data.init_args.path x`."""
    for option, text in _options(arguments):
        *outer, last = option.removeprefix("--").split(".")
        if not option.startswith("--") or not text or option == "--config":
            continue
        value = _parsed(text)
        if last.endswith("+"):  # `--trainer.callbacks+` appends to a list
            last, value = last.removesuffix("+"), Entry([value], COMMAND_LINE)
        for key in reversed([*outer, last]):
            value = Entry({key: value}, COMMAND_LINE)
        yield value


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of a command line; an option without a value has the empty text."""
    for word, following in pairwise([*arguments, ""]):
        option, equals, value = word.partition("=")
        if option.startswith("-"):
            yield option, value if equals else "" if following.startswith("--") else following


def _parsed(text: str) -> Entry:
    """The value of an option, which may be a list or a mapping in YAML."""
    if not text.startswith(("[", "{")):
        return Entry(text, COMMAND_LINE)
    try:
        return _entry(yaml.compose(text, Loader=yaml.SafeLoader), COMMAND_LINE, 0, numbered=False)
    except yaml.YAMLError:  # the parser reports it
        return Entry(text, COMMAND_LINE)
