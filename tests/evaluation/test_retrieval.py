"""Families that compare images with texts rank captions and pictures for the retrieval benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.evaluation.answering import Ranker, answer_questions
from lit_mm.evaluation.benchmarks.benchmark import load_benchmark
from lit_mm.evaluation.measurement import measure, rows_of
from lit_mm.evaluation.retrieval import TwoStepRetrieval, cosines_of
from lit_mm.module import MultimodalModule
from lit_mm.objectives.query_pairs import QueryComparison
from lit_mm.samples.collate import collate
from tests.evaluation.benchmarks.files import MAKERS
from tests.tiny import Noise
from tests.tiny_blip import blip
from tests.tiny_blip2 import blip2

PICTURES = [Noise(number) for number in range(3)]
CAPTIONS = ["red circle", "the page", "what is this", "large 123", "a", "near the red page"]
FAMILIES: dict[str, tuple[Callable[[], MultimodalModule], Callable[[Any], Any] | None]] = {
    "BLIP": (blip, None),
    "BLIP-2": (blip2, QueryComparison),
}


def scores(module: MultimodalModule, comparison: Callable[[Any], Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """[pictures, captions] cosines, and logits of a match of all pairs, one after the other."""
    network: Any = module.network if comparison is None else comparison(module.network)
    cosines, logits = (np.zeros((len(PICTURES), len(CAPTIONS)), dtype=np.float32) for _ in range(2))
    for i, picture in enumerate(PICTURES):
        for c, caption in enumerate(CAPTIONS):
            document = Document("pair", (Turn("user", (picture,)), Turn("assistant", (caption,))))
            batch = collate([module.processor.sample(document)], module.processor)
            (features, image), (texts, text) = network.encode_images(batch), network.encode_texts(batch)
            cosines[i, c] = cosines_of(image, text)[0, 0]
            logits[i, c] = network.match(texts, features)[0, 1]
    return cosines, logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("candidates", [0, 2, 128])
@torch.inference_mode()
def test_rankings_are_those_of_single_pairs(family: str, candidates: int) -> None:
    build, comparison = FAMILIES[family]
    module = build().eval()
    ranker = TwoStepRetrieval(candidates, comparison)
    assert isinstance(ranker, Ranker)
    cosines, logits = scores(module, comparison)
    rankings = ranker.rank(module, PICTURES, CAPTIONS, batch_size=4)
    for ranking, first, second in zip(rankings, (cosines, cosines.T), (logits, logits.T), strict=True):
        for row, near, match in zip(ranking, first, second, strict=True):
            best = np.argsort(-near, kind="stable")
            head = sorted(best[:candidates], key=lambda number: -(near[number] + match[number]))
            assert row.tolist() == [*head, *best[candidates:]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["flickr30k_retrieval", "coco_retrieval"])
def test_a_retrieval_benchmark_is_measured(family: str, name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    benchmark = load_benchmark(name)
    questions = benchmark.reader_of(benchmark.split()).questions(tmp_path)
    module = FAMILIES[family][0]()
    procedure = benchmark.procedure_of(type(module).__name__)
    answers = answer_questions(module, questions, procedure)
    result = measure(benchmark, procedure, rows_of(questions, answers, procedure))
    assert {"image_to_text", "text_to_image"} <= result.details.keys()
    assert 0 <= result.interval.low <= result.figure <= result.interval.high <= 100
