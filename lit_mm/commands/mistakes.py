"""Say what is wrong with a config in one to three lines: the key as in the YAML, its line, the nearest key.

jsonargparse nests its complaints: a wrong key three parts deep is a page of "Does not validate against any of the Union
subtypes", with the whole config printed at each level. Here the deepest complaint is picked, and its place looked up in
the files.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lit_mm.commands.options import nearest_option
from lit_mm.errors import UserError

KEY = re.compile(r"Parser key \"(?P<key>[^\"]+)\":(?P<inline>.*)")
CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)':")
UNKNOWN = re.compile(r"(?:Group '(?P<group>[^']+)' does not accept option|Option) '(?P<key>[^']+)'")
MISSING = re.compile(r"the following arguments are required: (?P<keys>.+)")
NO_MODULE = re.compile(r"No module named '(?P<module>[^']+)'")
NO_ATTRIBUTE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
EXPECTED = re.compile(r"Expected a (?P<type>typing\.Literal\[[^\]]*\]|<class '[^']+'>|[\w.]+(?:\[.*?\])?)")
VALUE = re.compile(r"(?:Got value|Given value): (?P<value>.*)")
SPOKEN = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}
SUBCLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class ConfigText:
    """A config as it was written.

    Attributes:
        label: how messages call it: the file's name.
        root: its YAML nodes, which know their lines.
        numbered: whether its lines mean anything to the user.
    """

    label: str
    root: yaml.Node
    numbered: bool = True

    @classmethod
    def read(cls, path: str) -> ConfigText:
        """Read a config file.

        Raises:
            UserError: there is no such file, it is not YAML, or not a mapping.
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
            what = " ".join(part for part in (error.context, error.problem) if part)
            raise UserError(f"{path}, line {mark.line + 1}, column {mark.column + 1} is not YAML: {what}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a YAML text: {str(error).splitlines()[0]}") from error
        if not isinstance(root, yaml.MappingNode):
            held = "nothing" if root is None else f"a {root.id}"
            raise UserError(f"the config {path!r} holds {held}; expected keys such as `model:`, `stages:` and `data:`")
        return cls(path, root)

    @classmethod
    def of(cls, config: Mapping[str, Any], label: str) -> ConfigText:
        """A config that is not in a file."""
        return cls(label, yaml.compose(yaml.safe_dump(dict(config))), numbered=False)


def config_files(arguments: Sequence[str]) -> list[str]:
    """What `--config` names, in order."""
    found = []
    for here, following in pairwise([*arguments, ""]):
        key, equals, value = here.partition("=")
        if key in ("--config", "-c") and (value if equals else following):
            found.append(value if equals else following)
    return found


def cause_of(error: BaseException) -> UserError | None:
    """The `UserError` that a parser's error wraps, if any: a part's constructor raised it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, UserError):
        seen = seen.__cause__ or seen.__context__
    return seen


def explain(message: str, texts: Sequence[ConfigText], options: Iterable[str], base: str = "") -> str:
    """A parser's error in one to three lines.

    Args:
        message: of the parser.
        texts: the configs that were parsed; the later ones override.
        options: the parser's options, such as `--trainer.max_time`.
        base: dotted key that stands for the parser's first one: a stage's `data` is parsed as part of `data`.
    """
    problem = Problem.of(message)
    if problem.complaint.startswith("unrecognized arguments:"):
        return _unrecognized(problem.complaint.partition(":")[2].split(), list(options))
    expected = re.match(r"argument (?:-\w/)?(?P<option>--[\w.]+): expected one argument", problem.complaint)
    if expected:
        return f"{expected['option']} needs a value"
    top = [option.removeprefix("--").split(".") for option in options]
    return problem.say(texts, top, base)


@dataclass(frozen=True)
class Problem:
    """The deepest complaint of a parser's message.

    Attributes:
        steps: keys from the top; `None` where a class's `init_args` follow.
        owner: class path of the class whose argument is wrong.
        complaint: what the parser says about it.
    """

    steps: tuple[str | None, ...]
    owner: str | None
    complaint: str

    @classmethod
    def of(cls, message: str) -> Problem:
        lines = [(len(line) - len(line.lstrip(" -")), line.lstrip(" -")) for line in message.splitlines()]
        marks = [at for at, (_, text) in enumerate(lines) if KEY.match(text) or CLASS.match(text)]
        if not marks:
            return cls((), None, message.strip())
        deepest = max(marks, key=lambda at: (lines[at][0], -at))
        chain, depth = [], lines[deepest][0] + 1
        for at in reversed(marks[: marks.index(deepest) + 1]):
            if lines[at][0] < depth:
                chain.insert(0, at)
                depth = lines[at][0]
        steps: list[str | None] = []
        owner = None
        inline = ""
        for at in chain:
            key, made = KEY.match(lines[at][1]), CLASS.match(lines[at][1])
            if key:
                steps += key["key"].split(".")
                inline = key["inline"].strip()
                parameter_of = owner
            else:
                owner = made["path"]
                if not is_dataclass(_load(owner)):
                    steps.append(None)
        below = []
        for indent, text in lines[deepest + 1 :]:
            if text and indent <= lines[deepest][0]:
                break
            below.append(text)
        complaint = "\n".join([inline, *below]).strip()
        return cls(tuple(steps), owner if CLASS.match(lines[deepest][1]) else parameter_of, complaint)

    def say(self, texts: Sequence[ConfigText], top: list[list[str]], base: str) -> str:
        unknown, missing = UNKNOWN.match(self.complaint), MISSING.search(self.complaint)
        if unknown:
            return self._say_unknown(unknown["key"], unknown["group"], texts, top, base)
        if missing:
            return self._say_missing(missing["keys"], texts, base)
        value = VALUE.search(self.complaint)
        given = value["value"].strip() if value else ""
        nested = re.match(r"NestedArg\(key='[^']*', val='(?P<value>.*)'\)", given)
        given = nested["value"] if nested else given
        if any(pattern.search(self.complaint) for pattern in (NO_ATTRIBUTE, NO_MODULE)):
            return self._say_no_class(given, texts, base)
        if "Not a valid subclass" in self.complaint or "Import path" in self.complaint:
            return self._say_no_subclass(texts, base)
        place = locate(texts, self.steps, _is_value(given), base)
        types = list(dict.fromkeys(match["type"] for match in EXPECTED.finditer(self.complaint)))
        if not types:
            lines = [line for line in self.complaint.splitlines() if line and not line.startswith("Given value")]
            return f"{place}: " + "\n  ".join(line[:200] for line in lines[:3])
        choices = [choice for kind in types for choice in _choices(kind)]
        spoken = [f"one of {', '.join(map(repr, choices))}"] if choices else []
        spoken += [words for words in (_spoken(kind) for kind in types if "Literal" not in kind) if words]
        spoken = [words for words in dict.fromkeys(spoken) if not (choices and words in SPOKEN.values())] or spoken
        return f"{place}: expected {' or '.join(spoken)}, got {given!r}{nearest(given, map(str, choices))}"

    def _say_unknown(
        self, key: str, group: str | None, texts: Sequence[ConfigText], top: list[list[str]], base: str
    ) -> str:
        *inner, last = (*group.split("."), *key.split(".")) if group else key.split(".")
        steps = (*self.steps, *inner)
        place = locate(texts, (*steps, last), _is_anything, base)
        if self.owner is None:
            known = sorted(
                {names[len(inner)] for names in top if names[: len(inner)] == inner and len(names) > len(inner)}
            )
            owner = f"`{'.'.join(inner)}`" if inner else "a recipe"
        else:
            known, owner = arguments_of(self.owner), self.owner
        guess = nearest(last, known)
        listed = "" if guess else f"\n  It has {', '.join(known)}"
        return f"{place}: {owner} has no key {last!r}{guess or '.'}{listed}"

    def _say_missing(self, keys: str, texts: Sequence[ConfigText], base: str) -> str:
        names = keys.split(", ")
        if not self.steps:
            if not texts:
                return "no config was given. Add --config, such as: --config experiments/xcomposer2.yaml"
            label = " and ".join(text.label for text in texts)
            return f"{label}: {', '.join(f'`{name}:`' for name in names)} missing. A recipe has model, stages and data"
        place = locate(texts, self.steps, _lacks(names[0]), base)
        return f"{place}: {self.owner} needs {', '.join(f'`{name}`' for name in names)}. Add it"

    def _say_no_class(self, given: str, texts: Sequence[ConfigText], base: str) -> str:
        missing, attribute = NO_MODULE.search(self.complaint), NO_ATTRIBUTE.search(self.complaint)
        path = self.owner if self.complaint and not given else given
        wrong = f"{attribute['module']}.{attribute['name']}" if attribute else missing["module"]
        steps = self.steps[:-1] if self.steps[-1:] == (None,) else self.steps
        written = (*steps, "class_path")
        if _search(texts, written, _is_value(path or wrong), base) is None:
            written = steps  # the short form: connector: lit_mm.connectors.mlp.MLPProjector
        place = locate(texts, written, _is_value(path or wrong), base)
        parent, _, name = wrong.rpartition(".")
        guess = nearest(name, _members(parent))
        return f"{place}: there is no {wrong!r}{guess}"

    def _say_no_subclass(self, texts: Sequence[ConfigText], base: str) -> str:
        steps = self.steps[:-1] if self.steps[-1:] == (None,) else self.steps
        found = _search(texts, steps, _has_odd_key, base)
        if found is not None:
            place, node = found
            odd = next(key.value for key, _ in node.value if key.value not in SUBCLASS_KEYS)
            return (
                f"{place}: a class is given by `class_path` and `init_args`, got {odd!r}{nearest(odd, SUBCLASS_KEYS)}"
            )
        wanted = re.search(r"Not a valid subclass of (\w+)|class that is not a subclass of (\S+)", self.complaint)
        kind = next((name for name in wanted.groups() if name), "") if wanted else ""
        return (
            f"{locate(texts, steps, _is_anything, base)}: expected `class_path` and `init_args` of a {kind or 'class'}"
        )


# --- finding a complaint's place in the files ------------------------------------------------------------------------
def locate(
    texts: Sequence[ConfigText],
    steps: Sequence[str | None],
    accept: Callable[[yaml.Node], bool],
    base: str = "",
) -> str:
    """The dotted key with its file and line; without them where no file holds it, which leaves the command line."""
    if not steps:
        return "the command line"
    found = _search(texts, steps, accept, base)
    if found is not None:
        return found[0]
    names = [step or "init_args" for step in steps]
    dotted = ".".join([base, *[name for name in names[1:] if name != "init_args"]] if base else names)
    return f"{dotted} (on the command line)" if texts and not base else dotted


def _search(
    texts: Sequence[ConfigText], steps: Sequence[str | None], accept: Callable[[yaml.Node], bool], base: str
) -> tuple[str, yaml.Node] | None:
    names = [step for step in steps if step is not None]
    if base:
        names = [*base.split("."), *names[1:]]
    for text in reversed(texts):
        found = _find(text.root, names, accept)
        if found is not None:
            path, node, line = found
            where = f"{text.label}, line {line + 1}" if text.numbered else text.label
            return f"{where}: {'.'.join(path)}" if path else where, node
    return None


def _find(
    node: yaml.Node,
    names: Sequence[str],
    accept: Callable[[yaml.Node], bool],
    path: tuple[str, ...] = (),
    line: int = 0,
) -> tuple[tuple[str, ...], yaml.Node, int] | None:
    """Depth first. A name is looked for in a node, then in its `init_args`, then in all it has (stages, parts)."""
    if not names and accept(node):
        return path, node, line
    inner: list[tuple[str, yaml.Node, int]] = []
    if isinstance(node, yaml.SequenceNode):
        inner = [(_item_name(item, at), item, item.start_mark.line) for at, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        inner = [(key.value, value, key.start_mark.line) for key, value in node.value]
    named = [entry for entry in inner if entry[0] in names[:1]]
    wrapped = [entry for entry in inner if entry[0] == "init_args"]
    for name, value, at in named or wrapped or inner:
        found = _find(value, names[1:] if named else names, accept, (*path, name), at)
        if found is not None:
            return found
    return None


def _item_name(item: yaml.Node, at: int) -> str:
    """A stage by its name, another list item by its number."""
    named = isinstance(item, yaml.MappingNode) and [value.value for key, value in item.value if key.value == "name"]
    return str(named[0]) if named else str(at)


def _is_anything(node: yaml.Node) -> bool:
    return True


def _is_value(given: str) -> Callable[[yaml.Node], bool]:
    return lambda node: not isinstance(node, yaml.ScalarNode) or node.value == given


def _lacks(key: str) -> Callable[[yaml.Node], bool]:
    def accept(node: yaml.Node) -> bool:
        if not isinstance(node, yaml.MappingNode):
            return node.tag.endswith(":null")  # `connector:` with nothing behind it
        entries = {k.value: v for k, v in node.value}
        if "init_args" in entries:
            return accept(entries["init_args"])
        parts = entries and all(isinstance(value, yaml.MappingNode) for value in entries.values())
        return key not in entries and ("class_path" in entries or not parts)  # `train` itself has parts, not keys

    return accept


def _has_odd_key(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and any(key.value not in SUBCLASS_KEYS for key, _ in node.value)


# --- what would have been right --------------------------------------------------------------------------------------
def nearest(name: str, known: Iterable[str]) -> str:
    """`. Did you mean 'width'?` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f". Did you mean {close[0]!r}?" if close else ""


def arguments_of(class_path: str) -> list[str]:
    """Names of the arguments of a class, those of its bases included where it passes them on."""
    names: list[str] = []
    loaded = _load(class_path)
    for kind in inspect.getmro(loaded) if inspect.isclass(loaded) else (loaded,):
        parameters = inspect.signature(kind).parameters.values() if kind is not object else ()
        names += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in names]
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names


def _load(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:  # the complaint is about exactly this
        return None


def _members(module: str) -> list[str]:
    """Classes and functions of a module, and its submodules."""
    try:
        loaded = importlib.import_module(module)
    except ImportError:
        return []
    inside = [info.name for info in pkgutil.iter_modules(getattr(loaded, "__path__", []))]
    return [name for name, value in vars(loaded).items() if callable(value)] + inside


def _near_file(file: Path) -> str:
    siblings = [path.name for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
    close = difflib.get_close_matches(file.name, siblings, n=1)
    return f". Did you mean {str(file.parent / close[0])!r}?" if close else ". Correct --config"


def _unrecognized(words: list[str], options: list[str]) -> str:
    """An option that no parser knows."""
    word = words[0]
    if not word.startswith("-"):
        cure = f"a config is given by --config {word}" if word.endswith((".yaml", ".yml")) else "options start with --"
        return f"{word!r} is not expected on the command line; {cure}"
    option, _, _ = word.partition("=")
    head, dot, rest = option.partition(".")
    close = nearest_option(option, options)
    if close is None and dot:  # options do not list what is inside a model or data
        head = nearest_option(head, sorted({known.partition(".")[0] for known in options}))
        close = f"{head}.{rest}" if head else None
    return f"there is no option {option}" + (f". Did you mean {close}?" if close else " (see --help)")


def _choices(kind: str) -> list[Any]:
    """The values of a `typing.Literal[...]`."""
    listed = re.match(r"typing\.Literal\[(.*)\]", kind)
    return yaml.safe_load(f"[{listed[1]}]") if listed else []


def _spoken(kind: str) -> str:
    name = re.sub(r"<class '([^']+)'>", r"\1", kind)
    return SPOKEN.get(name, name)
