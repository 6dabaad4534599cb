"""The protocols of experts. An expert is a class path with arguments; its constructor reads nothing."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from PIL import Image

from lit_mm.annotation.description import Description, Identity, Segment
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule


class ExpertError(UserError):
    """An expert cannot work, whatever the image is. The run ends, and the same command resumes it."""


@dataclass(frozen=True)
class TrainedModel:
    """A model of a checkpoint.

    Attributes:
        module: the model with its weights, on its device.
        digest: digest of the checkpoint.
    """

    module: MultimodalModule
    digest: str


class Models(Protocol):
    """Opens checkpoints. Experts that name the same checkpoint share the model."""

    def open(self, checkpoint: str, stage: str | None) -> TrainedModel:
        """Open a run folder or a checkpoint.

        Args:
            checkpoint: path of the run folder or checkpoint.
            stage: name of the stage whose end is opened; None for the newest checkpoint.
        Raises:
            UserError: the checkpoint cannot be read.
        """
        ...


class Expert(ABC):
    """The base of all experts."""

    @abstractmethod
    def load(self, models: Models) -> None:
        """Open packages and weights, once per process.

        Raises:
            UserError: a package or a checkpoint is missing, or is not of the right kind.
        """

    @abstractmethod
    def identity(self) -> Identity:
        """Return the facts of the expert. It is called after `load`."""


class OverallExpert(Expert):
    """Writes one caption for each image."""

    @abstractmethod
    def captions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
        """Return one caption per image.

        Args:
            images: RGB images.
            seeds: seed of the random draws of each caption. A caption depends on no other image.
        """


class RegionExpert(Expert):
    """Finds regions and captions each."""

    @abstractmethod
    def regions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[Description]]:
        """Return the captions of each image with their boxes, see `OverallExpert.captions`."""


class TextExpert(Expert):
    """Reads the text in images."""

    @abstractmethod
    def texts(self, images: Sequence[Image.Image]) -> list[list[Description]]:
        """Return the strings of each image with their boxes and the confidence of the reader as score."""


class SegmentExpert(Expert):
    """Cuts images into segments."""

    @abstractmethod
    def segments(self, images: Sequence[Image.Image]) -> list[list[Segment]]:
        """Return the segments of each image, in any order."""


class ScoreExpert(Expert):
    """Compares images with texts."""

    @abstractmethod
    def scores(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """Return the probability, 0 to 1, that the text of each pair describes the image."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The descriptions of one image that passed the filters.

    Attributes:
        overall: caption of the whole image.
        regions, segments, text: descriptions with their boxes, in the order of their experts.
    """

    overall: str
    regions: tuple[Description, ...] = ()
    segments: tuple[Description, ...] = ()
    text: tuple[Description, ...] = ()


class MergeExpert(Expert):
    """Writes one description from those of the other experts."""

    @abstractmethod
    def merge(self, blocks: Sequence[Blocks], seeds: Sequence[int]) -> list[str]:
        """Return one text per image, see `OverallExpert.captions`."""


def optional_package(name: str, expert: str, install: str) -> ModuleType:
    """Import a package that only this expert needs.

    Args:
        name: name of the module.
        expert: name of the expert, for the message.
        install: what pip installs.
    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise UserError(
            f"the expert {expert} needs the package {name.partition('.')[0]!r}, which is not installed. "
            f"Install it (pip install {install}), or use another expert in the pipeline"
        ) from error


def class_path(expert: Expert) -> str:
    """Return the import path of an expert's class."""
    return f"{type(expert).__module__}.{type(expert).__qualname__}"
