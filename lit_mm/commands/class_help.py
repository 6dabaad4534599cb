"""`--KEY.help [CLASS]` of `fit` lists the classes that a recipe may name, and describes their arguments.

A page comes from a class's signature and docstring, so every argument has its type, default and description.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from lit_mm.commands.mistakes import SPOKEN
from lit_mm.commands.trainer_keys import ARGUMENTS
from lit_mm.errors import UserError, nearest

WIDTH = 80  # columns of a terminal
OURS = "lit_mm."  # package of the classes whose docstrings are printed whole
HELP = re.compile(r"--(?P<key>(model|data|stages|trainer)(\.[\w*-]+)*)\.help")
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Source|Example)s?:.*")
ENTRY = re.compile(r"    (?P<names>\w+(?:, \w+)*): *(?P<text>.*)")
STAGES = """Stages are a list in the recipe. On the command line, in a later --config and in
a sweep, a key of a stage is addressed by the stage's name.

  --stages.pretrain.max_steps 2               one stage
  '--stages.*.max_steps' 2                    all stages
  --stages.pretrain.train.connector.lr 0.01   a key of a part of one stage
  --stages "{pretrain: {max_steps: 2}}"       a mapping, as in a later --config
  --stages.replace "[{name: only, ...}]"      another list of stages
  --stages pretrain,finetune                  runs these stages only
"""
FURTHER = {
    "stages.NAME": "More help: --stages.train.help (how a part learns), --stages.schedule.help (the schedules), "
    "--stages.inputs.help (tiling, layout, prompt and lengths)."
}


def help_request(arguments: Sequence[str]) -> tuple[str, str | None] | None:
    """Return (dotted key, class path or None) of an option `--KEY.help [CLASS]`; None without such an option."""
    for number, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if (match := HELP.fullmatch(option)) is not None:
            following = value or (arguments[number + 1] if number + 1 < len(arguments) else "")
            return match["key"], None if following.startswith("--") or not following else following
    return None


def help_page(key: str, class_path: str | None) -> str:
    """Return the page about a key of a recipe.

    Args:
        key: dotted key, such as model, stages.schedule or trainer.
        class_path: class whose arguments are listed; None for the only class of the key, or for a list of its classes.
    Raises:
        UserError: the key or class does not exist.
    """
    if class_path is None and key in ("model", "data"):
        return class_list(key)
    if class_path is None and key == "trainer":
        return trainer_page()
    kinds = kinds_of(key)
    if class_path is not None:
        loaded = _loaded(class_path, kinds, key)
        return class_page(loaded, f"{_address(key)}.init_args", path_of(loaded))
    described = [kind for kind in kinds if is_dataclass(kind) and not inspect.isabstract(kind)]
    if described:
        page = class_page(described[0], _address(key), path_of(described[0]))
        return f"{STAGES}\n{page}" if key == "stages" else page
    classes = {each: path_of(each) for kind in kinds if inspect.isclass(kind) for each in concrete_subclasses(kind)}
    if classes:
        return _listed(key, classes)
    from lit_mm.commands.signatures import is_part

    if not kinds or any(map(is_part, kinds)):
        return f"`{key}` takes a class, by `class_path` and `init_args`. --{key}.help CLASS lists its arguments."
    return f"`{key}` takes {' or '.join(map(type_in_words, kinds))}."


def kinds_of(key: str) -> list[Any]:
    """Return the types that a dotted key may have. A list or mapping is represented by the types of its values.

    Raises:
        UserError: the key does not exist.
    """
    from lit_mm.commands.recipe import KEYS
    from lit_mm.commands.signatures import signature_of
    from lit_mm.distributed.precision import Trainer

    first, *names = key.split(".")
    kinds, may_be_name = _members({**KEYS, "trainer": Trainer}[first])
    for name in names:
        arguments = {n: a for kind in kinds if inspect.isclass(kind) for n, a in signature_of(kind).arguments.items()}
        if name in arguments:
            kinds, may_be_name = _members(arguments[name].annotation)
        elif may_be_name:  # name of a stage or of a part
            may_be_name = False
        elif first != "stages":  # it depends on the class
            return []
        elif name != "init_args":
            raise UserError(f"there is no help for {key!r}{nearest(name, arguments)}")
    return kinds


def _members(annotation: Any) -> tuple[list[Any], bool]:
    """Return the types of a value, and True if the value is a list or mapping of these types."""
    from lit_mm.commands.signatures import alternatives

    kinds: list[Any] = []
    is_collection = False
    for kind in alternatives(annotation):
        if get_origin(kind) in (list, dict, Mapping, Sequence, Collection) and get_args(kind):
            kinds += _members(get_args(kind)[-1])[0]
            is_collection = True
        else:
            kinds.append(kind)
    return kinds, is_collection


def _loaded(class_path: str, kinds: Sequence[Any], key: str) -> Any:
    from lit_mm.commands.config_text import parsed
    from lit_mm.commands.signatures import class_of

    loaded = class_of(parsed(class_path), kinds, (key, "help"))
    if loaded is None:
        raise UserError(f"--{key}.help: there is no class {class_path!r}. Give its import path, such as package.Class")
    return loaded


def _address(key: str) -> str:
    """Return a dotted key with NAME in place of a stage's name and PART in place of a part's name."""
    names = key.split(".")
    if names[0] == "stages" and (len(names) == 1 or names[1] in ("train", "schedule", "inputs", "inputs_from")):
        names.insert(1, "NAME")
    if names[0] == "stages" and names[2:] in (["train"], ["inputs_from"]):
        names.append("PART" if names[2] == "train" else "STEP")
    return ".".join(names)


# --- lists of classes ------------------------------------------------------------------------------------------------
def class_list(key: str) -> str:
    """List the families (key "model") or data modules (key "data") with the first sentence of each docstring."""
    from lightning import LightningDataModule

    from lit_mm.module import MultimodalModule

    base, package = {
        "model": (MultimodalModule, "lit_mm.families"),
        "data": (LightningDataModule, "lit_mm.datamodules"),
    }[key]
    root = importlib.import_module(package)
    classes: dict[type, str] = {}  # class -> shortest import path
    for module in (
        root,
        *(importlib.import_module(i.name) for i in pkgutil.iter_modules(root.__path__, f"{package}.")),
    ):
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, base) and value.__module__.startswith(f"{package}."):
                classes.setdefault(value, f"{module.__name__}.{name}")
    return _listed(key, classes)


def concrete_subclasses(kind: type) -> Iterator[type]:
    """Return the concrete classes of this package below one of its abstract classes."""
    if not kind.__module__.startswith("lit_mm."):
        return
    package = importlib.import_module(kind.__module__.rpartition(".")[0])
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(info.name)
    below = kind.__subclasses__()
    while below:
        each = below.pop(0)
        below += each.__subclasses__()
        if not inspect.isabstract(each) and each.__module__.startswith("lit_mm."):
            yield each


def _listed(key: str, classes: Mapping[type, str]) -> str:
    lines = [*textwrap.wrap(f"Classes for `{key}.class_path`. --{key}.help CLASS lists the arguments.", WIDTH), ""]
    for value, path in sorted(classes.items(), key=lambda item: item[1]):
        lines += [f"  {path}", *_wrapped(first_sentence(value), 6)]
    return "\n".join(lines)


def first_sentence(value: Any) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return _first(paragraph)


def _first(text: str) -> str:
    """Return the first sentence of a text, without Sphinx's markup."""
    sentence = re.split(r"(?<=[^.\d])\. | \.\. |::", text)[0].rstrip(".:") + "."
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", sentence).replace("``", "`")


def path_of(value: Any) -> str:
    """Return the shortest import path of a class or function, such as lit_mm.stages.Cosine."""
    packages = value.__module__.split(".")
    for depth in range(1, len(packages)):
        package = ".".join(packages[:depth])
        if vars(importlib.import_module(package)).get(value.__name__) is value:
            return f"{package}.{value.__name__}"
    return f"{value.__module__}.{value.__qualname__}"


# --- a class ---------------------------------------------------------------------------------------------------------
def class_page(loaded: Any, address: str, path: str) -> str:
    """Return the page of a class: its description and its arguments.

    Args:
        address: dotted key above the arguments.
    """
    from lit_mm.commands.signatures import signature_of

    documented = descriptions(loaded)
    lines = [path, "", *textwrap.wrap(Docstring.of(loaded).summary, WIDTH), ""]
    for name, argument in signature_of(loaded).arguments.items():
        kind = type_in_words(argument.annotation)
        default = "required" if argument.required else f"default: {_default(loaded, name, argument.default)}"
        lines += [f"  --{address}.{name}", *_wrapped(f"{documented.get(name, '')} ({kind}; {default})".strip(), 6)]
    return "\n".join([*lines, *(["", *textwrap.wrap(FURTHER[address], WIDTH)] if address in FURTHER else [])])


def trainer_page() -> str:
    """Return the page about the arguments of the Trainer."""
    title = "The Trainer of Lightning. docs/trainer.md has this table, and that of Lightning's callbacks."
    lines = [*textwrap.wrap(title, WIDTH), ""]
    for key in ARGUMENTS:
        text = f"Not taken here. {key.text}" if key.use == "refused" else key.text
        lines += [f"  --trainer.{key.name}", *_wrapped(text, 6)]
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)


@dataclass(frozen=True)
class Docstring:
    """A docstring in Google's style.

    Attributes:
        summary: the text before the first section, as one paragraph.
        arguments: name -> description. A line may describe several names.
    """

    summary: str
    arguments: dict[str, str]

    @classmethod
    def of(cls, value: Any) -> Docstring:
        summary: list[str] = []
        arguments: dict[str, list[str]] = {}
        section: str | None = None
        names: list[str] = []
        for line in inspect.cleandoc(value.__doc__ or "").splitlines():
            if match := SECTION.fullmatch(line):
                section, names = match[1], []
            elif section is None:
                summary.append(line)
            elif section in ("Args", "Attributes") and (entry := ENTRY.fullmatch(line)):
                names = entry["names"].split(", ")
                arguments |= {name: [entry["text"]] for name in names}
            elif line.startswith("        "):
                for name in names:
                    arguments[name].append(line.strip())
        texts = {name: " ".join(text).strip() for name, text in arguments.items()}
        if not value.__module__.startswith(OURS):  # Lightning's markup has lines that are longer than a terminal's
            return cls(first_sentence(value), {name: _first(text) for name, text in texts.items()})
        return cls(" ".join(" ".join(summary).split()), texts)


def descriptions(loaded: Any) -> dict[str, str]:
    """Return argument -> description. A class may refer to the description of its base ("see `StreamDataModule`")."""
    kinds = inspect.getmro(loaded) if inspect.isclass(loaded) else [loaded]
    texts: dict[str, str] = {}
    for kind in kinds:
        for name, text in Docstring.of(kind).arguments.items():
            if name not in texts or texts[name].startswith("see "):
                texts[name] = text
    return {name: text[:1].upper() + text[1:] for name, text in texts.items()}


def type_in_words(kind: Any) -> str:
    """Return a type in a user's words: `a whole number or null`, `one of adamw, muon`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_in_words(member) for member in arguments))
    if origin is Literal:
        return f"one of {', '.join(str(value) for value in arguments)}"
    if origin in (list, Sequence, Collection, set) and arguments:
        return f"a list, each item {type_in_words(arguments[0])}"
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)}, each {type_in_words(arguments[0])}"
    if origin in (dict, Mapping) and arguments:
        return f"a mapping, each value {type_in_words(arguments[1])}"
    if origin is Callable or kind is Callable or origin is type:
        return "a class or function by its import path"
    if kind is Any:
        return "any value"
    if kind is None:
        return "null"
    name = kind.__name__ if inspect.isclass(kind) else str(kind)
    if name in SPOKEN:
        return SPOKEN[name]
    return f"the keys of {name}" if is_dataclass(kind) and not inspect.isabstract(kind) else f"a class of {name}"


def _default(loaded: Any, name: str, default: Any) -> str:
    if is_dataclass(loaded):
        factories = {field.name: field.default_factory for field in fields(loaded)}
        if factories.get(name, MISSING) is not MISSING:
            default = factories[name]()
    if inspect.isclass(default) or inspect.isfunction(default):
        return path_of(default)
    if isinstance(default, (str, int, float, list, dict, tuple, type(None))):
        value = list(default) if isinstance(default, tuple) else default
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]
    return path_of(type(default))
