"""Examinations on held-out documents whose answers are stored as they come, so that a killed one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_mm.distributed.lockstep import is_shared
from lit_mm.documents.document import Document
from lit_mm.documents.examination import Examination, Prediction
from lit_mm.evaluation.answering import (
    VERSION,
    answer_at_once,
    answer_batches,
    digest_of_layouts,
    generated,
    open_answers,
    plan_batches,
    precision_of,
)
from lit_mm.evaluation.examiners import MAX_NEW_TOKENS, matched, measure_of, without_sight
from lit_mm.evaluation.score import score
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import prompt_sample
from lit_mm.module import Examiner, MultimodalModule, family_of

WHOLE = "examination"  # id of the stored predictions of an examiner that is asked at once


def examine_stored(
    module: MultimodalModule,
    documents: Sequence[Document],
    folder: Path | None,
    *,
    blind: bool = False,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Examination:
    """Examine a model as `lit_mm.evaluation.examiners.examine` does, and store what it answers.

    Answers by generation are stored batch by batch. The examiner of a family is asked at once; its predictions are
    stored when it is ready.

    Args:
        module, documents, blind, batch_size: see `lit_mm.module.Examiner`.
        folder: folder of this examination, see `digest_of_examination`. None stores nothing.
        progress: see `lit_mm.evaluation.answering.answer_questions`.
    """
    if module.examiner is not None:
        return _examined_at_once(module, module.examiner, documents, folder, blind=blind, batch_size=batch_size)
    questions = without_sight(documents) if blind else documents
    by_key = {f"{number:08d}": question for number, question in enumerate(questions)}
    lengths = {key: len(prompt_sample(module.processor, question)) for key, question in by_key.items()}
    decoding = Decoding(MAX_NEW_TOKENS)
    answers = answer_batches(
        plan_batches(lengths, batch_size),
        lambda keys: generated(module, [by_key[key] for key in keys], decoding),
        open_answers(folder),
        equal=is_shared(module.network),
        progress=progress,
    )
    return matched(questions, [answers[key] for key in by_key])


def _examined_at_once(
    module: MultimodalModule,
    examiner: Examiner,
    documents: Sequence[Document],
    folder: Path | None,
    *,
    blind: bool,
    batch_size: int,
) -> Examination:
    """Ask the examiner of a family, or read its stored predictions."""

    def lines() -> dict[str, str]:
        predictions = examiner(module, documents, blind=blind, batch_size=batch_size).predictions
        entries = [
            (entry.document.source, entry.document.id, entry.document.skill, entry.answer, bool(entry.correct))
            for entry in predictions
        ]
        return {WHOLE: json.dumps(entries, ensure_ascii=False)}

    pages = without_sight(documents) if blind else documents
    by_id = {(document.source, document.id): document for document in pages}
    entries: list[list[Any]] = json.loads(answer_at_once(open_answers(folder), (WHOLE,), lines)[WHOLE])
    predictions = tuple(
        Prediction(replace(by_id[source, number], skill=skill), answer, correct)
        for source, number, skill, answer, correct in entries
    )
    return Examination(score(predictions), predictions)


def digest_of_examination(
    module: MultimodalModule,
    documents: Sequence[Document],
    images: Sequence[str],
    *,
    weights: str,
    blind: bool = False,
    batch_size: int = 64,
) -> str:
    """Compute the digest of all that determines the predictions: the name of their folder.

    Args:
        module, documents, blind, batch_size: see `lit_mm.module.Examiner`.
        images: names of the documents' images, see `image_names`.
        weights: digest of the checkpoint.
    """
    facts = {
        "version": VERSION,
        "family": family_of(module),
        "measure": measure_of(module),
        "keys": ["source", "id"],  # of a stored prediction
        "weights": weights,
        "images": list(images),
        "answers": [document.answer for document in documents],
        "precision": precision_of(module),
        "pixels": repr(module.processor.normalise),
        "batch_size": batch_size,
        "blind": blind,
    }
    return digest_of_layouts(facts, module.processor, documents)


def image_names(documents: Sequence[Document]) -> list[str]:
    """Name the images of each document by their pixels: documents with the same images get the same name.

    A document without images gets a name of its own.
    """
    names = []
    for number, document in enumerate(documents):
        checksum = hashlib.blake2b(digest_size=12)
        for picture in document.pictures:
            image = picture.read()
            checksum.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        names.append(checksum.hexdigest() if document.pictures else f"document {number}")
    return names
