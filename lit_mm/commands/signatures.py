"""The comparison of a config's keys with the signatures of the classes that it names.

The parser would find the same mistakes, but it reports them as a page of nested complaints. Here each key is looked up
in the signature of its class, so that a message names the key, its file and line, and the nearest key that exists.
Types of values are left to the parser.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin

from lit_mm.commands.config_text import ALLOW, COMMAND_LINE, Entry, allowed, flow, spoken
from lit_mm.errors import UserError, nearest

SUBCLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
# Packages that a recipe or a checkpoint may import. Only the user allows others, by --allow PACKAGE or by ALLOW
OURS = "lit_mm"  # the package whose functions a recipe may call
PACKAGES = (OURS, "torch", "torchmetrics", "lightning", "transformers", "timm", "peft")
SIMPLE = (int, float, complex, bool, str, bytes, list, dict, tuple, set, frozenset, Enum, PurePath)


# --- signatures ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Argument:
    """An argument of a class or function.

    Attributes:
        annotation: type of the argument; Any if it has none.
        default: `inspect.Parameter.empty` if the argument is required.
    """

    annotation: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def takes_null(self) -> bool:
        """True if null is a value; True if that is unknown, without a type."""
        members = get_args(self.annotation) if get_origin(self.annotation) is Annotated else [self.annotation]
        union = get_args(members[0]) if get_origin(members[0]) in (Union, types.UnionType) else members[:1]
        return self.default is None or not {Any, object, None, type(None)}.isdisjoint(union)


@dataclass(frozen=True)
class Signature:
    """The arguments that a config may set.

    Attributes:
        arguments: name -> argument, in order.
        open: True if there are further arguments that no signature lists (`**kwargs` that do not go to a base).
    """

    arguments: dict[str, Argument]
    open: bool = False


def signature_of(loaded: Any) -> Signature:
    """Return the signature of a class or function. If a class has `**kwargs`, the arguments of its bases follow."""
    arguments: dict[str, Argument] = {}
    is_class = inspect.isclass(loaded)
    kinds = [kind for kind in inspect.getmro(loaded) if kind is not object] if is_class else [loaded]
    for kind in kinds:
        try:
            parameters = list(inspect.signature(kind).parameters.values())
        except ValueError:  # a class written in C has no signature
            return Signature(arguments, open=True)
        hints = _hints(kind)
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                argument = Argument(hints.get(parameter.name, Any), parameter.default)
                arguments.setdefault(parameter.name, argument)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return Signature(arguments)
    return Signature(arguments, open=True)


def _hints(loaded: Any) -> dict[str, Any]:
    """Return name -> type of the arguments; {} if a type names a class that is only imported for type checkers."""
    constructor = loaded.__init__ if inspect.isclass(loaded) and not is_dataclass(loaded) else loaded
    try:
        return typing.get_type_hints(constructor)
    except (NameError, AttributeError, TypeError):
        return {}


def check_package(path: str) -> None:
    """Refuse an import path outside the packages that may be imported. Nothing is imported.

    Raises:
        UserError: the package may not be imported, or does not exist.
    """
    package = path.partition(".")[0]
    if package in PACKAGES or package in allowed():
        return
    if not _exists(package):
        raise UserError(f"there is no {package!r}{nearest(package, [*PACKAGES, *allowed()])}")
    raise UserError(
        f"{path!r} cannot be imported: {package!r} is not an allowed package "
        f"({', '.join([*PACKAGES, *allowed()])}). If you trust it, add --allow {package}, or set "
        f"{ALLOW}={package}"
    )


def _exists(package: str) -> bool:
    if package in sys.builtin_module_names or package in sys.modules:
        return True
    return importlib.util.find_spec(package) is not None


def resolve(path: str) -> Any:
    """Import the class or function of an import path.

    Raises:
        UserError: a module or name of the path does not exist, may not be imported, or raises an error when imported.
    """
    check_package(path)
    try:
        return pkgutil.resolve_name(path)
    except Exception as error:  # a module may raise any error when it is imported
        names = path.split(".")
        parent = None
        for count in range(1, len(names) + 1):
            prefix = ".".join(names[:count])
            try:
                parent = pkgutil.resolve_name(prefix)
            except Exception as failure:
                missing = isinstance(failure, (ImportError, AttributeError, ValueError))
                is_module = inspect.ismodule(parent) and any(i.name == names[count - 1] for i in _submodules(parent))
                if not missing or is_module or (parent is None and not isinstance(failure, ModuleNotFoundError)):
                    raise UserError(f"{prefix!r} cannot be imported: {_first_line(_import_error(prefix))}") from error
                break
        raise UserError(f"there is no {prefix!r}{nearest(names[count - 1], _members(parent))}") from error


def _import_error(module: str) -> Exception | None:
    """Import a module, and return the error that it raises; None without an error."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return error
    return None


def _first_line(error: Exception | None) -> str:
    text = f"{error}".splitlines()[0] if f"{error}" else ""
    return text if isinstance(error, ImportError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _submodules(module: types.ModuleType) -> Iterator[pkgutil.ModuleInfo]:
    return pkgutil.iter_modules(vars(module).get("__path__"), "") if "__path__" in vars(module) else iter(())


def _members(parent: Any) -> list[str]:
    """Return the names of a module's classes, functions and submodules."""
    if not inspect.ismodule(parent):
        return []
    return [name for name, value in vars(parent).items() if callable(value)] + [i.name for i in _submodules(parent)]


def _subclass_of_name(name: str, kinds: Sequence[type]) -> Any:
    """Return the only imported subclass of a name, which the parser accepts without its module; None without one."""
    matches = {subclass for kind in kinds for subclass in _subclasses(kind) if subclass.__name__ == name}
    return matches.pop() if len(matches) == 1 else None


def _subclasses(kind: type) -> Iterator[type]:
    """Return a class and all imported classes below it."""
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)


# --- types -----------------------------------------------------------------------------------------------------------
def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union without null and without the additions of `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in alternatives(member)]
    return [] if annotation in (None, type(None)) else [annotation]


def is_part(kind: Any) -> bool:
    """Return True if a config gives values of a type by `class_path` and `init_args`."""
    if get_origin(kind) is type or kind is type:
        return False
    return _is_callable(kind) or (inspect.isclass(kind) and not is_dataclass(kind) and not issubclass(kind, SIMPLE))


def _is_callable(kind: Any) -> bool:
    return kind is Callable or get_origin(kind) is Callable


def _returned(kind: Any) -> Any:
    """Return the base of a config's class: the type itself, or the return type of a `Callable`."""
    if not _is_callable(kind):
        return kind
    return get_args(kind)[-1] if get_args(kind) else Any


# --- the comparison --------------------------------------------------------------------------------------------------
def check_entry(entry: Entry, annotation: Any, path: tuple[str, ...], default: Any = None) -> None:
    """Compare an entry and all entries below it with a type.

    Args:
        path: keys of the entry from the top of the config, for messages.
        default: default of the argument. A class there stands for a missing `class_path`.
    Raises:
        UserError: a key or class does not exist, is of the wrong kind, or a required key is missing.
    """
    kinds = alternatives(annotation)
    if Any in kinds or object in kinds:
        return
    parts = [kind for kind in kinds if is_part(kind)]
    dataclasses = [kind for kind in kinds if inspect.isclass(kind) and is_dataclass(kind)]
    mappings = [kind for kind in kinds if get_origin(kind) in (dict, Mapping) or kind in (dict, Mapping)]
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple, Sequence, Collection, set)]
    literals = [kind for kind in kinds if get_origin(kind) is Literal]
    words = [word for kind in literals for word in get_args(kind)]
    if entry.value in words:
        return
    if isinstance(entry.value, dict):
        by_class = {"class_path", "init_args"} & entry.keys.keys()
        if by_class and (not mappings or (parts and "class_path" in by_class)):
            check_class(entry, [*parts, *dataclasses], path, default)
        elif len(dataclasses) == 1 and not parts and not mappings:
            complete = not is_dataclass(default)  # a default fills missing keys
            check_keys(entry, signature_of(dataclasses[0]), name_of(dataclasses[0]), path, complete=complete)
        elif len(mappings) == 1 and get_args(mappings[0]) and not dataclasses:
            for name, inner in entry.items:
                check_entry(inner, get_args(mappings[0])[1], (*path, name))
        elif parts and len(parts) == len(kinds):
            check_class(entry, parts, path, default)
    elif isinstance(entry.value, list) and len(lists) == 1:
        members = get_args(lists[0])
        fixed = get_origin(lists[0]) is tuple and Ellipsis not in members
        for number, (name, inner) in enumerate(entry.items):
            if members and not (fixed and number >= len(members)):
                check_entry(inner, members[number if fixed else 0], (*path, name))
    elif isinstance(entry.value, str | list) and len(dataclasses) == len(kinds) == 1:
        keys = ", ".join(signature_of(kinds[0]).arguments)
        raise UserError(f"{spoken(entry, path)}: expected keys of {name_of(kinds[0])}, {keys}; got {flow(entry)}")
    elif entry.value is None and dataclasses == [annotation]:  # `connector:` without a value
        _check_required((), signature_of(annotation), name_of(annotation), entry, path)
    elif isinstance(entry.value, str) and parts and str not in kinds and _is_name(entry.value, parts):
        loaded = class_of(entry, parts, path)
        if not any(map(_is_callable, parts)):  # a caller passes the first arguments
            _check_required((), signature_of(loaded), entry.value, entry, path)
    elif isinstance(entry.value, str) and len(kinds) == 1 and inspect.isabstract(kinds[0]):
        names = sorted(kind.__name__ for kind in _subclasses(kinds[0]) if not inspect.isabstract(kind))
        if entry.value not in names:
            raise UserError(
                f"{spoken(entry, path)}: expected a `class_path` such as {name_of(kinds[0])}'s {', '.join(names)}, got "
                f"{entry.value!r}{nearest(entry.value, names)}"
            )
    elif isinstance(entry.value, str) and parts and len(parts) + len(lists) + len(literals) == len(kinds):
        raise UserError(no_class(entry, parts, path, words))


def no_class(entry: Entry, kinds: Sequence[Any], path: tuple[str, ...], words: Sequence[str] = ()) -> str:
    """Return the message about a text that is the name of no class, with the nearest imported class of these types.

    Args:
        words: words that the key takes besides classes.
    """
    bases = [kind for kind in map(_returned, kinds) if inspect.isclass(kind) and kind is not Any]
    names = {kind.__name__ for base in bases for kind in _subclasses(base)}
    guess = nearest(entry.value, [*words, *names]) if isinstance(entry.value, str) else ""
    cure = guess or f". Give {''.join(f'{word!r}, or ' for word in words)}its import path, such as package.Class"
    return f"{spoken(entry, path)}: there is no class {flow(entry)}{cure}"


def _is_name(text: str, kinds: Sequence[Any]) -> bool:
    """Return True if a text is an import path, or the name of an imported class of these types."""
    bases = [kind for kind in map(_returned, kinds) if inspect.isclass(kind) and kind is not Any]
    return IMPORT_PATH.fullmatch(text) is not None or _subclass_of_name(text, bases) is not None


def check_class(entry: Entry, kinds: Sequence[Any], path: tuple[str, ...], default: Any = None) -> None:
    """Compare the `class_path` and `init_args` of a config with the signature of the class.

    Args:
        entry: entry with the two keys.
        kinds: types that the entry may have.
        path: keys of the entry from the top of the config, for messages.
        default: default of the argument; a class there stands for a missing `class_path`.
    Raises:
        UserError: see `check_entry`.
    """
    inner = dict(entry.keys)
    arguments = inner.get("init_args", Entry({}, entry.place))
    # The command line may leave `init_args` out: --model.rank 8
    short = {key: value for key, value in inner.items() if key not in SUBCLASS_KEYS and value.place == COMMAND_LINE}
    for key, value in inner.items():
        if key not in SUBCLASS_KEYS and key not in short:
            raise UserError(
                f"{spoken(value, path)}: a class is given by `class_path` and `init_args`, got {key!r}"
                f"{nearest(key, SUBCLASS_KEYS)}"
            )
    if "class_path" in inner:
        loaded = class_of(inner["class_path"], kinds, (*path, "class_path"))
        if loaded is None:
            raise UserError(no_class(inner["class_path"], kinds, (*path, "class_path")))
        name = str(inner["class_path"].value)
    else:
        loaded = default if inspect.isclass(default) or inspect.isfunction(default) else None
        name = name_of(loaded) if loaded is not None else ""
    if loaded is None or not (isinstance(arguments.value, dict) or arguments.value is None):
        return
    called = any(_is_callable(kind) for kind in kinds)  # the caller passes the first arguments
    signature = signature_of(loaded)
    place = entry.place
    for keys, below in ((arguments.keys, (*path, "init_args")), (short, path)):
        check_keys(Entry(keys, place), signature, name, below, complete=False)
    if not called:
        _check_required({**arguments.keys, **short}, signature, name, entry, path)


def class_of(entry: Entry, kinds: Sequence[Any], path: tuple[str, ...]) -> Any:
    """Return the class of a `class_path`; None if only the parser can find it.

    Raises:
        UserError: the class does not exist, may not be imported, or is of none of these types.
    """
    text = entry.value
    classes = [_returned(kind) for kind in kinds]
    bases = [kind for kind in classes if inspect.isclass(kind) and kind is not Any]
    if not isinstance(text, str):
        return None
    if not IMPORT_PATH.fullmatch(text):
        return _subclass_of_name(text, bases)
    try:
        loaded = resolve(text)
    except UserError as error:
        raise UserError(f"{spoken(entry, path)}: {error}") from error
    place = spoken(entry, path)
    expected = " or ".join(name_of(kind) for kind in bases)
    trusted = loaded.__module__.partition(".")[0] in (OURS, *allowed()) if callable(loaded) else False
    if inspect.isclass(loaded):
        is_open = not bases or len(bases) < len(classes) or any(Protocol in kind.__bases__ for kind in bases)
        if (not is_open and not issubclass(loaded, tuple(bases))) or (is_open and not trusted):
            raise UserError(f"{place}: expected a subclass of {expected or 'a part of this framework'}, got {text}")
        return loaded
    if not (inspect.isfunction(loaded) and any(map(_is_callable, kinds))):
        raise UserError(f"{place}: expected a class{f' below {expected}' if expected else ''}, got {text}")
    result = _hints(loaded).get("return")
    if not trusted or (bases and not (inspect.isclass(result) and issubclass(result, tuple(bases)))):
        raise UserError(
            f"{place}: expected a function of {', '.join([OURS, *allowed()])}"
            f"{f' that returns {expected}' if expected else ''}, got {text}"
        )
    return loaded


def check_keys(entry: Entry, signature: Signature, owner: str, path: tuple[str, ...], *, complete: bool = True) -> None:
    """Compare the keys of a mapping with arguments, and each value with its argument's type.

    Args:
        entry: the mapping.
        signature: arguments of the class.
        owner: name of the class in messages.
        path: keys of the mapping from the top of the config, for messages.
        complete: True if required arguments may not be missing.
    Raises:
        UserError: see `check_entry`.
    """
    for key, inner in entry.keys.items():
        argument = signature.arguments.get(key)
        if argument is not None and inner.value is None and not argument.takes_null:
            otherwise = "Give it" if argument.required else "Leave the key out for its default"
            raise UserError(f"{spoken(inner, (*path, key))}: {owner} needs a value here, got null. {otherwise}")
        if argument is not None:
            check_entry(inner, argument.annotation, (*path, key), argument.default)
        elif not signature.open:
            raise UserError(unknown_key(inner, key, list(signature.arguments), owner, path))
    if complete:
        _check_required(entry.keys, signature, owner, entry, path)


def _check_required(
    keys: Collection[str], signature: Signature, owner: str, entry: Entry, path: tuple[str, ...]
) -> None:
    missing = [name for name, argument in signature.arguments.items() if argument.required and name not in keys]
    if missing:
        raise UserError(f"{spoken(entry, path)}: {owner} needs {', '.join(f'`{name}`' for name in missing)}. Add it")


def unknown_key(entry: Entry, key: str, names: Sequence[str], owner: str, path: Sequence[str]) -> str:
    """Return the message about an unknown key, with the nearest known key or all of them."""
    guess = nearest(key, names)
    listed = f"\n  It has {', '.join(names)}" if names and not guess else ""
    return f"{spoken(entry, (*path, key))}: {owner} has no key {key!r}{guess or '.'}{listed}"


def name_of(loaded: Any) -> str:
    """Return the import path of a class or function."""
    return f"{loaded.__module__}.{loaded.__qualname__}"


# --- several configs -------------------------------------------------------------------------------------------------
def merged(base: Entry, override: Entry) -> Entry:
    """Merge two configs. Mappings are merged key by key; any other value of `override` replaces the value of `base`.

    If the class changes, the arguments that the new class also has stay, as in the parser. A list that appends follows
    the items of `base`.
    """
    if override.appends and isinstance(base.value, list):
        return Entry([*base.value, *override.value], base.place)
    if not base.keys or not override.keys:
        return override
    keys = dict(base.keys)
    before, after = base.keys.get("class_path"), override.keys.get("class_path")
    if before is not None and after is not None and before.value != after.value:
        keys["init_args"] = _common_arguments(base.keys.get("init_args"), str(after.value), base.place)
    for key, entry in override.keys.items():
        keys[key] = merged(keys[key], entry) if key in keys else entry
    return Entry(keys, override.place if override.place != COMMAND_LINE else base.place)


def _common_arguments(arguments: Entry | None, class_path: str, place: str) -> Entry:
    """Return the arguments of the earlier class that the class of `class_path` also has."""
    try:
        loaded = resolve(class_path) if IMPORT_PATH.fullmatch(class_path) else None
        names = signature_of(loaded).arguments if callable(loaded) else {}
    except UserError:  # `check_class` reports it
        names = {}
    keys = {} if arguments is None else arguments.keys
    return Entry({key: entry for key, entry in keys.items() if key in names}, place)
