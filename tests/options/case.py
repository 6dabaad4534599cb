"""The description of how the arguments of a class are tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.options.probes import Behaviour


@dataclass(frozen=True)
class Case:
    """How the arguments of a class are tested.

    Attributes:
        probe: function that returns what an object of the class does.
        base: arguments of the reference; the others have their defaults.
        others: argument -> another value, or a mapping of arguments if it needs more than one (`With`).
        elsewhere: argument -> test that shows the difference, as FILE::NAME.
    """

    probe: Callable[[Any], Behaviour]
    base: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class With:
    """A value that needs another base.

    Attributes:
        value: other value of the argument.
        base: arguments that both objects get besides.
    """

    value: Any
    base: Mapping[str, Any]


@dataclass(frozen=True)
class Fresh:
    """A value that is made anew for each object, because the class changes it.

    Attributes:
        make: function that returns the value.
    """

    make: Callable[[], Any]
