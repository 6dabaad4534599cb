"""Functions chosen in a recipe: an import path, and the arguments that are not the caller's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from lit_mm.errors import UserError


@dataclass(frozen=True)
class Function:
    """A function and some of its arguments.

    Attributes:
        function: its import path, such as lit_mm.tiling.hd.plan_hd.
        arguments: by name, such as {max_tiles: 6, tile: 112}.
    """

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)


def resolve(chosen: str | Function, *, given: int, key: str) -> Callable[..., Any]:
    """The function, ready to be called with what its caller gives.

    Args:
        chosen: with arguments, or an import path alone.
        given: how many arguments, its first ones, the caller gives.
        key: of the recipe, for errors.
    Raises:
        UserError: there is no such function, or it does not take these arguments.
    """
    if isinstance(chosen, str):
        chosen = Function(chosen)
    place, _, name = chosen.function.rpartition(".")
    try:
        function = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key}: there is no function {chosen.function!r} ({error}). Give an import path such as "
            "lit_mm.samples.layout.in_order"
        ) from error
    if not callable(function) or isinstance(function, type):
        raise UserError(f"{key}: {chosen.function!r} is no function")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, skip={given}, fail_untyped=False)
    try:
        arguments = parser.parse_object(chosen.arguments)
    except ArgumentError as error:
        raise UserError(f"{key}.arguments of {chosen.function}: {' '.join(str(error).split())}") from error
    return partial(function, **arguments.as_dict())
