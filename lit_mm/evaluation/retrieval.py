"""Retrieval in two steps: similarities rank all candidates, and a matching head reorders the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_mm.documents.document import Document
from lit_mm.documents.examination import Examination, Prediction
from lit_mm.errors import UserError
from lit_mm.evaluation.examiners import without_sight
from lit_mm.evaluation.metrics.retrieval import rank, rerank
from lit_mm.evaluation.score import score
from lit_mm.language.med import Padded
from lit_mm.module import MultimodalModule
from lit_mm.objectives.image_text import Encoded
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate

IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image to text", "text to image"
BY_CONTRAST = ", by contrast"


class Comparison(Protocol):
    """A model that compares images with texts."""

    def encode(self, batch: Batch) -> Encoded:
        """Encode images and texts apart."""
        ...

    def match(self, texts: Padded, features: Tensor) -> Tensor:
        """Logits [N, 2] of no match and match, of texts [N, L] with image features [N, P, D]."""
        ...


class Features(NamedTuple):
    """Features of all documents, on the CPU.

    Attributes:
        features: per document [P, D] image features.
        ids: per document [L] token ids of its text.
        image: [N, C] unit vectors, or [N, Q, C] of Q queries.
        text: [N, C] unit vectors.
    """

    features: list[Tensor]
    ids: list[Tensor]
    image: Tensor
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
    Raises:
        UserError: the number is negative.
    Source: train_retrieval.py of github.com/salesforce/BLIP, `evaluation`.
    """

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
        network: Any = module.network if self.comparison is None else self.comparison(module.network)
        with module.inference():
            encoded = encode(module, network, documents, batch_size)
            similarity = cosines_of(encoded.image, encoded.text)
            predictions: list[Prediction] = []
            for direction, cosines in ((IMAGE_TO_TEXT, similarity), (TEXT_TO_IMAGE, similarity.T)):
                orders = {direction: rank(cosines)}
                if count := min(self.candidates, len(documents)):
                    orders[direction + BY_CONTRAST] = orders[direction]
                    logits = matches(module, network, encoded, orders[direction][:, :count], direction, batch_size)
                    orders[direction] = rerank(cosines, logits, count)
                for skill, order in orders.items():
                    predictions += first_hits(documents, order, skill)
        return Examination(score(predictions), tuple(predictions))


def cosines_of(image: Tensor, text: Tensor) -> NDArray[np.floating]:
    """Compare images [N, C] or [N, Q, C] with texts [M, C]: [N, M] cosines, the largest over the queries.

    Queries are compared one after the other, so [N, Q, M] numbers are never in memory.
    """
    queries = (image[:, None] if image.ndim == 2 else image).numpy()
    cosines = queries[:, 0] @ text.numpy().T
    for number in range(1, queries.shape[1]):
        np.maximum(cosines, queries[:, number] @ text.numpy().T, out=cosines)
    return cosines


def encode(module: MultimodalModule, network: Comparison, documents: Sequence[Document], batch_size: int) -> Features:
    """Encode the image and the text of every document.

    Raises:
        UserError: see `Processor.sample`, or a document has not one picture of one view.
    """
    processor = module.processor
    features: list[Tensor] = []
    ids: list[Tensor] = []
    vectors: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(documents), batch_size):
        samples = [processor.sample(document) for document in documents[start : start + batch_size]]
        batch = collate(samples, processor).to(module.device)
        encoded = network.encode(batch)
        features += encoded.features.cpu().unbind()
        ids += [row[real].cpu() for row, real in zip(*encoded.texts, strict=True)]
        vectors.append((encoded.image.cpu(), encoded.text.cpu()))
    image, text = (torch.cat(of_kind) for of_kind in zip(*vectors, strict=True))
    return Features(features, ids, image, text)


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
        encoded: features of all documents.
        candidates: [Q, k] numbers of the candidates of every query.
        direction: `IMAGE_TO_TEXT` or `TEXT_TO_IMAGE`.
        batch_size: number of pairs per forward.
    Returns:
        [Q, N] logits; -inf for pairs that are no candidates.
    """
    count = len(encoded.ids)
    logits = np.full((len(candidates), count), -np.inf, dtype=np.float32)
    pairs = [(query, int(candidate)) for query, row in enumerate(candidates) for candidate in row]
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        images, texts = zip(*(pair if direction == IMAGE_TO_TEXT else pair[::-1] for pair in chunk), strict=True)
        ids = [encoded.ids[number] for number in texts]
        table = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([len(row) for row in ids])
        visible = torch.arange(table.shape[1]) < lengths[:, None]
        features = torch.stack([encoded.features[number] for number in images])
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
