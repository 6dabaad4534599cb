"""The numbers in the config.json of published weights, compared with those of the part that the weights fill."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lit_mm.errors import UserError
from lit_mm.weights.config_file import CONFIG, config_folder, read_config

SHOWN = 3  # most differences in an error


@dataclass(frozen=True)
class Difference:
    """A number of a config.json that differs from that of a part.

    Attributes:
        key: key of the config.json.
        published: value in the config.json, or the default of the key.
        present: value of the part.
        argument: argument of the part that sets the value; None if no argument does.
        advice: what to do if no argument helps.
    """

    key: str
    published: Any
    present: Any
    argument: str | None = None
    advice: str = ""

    def described(self, path: str) -> str:
        """Describe the difference and its cure; `path` is that of the part's arguments in a recipe."""
        cure = self.advice if self.argument is None else f"set {path}.{self.argument}: {spelt(self.published)}"
        return f"{self.key} is {spelt(self.published)} there and {spelt(self.present)} in the recipe: {cure}"


@runtime_checkable
class ComparesConfig(Protocol):
    """A part that compares itself with the config.json of its weights."""

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Return the numbers of a config.json in which the part differs."""
        ...


@runtime_checkable
class ReadsArguments(Protocol):
    """A class of parts that reads arguments of its constructor from the config.json of its weights."""

    @classmethod
    def published_arguments(cls, config: dict[str, Any], recipe_arguments: Collection[str]) -> dict[str, Any]:
        """Return arguments of the constructor.

        Args:
            config: a config.json; one of another kind of model gives {}.
            recipe_arguments: names of the arguments that the recipe sets.
        """
        ...


def check_config(module: nn.Module, folder: Path, part: str, path: str) -> None:
    """Refuse weights whose config.json describes another model than the part.

    Args:
        module: part that the weights fill. A part that is not `ComparesConfig` is not compared.
        folder: folder or file of the weights, see `config_folder`. Without a config.json nothing is compared.
        part: name of the part, for the message.
        path: path of the part's arguments in a recipe, such as model.init_args.language.init_args.
    Raises:
        UserError: a number differs.
    """
    folder = config_folder(folder)
    if not isinstance(module, ComparesConfig) or not (folder / CONFIG).is_file():
        return
    differences = module.compare_config(read_config(str(folder)))
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise UserError(
            f"the weights of the part {part!r} do not fit the recipe, see {str(folder / CONFIG)!r}.\n  "
            + "; ".join(difference.described(path) for difference in differences[:SHOWN])
            + more
        )


def spelt(value: Any) -> str:
    """Spell a value as YAML does."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def agree(value: Any, number: Any) -> bool:
    """Return True for equal values. Fractions may differ by their rounding to fp32, as in files that were converted."""
    if isinstance(value, float) and isinstance(number, float):
        return math.isclose(value, number, rel_tol=1e-6)
    return value == number


def compare_numbers(
    values: Mapping[str, Any],
    keys: Mapping[str, str],
    numbers: Mapping[str, Any],
    advice: Mapping[str, str] | None = None,
) -> list[Difference]:
    """Compare the values of a config.json with the numbers of a part.

    Args:
        values: values of the config.json, with the defaults of absent keys.
        keys: key of the config.json -> argument of the part.
        numbers: argument of the part -> its value; other arguments are not compared.
        advice: name in `numbers` that is no argument of the constructor -> what to do if it differs.
    """
    advice = advice or {}
    return [
        Difference(key, values[key], numbers[name], None if name in advice else name, advice.get(name, ""))
        for key, name in keys.items()
        if name in numbers and not agree(values[key], numbers[name])
    ]
