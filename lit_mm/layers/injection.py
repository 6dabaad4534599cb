"""Injections: changes to a built model that add parameters of a part of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class Injection(ABC):
    """Changes a model in place. Subclasses are frozen dataclasses, which a recipe names by class path.

    The modules that it adds declare the part of their parameters in `parts_within`, a mapping attribute -> part.
    """

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """Change the model and return it.

        Raises:
            UserError: the model has no place for it, or has it already.
        """
