"""Conversion of parsed YAML to typed dataclasses; unknown keys and wrong types are refused."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lit_mm.errors import UserError, suggestion

T = TypeVar("T")


def typed(cls: type[T], values: Any, where: str) -> T:
    """Build a dataclass from a mapping.

    Args:
        cls: dataclass whose fields are texts, numbers, flags, mappings, tuples or dataclasses.
        values: parsed YAML.
        where: place of the mapping in errors, such as "textvqa.yaml: reader".
    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is a mapping of {cls.__name__}, got {values!r}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            guess = suggestion(str(key), fields, otherwise=f"There are {', '.join(fields)}.")
            raise UserError(f"{where}: unknown key {key!r}. {guess}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise UserError(f"{where}: the keys {missing} are missing")
    return cls(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(kind for kind in arguments if kind is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} is one of {list(arguments)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} is a list, got {value!r}")
        return tuple(_value(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is a mapping, got {value!r}")
        return {
            _value(arguments[0], key, where): _value(arguments[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return typed(hint, value, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UserError(f"{where} is of the type {hint.__name__}, got {value!r}")
    return value
