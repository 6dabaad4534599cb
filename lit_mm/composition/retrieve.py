"""Finding images that suit a caption in a pool: by the model itself, or by the names of the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from lit_mm.composition.compose import Retriever
from lit_mm.documents.document import Document, FromFile, Picture, Turn
from lit_mm.errors import UserError
from lit_mm.samples.collate import collate

if TYPE_CHECKING:
    from lit_mm.module import MultimodalModule


@runtime_checkable
class Search(Protocol):
    """Makes a retriever over a pool of images. A config names a class of this kind by `class_path` and `init_args`."""

    def over(self, module: MultimodalModule, pictures: Sequence[Picture]) -> Retriever: ...


class ByLikelihood:
    """Ranks images by the log-probability that the model gives to the caption as the text of a page behind each.

    The similarity of text and image by the family's own encoders: neither XComposer nor XComposer2 has a text encoder
    to compare with, both are trained to caption. One forward pass an image and caption.

    Args:
        batch_size: images at once.
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
                    losses = F.cross_entropy(module.network.language.logits(hidden).float(), ids, reduction="none")
                counts = [sample.length.supervised for sample in samples]
                scores += [-of_sample.sum().item() for of_sample in losses.split(counts)]
            return scores

        return _ranked(len(pictures), score)


class ByFileName:
    """Ranks image files by the words that their names share with the caption; of equals, the first in the folder.

    Needs no trained model: for folders whose files are named after what they show.
    """

    def over(self, module: MultimodalModule, pictures: Sequence[Picture]) -> Retriever:
        """Raises:
        UserError: an image is no file.
        """
        paths = [picture.path if isinstance(picture, FromFile) else None for picture in pictures]
        if None in paths:
            raise UserError(f"ByFileName ranks files, image {paths.index(None)} is none. Use ByLikelihood")
        words = [_words(path.stem) for path in paths]
        return _ranked(
            len(pictures), lambda caption, numbers: [float(len(words[n] & _words(caption))) for n in numbers]
        )


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.casefold()))


def _ranked(total: int, score: Callable[[str, Sequence[int]], list[float]]) -> Retriever:
    """A retriever from a function that scores numbers of images for a caption, higher for better."""

    def retrieve(caption: str, count: int, exclude: Collection[int]) -> list[int]:
        left = [number for number in range(total) if number not in exclude]
        scores = torch.tensor(score(caption, left), dtype=torch.float64)
        return [left[at] for at in scores.argsort(descending=True, stable=True)[:count].tolist()]

    return retrieve
