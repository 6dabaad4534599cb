"""Where the weights of untrained parts come from: loaded when a stage first reads them, the same whenever loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from lit_mm.checkpoints.digests import digest
from lit_mm.errors import UserError
from lit_mm.stages.parts import Parts
from lit_mm.weights.source import Published, is_added, load_part


class Origins:
    """The parts that nothing in a run has trained, and where their published weights come from.

    Attributes:
        by_part: part -> its `weights`, such as "clip:openai/clip-vit-large-patch14-336".
        unloaded: those of the parts whose weights no stage has read yet. They hold what their constructor drew.
        digests: part -> digest of every tensor by its name in `state_dict`; "" for one that is not loaded. Filled by
            `freeze`.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.by_part: dict[str, str] = {}
        self.unloaded: frozenset[str] = frozenset()
        self.digests: dict[str, dict[str, str]] = {}

    def load(self, needed: Collection[str] | None = None) -> None:
        """Load the published weights of parts, where their `weights` names some.

        Args:
            needed: parts that are loaded now, with those in one child of the network with them; the others are
                `unloaded`. None: all.
        """
        published: dict[int, str] = {}  # id of a parameter -> origin
        for module in self._parts.modules().values():
            if isinstance(module, Published) and module.weights is not None:
                published |= {id(p): module.weights for name, p in module.named_parameters() if not is_added(name)}
        parameters = self._parts.parameters()
        self.by_part = {
            part: published[id(next(iter(of_part.values())))]
            for part, of_part in parameters.items()
            if all(id(parameter) in published for parameter in of_part.values())
        }
        self.digests = {}
        wanted = frozenset(parameters) if needed is None else self._parts.together_with(needed)
        self._load_children(wanted)
        self.unloaded = frozenset(self.by_part.keys() - wanted)

    def load_missing(self, needed: Collection[str] | None = None) -> None:
        """Load the published weights of parts that were not needed before. The other weights stay.

        Args:
            needed: parts that are needed now; None: all.
        Raises:
            UserError: the weights are not those that the run began with.
        """
        missing = self.unloaded if needed is None else self.unloaded & self._parts.together_with(needed)
        if not missing:
            return
        others = [
            p for part, tensors in self._parts.parameters().items() if part not in missing for p in tensors.values()
        ]
        values = [parameter.detach().clone() for parameter in others]
        self._load_children(missing)
        with torch.no_grad():
            for parameter, value in zip(others, values, strict=True):
                parameter.copy_(value)
        self.unloaded -= missing
        for part in missing:
            self.check("this run", part, self.by_part[part], self.digests.pop(part, {}))

    def check(self, owner: str, part: str, origin: str, digests: Mapping[str, str]) -> None:
        """Refuse weights that are not those a run was trained on.

        Args:
            owner: what was trained on them, for the message.
            origin: where the part's weights came from then.
            digests: name of a tensor -> its digest then; "" where it was not loaded then.
        Raises:
            UserError: a tensor differs.
        """
        tensors = self._tensors(part)
        other = [name for name, expected in digests.items() if expected and digest(tensors[name]) != expected]
        if other:
            raise UserError(
                f"{owner} was trained on the frozen part {part!r} of {origin!r}; the part that is there now differs in "
                f"{len(other)} of {len(digests)} tensors, the first is {other[0]!r}. Put the origin back, or train "
                "anew on this one"
            )

    def resume(self, by_part: Mapping[str, str], digests: Mapping[str, Mapping[str, str]]) -> None:
        """Take over from a checkpoint which parts nothing has trained.

        Args:
            by_part: part -> where its weights come from.
            digests: part -> the digests of its weights, of the parts that were not loaded now.
        """
        self.by_part, self.unloaded = dict(by_part), frozenset(digests)
        self.digests = {part: dict(of_part) for part, of_part in digests.items()}

    def freeze(self, trained: Collection[str]) -> None:
        """Forget the parts that a stage trains, and take the digests of the others while their weights are whole."""
        self.by_part = {part: origin for part, origin in self.by_part.items() if part not in trained}
        self.digests = {part: self.digests.get(part) or self._digests_of(part) for part in self.by_part}

    def _digests_of(self, part: str) -> dict[str, str]:
        known = part not in self.unloaded
        return {name: digest(tensor) if known else "" for name, tensor in self._tensors(part).items()}

    def _tensors(self, part: str) -> dict[str, nn.Parameter]:
        """The parameters of a part, by their names in the model's `state_dict`."""
        return {
            f"network.{name}": tensor
            for name, tensor in self._parts.named_parameters()
            if self._parts.part_of(name) == part
        }

    def _load_children(self, parts: Collection[str]) -> None:
        """Load the published weights of every child of the network that holds one of these parts."""
        for part, module in self._parts.modules().items():
            if isinstance(module, Published) and module.weights and part in self._parts.together_with(parts):
                load_part(module, module.weights, part)
