"""The nano world as a data module: generated documents, no file and no download."""

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
    """Documents of the nano world by number.

    Args:
        kind: captions (pages with their transcript), questions (pages with questions and answers), text (transcripts
            to read out, or with questions and answers, by turns; no picture).
        count: documents.
        split: the index space; see `lit_mm.nano.world.SPLITS`.
        skills: drawn with equal weight, or as often as a skill is listed.
        questions: per document, at most.
        source_of: skill -> what its documents call their source, where a recipe treats that source apart, as by a limit
            of tiles. (Sources of a `Mixture` are named there.)
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
        if strangers := sorted(set(self.source_of) - set(skills)):
            raise UserError(
                f"`source_of` names {strangers}, of which this source has no documents; its skills are {sorted(skills)}"
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Document:
        # The form of a text alternates with its number. In step with an even number of skills, each would have one form
        shift = 0 if len(self.skills) % 2 else number // len(self.skills)
        skill = self.skills[(number + shift) % len(self.skills)]
        arguments = {"split": self.split, "seed": self.seed, "skill": skill}
        if self.kind != "captions":
            arguments["questions"] = self.questions
        document = KINDS[self.kind](number, **arguments)
        return replace(document, source=self.source_of.get(skill, document.source))


class NanoDocuments(StreamDataModule):
    """Generated pages to read: signs, lists, forms, tables, charts, scenes and stories.

    Args:
        kind: what is trained on, see `NanoSource`; mixed alternates captions and questions.
        documents: size of the training set.
        split: the index space of the training set.
        skills: the skills of the training set, all when left out; listed twice, drawn twice as often.
        questions: questions per training document, at most.
        heldout_documents: size of the held-out set, balanced over all skills, one question each; without pictures where
            the kind is text.
        world_seed: of the generated documents (not of the run).
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
            raise UserError(f"the data set is empty: `data.init_args.documents` is {documents}, give at least 1")
        self.kind, self.documents, self.split = kind, documents, split
        self.skills, self.questions = tuple(skills or SKILLS), questions
        self.heldout_documents, self.world_seed = heldout_documents, world_seed

    def source(self) -> Source:
        def of(kind: str) -> NanoSource:
            return NanoSource(
                kind,
                self.documents,
                split=self.split,
                seed=stable_hash(self.world_seed, kind),
                skills=self.skills,
                questions=self.questions,
            )

        return Alternating([of("captions"), of("questions")]) if self.kind == "mixed" else of(self.kind)

    def heldout(self, count: int | None = None) -> list[Document]:
        if count is None or not self.heldout_documents:  # 0: this recipe examines nothing
            count = self.heldout_documents
        if self.kind == "text":  # even numbers ask a question
            return [reading_document(2 * i, split="heldout", seed=self.world_seed, questions=1) for i in range(count)]
        source = NanoSource("questions", count, split="heldout", seed=self.world_seed, skills=SKILLS, questions=1)
        return [source[i] for i in range(count)]


class Alternating:
    """One document of each source in turn."""

    def __init__(self, sources: list[NanoSource]) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, number: int) -> Document:
        return self.sources[number % len(self.sources)][number // len(self.sources)]
