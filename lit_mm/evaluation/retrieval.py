"""Retrieval in two steps: similarities rank all candidates, and a matching head reorders the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.documents.examination import Examination, Prediction
from lit_mm.errors import UserError
from lit_mm.evaluation.examiners import without_sight
from lit_mm.evaluation.metrics.retrieval import rank, rerank
from lit_mm.evaluation.score import score
from lit_mm.language.med import Padded
from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.tiling.plan import View

IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image to text", "text to image"
BY_CONTRAST = ", by contrast"


class Comparison(Protocol):
    """A model that compares images with texts."""

    def encode_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return image features [N, P, D], and unit vectors [N, C], or [N, Q, C] of Q queries."""
        ...

    def encode_texts(self, batch: Batch) -> tuple[Padded, Tensor]:
        """Return texts [N, L] and their unit vectors [N, C]; pictures are not read."""
        ...

    def match(self, texts: Padded, features: Tensor) -> Tensor:
        """Logits [N, 2] of no match and match, of texts [N, L] with image features [N, P, D]."""
        ...


class Features(NamedTuple):
    """Features of I images and of C texts, on the CPU.

    Attributes:
        images: per image [P, D] features.
        image: [I, C'] unit vectors, or [I, Q, C'] of Q queries.
        ids: per text [L] token ids.
        text: [C, C'] unit vectors.
    """

    images: list[Tensor]
    image: Tensor
    ids: list[Tensor]
    text: Tensor


class TwoStepRetrieval:
    """Looks for the text of every image and the image of every text among all documents: recall@1.

    The figures by skill are the recall of both directions after both steps, and by contrast alone. Documents with the
    same text are equally right, so is any image of an equal text. Chance is about 1 / documents. In a blind examination
    every document shows another document's picture. Every rank computes all scores, so ranks that share a model make
    the same calls.

    Args:
        candidates: number of best candidates per query that the matching head reorders; the score is the cosine plus
            the logit of a match. 0 ranks by contrast alone.
        comparison: function from the network of a module to the model that compares; None: the network itself.
    Attributes:
        skills: names of the figures.
        measure: name of the measure of every figure.
    Raises:
        UserError: the number is negative.
    Source: train_retrieval.py of github.com/salesforce/BLIP, `evaluation`.
    """

    measure = "recall@1"

    def __init__(self, candidates: int = 128, comparison: Callable[[Any], Comparison] | None = None) -> None:
        if candidates < 0:
            raise UserError(f"TwoStepRetrieval: `candidates` is at least 0, got {candidates}")
        self.candidates, self.comparison = candidates, comparison
        directions = (IMAGE_TO_TEXT, TEXT_TO_IMAGE)
        steps = ("", BY_CONTRAST) if candidates else ("",)
        self.skills = tuple(direction + step for direction in directions for step in steps)

    def __call__(
        self, module: MultimodalModule, documents: Sequence[Document], *, blind: bool = False, batch_size: int = 64
    ) -> Examination:
        """See `lit_mm.module.Examiner`."""
        documents = without_sight(documents) if blind else documents
        network = self._network(module)
        predictions: list[Prediction] = []
        with module.inference():
            features = encode(module, network, documents, documents, batch_size)
            for direction in (IMAGE_TO_TEXT, TEXT_TO_IMAGE):
                first, both = self.orders(module, network, features, direction, batch_size)
                for skill, order in {direction: both, direction + BY_CONTRAST: first}.items():
                    if skill in self.skills:
                        predictions += first_hits(documents, order, skill)
        return Examination(score(predictions), tuple(predictions))

    def rank(
        self, module: MultimodalModule, pictures: Sequence[Picture], captions: Sequence[str], batch_size: int = 64
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rank captions for pictures and pictures for captions; see `lit_mm.evaluation.answering.Ranker`."""
        images = [Document(f"picture {n}", (Turn("page", (picture,)),)) for n, picture in enumerate(pictures)]
        texts = [Document(f"caption {n}", (Turn("page", (pictures[0], text)),)) for n, text in enumerate(captions)]
        network = self._network(module)
        features = encode(module, network, images, texts, batch_size)
        of_pictures, of_captions = (
            self.orders(module, network, features, direction, batch_size)[1]
            for direction in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)
        )
        return of_pictures, of_captions

    def _network(self, module: MultimodalModule) -> Comparison:
        network: Any = module.network
        return network if self.comparison is None else self.comparison(network)

    def orders(
        self, module: MultimodalModule, network: Comparison, features: Features, direction: str, batch_size: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rank the candidates of every query, the best first, by contrast alone and after both steps.

        Args:
            module, network: the model.
            features: features of images and texts.
            direction: `IMAGE_TO_TEXT` or `TEXT_TO_IMAGE`.
            batch_size: number of pairs per forward of the matching head.
        """
        cosines = cosines_of(features.image, features.text)
        cosines = cosines if direction == IMAGE_TO_TEXT else cosines.T
        first = rank(cosines)
        if not (count := min(self.candidates, cosines.shape[1])):
            return first, first
        logits = matches(module, network, features, first[:, :count], direction, batch_size)
        return first, rerank(cosines, logits, count)


def cosines_of(image: Tensor, text: Tensor) -> NDArray[np.floating]:
    """Compare images [N, C] or [N, Q, C] with texts [M, C]: [N, M] cosines, the largest over the queries.

    Queries are compared one after the other, so [N, Q, M] numbers are never in memory.
    """
    queries = (image[:, None] if image.ndim == 2 else image).numpy()
    cosines = queries[:, 0] @ text.numpy().T
    for number in range(1, queries.shape[1]):
        np.maximum(cosines, queries[:, number] @ text.numpy().T, out=cosines)
    return cosines


def encode(
    module: MultimodalModule,
    network: Comparison,
    images: Sequence[Document],
    texts: Sequence[Document],
    batch_size: int,
) -> Features:
    """Encode the image of every document of `images` and the text of every document of `texts`.

    Pictures of `texts` are not read.

    Raises:
        UserError: see `Processor.sample`, or a document has not one picture of one view.
    """
    features: list[Tensor] = []
    ids: list[Tensor] = []
    image: list[Tensor] = []
    text: list[Tensor] = []
    for batch in batches_of(module, images, batch_size, blank=False):
        of_images, vectors = network.encode_images(batch)
        features += of_images.cpu().unbind()
        image.append(vectors.cpu())
    for batch in batches_of(module, texts, batch_size, blank=True):
        table, vectors = network.encode_texts(batch)
        ids += [row[real].cpu() for row, real in zip(*table, strict=True)]
        text.append(vectors.cpu())
    return Features(features, torch.cat(image), ids, torch.cat(text))


def batches_of(
    module: MultimodalModule, documents: Sequence[Document], batch_size: int, *, blank: bool
) -> Iterator[Batch]:
    """Yield batches of documents on the device of the model; `blank` puts black views in place of their pictures."""
    processor = module.processor
    for start in range(0, len(documents), batch_size):
        samples = [processor.sample(document) for document in documents[start : start + batch_size]]
        views = [[blank_view(view) for plan in sample.plans for view in plan.views] for sample in samples]
        yield collate(samples, processor, views=views if blank else None).to(module.device)


def blank_view(view: View) -> Tensor:
    """Build a black view, [3, H, W] uint8."""
    return torch.zeros(3, *view.size, dtype=torch.uint8)


def matches(
    module: MultimodalModule,
    network: Comparison,
    encoded: Features,
    candidates: NDArray[np.intp],
    direction: str,
    batch_size: int,
) -> NDArray[np.floating]:
    """Compute the logits of a match of every query with its candidates.

    Args:
        module, network: the model.
        encoded: features of images and texts.
        candidates: [Q, k] numbers of the candidates of every query.
        direction: `IMAGE_TO_TEXT` or `TEXT_TO_IMAGE`.
        batch_size: number of pairs per forward.
    Returns:
        [Q, I] or [Q, C] logits; -inf for pairs that are no candidates.
    """
    count = len(encoded.ids if direction == IMAGE_TO_TEXT else encoded.images)
    logits = np.full((len(candidates), count), -np.inf, dtype=np.float32)
    pairs = [(query, int(candidate)) for query, row in enumerate(candidates) for candidate in row]
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        images, texts = zip(*(pair if direction == IMAGE_TO_TEXT else pair[::-1] for pair in chunk), strict=True)
        ids = [encoded.ids[number] for number in texts]
        table = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([len(row) for row in ids])
        visible = torch.arange(table.shape[1]) < lengths[:, None]
        features = torch.stack([encoded.images[number] for number in images])
        padded = Padded(table.to(module.device), visible.to(module.device))
        scores = network.match(padded, features.to(module.device))[:, 1].cpu().numpy()
        for (query, candidate), value in zip(chunk, scores, strict=True):
            logits[query, candidate] = value
    return logits


def first_hits(documents: Sequence[Document], order: NDArray[np.intp], skill: str) -> list[Prediction]:
    """Turn rankings [Q, N] into predictions: the text of the first candidate, right if it is the query's text."""
    texts = [document.turns[-1].text for document in documents]
    return [
        Prediction(replace(document, skill=skill), texts[best], texts[best] == text)
        for document, text, best in zip(documents, texts, order[:, 0].tolist(), strict=True)
    ]
