"""Answers of a model to a benchmark: in batches that are fixed for the whole benchmark, and stored as they come.

Neither the number of ranks nor an interruption changes which questions share a batch, so they do not change an answer.
Answers are stored in a folder whose name is a digest of all that determines them, see `digest_of_asking`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from lit_mm.distributed.lockstep import is_shared
from lit_mm.documents.document import Document, Picture
from lit_mm.errors import UserError
from lit_mm.evaluation.benchmarks.benchmark import Candidates, Procedure
from lit_mm.evaluation.benchmarks.question import LETTERS, Question, as_document
from lit_mm.evaluation.candidates import DeclaresRanking, Ranking, candidate_ids, likelihoods
from lit_mm.evaluation.examiners import without_sight
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import decode, prompt_sample, share
from lit_mm.module import MultimodalModule, family_of
from lit_mm.prompts.prompt import Stops
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import Processor
from lit_mm.stream.order import stable_hash

VERSION = 2  # of this code; a higher number makes stored answers of earlier code unused
MOST_RANKED = 10  # names of a ranking that are stored, enough for recall@10


@runtime_checkable
class Ranker(Protocol):
    """An examiner that can rank pictures for captions and captions for pictures."""

    def rank(
        self, module: MultimodalModule, pictures: Sequence[Picture], captions: Sequence[str]
    ) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Return numbers of captions per picture [I, C] and numbers of pictures per caption [C, I], the best first."""
        ...


class AnswerFile:
    """Answers of one asking in a folder, one JSON line each, with a file per rank.

    Args:
        folder: folder of the asking; None stores nothing.
        rank: number of this rank.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / f"answers-{rank}.jsonl" if folder is not None else None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._drop_torn_line(self.path)

    def read(self) -> dict[str, str]:
        """Return id -> answer of all complete lines of all ranks."""
        answers: dict[str, str] = {}
        for path in sorted(self.folder.glob("answers-*.jsonl")) if self.folder is not None else ():
            for line in path.read_bytes().split(b"\n")[:-1]:  # the last piece is empty or torn
                entry = json.loads(line)
                answers[entry["id"]] = entry["answer"]
        return answers

    def append(self, answers: Mapping[str, str]) -> None:
        """Write answers to disk before this returns."""
        if self.path is None:
            return
        with self.path.open("ab") as file:
            for id, answer in answers.items():
                file.write(json.dumps({"id": id, "answer": answer}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _drop_torn_line(path: Path) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


def answer_questions(
    module: MultimodalModule,
    questions: Sequence[Question],
    procedure: Procedure,
    *,
    source: str = "",
    folder: Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    blind: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Answer the questions of a benchmark; every rank of a job calls this and gets all answers.

    Args:
        module: model that answers.
        questions: questions; their answers are not read.
        procedure: prompt, way of answering and settings of decoding.
        source: name of the benchmark.
        folder: folder of stored answers; answers that are there are not computed again. None stores nothing.
        batch_size: number of questions answered together. Sampled answers are computed one by one.
        seed: seed of sampling; a question's draws depend on it and on the id alone.
        blind: True shows the pictures of other questions, see `lit_mm.evaluation.examiners.without_sight`.
        progress: function that is called after every batch with the number of batches that this rank has answered and
            has to answer; None calls nothing.
    Returns:
        id -> answer; for retrieval see `rank_all`.
    Raises:
        UserError: a question is too long for the model, or the model cannot answer in the way of the procedure.
    """
    file = open_answers(folder)
    if procedure.answering == "retrieval":

        def rankings() -> dict[str, str]:
            pages = documents_of(questions, procedure, source, blind=blind)
            return rank_all(module, questions, [page.pictures[0] for page in pages])

        return answer_at_once(file, ranking_names(questions), rankings)
    documents = {document.id: document for document in documents_of(questions, procedure, source, blind=blind)}
    decoding = procedure.decoder()
    lengths = {id: len(prompt_sample(module.processor, document)) for id, document in documents.items()}
    by_id = {question.id: question for question in questions}

    def texts_of(ids: Sequence[str]) -> list[str]:
        batch = [documents[id] for id in ids]
        if procedure.candidates is not None:
            return ranked(module, batch, [by_id[id] for id in ids], procedure.candidates)
        return generated(module, batch, seeded(decoding, seed, ids[0]))

    plan = plan_batches(lengths, 1 if decoding.sample else batch_size)
    answers = answer_batches(plan, texts_of, file, equal=is_shared(module.network), progress=progress)
    return {question.id: answers[question.id] for question in questions}


def open_answers(folder: Path | None) -> AnswerFile:
    """Open the answers of this rank in a folder; afterwards all ranks have dropped their torn lines."""
    file = AnswerFile(folder, dist.get_rank() if dist.is_initialized() else 0)
    if dist.is_initialized():
        dist.barrier()
    return file


def answer_batches(
    plan: Sequence[list[str]],
    texts_of: Callable[[Sequence[str]], list[str]],
    file: AnswerFile,
    *,
    equal: bool,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Answer the batches of a plan that are not stored; every rank of a job calls this and gets all answers.

    Args:
        plan: batches of ids, the same on every rank.
        texts_of: function that answers a batch.
        file: stored answers; a batch is stored as soon as it is answered.
        equal: True gives every rank the same number of batches, see `lit_mm.inference.generate.share`.
        progress: see `answer_questions`.
    Returns:
        id -> answer.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    ids = {id for batch in plan for id in batch}
    stored = {id: text for id, text in file.read().items() if id in ids}
    if ranks > 1:
        dist.barrier()  # all ranks have read before one writes
    pending = [batch for batch in plan if not stored.keys() >= set(batch)]
    answers: dict[str, str] = {}
    batches = share(pending, rank, ranks, equal=equal) if pending else []
    for number, batch in enumerate(batches, 1):
        texts = dict(zip(batch, texts_of(batch), strict=True))
        file.append(texts)
        answers |= texts
        if progress is not None:
            progress(number, len(batches))
    if ranks > 1:
        by_rank: list[dict[str, str]] = [{} for _ in range(ranks)]
        dist.all_gather_object(by_rank, answers)
        answers = {id: text for answers_of_rank in by_rank for id, text in answers_of_rank.items()}
    return stored | answers


def answer_at_once(
    file: AnswerFile, names: Collection[str], compute: Callable[[], Mapping[str, str]]
) -> dict[str, str]:
    """Return stored answers, or compute all of them if one is missing. Every rank computes, and rank 0 stores.

    Args:
        file: stored answers.
        names: ids of all answers.
        compute: function that computes all answers.
    """
    stored = file.read()
    if dist.is_initialized():
        dist.barrier()  # all ranks have read before one writes
    if not stored.keys() >= set(names):
        stored = dict(compute())
        file.append({} if dist.is_initialized() and dist.get_rank() else stored)
    return stored


def documents_of(
    questions: Sequence[Question], procedure: Procedure, source: str, *, blind: bool = False
) -> list[Document]:
    """Build the documents that ask questions; see `answer_questions`."""
    documents = [as_document(question, procedure.prompt, source) for question in questions]
    return without_sight(documents) if blind else documents


def plan_batches(lengths: Mapping[str, int], batch_size: int) -> list[list[str]]:
    """Group ids by length, ties by id: the plan depends on nothing else."""
    order = sorted(lengths, key=lambda id: (lengths[id], id))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def seeded(decoding: Decoding, seed: int, id: str) -> Decoding:
    """Return settings whose draws depend on (seed, id); settings without sampling do not change."""
    return replace(decoding, seed=stable_hash(seed, id)) if decoding.sample else decoding


def generated(module: MultimodalModule, documents: Sequence[Document], decoding: Decoding) -> list[str]:
    """Decode the answers of one batch."""
    processor = module.processor
    stops = Stops.of(processor.prompt, processor.tokenizer)
    samples = [prompt_sample(processor, document) for document in documents]
    batch = collate(samples, processor.for_questions()).to(module.device)
    with module.inference():
        rows = decode(module.network, batch, stop_ids=stops.ids, stop_sequences=stops.sequences, decoding=decoding)
    return [
        processor.answer_text(row[: stops.first_end(row)[0]], document)
        for row, document in zip(rows, documents, strict=True)
    ]


def ranked(
    module: MultimodalModule, documents: Sequence[Document], questions: Sequence[Question], candidates: Candidates
) -> list[str]:
    """Return the likeliest candidate of each question of one batch, or the log-odds of one candidate as a number."""
    processor, ranking = module.processor, ranking_of(module, candidates)
    tables = [verbalisers(question, candidates) for question in questions]
    ids = [
        [
            candidate_ids(processor, document, candidates.prefix + text, end=ranking.end)
            for texts in table.values()
            for text in texts
        ]
        for document, table in zip(documents, tables, strict=True)
    ]
    samples = [prompt_sample(processor, document) for document in documents]
    batch = collate(samples, processor.for_questions()).to(module.device)
    with module.inference():
        scores = likelihoods(module.network, batch, ids, length=ranking.length)
    labels = [[label for label, texts in table.items() for _ in texts] for table in tables]
    if candidates.odds_of:
        return [f"{odds(names, values, candidates.odds_of):.9g}" for names, values in zip(labels, scores, strict=True)]
    return [names[int(np.argmax(values))] for names, values in zip(labels, scores, strict=True)]


def odds(labels: Sequence[str], scores: Sequence[float], label: str) -> float:
    """Return the best score of a label minus the best score of all other labels."""
    best = {name: max(value for each, value in zip(labels, scores, strict=True) if each == name) for name in labels}
    return best.pop(label) - max(best.values())


def ranking_of(module: MultimodalModule, candidates: Candidates) -> Ranking:
    """Return the ranking of a procedure; what it does not set is as the family declares."""
    family = module.ranking if isinstance(module, DeclaresRanking) else Ranking()
    return Ranking(
        family.length if candidates.length is None else candidates.length,
        family.end if candidates.end is None else candidates.end,
    )


def verbalisers(question: Question, candidates: Candidates) -> dict[str, tuple[str, ...]]:
    """Return candidate -> texts that stand for it. The candidates of a question with options are the letters.

    Raises:
        UserError: the question has no options, and no candidates are listed.
    """
    if candidates.texts:
        return candidates.texts
    if not question.choices:
        raise UserError(f"question {question.id!r} has no options to rank")
    letters = LETTERS[: len(question.choices)]
    texts = letters if candidates.as_letters else question.choices
    return {letter: (text,) for letter, text in zip(letters, texts, strict=True)}


def ranking_names(questions: Sequence[Question]) -> list[str]:
    """Return the ids of the rankings of a retrieval benchmark, see `rank_all`."""
    names = [f"image/{question.id}" for question in questions]
    return names + [f"caption/{name}" for question in questions for name in caption_names(question)]


def rank_all(module: MultimodalModule, questions: Sequence[Question], pictures: Sequence[Picture]) -> dict[str, str]:
    """Rank captions for every picture and pictures for every caption.

    Args:
        module: model, whose examiner ranks.
        questions: images with their captions.
        pictures: picture to show for each question.
    Returns:
        "image/ID" -> names of captions "ID/N", and "caption/ID/N" -> ids of pictures; the best first, one per line.
    Raises:
        UserError: the model has no examiner that ranks.
    """
    ranker = module.examiner
    if not isinstance(ranker, Ranker):
        raise UserError(
            f"{family_of(module)} cannot score pictures against captions, which a retrieval benchmark needs. "
            "Leave the benchmark out, or choose a model that was trained with contrast or matching"
        )
    names = [name for question in questions for name in caption_names(question)]
    captions = [text for question in questions for text in question.references]
    with module.inference():
        of_pictures, of_captions = ranker.rank(module, pictures, captions)
    answers = {
        f"image/{question.id}": "\n".join(names[number] for number in row[:MOST_RANKED])
        for question, row in zip(questions, of_pictures, strict=True)
    }
    return answers | {
        f"caption/{name}": "\n".join(questions[number].id for number in row[:MOST_RANKED])
        for name, row in zip(names, of_captions, strict=True)
    }


def caption_names(question: Question) -> list[str]:
    """Return the names of an image's captions."""
    return [f"{question.id}/{number}" for number in range(len(question.references))]


def digest_of_asking(
    module: MultimodalModule,
    questions: Sequence[Question],
    procedure: Procedure,
    *,
    weights: str,
    data: str,
    source: str = "",
    batch_size: int = 64,
    seed: int = 0,
    blind: bool = False,
) -> str:
    """Compute the digest of all that determines the answers: the name of their folder.

    Args:
        weights: digest of the checkpoint.
        data: digest of the benchmark's files.
        module, questions, procedure, source, batch_size, seed, blind: see `answer_questions`. The laid-out samples
            stand for prompt, tokenizer, tiling and layout.
    """
    processor: Processor = module.processor
    facts: dict[str, Any] = {
        "version": VERSION,
        "family": family_of(module),
        "weights": weights,
        "data": data,
        "answering": procedure.answering,
        "decoding": asdict(procedure.decoder()),
        "candidates": None
        if (candidates := procedure.candidates) is None
        else asdict(candidates) | asdict(ranking_of(module, candidates)),
        "precision": precision_of(module),
        "pixels": repr(processor.normalise),
        "batch_size": batch_size,
        "seed": seed,
        "blind": "by content" if blind else False,  # equal images of two rows are one picture
    }
    return digest_of_layouts(facts, processor, documents_of(questions, procedure, source))


def digest_of_layouts(facts: Mapping[str, Any], processor: Processor, documents: Iterable[Document]) -> str:
    """Compute the digest of facts, and of documents as they are laid out for questions."""
    checksum = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12)
    for part in _layouts(processor, documents):
        checksum.update(part)
    return checksum.hexdigest()


def precision_of(module: MultimodalModule) -> str:
    """Return the precision of the Trainer of a module, or Lightning's default without one."""
    trainer = module._trainer
    return str(trainer.precision) if trainer is not None else "32-true"


def _layouts(processor: Processor, documents: Iterable[Document]) -> Iterable[bytes]:
    for document in documents:
        sample = prompt_sample(processor, document)
        yield document.id.encode() + b"\0"
        yield sample.input_ids.tobytes()
        yield sample.index.tobytes()
        yield repr(sample.plans).encode()
        if processor.reading is not None:
            yield processor.reading(sample.document).tobytes()
