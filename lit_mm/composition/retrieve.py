"""Retrievers that find images for a caption in a pool: by the model itself, or by file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from lit_mm.composition.compose import Retriever
from lit_mm.documents.document import Document, FromFile, Picture, Turn
from lit_mm.errors import UserError
from lit_mm.objectives.token_losses import token_losses
from lit_mm.samples.collate import collate

if TYPE_CHECKING:
    from lit_mm.module import MultimodalModule


@runtime_checkable
class Search(Protocol):
    """A search builds a retriever over a pool of images. Configs name it by `class_path` and `init_args`."""

    def over(self, module: MultimodalModule, pictures: Sequence[Picture]) -> Retriever:
        """Build the retriever over `pictures`."""
        ...


class ByLikelihood:
    """This search ranks images by the log-probability of the caption as the text of a page that starts with the image.

    Neither XComposer nor XComposer2 has a text encoder for comparing text and image, but both are trained to caption.
    Each pair of image and caption costs one forward pass.

    Args:
        batch_size: number of images per forward pass.
    Raises:
        UserError: the batch size is below 1.
    """

    def __init__(self, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise UserError(f"ByLikelihood: `batch_size` is at least 1, got {batch_size}")
        self.batch_size = batch_size

    def over(self, module: MultimodalModule, pictures: Sequence[Picture]) -> Retriever:
        def score(caption: str, numbers: Sequence[int]) -> list[float]:
            processor, scores = module.processor, []
            for start in range(0, len(numbers), self.batch_size):
                samples = [
                    processor.sample(Document(f"compose/image {n}", (Turn("page", (pictures[n], caption)),)))
                    for n in numbers[start : start + self.batch_size]
                ]
                batch = collate(samples, processor).to(module.device)
                with module.inference():
                    hidden, ids = module.network(batch)
                    losses = token_losses(module.network.language, hidden, ids)
                counts = [sample.length.supervised for sample in samples]
                scores += [-of_sample.sum().item() for of_sample in losses.split(counts)]
            return scores

        return _retriever(len(pictures), score)


class ByFileName:
    """This search ranks image files by the number of words that file name and caption share; ties keep folder order.

    It needs no trained model, but file names that describe the images.
    """

    def over(self, module: MultimodalModule, pictures: Sequence[Picture]) -> Retriever:
        """Build the retriever.

        Raises:
            UserError: an image has no file.
        """
        paths = [picture.path if isinstance(picture, FromFile) else None for picture in pictures]
        if None in paths:
            raise UserError(f"ByFileName ranks files, but image {paths.index(None)} has no file. Use ByLikelihood")
        words = [_words(path.stem) for path in paths]
        return _retriever(
            len(pictures), lambda caption, numbers: [float(len(words[n] & _words(caption))) for n in numbers]
        )


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.casefold()))


def _retriever(total: int, score: Callable[[str, Sequence[int]], list[float]]) -> Retriever:
    """Build a retriever over `total` images from `score(caption, image numbers)`; higher scores are better."""

    def retrieve(caption: str, count: int, exclude: Collection[int]) -> list[int]:
        left = [number for number in range(total) if number not in exclude]
        scores = torch.tensor(score(caption, left), dtype=torch.float64)
        return [left[at] for at in scores.argsort(descending=True, stable=True)[:count].tolist()]

    return retrieve
