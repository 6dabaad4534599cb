"""The parts of a network: which parameter belongs to which part, and which parts are set aside for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Parts:
    """The parts of a network.

    A parameter belongs to the child of the network that holds it, unless a module on the way declares another part for
    one of its attributes in `parts_within`, a mapping attribute -> part. Children without parameters are no parts.

    A stage may set children aside that it does not read. Meanwhile they are None in the network and stay in the CPU's
    memory: no strategy moves, shards or sends them. Everything here goes on counting them.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._aside: dict[str, nn.Module] = {}

    def children(self) -> dict[str, nn.Module]:
        """Name of a child of the network -> the child, of those with parameters."""
        children = {**dict(self.network.named_children()), **self._aside}
        return {name: child for name, child in children.items() if next(child.parameters(), None) is not None}

    def modules(self) -> dict[str, nn.Module]:
        """Part -> the child of the network that is this part. A part inside of a child (partial LoRA) is not listed."""
        within = getattr(self.network, "parts_within", {})
        return {within.get(name, name): child for name, child in self.children().items()}

    def part_of(self, parameter: str) -> str:
        """The part that a parameter belongs to, from its name in the network."""
        child, *names = parameter.split(".")
        within = getattr(self.network, "parts_within", {})
        if child in within:
            return within[child]
        module: Any = self._aside[child] if child in self._aside else getattr(self.network, child)
        for name in names:
            within = getattr(module, "parts_within", {})
            if name in within:
                return within[name]
            module = getattr(module, name)
        return child

    def parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """Part -> its parameters by name (relative to the part). Disjoint, and together all parameters."""
        parts: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            parts.setdefault(self.part_of(name), {})[name.split(".", 1)[1]] = parameter
        return parts

    def together_with(self, parts: Collection[str]) -> frozenset[str]:
        """These parts, and those that are in one child of the network with one of them."""
        groups = [self._parts_in(child) for child in self.children()]
        return frozenset().union(*(group for group in groups if not group.isdisjoint(parts)))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by their names in the network; those of children that are set aside come last."""
        yield from self.network.named_parameters()
        for child, module in self._aside.items():
            for name, parameter in module.named_parameters():
                yield f"{child}.{name}", parameter

    def state_aside(self) -> dict[str, Tensor]:
        """The weights of the children that are set aside, by their names in the network's `state_dict`."""
        return {
            f"{child}.{name}": tensor
            for child, module in self._aside.items()
            for name, tensor in module.state_dict().items()
        }

    @contextmanager
    def only(self, parts: Collection[str]) -> Iterator[None]:
        """Set the children aside that hold none of these parts, and put them back at the end."""
        read = self.together_with(parts)
        self._aside = {name: child for name, child in self.children().items() if self._parts_in(name).isdisjoint(read)}
        for name in self._aside:
            setattr(self.network, name, None)
        try:
            yield
        finally:
            for name, child in self._aside.items():
                setattr(self.network, name, child)
            self._aside = {}

    def _parts_in(self, child: str) -> set[str]:
        """The parts of the parameters of a child of the network."""
        return {self.part_of(f"{child}.{name}") for name, _ in self.children()[child].named_parameters()}
