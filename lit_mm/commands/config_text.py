"""Configs as trees of entries. Each entry knows its file and line."""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lit_mm.checkpoints.before import TOP_LEVEL, translate_path
from lit_mm.commands.recipe_files import recipe_file, recipe_names
from lit_mm.errors import UserError, first_line

COMMAND_LINE = ""  # place of an entry outside of files
MOST_ENTRIES = 100_000  # nodes of a config, aliases expanded
MOST_LEVELS = 64  # mappings and lists inside each other
FLATTER = f"A config has at most {MOST_LEVELS} levels"
PLAIN = re.compile(r"[\w.+~:-]+")  # scalars without quotes
ALLOW = "LIT_MM_ALLOW"  # environment variable: names of packages with commas between them
TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp")  # of YAML's core


@dataclass(frozen=True)
class Entry:
    """A value of a config.

    Attributes:
        value: key -> entry, a list of entries, the text of a scalar, or None for null.
        place: file and line, such as "recipe.yaml, line 3"; empty for the command line.
        is_text: True if a scalar is a text that may look like a number, such as '3'.
        appends: True if a list is appended to the earlier list instead of replacing it.
    """

    value: dict[str, Entry] | list[Entry] | str | None
    place: str
    is_text: bool = False
    appends: bool = False

    @property
    def keys(self) -> dict[str, Entry]:
        """The entries of a mapping by key; an empty mapping for any other value."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[tuple[str, Entry]]:
        """Return (name, entry) of a mapping or a list. The name of a list's item is the stage's name, or a number."""
        if isinstance(self.value, list):
            return [(item_name(item, number), item) for number, item in enumerate(self.value)]
        return list(self.keys.items())


def item_name(item: Entry, number: int) -> str:
    """Return the name of a list's item in messages: the value of its key `name`, or else its number."""
    name = item.keys.get("name")
    return name.value if name is not None and isinstance(name.value, str) else str(number)


def spoken(entry_or_place: Entry | str, path: Sequence[str]) -> str:
    """Write an entry for messages as file, line and dotted key, or as the key on the command line."""
    place = entry_or_place.place if isinstance(entry_or_place, Entry) else entry_or_place
    dotted = ".".join(path)
    return f"{place}: {dotted}" if place != COMMAND_LINE else f"{dotted} (on the command line)"


def flow(entry: Entry) -> str:
    """Write an entry as one line of YAML."""
    if isinstance(entry.value, dict):
        return "{" + ", ".join(f"{_key(key)}: {flow(inner)}" for key, inner in entry.keys.items()) + "}"
    if isinstance(entry.value, list):
        return "[" + ", ".join(flow(item) for item in entry.value) + "]"
    if entry.value is None:
        return "null"
    return json.dumps(entry.value) if entry.is_text else _scalar(entry.value)


def _key(text: str) -> str:
    """Write a key. A text such as lr, or a whole number, has no quotes; `yes` or `~` needs them to stay a text."""
    return _scalar(text) if _tag(text) in ("str", "int") else json.dumps(text)


def _tag(text: str) -> str:
    """Return the type that YAML gives to a scalar without quotes."""
    return yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False)).rpartition(":")[2]


def _scalar(text: str) -> str:
    return text if PLAIN.fullmatch(text) and not text.endswith(":") else json.dumps(text)


def allowed() -> tuple[str, ...]:
    """Return the packages of which a config may name classes because the user says so, by --allow or `ALLOW`."""
    return tuple(name.strip() for name in os.environ.get(ALLOW, "").split(",") if name.strip())


def without_allow(arguments: Sequence[str]) -> list[str]:
    """Remove `--allow PACKAGE` from the arguments and set it for this process and the processes that it starts.

    Raises:
        UserError: the option has no value.
    """
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if key != "--allow":
            words.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not re.fullmatch(r"\w+(,\w+)*", value):
            raise UserError(f"--allow needs the name of a package, such as --allow my_corpora, got {value!r}")
        os.environ[ALLOW] = ",".join(dict.fromkeys([*allowed(), *value.split(",")]))
    return words


# --- reading ---------------------------------------------------------------------------------------------------------
def read_config(path: str) -> Entry:
    """Read a config file. The name of a recipe of the package stands for its file.

    Raises:
        UserError: the file does not exist, is not YAML, is not a mapping, gives a key twice, or has too many levels.
    """
    file = recipe_file(path)
    path = path if file == Path(path) else str(file)
    if file.is_dir():
        of_run = f". That of this run is {str(file / 'config.yaml')!r}" if (file / "config.yaml").is_file() else ""
        raise UserError(f"the config {path!r} is a folder; --config needs a YAML file{of_run}")
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
        raise UserError(f"{path} is not a YAML text: {first_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply. {FLATTER}") from error
    if not isinstance(root, yaml.MappingNode):
        content = "nothing" if root is None else f"a {root.id}"
        raise UserError(f"the config {path!r} holds {content}; expected keys such as `model:`, `stages:` and `data:`")
    if {"method", "parameters"} <= {key.value for key, _ in root.value}:
        raise UserError(f"the config {path!r} is a sweep and no recipe: python -m lit_mm sweep {path} runs it")
    if expanded_size(root) > MOST_ENTRIES:
        raise UserError(f"{path}: its aliases expand to more than {MOST_ENTRIES:,} entries. Use fewer")
    return _entry(root, path, root.start_mark.line, numbered=True)


def expanded_size(node: yaml.Node, sizes: dict[int, float] | None = None) -> float:
    """Count a node and all nodes below it, with aliases expanded. A node that contains itself counts as infinite."""
    sizes = {} if sizes is None else sizes
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(expanded_size(each, sizes) for each in inner)
    return sizes[id(node)]


def config_of(config: Mapping[str, Any], label: str) -> Entry:
    """Read a config from outside of files, such as the one inside a checkpoint.

    Args:
        label: place that messages name.
    """
    return _entry(yaml.compose(yaml.safe_dump(dict(config)), Loader=yaml.SafeLoader), label, 0, numbered=False)


def _entry(node: yaml.Node, label: str, line: int, *, numbered: bool, path: tuple[str, ...] = ()) -> Entry:
    """Build the entry of a YAML node.

    Args:
        label: name of the file.
        line: line of the node's key, from 0.
        numbered: True if the user knows the lines.
        path: keys above the node.
    """
    place = f"{label}, line {line + 1}" if numbered else label
    if len(path) > MOST_LEVELS:
        raise UserError(f"{spoken(place, path[:3])}: it is nested too deeply. {FLATTER}")
    if node.tag.removeprefix("tag:yaml.org,2002:") not in TAGS:
        raise UserError(
            f"{spoken(place, path)}: YAML tags such as {node.tag!r} are not supported. Write the value itself"
        )
    if isinstance(node, yaml.SequenceNode):
        entries = [
            _entry(item, label, item.start_mark.line, numbered=numbered, path=(*path, str(number)))
            for number, item in enumerate(node.value)
        ]
        return Entry(entries, place)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Entry] = {}
        inherited: dict[str, Entry] = {}  # `<<` merges the keys of other mappings, which this one overrides
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{spoken(place, path)}: a key is a text or a number, got a {key.id}")
            inner = _entry(value, label, key.start_mark.line, numbered=numbered, path=(*path, key.value))
            if key.tag == "tag:yaml.org,2002:merge":
                for other in reversed(inner.value) if isinstance(inner.value, list) else [inner]:
                    inherited |= other.keys
            elif key.value in mapping:
                line = mapping[key.value].place.rpartition(", ")[2]
                where = f"is also in {line}" if numbered else "is there twice"
                raise UserError(
                    f"{spoken(inner, (*path, key.value))}: the key {key.value!r} {where}. Remove one of the two"
                )
            else:
                mapping[key.value] = inner
        return Entry(inherited | mapping, place)
    if node.tag.endswith(":null"):
        return Entry(None, place)
    plain = node.style is None and node.tag.endswith(f":{_tag(node.value)}")
    if plain and ":" in node.value and node.tag.endswith((":int", ":float")):
        plain = False  # YAML 1.1 reads the time 12:00:00 as a number to the base 60
    return _checked(Entry(node.value, place, is_text=not plain), path)


def _checked(entry: Entry, path: tuple[str, ...]) -> Entry:
    """Return the entry of a scalar. A class path of the previous version becomes today's.

    Raises:
        UserError: the text has a variable, which nothing expands.
    """
    if TOP_LEVEL.fullmatch(entry.value) and entry.value.partition(".")[0] not in allowed():
        return replace(entry, value=translate_path(entry.value))
    if "${" in entry.value:
        raise UserError(
            f"{spoken(entry, path)}: a recipe expands no variables, got {entry.value!r}. Write the value itself, or "
            f'give it on the command line, where the shell expands it: --{".".join(path)} "$NAME"'
        )
    return entry


def _near_file(file: Path) -> str:
    siblings = {path.name: str(path) for path in file.parent.glob("*.y*ml")} if file.parent.is_dir() else {}
    candidates = siblings | {name: name for name in recipe_names()}
    close = difflib.get_close_matches(file.name, candidates, n=1) or difflib.get_close_matches(
        str(file), candidates, n=1
    )
    return f". Did you mean {candidates[close[0]]!r}?" if close else ". Correct --config"


# --- the command line ------------------------------------------------------------------------------------------------
def config_files(arguments: Sequence[str]) -> list[str]:
    """Return the files that `--config` names, in order."""
    return [value for key, value in _options(arguments) if key in ("--config", "-c") and value]


def check_config_files(arguments: Sequence[str]) -> None:
    """Refuse config files that cannot be read. No torch is imported, so that the message comes at once.

    Raises:
        UserError: see `read_config`.
    """
    for file in config_files(arguments):
        read_config(file)


def overrides(arguments: Sequence[str]) -> Iterator[Entry]:
    """Return each dotted option of a command line, such as `--data.init_args.path x`, as a config of one key."""
    for option, text in _options(arguments):
        *outer, last = option.removeprefix("--").split(".")
        if not option.startswith("--") or not text or option == "--config":
            continue
        value = parsed(text, (*outer, last))
        if last.endswith("+"):  # `--trainer.callbacks+` appends to a list
            items = value.value if isinstance(value.value, list) else [value]
            last, value = last.removesuffix("+"), Entry(items, COMMAND_LINE, appends=True)
        for key in reversed([*outer, last]):
            value = Entry({key: value}, COMMAND_LINE)
        yield value


def agent_form(word: str) -> str:
    """Rewrite an option of a W&B sweep's agent, whose value is Python text, with the value in YAML.

    `--a={'b': None}` becomes `--a={b: null}`, and `--a=None` becomes `--a=null`.
    """
    option, equals, text = word.partition("=") if word.startswith("--") else ("", "", word)
    if text != "None" and _python(text) is None:
        return word
    return f"{option}{equals}{flow(parsed(text))}"


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return (option, value) of a command line. The value is "" if there is none."""
    for word, following in pairwise([*arguments, ""]):
        option, equals, value = word.partition("=")
        if option.startswith("-"):
            yield option, value if equals else "" if following.startswith("--") else following


def parsed(text: str, path: tuple[str, ...] = ()) -> Entry:
    """Parse the value of an option: a scalar, or a list or mapping in YAML or in Python's notation.

    Args:
        path: keys of the option, for messages.
    Raises:
        UserError: a mapping has a key twice, the text has a variable, or it has too many levels.
    """
    if text == "None":
        return Entry(None, COMMAND_LINE)
    value = _python(text)
    try:
        text = text if value is None else yaml.safe_dump(value, sort_keys=False, default_flow_style=True)
        if not text.startswith(("[", "{")):
            return _checked(Entry(text, COMMAND_LINE), path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:  # the parser reports it
        return Entry(text, COMMAND_LINE)
    except RecursionError as error:
        raise UserError(f"{spoken(COMMAND_LINE, path)}: it is nested too deeply. {FLATTER}") from error
    return _entry(root, COMMAND_LINE, 0, numbered=False, path=path)


def _python(text: str) -> dict | list | None:
    """Parse a text in Python's notation; None for any other text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None
