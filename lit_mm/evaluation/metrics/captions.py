"""Captions: CIDEr-D and BLEU-4 (Flickr30K, COCO, NoCaps, TextCaps)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

from torchmetrics.functional.text import bleu_score

from lit_mm.evaluation.metrics.caption_tokens import tokenise
from lit_mm.evaluation.metrics.rows import Row, Scored

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
Ngram = tuple[str, ...]


def cider(rows: Sequence[Row]) -> Scored:
    """Compute CIDEr-D of captions, 0 to 10 (papers print a hundred times this). A row is an image.

    `note` names the tokenizer. Source: pycocoevalcap cider/cider_scorer.py.
    """
    predictions, references, note = _tokens(rows)
    scores = cider_d(predictions, references)
    return Scored(sum(scores) / len(scores), tuple(scores), note=note)


def bleu4(rows: Sequence[Row]) -> Scored:
    """Compute BLEU-4 of the corpus with torchmetrics. A row's score is its own BLEU-4; `note` names the tokenizer."""
    predictions, references, note = _tokens(rows)
    scores = [float(bleu_score([text], [texts])) for text, texts in zip(predictions, references, strict=True)]
    return Scored(float(bleu_score(predictions, references)), tuple(scores), note=note)


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Compute CIDEr-D of each image from captions that are tokenised and joined by spaces.

    Document frequencies and the number of images come from the references; a corpus of one image scores 0.
    """
    counts = [[_ngrams(text) for text in texts] for texts in references]
    frequency = Counter(chain.from_iterable(set().union(*image) for image in counts))
    images = math.log(len(references))

    def weigh(ngrams: Counter[Ngram]) -> dict[Ngram, float]:
        return {k: count * (images - math.log(max(1, frequency[k]))) for k, count in ngrams.items()}

    scores = []
    for prediction, image in zip(predictions, counts, strict=True):
        ngrams = _ngrams(prediction)
        weights = weigh(ngrams)
        similarities = [_similarity(weights, weigh(r), _bigrams(ngrams) - _bigrams(r)) for r in image]
        scores.append(10 * sum(similarities) / len(similarities))
    return scores


def _similarity(a: dict[Ngram, float], b: dict[Ngram, float], gap: int) -> float:
    """Average the clipped cosine over the four orders and apply the penalty of different lengths (`gap` bigrams)."""
    cosine = 0.0
    for n in ORDERS:
        dot = sum(min(w, b[k]) * b[k] for k, w in a.items() if len(k) == n and k in b)
        norm = math.sqrt(sum(w * w for k, w in a.items() if len(k) == n))
        norm *= math.sqrt(sum(w * w for k, w in b.items() if len(k) == n))
        cosine += dot / norm if norm else 0.0
    return cosine / len(ORDERS) * math.exp(-(gap**2) / (2 * SIGMA**2))


def _ngrams(text: str) -> Counter[Ngram]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1))


def _bigrams(ngrams: Counter[Ngram]) -> int:
    return sum(count for k, count in ngrams.items() if len(k) == 2)


def _tokens(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], str]:
    """Return tokenised predictions and references, and the name of the tokenizer."""
    texts, name = tokenise([text for row in rows for text in (row.prediction, *row.references)])
    stream = iter(texts)
    pairs = [(next(stream), [next(stream) for _ in row.references]) for row in rows]
    return [prediction for prediction, _ in pairs], [texts for _, texts in pairs], f"tokenizer: {name}"
