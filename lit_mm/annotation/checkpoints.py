"""Experts that are checkpoints of this framework: captions, captions of regions, and match scores."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from lit_mm.annotation.description import Box, Description, Identity, rounded_box
from lit_mm.annotation.experts import (
    Models,
    OverallExpert,
    RegionExpert,
    ScoreExpert,
    TrainedModel,
    class_path,
)
from lit_mm.documents.document import Document, Turn
from lit_mm.documents.inline import DecodedPicture
from lit_mm.errors import UserError
from lit_mm.evaluation.retrieval import TwoStepRetrieval, encode
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.language.med import Padded
from lit_mm.module import MultimodalModule, family_of
from lit_mm.prompts.boxes import find_regions, to_pixels


class _Checkpoint:
    """A checkpoint that an expert reads.

    Args:
        checkpoint: run folder or checkpoint.
        stage: name of the stage whose end is opened; None for the newest checkpoint.
        licence: licence of the weights; "" if nobody declared one.
        stands_for: published expert in whose place the model works; "" for none.
    """

    def __init__(self, checkpoint: str, stage: str | None, licence: str, stands_for: str) -> None:
        self.checkpoint, self.stage, self.licence, self.stands_for = checkpoint, stage, licence, stands_for
        self._model: TrainedModel | None = None

    def load(self, models: Models) -> None:
        self._model = models.open(self.checkpoint, self.stage)

    @property
    def model(self) -> TrainedModel:
        assert self._model is not None, "`load` comes first"
        return self._model

    def identity(self, expert: Any) -> Identity:
        family = family_of(self.model.module)
        return Identity(class_path(expert), self.model.digest, self.licence, family, self.stands_for)


def question_about(image: Image.Image, question: str | None) -> Document:
    """Build the document that asks about an image. None asks for the text of a page."""
    picture = DecodedPicture(image)
    turn = Turn("page", (picture,)) if question is None else Turn("user", (picture, question))
    return Document("image", (turn,))


class CheckpointCaptions(OverallExpert):
    """Captions images by a checkpoint.

    Args:
        checkpoint, stage: see `lit_mm generate`.
        question: what the model is asked; None for a model that was trained on captions alone, as pages.
        decoding: settings of decoding; None: greedy, 30 tokens. CapFilt: `lit_mm.annotation.capfilt.NUCLEUS`.
        batch_size: number of images per batch.
        licence: licence of the weights, which stands in the output.
        stands_for: published expert in whose place the model works, which stands in the output.
    """

    def __init__(
        self,
        checkpoint: str,
        stage: str | None = None,
        question: str | None = None,
        decoding: Decoding | None = None,
        batch_size: int = 16,
        licence: str = "",
        stands_for: str = "",
    ) -> None:
        self.source = _Checkpoint(checkpoint, stage, licence, stands_for)
        self.question, self.decoding = question, decoding or Decoding(max_new_tokens=30)
        self.batch_size = _positive(batch_size, self)

    def load(self, models: Models) -> None:
        self.source.load(models)

    def identity(self) -> Identity:
        return self.source.identity(self)

    def captions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
        """See `OverallExpert.captions`.

        Raises:
            UserError: the model refuses an image.
        """
        documents = [question_about(image, self.question) for image in images]
        return answer(
            self.source.model.module, documents, batch_size=self.batch_size, decoding=self.decoding, seeds=seeds
        )


class MatchScores(ScoreExpert):
    """Scores pairs by the matching head of a checkpoint, such as a retrieval model of BLIP or BLIP-2.

    Args:
        checkpoint, stage, licence, stands_for: see `CheckpointCaptions`.
        batch_size: number of pairs per batch.
    """

    def __init__(
        self,
        checkpoint: str,
        stage: str | None = None,
        batch_size: int = 64,
        licence: str = "",
        stands_for: str = "",
    ) -> None:
        self.source = _Checkpoint(checkpoint, stage, licence, stands_for)
        self.batch_size = _positive(batch_size, self)

    def load(self, models: Models) -> None:
        """See `Expert.load`.

        Raises:
            UserError: the model has no matching head.
        """
        self.source.load(models)
        examiner = self.source.model.module.examiner
        if not isinstance(examiner, TwoStepRetrieval):
            raise UserError(
                f"MatchScores: {family_of(self.source.model.module)} of {self.source.checkpoint!r} cannot compare "
                "images with texts. Name a checkpoint of a retrieval model, such as BLIP's stage `retrieval`"
            )

    def identity(self) -> Identity:
        return self.source.identity(self)

    def scores(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """See `ScoreExpert.scores`.

        Raises:
            UserError: the model refuses a pair.
        """
        scores: list[float] = []
        for start in range(0, len(images), self.batch_size):
            stop = start + self.batch_size
            scores += match_probabilities(self.source.model.module, images[start:stop], texts[start:stop])
        return scores


def match_probabilities(module: MultimodalModule, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
    """Compute the softmax probability of a match of every pair, in one batch."""
    documents = [
        Document("pair", (Turn("user", (DecodedPicture(image),)), Turn("assistant", (text,))))
        for image, text in zip(images, texts, strict=True)
    ]
    examiner = module.examiner
    assert isinstance(examiner, TwoStepRetrieval), "`load` has checked it"
    network: Any = module.network if examiner.comparison is None else examiner.comparison(module.network)
    with module.inference():
        encoded = encode(module, network, documents, documents, len(documents))
        ids = torch.nn.utils.rnn.pad_sequence(encoded.ids, batch_first=True)
        lengths = torch.tensor([len(row) for row in encoded.ids])
        padded = Padded(ids.to(module.device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(module.device))
        logits = network.match(padded, torch.stack(encoded.images).to(module.device))
        return logits.float().softmax(dim=-1)[:, 1].tolist()


class RegionForm(ABC):
    """The form in which a model writes regions."""

    @abstractmethod
    def read(self, text: str) -> list[Description]:
        """Parse the regions in a model's text, in order. Malformed ones are skipped."""


class MarkedRegions(RegionForm):
    """Qwen-VL's form: `<ref>a dog</ref><box>(12,0),(999,587)</box>`, in thousandths. Boxes need a phrase."""

    def read(self, text: str) -> list[Description]:
        return [
            Description(" ".join(region.phrase.split()), rounded_box(to_pixels(box, 1, 1), 1, 1))
            for region in find_regions(text)
            for box in region.boxes
            if region.phrase.strip()
        ]


class BracketRegions(RegionForm):
    """A phrase and `[left,top,right,bottom]` in parts of the image: `red star [1,2,4,5] ; blue cross [6,0,9,3]`.

    Args:
        steps: number of parts of each side; the pages of the nano world have tenths.
    """

    REGION = re.compile(r"([^\[\];]+)\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")

    def __init__(self, steps: int = 10) -> None:
        if steps < 1:
            raise UserError(f"BracketRegions: `steps` is at least 1, got {steps}")
        self.steps = steps

    def read(self, text: str) -> list[Description]:
        descriptions = []
        for phrase, *numbers in self.REGION.findall(text):
            left, top, right, bottom = (int(number) for number in numbers)
            box: Box = rounded_box((left, top, right, bottom), self.steps, self.steps)
            if phrase.strip() and max(left, top, right, bottom) <= self.steps and left < right and top < bottom:
                descriptions.append(Description(" ".join(phrase.split()), box))
        return descriptions


class CheckpointRegions(RegionExpert):
    """Finds and captions regions by a checkpoint that writes boxes.

    Args:
        checkpoint, stage, batch_size, licence, stands_for: see `CheckpointCaptions`.
        form: form in which the model writes regions.
        question: what the model is asked; None for a model of pages. Qwen-VL: "Generate the caption in English with
            grounding:".
        decoding: settings of decoding; None: greedy, 256 tokens.
    """

    def __init__(
        self,
        checkpoint: str,
        form: RegionForm,
        stage: str | None = None,
        question: str | None = None,
        decoding: Decoding | None = None,
        batch_size: int = 16,
        licence: str = "",
        stands_for: str = "",
    ) -> None:
        self.writer = CheckpointCaptions(
            checkpoint, stage, question, decoding or Decoding(max_new_tokens=256), batch_size, licence, stands_for
        )
        self.form = form

    def load(self, models: Models) -> None:
        self.writer.load(models)

    def identity(self) -> Identity:
        return self.writer.source.identity(self)

    def regions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[Description]]:
        """See `RegionExpert.regions`.

        Raises:
            UserError: the model refuses an image.
        """
        return [self.form.read(text) for text in self.writer.captions(images, seeds)]


def _positive(batch_size: int, expert: Any) -> int:
    if batch_size < 1:
        raise UserError(f"{type(expert).__name__}: `batch_size` is at least 1, got {batch_size}")
    return batch_size
