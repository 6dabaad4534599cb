"""Arguments of parts that a recipe leaves out are taken over from the config.json of their weights.

The run's config has them then, so that the run resumes and answers where the weights are not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from lit_mm.commands.config_text import COMMAND_LINE, Entry, flow
from lit_mm.commands.signatures import IMPORT_PATH, merged, resolve, signature_of
from lit_mm.commands.stage_keys import nested
from lit_mm.errors import UserError
from lit_mm.weights.agreement import ReadsArguments
from lit_mm.weights.source import local_config

MODEL = "model"


def with_published_arguments(config: Entry) -> tuple[Entry, list[str]]:
    """Complete the parts of a recipe.

    Only files on this machine are read. Arguments that equal a default are not taken over, so a recipe that fits its
    weights stays as it is.

    Args:
        config: the merged config. Its packages may be imported.
    Returns:
        The config with the arguments, and the same arguments as options for the parser.
    Raises:
        UserError: a config.json is damaged.
    """
    if MODEL not in config.keys:
        return config, []
    complete = nested(config.keys[MODEL])
    words: list[str] = []
    for path, value in _left_out(complete, (MODEL,)):
        words.append(f"--{'.'.join(path)}={flow(value)}")
        for key in reversed(path):
            value = Entry({key: value}, COMMAND_LINE)
        config = merged(config, value)
    return config, words


def _left_out(entry: Entry, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Entry]]:
    """Yield (keys, value) of every argument that the recipe leaves out in a part or the parts below it."""
    arguments = entry.keys.get("init_args", Entry({}, entry.place)).keys
    weights, class_path = arguments.get("weights"), entry.keys.get("class_path")
    if weights is not None and isinstance(weights.value, str) and class_path is not None:
        recipe_arguments = [name for name, argument in arguments.items() if argument.value is not None]
        for name, value in _published(str(class_path.value), weights.value, recipe_arguments).items():
            yield (*path, "init_args", name), value
    for name, inner in entry.keys.items():
        yield from _left_out(inner, (*path, name))


def _published(class_path: str, weights: str, recipe_arguments: Collection[str]) -> dict[str, Entry]:
    """Return the arguments in the config.json of weights that differ from the defaults of a class.

    Args:
        class_path: import path of the class; {} if it is none, or the class reads no config.json.
        weights: reference of the weights.
        recipe_arguments: arguments of the recipe, which stay.
    """
    try:
        loaded = resolve(class_path) if IMPORT_PATH.fullmatch(class_path) else None
    except UserError:  # `check_config` reports it
        return {}
    here = local_config(weights) if isinstance(loaded, type) and isinstance(loaded, ReadsArguments) else None
    if here is None:
        return {}
    file, config = here
    published = loaded.published_arguments(config, recipe_arguments)
    defaults = {name: argument.default for name, argument in signature_of(loaded).arguments.items()}
    return {
        name: _entry(value, str(file))
        for name, value in published.items()
        if name not in recipe_arguments and value != defaults[name]
    }


def _entry(value: Any, place: str) -> Entry:
    """Return the entry of a number, a truth value or a word."""
    return Entry(str(value).lower() if isinstance(value, bool) else str(value), place)
