"""Protocols of parts, and the defaults of their optional attributes."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import isfunction
from typing import Protocol, cast, runtime_checkable

from torch import nn

from lit_mm.errors import UserError


class Divided(Protocol):
    """A module that holds parameters of another part than the one around it, such as LoRA in a language model.

    Attributes:
        parts_within: attribute of the module -> name of the part that its parameters belong to.
    """

    parts_within: Mapping[str, str]


def parts_within(module: nn.Module) -> Mapping[str, str]:
    """Return attribute -> part, for attributes of a module that belong to another part; empty for most modules.

    The attribute is read without `isinstance`, which takes 25 us for a protocol in Python 3.11; a network has hundreds
    of modules.
    """
    try:
        return cast(Divided, module).parts_within
    except AttributeError:
        return {}


@runtime_checkable
class Bounded(Protocol):
    """A module with parameters whose values must stay in a range. The optimizer clamps them after every step.

    Attributes:
        bounds: name of a parameter of the module -> (lowest, highest) value.
    """

    bounds: Mapping[str, tuple[float, float]]


def bounds_of(network: nn.Module) -> dict[int, tuple[float, float]]:
    """Return id of a parameter -> its bounds, for the bounded parameters of all modules of a network."""
    return {
        id(module.get_parameter(name)): limits
        for module in network.modules()
        if isinstance(module, Bounded)
        for name, limits in module.bounds.items()
    }


def complete(part: nn.Module, protocol: type, role: str) -> None:
    """Give a part, in place, a protocol's defaults for the attributes that it lacks.

    A class that extends the protocol has them already. A plain module need not know of them: if it has no attribute
    `any_size`, it takes views of one size.

    Args:
        part: module that plays the role.
        protocol: class of annotated attributes, with defaults for optional ones, and of methods.
        role: name of the role in errors, such as "vision encoder".
    Raises:
        UserError: the part lacks a method, or an attribute that has no default.
    """
    declared = vars(protocol)
    methods = {name for name, value in declared.items() if isfunction(value) and not name.startswith("_")}
    missing = sorted(name for name in methods | protocol.__annotations__.keys() if not hasattr(part, name))
    required = [name for name in missing if name in methods or name not in declared]
    if required:
        raise UserError(
            f"the {role} {type(part).__name__} lacks {', '.join(f'`{name}`' for name in required)}, see "
            f"{protocol.__module__}.{protocol.__qualname__}. Add it to the class"
        )
    for name in missing:
        setattr(part, name, declared[name])
