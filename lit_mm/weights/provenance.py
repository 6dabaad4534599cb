"""Key maps applied tensor group by tensor group, forwards and backwards, so that no checkpoint is ever whole in memory.

A key map renames, cuts, joins and reorders tensors. It is first run on tensors without data, which record the names
that each result is computed from. Names that share a result form a group, and each group is then computed alone. A map
that only moves elements is a permutation of them, so its inverse is its transpose, which automatic differentiation
gives: no inverse has to be written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lit_mm.errors import UserError
from lit_mm.weights.stream import Stored

Rename = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
BITS = {  # bytes of an element -> integer of that size, and the float that holds all of its values exactly
    1: (torch.int8, torch.float32),
    2: (torch.int16, torch.float32),
    4: (torch.int32, torch.float64),
}


class Traced(Tensor):
    """A tensor without data that records the names of the tensors it was computed from.

    Attributes:
        sources: names of those tensors.
    """

    sources: frozenset[str] = frozenset()

    @classmethod
    def of(cls, name: str, stored: Stored) -> Traced:
        """Build the trace of one tensor of a checkpoint."""
        tensor = torch.empty(stored.shape, dtype=TYPES[stored.dtype], device="meta").as_subclass(cls)
        tensor.sources = frozenset({name})
        return tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_function__(func, types, args, kwargs)
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Traced)]
        names = frozenset().union(*(leaf.__dict__.get("sources", frozenset()) for leaf in leaves))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Traced):
                leaf.__dict__["sources"] = names
        return result


@dataclass(frozen=True)
class Group:
    """Tensors of a checkpoint that are read together, and the tensors of the model that they make.

    Attributes:
        sources: names in the checkpoint.
        targets: names in the model.
        renames: True if the only target is the only source, unchanged.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    renames: bool


@dataclass(frozen=True)
class Plan:
    """The groups of a key map for one list of tensors.

    Attributes:
        rename: the key map.
        sources: dtype and shape of every tensor of the checkpoint, by name.
        targets: dtype and shape of every tensor of the model, by name.
        groups: all groups; every target belongs to exactly one.
        unused: names in the checkpoint that no target is computed from.
    """

    rename: Rename
    sources: Mapping[str, Stored]
    targets: Mapping[str, Stored]
    groups: tuple[Group, ...]
    unused: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of the sources and targets of the largest group."""
        return max(
            sum(self.sources[name].bytes for name in group.sources)
            + (0 if group.renames else sum(self.targets[name].bytes for name in group.targets))
            for group in self.groups
        )

    def compute(self, group: Group, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Compute the targets of a group; `read` returns one tensor of the checkpoint."""
        if group.renames:
            return {group.targets[0]: read(group.sources[0])}
        mapped = self.rename(self._empty() | {name: read(name) for name in group.sources})
        return {name: mapped[name] for name in group.targets}

    def invert(self, group: Group, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the sources of a group from its targets, exact to the bit, in the dtypes of the checkpoint.

        Args:
            group: group of this plan.
            values: tensors of the model by name, of any floating dtype.
        Raises:
            UserError: the key map does more than moving elements here, such as resizing a table.
        """
        kinds = {self.sources[name].dtype for name in group.sources}
        dtype = TYPES[min(kinds)]
        if group.renames:
            return {group.sources[0]: values[group.targets[0]].to(dtype).contiguous()}
        if dtype.itemsize not in BITS:
            return self._scatter(group, values, dtype)
        whole, wide = BITS[dtype.itemsize]
        with torch.enable_grad():
            inputs = {
                name: torch.zeros(self.sources[name].shape, dtype=wide, requires_grad=True) for name in group.sources
            }
            mapped = self.rename(self._empty() | inputs)
        variable = [name for name in group.targets if mapped[name].requires_grad]
        elements = sum(self.sources[name].elements for name in group.sources)
        places = sum(mapped[name].numel() for name in variable)
        constants = {name: mapped[name] for name in group.targets if name not in variable}
        changes = [name for name, constant in constants.items() if not torch.equal(values[name].to(wide), constant)]
        if len(kinds) > 1 or elements != places or changes:
            raise UserError(
                f"{', '.join(changes or group.targets[:3])}: these weights cannot be turned back into "
                f"{group.sources[0]!r}: the published tensors have {elements} elements of {sorted(kinds)}, the model "
                f"has {places}" + (f", and the published files have no place for {changes[0]!r}" if changes else "")
            )
        gradients = torch.autograd.grad(
            [mapped[name] for name in variable],
            list(inputs.values()),
            [values[name].to(dtype).contiguous().view(whole).to(wide) for name in variable],
        )
        return {name: bits.to(whole).contiguous().view(dtype) for name, bits in zip(inputs, gradients, strict=True)}

    def _scatter(self, group: Group, values: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Invert a group of wide integers, whose places are found by mapping the numbers 0, 1, 2, ..."""
        shapes = [self.sources[name].shape for name in group.sources]
        numbers = torch.arange(sum(math.prod(shape) for shape in shapes), dtype=torch.float64)
        pieces = numbers.split([math.prod(shape) for shape in shapes])
        inputs = {name: piece.view(shape) for name, piece, shape in zip(group.sources, pieces, shapes, strict=True)}
        mapped = self.rename(self._empty() | inputs)
        elements = torch.empty(len(numbers), dtype=dtype)
        for name in group.targets:
            elements[mapped[name].long().flatten()] = values[name].to(dtype).flatten()
        parts = elements.split([math.prod(shape) for shape in shapes])
        return {name: part.view(shape) for name, part, shape in zip(group.sources, parts, shapes, strict=True)}

    def _empty(self) -> dict[str, Tensor]:
        return {
            name: torch.empty(stored.shape, dtype=TYPES[stored.dtype], device="meta")
            for name, stored in self.sources.items()
        }


def plan(sources: Mapping[str, Stored], rename: Rename) -> Plan:
    """Find the groups of a key map.

    Args:
        sources: dtype and shape of every tensor of the checkpoint, by name.
        rename: key map, a function from a state to a state.
    Raises:
        UserError: the key map makes a tensor that no tensor of the checkpoint is needed for.
    """
    traced = {name: Traced.of(name, stored) for name, stored in sources.items()}
    mapped = rename(dict(traced))
    origins = {name: tensor.sources for name, tensor in mapped.items() if isinstance(tensor, Traced) and tensor.sources}
    if constants := sorted(mapped.keys() - origins.keys()):
        raise UserError(f"the key map creates {constants[0]!r} without a tensor of the checkpoint")
    members: dict[str, set[str]] = {}  # source -> the sources of its group, one set shared by all of them
    for names in origins.values():
        joined = set(names).union(*(members.get(name, set()) for name in names))
        members |= dict.fromkeys(joined, joined)
    by_group: dict[int, list[str]] = {}
    for target, names in origins.items():
        by_group.setdefault(id(members[next(iter(names))]), []).append(target)
    groups = []
    for of_group in by_group.values():
        names = members[next(iter(origins[of_group[0]]))]
        renames = len(of_group) == len(names) == 1 and mapped[of_group[0]] is traced[next(iter(names))]
        groups.append(Group(tuple(name for name in sources if name in names), tuple(of_group), renames))
    targets = {name: Stored(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in mapped.items()}
    return Plan(
        rename,
        sources,
        targets,
        tuple(groups),
        tuple(name for name in sources if name not in members),
    )


def elements_of(tensor: Tensor) -> Iterable[memoryview]:
    """Yield the bytes of a tensor, as `lit_mm.weights.stream.write` takes them."""
    yield memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
