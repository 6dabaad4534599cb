"""The origins of untrained parts: published weights that are loaded when a stage first reads them, and verified."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from lit_mm.checkpoints.digests import digest
from lit_mm.errors import UserError
from lit_mm.layers.protocols import parts_within
from lit_mm.stages.parts import Parts
from lit_mm.weights.source import Published, arguments_of, check_local_config, is_added, load_part


class Origins:
    """The parts that a run has not trained, with the origins of their published weights.

    Args:
        parts: parts of the network.
    Attributes:
        by_part: part -> its `weights`, such as "clip:openai/clip-vit-large-patch14-336".
        unloaded: parts in `by_part` that no stage has read yet. They hold the random weights of their constructor.
        digests: part -> name of a tensor in `state_dict` -> digest, "" for a tensor that is not loaded. `freeze` fills
            it.
        fresh: part -> names of its tensors that its weights do not have, so that they are random. Checkpoints have
            such a part as a whole.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.by_part: dict[str, str] = {}
        self.unloaded: frozenset[str] = frozenset()
        self.digests: dict[str, dict[str, str]] = {}
        self.fresh: dict[str, list[str]] = {}

    def check_configs(self) -> None:
        """Compare the parts with the config.json of their published weights, where it is on this machine.

        Raises:
            UserError: a number differs.
        """
        for part, path, module in self._published():
            check_local_config(module, module.weights, part, path)

    def load(self, needed: Collection[str] | None = None) -> None:
        """Load the published weights of parts whose `weights` is set.

        Args:
            needed: parts to load now, with all parts in the same children of the network; the others become `unloaded`.
                None means all parts.
        """
        published: dict[int, str] = {}  # id of a parameter -> origin
        for _, _, module in self._published():
            published |= {id(p): module.weights for name, p in module.named_parameters() if not is_added(name)}
        parameters = self._parts.parameters()
        self.by_part = {
            part: published[id(next(iter(of_part.values())))]
            for part, of_part in parameters.items()
            if all(id(parameter) in published for parameter in of_part.values())
        }
        self.digests, self.fresh = {}, {}
        parts = frozenset(parameters) if needed is None else self._parts.together_with(needed)
        self._load_children(parts)
        self.unloaded = frozenset(self.by_part.keys() - parts)

    def load_missing(self, needed: Collection[str] | None = None) -> None:
        """Load the published weights of parts that are still `unloaded`. All other weights stay.

        Args:
            needed: parts that are needed now; None means all parts.
        Raises:
            UserError: the weights differ from those that the run began with.
        """
        missing = self.unloaded if needed is None else self.unloaded & self._parts.together_with(needed)
        if not missing:
            return
        others = [
            p for part, tensors in self._parts.parameters().items() if part not in missing for p in tensors.values()
        ]
        values = [parameter.detach().clone() for parameter in others]
        origins = {part: self.by_part[part] for part in missing}
        self._load_children(missing)
        with torch.no_grad():
            for parameter, value in zip(others, values, strict=True):
                parameter.copy_(value)
        self.unloaded -= missing
        for part in missing:
            self.check("this run", part, origins[part], self.digests.pop(part, {}))

    def check(self, owner: str, part: str, origin: str, digests: Mapping[str, str]) -> None:
        """Refuse weights of a part that differ from those a run was trained on.

        Args:
            owner: name of the run or checkpoint that was trained on them, for the message.
            part: name of the part.
            origin: recorded origin of the part's weights, for the message.
            digests: name of a tensor -> recorded digest; "" for a tensor that was not loaded.
        Raises:
            UserError: a tensor differs.
        """
        tensors = self._tensors(part)
        other = [name for name, expected in digests.items() if expected and digest(tensors[name]) != expected]
        if other:
            raise UserError(
                f"{owner} was trained on the frozen part {part!r} of {origin!r}, which has changed: {len(other)} "
                f"of {len(digests)} tensors differ, the first is {other[0]!r}. Restore the original, or train "
                "again with the new part"
            )

    def resume(self, by_part: Mapping[str, str], digests: Mapping[str, Mapping[str, str]]) -> None:
        """Restore the untrained parts from a checkpoint.

        Args:
            by_part: part -> origin of its weights.
            digests: part that is not loaded yet -> name of a tensor -> digest.
        """
        self.by_part, self.unloaded = dict(by_part), frozenset(digests)
        self.digests = {part: dict(of_part) for part, of_part in digests.items()}

    def forget(self, part: str) -> None:
        """Record that a part has other weights than its origin, such as those of a merged adapter."""
        self.by_part.pop(part, None)

    def freeze(self, trained: Collection[str]) -> None:
        """Remove the parts that a stage trains, and compute the digests of the others before a strategy shards them."""
        self.by_part = {part: origin for part, origin in self.by_part.items() if part not in trained}
        self.digests = {part: self.digests.get(part) or self._digests_of(part) for part in self.by_part}

    def _digests_of(self, part: str) -> dict[str, str]:
        is_loaded = part not in self.unloaded
        return {name: digest(tensor) if is_loaded else "" for name, tensor in self._tensors(part).items()}

    def _tensors(self, part: str) -> dict[str, nn.Parameter]:
        """Return name in the model's `state_dict` -> parameter of a part."""
        return {f"network.{name}": tensor for name, tensor in self._parts.parameters_of(part).items()}

    def _load_children(self, parts: Collection[str]) -> None:
        """Load the published weights of every child of the network that holds one of these parts.

        A part with tensors that its weights do not have gets no origin.
        """
        together = self._parts.together_with(parts)
        fresh: set[int] = set()  # ids of parameters
        for part, path, module in self._published():
            if part in together:
                names = load_part(module, module.weights, part, path)
                tensors = dict(module.named_parameters())
                fresh |= {id(tensors[name]) for name in names if name in tensors}
        for part, tensors in self._parts.parameters().items():
            if part in together and (names := [name for name, tensor in tensors.items() if id(tensor) in fresh]):
                self.fresh[part] = names
                self.by_part.pop(part, None)

    def _published(self) -> list[tuple[str, str, Published]]:
        """List the modules with published weights, which are children of the network or directly inside a child.

        Each comes with its part, and with the path of its arguments in a recipe.
        """
        modules: list[tuple[str, str, Published]] = []
        for part, child in self._parts.modules().items():
            if is_published(child):
                modules.append((part, arguments_of(part), child))
                continue
            within = parts_within(child)
            for name, module in child.named_children():
                if is_published(module):
                    modules.append((within.get(name, part), arguments_of(part, name), module))
        return modules


def is_published(module: nn.Module) -> bool:
    """Return True if a module names a checkpoint to load."""
    return isinstance(module, Published) and bool(module.weights)
