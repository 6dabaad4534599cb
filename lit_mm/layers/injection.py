"""Injections: changes to a built model that add parameters, which form a part."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class Injection(ABC):
    """Changes a model in place. Subclasses are frozen dataclasses, which a recipe names by class path.

    The modules that an injection adds are `lit_mm.layers.protocols.Divided`: they declare the part of their parameters.
    """

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """Change the model and return it.

        Raises:
            UserError: the model has no place for the injection, or has it already.
        """
