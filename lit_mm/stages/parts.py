"""The parts of a network: the rule that assigns parameters to parts, and setting parts aside for a stage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, chain

from torch import Tensor, nn

from lit_mm.layers.protocols import parts_within


class Parts:
    """The parts of a network.

    A parameter belongs to the child of the network that holds it, unless a module in between assigns one of its
    attributes to another part in `parts_within`, a mapping attribute -> part. Children without parameters are no parts.

    A stage may set aside children that it does not read. They are then None in the network and stay in CPU memory, so
    no strategy moves, shards or sends them. The methods of this class still include them.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._aside: dict[str, nn.Module] = {}

    def children(self) -> dict[str, nn.Module]:
        """Return name -> child of the network, for children with parameters."""
        children = {**dict(self.network.named_children()), **self._aside}
        return {name: child for name, child in children.items() if next(child.parameters(), None) is not None}

    def modules(self) -> dict[str, nn.Module]:
        """Return part -> child of the network. Parts inside a child, such as partial LoRA, are not listed."""
        within = parts_within(self.network)
        return {within.get(name, name): child for name, child in self.children().items()}

    def part_of(self, parameter: str) -> str:
        """Return the part of a parameter, by the name of the parameter in the network."""
        return _part_of(parameter, self._divisions())

    def parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return part -> name relative to the child -> parameter. Every parameter belongs to exactly one part."""
        divisions = self._divisions()
        parts: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            parts.setdefault(_part_of(name, divisions), {})[name.split(".", 1)[1]] = parameter
        return parts

    def parameters_of(self, part: str) -> dict[str, nn.Parameter]:
        """Return name in the network -> parameter of a part."""
        divisions = self._divisions()
        return {name: tensor for name, tensor in self.named_parameters() if _part_of(name, divisions) == part}

    def together_with(self, parts: Collection[str]) -> frozenset[str]:
        """Return `parts` and all parts that share a child of the network with one of them."""
        return frozenset().union(*(group for group in self._groups().values() if not group.isdisjoint(parts)))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name in the network, parameter) of all parameters; children that are set aside come last."""
        yield from self.network.named_parameters()
        for child, module in self._aside.items():
            for name, parameter in module.named_parameters():
                yield f"{child}.{name}", parameter

    def state_aside(self) -> dict[str, Tensor]:
        """Return the weights of children that are set aside, by their names in the `state_dict` of the network.

        A tensor with several names, such as tied embeddings, is there once, under its first name.
        """
        weights: dict[str, Tensor] = {}
        for child, module in self._aside.items():
            first_names = dict([*module.named_parameters(), *module.named_buffers()])
            state = module.state_dict()
            weights |= {f"{child}.{name}": tensor for name, tensor in state.items() if name in first_names}
        return weights

    @contextmanager
    def only(self, parts: Collection[str]) -> Iterator[None]:
        """Set aside all children that hold none of `parts`, and put them back at the end of the block."""
        read = self.together_with(parts)
        groups = self._groups()
        self._aside = {name: child for name, child in self.children().items() if groups[name].isdisjoint(read)}
        for name in self._aside:
            setattr(self.network, name, None)
        try:
            yield
        finally:
            for name, child in self._aside.items():
                setattr(self.network, name, child)
            self._aside = {}

    def _groups(self) -> dict[str, set[str]]:
        """Return child of the network -> parts that have parameters in it."""
        divisions = self._divisions()
        return {
            child: {_part_of(f"{child}.{name}", divisions) for name, _ in module.named_parameters()}
            for child, module in self.children().items()
        }

    def _divisions(self) -> dict[str, str]:
        """Return name in the network -> part, for all attributes that a module assigns to another part."""
        modules = [self.network.named_modules(remove_duplicate=False)]
        modules += [child.named_modules(prefix=name, remove_duplicate=False) for name, child in self._aside.items()]
        return {
            f"{name}.{attribute}" if name else attribute: part
            for name, module in chain.from_iterable(modules)
            for attribute, part in parts_within(module).items()
        }


def _part_of(parameter: str, divisions: Mapping[str, str]) -> str:
    """Return the part of the outermost division around a parameter, or the child of the network that holds it."""
    names = accumulate(parameter.split("."), lambda outer, name: f"{outer}.{name}")
    return next((divisions[name] for name in names if name in divisions), parameter.split(".", 1)[0])
