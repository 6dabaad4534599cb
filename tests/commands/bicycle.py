"""Classes whose arguments a config may set, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Wheel:
    def __init__(self, radius: float, spokes: int = 32) -> None: ...


class WideWheel(Wheel):
    def __init__(self, tread: str = "", **kwargs: Any) -> None: ...


class Bell(Protocol):
    def ring(self) -> None: ...


def wheel_of(radius: float, *, colour: str = "") -> Wheel:
    return Wheel(radius)


@dataclass
class Gear:
    teeth: int
    ratio: float = 1.0


@dataclass
class Bicycle:
    name: str
    wheels: list[Wheel] = field(default_factory=list)
    gears: Mapping[str, Gear] = field(default_factory=dict)
    main_gear: Gear | None = None
    wheel_maker: Callable[[float], Wheel] = WideWheel
    bell: Bell | None = None
    bag: dict[str, Any] = field(default_factory=dict)
    pair: tuple[Gear, Wheel] | None = None
    lamp: str | Wheel | None = None
