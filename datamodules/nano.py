"""The nano world as a data module: documents are generated, without files and downloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.nano.text import reading_document
from lit_mm.nano.world import SKILLS, caption_document, question_document
from lit_mm.stream.datamodule import Source, StreamDataModule, WorkerStart
from lit_mm.stream.order import stable_hash

KINDS = {"captions": caption_document, "questions": question_document, "text": reading_document}


class NanoSource:
    """A source of documents of the nano world, indexed by number.

    Args:
        kind: kind of documents. "captions" are pages with their transcripts. "questions" are pages with questions and
            answers. "text" alternates transcripts to read out and transcripts with questions, without pictures.
        count: number of documents.
        split: split of the nano world, one of `lit_mm.nano.world.SPLITS`.
        seed: seed of the nano world.
        skills: skills, taken in turn. A skill listed twice occurs twice as often.
        questions: largest number of questions per document.
        source_of: skill -> name of the source of its documents, for recipes that treat a source differently, such as
            by a limit of tiles. Sources of a `Mixture` get their names there.
    Raises:
        UserError: `source_of` names a skill that is not in `skills`.
    """

    def __init__(
        self,
        kind: str,
        count: int,
        *,
        split: str,
        seed: int,
        skills: tuple[str, ...],
        questions: int,
        source_of: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.count, self.split, self.seed = kind, count, split, seed
        self.skills, self.questions, self.source_of = skills, questions, dict(source_of or {})
        if unknown := sorted(set(self.source_of) - set(skills)):
            raise UserError(
                f"`source_of` names {unknown}, but this source has no such documents; its skills are {sorted(skills)}"
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Document:
        # Texts alternate between two forms by number. Without the shift, an even number of skills would tie each skill
        # to one form.
        shift = 0 if len(self.skills) % 2 else number // len(self.skills)
        skill = self.skills[(number + shift) % len(self.skills)]
        arguments = {"split": self.split, "seed": self.seed, "skill": skill}
        if self.kind != "captions":
            arguments["questions"] = self.questions
        document = KINDS[self.kind](number, **arguments)
        return replace(document, source=self.source_of.get(skill, document.source))


class NanoDocuments(StreamDataModule):
    """This data module generates pages to read: signs, lists, forms, tables, charts, scenes and stories.

    Args:
        kind: kind of training documents. "captions" are pages with their transcripts, "questions" pages with questions
            and answers, "mixed" alternates both, and "text" has transcripts without pictures.
        documents: number of training documents.
        split: split of the nano world for training, one of train, heldout, text and pixels.
        skills: skills of the training documents; None takes all. A skill listed twice occurs twice as often.
        questions: largest number of questions per training document.
        heldout_documents: number of held-out documents, balanced over all skills, with one question each. They have no
            pictures if `kind` is "text".
        world_seed: seed of the generated documents, independent of the seed of the run.
        heldout_kind: kind of held-out documents that have pictures: questions, or pages with their transcripts, such as
            for retrieval.
        global_batch, micro_batch, row_tokens, row_views, window, num_workers, worker_start: see `StreamDataModule`.
    """

    def __init__(
        self,
        kind: Literal["captions", "questions", "mixed", "text"] = "questions",
        documents: int = 20_000,
        split: str = "train",
        skills: list[str] | None = None,
        questions: int = 3,
        heldout_documents: int = 450,
        world_seed: int = 0,
        global_batch: int = 8,
        micro_batch: int | None = None,
        row_tokens: int | None = 512,
        row_views: int | None = None,
        window: int = 1024,
        num_workers: int = 1,
        worker_start: WorkerStart | None = None,
        heldout_kind: Literal["captions", "questions"] = "questions",
    ) -> None:
        super().__init__(
            global_batch,
            micro_batch,
            row_tokens,
            row_views,
            window,
            num_workers,
            worker_start=worker_start,
        )
        unknown = sorted(set(skills or ()) - set(SKILLS))
        if unknown:
            raise UserError(
                f"the nano world has no skills {unknown}; it has {list(SKILLS)}. Correct `data.init_args.skills`"
            )
        if documents < 1:
            raise UserError(f"the data set is empty: `data.init_args.documents` is {documents}, set it to at least 1")
        self.kind, self.documents, self.split = kind, documents, split
        self.skills, self.questions = tuple(skills or SKILLS), questions
        self.heldout_documents, self.world_seed = heldout_documents, world_seed
        self.heldout_kind = heldout_kind

    def source(self) -> Source:
        def source_of_kind(kind: str) -> NanoSource:
            return NanoSource(
                kind,
                self.documents,
                split=self.split,
                seed=stable_hash(self.world_seed, kind),
                skills=self.skills,
                questions=self.questions,
            )

        if self.kind == "mixed":
            return Alternating([source_of_kind("captions"), source_of_kind("questions")])
        return source_of_kind(self.kind)

    def heldout(self, count: int | None = None) -> list[Document]:
        count = heldout_count(count, self.heldout_documents)
        if self.kind == "text":  # texts with even numbers ask questions
            return [reading_document(2 * i, split="heldout", seed=self.world_seed, questions=1) for i in range(count)]
        skills = SKILLS if self.heldout_kind == "questions" else self.skills
        source = NanoSource(self.heldout_kind, count, split="heldout", seed=self.world_seed, skills=skills, questions=1)
        return [source[i] for i in range(count)]


class Alternating:
    """A source that takes one document from each of its sources in turn."""

    def __init__(self, sources: list[NanoSource]) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, number: int) -> Document:
        return self.sources[number % len(self.sources)][number // len(self.sources)]


def heldout_count(count: int | None, configured: int) -> int:
    """Return the number of held-out documents of a call: `count`, or the configured number if `count` is None.

    A recipe with 0 held-out documents examines nothing, whatever `count` is.
    """
    return configured if count is None or not configured else count
