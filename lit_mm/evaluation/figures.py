"""Figures of a model in training: metrics and loss on held-out documents, and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from lit_mm.distributed.lockstep import is_shared
from lit_mm.documents.document import Document
from lit_mm.documents.examination import skills_of
from lit_mm.errors import UserError
from lit_mm.evaluation.answering import answer_questions
from lit_mm.evaluation.benchmarks.benchmark import Benchmark
from lit_mm.evaluation.benchmarks.question import Question
from lit_mm.evaluation.measurement import check_questions, rows_of, score
from lit_mm.evaluation.metrics import Row, check_metric, score_rows
from lit_mm.inference.generate import answer, share
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import by_source
from lit_mm.objectives.token_losses import token_losses
from lit_mm.samples.collate import collate
from lit_mm.stages.examine import LOSS


class Figures(Protocol):
    """Measures figures of a model. Every rank of a job calls it and gets all figures."""

    def names(self, module: MultimodalModule) -> list[str]:
        """Return the names of the figures."""
        ...

    def __call__(self, module: MultimodalModule) -> dict[str, float]:
        """Return name -> figure."""
        ...


class DocumentFigures:
    """Metrics and loss on held-out documents, over all of them and per skill.

    Args:
        source: name of the source.
        documents: documents that end in an answer.
        metrics: names of metrics, or "loss".
        batch_size: number of documents per batch.
        max_new_tokens: maximum length of an answer, tokens.
    Raises:
        UserError: there are no documents, a metric is unknown or lacks a package, or a document has no answer to score.
    """

    def __init__(
        self,
        source: str,
        documents: Sequence[Document],
        metrics: Sequence[str],
        *,
        batch_size: int = 64,
        max_new_tokens: int = 24,
    ) -> None:
        if not documents:
            raise UserError(f"examine: the source {source!r} has no held-out documents")
        for metric in metrics:
            if metric != LOSS:
                check_metric(metric)
                silent = [document.id for document in documents if not document.answer]
                if silent:
                    raise UserError(
                        f"examine: document {silent[0]!r} of {source!r} has no answer, which {metric!r} needs"
                    )
        self.source, self.documents, self.metrics = source, documents, metrics
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        alike = len({document.skill for document in documents}) == 1
        self.skills = [] if alike else skills_of(documents)

    def names(self, module: MultimodalModule) -> list[str]:
        """Return METRIC/SOURCE and METRIC/SOURCE/SKILL of every metric."""
        places = [self.source, *(f"{self.source}/{skill}" for skill in self.skills)]
        return [f"{metric}/{place}" for metric in self.metrics for place in places]

    def __call__(self, module: MultimodalModule) -> dict[str, float]:
        """See `Figures`."""
        figures: dict[str, float] = {}
        scored = [metric for metric in self.metrics if metric != LOSS]
        if len(scored) < len(self.metrics):
            figures |= self._named(LOSS, held_out_losses(module, self.documents, batch_size=self.batch_size))
        if scored:
            rows = self._rows(module)
            for metric in scored:
                values = {"": score_rows(metric, rows).figure}
                for skill in self.skills:
                    values[skill] = score_rows(metric, [row for row in rows if row.subset == skill]).figure
                figures |= self._named(metric, values)
        return figures

    def _named(self, metric: str, values: Mapping[str, float]) -> dict[str, float]:
        keys = {"": self.source} | {skill: f"{self.source}/{skill}" for skill in self.skills}
        return {f"{metric}/{place}": values[skill] for skill, place in keys.items()}

    def _rows(self, module: MultimodalModule) -> list[Row]:
        answers = answer(
            module, self.documents, batch_size=self.batch_size, max_new_tokens=self.max_new_tokens, spread=True
        )
        return [
            Row(str(number), str(number), text, (document.answer,), document.skill)
            for number, (document, text) in enumerate(zip(self.documents, answers, strict=True))
        ]


class BenchmarkFigures:
    """The figure of one benchmark, by the procedure of the model's family.

    Args:
        benchmark: benchmark.
        split: split with public answers.
        questions: its questions.
        batch_size: number of questions per batch.
    Raises:
        UserError: the answers of the split are not public, a metric lacks a package, or it cannot score the questions.
    """

    def __init__(
        self, benchmark: Benchmark, split: str, questions: Sequence[Question], *, batch_size: int = 64
    ) -> None:
        if benchmark.splits[split].submission is not None:
            raise UserError(f"examine.benchmarks: the answers of {benchmark.name}:{split} are not public")
        for procedure in benchmark.procedures:
            check_metric(procedure.metric)
        for procedure in {(each.metric, each.gold, each.answering): each for each in benchmark.procedures}.values():
            check_questions(questions, procedure, f"examine.benchmarks: {benchmark.name}:{split}")
        self.benchmark, self.split, self.questions, self.batch_size = benchmark, split, questions, batch_size

    def names(self, module: MultimodalModule) -> list[str]:
        """Return benchmark/NAME:SPLIT."""
        return [f"benchmark/{self.benchmark.name}:{self.split}"]

    def __call__(self, module: MultimodalModule) -> dict[str, float]:
        """See `Figures`."""
        procedure = self.benchmark.procedure_of(type(module).__name__)
        answers = answer_questions(
            module, self.questions, procedure, source=self.benchmark.name, batch_size=self.batch_size
        )
        figure = score(procedure, rows_of(self.questions, answers, procedure)).figure
        return dict.fromkeys(self.names(module), figure * self.benchmark.scale)


def held_out_losses(
    module: MultimodalModule, documents: Sequence[Document], *, batch_size: int = 64
) -> dict[str, float]:
    """Compute the mean next-token loss over supervised tokens, in evaluation mode and without smoothing.

    Batches, and the order in which their sums are added, do not depend on the number of ranks.

    Args:
        module: model.
        documents: documents; every rank of a job gives the same.
        batch_size: number of documents per batch.
    Returns:
        "" -> loss over all documents, and skill -> loss over the documents of this skill.
    Raises:
        UserError: a document is too long for the model, or no document has a supervised token.
    """
    processor = module.processor
    skills = list(dict.fromkeys(document.skill for document in documents))
    lengths = [len(processor.sample(document)) for document in documents]
    order = sorted(range(len(documents)), key=lengths.__getitem__)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sums: dict[int, torch.Tensor] = {}  # first document of a batch -> [2, skills] sums of losses and numbers of tokens
    for numbers in share(batches, rank, ranks, equal=is_shared(module.network)):
        samples = [processor.sample(documents[number]) for number in numbers]
        sources = [skills.index(documents[number].skill) for number in numbers]
        batch = collate(samples, processor, sources=sources).to(module.device)
        with module.inference():
            hidden, ids = module.network(batch)
            losses = token_losses(module.network.language, hidden, ids)
        sums[numbers[0]] = by_source(losses.double(), batch.sources, len(skills)).cpu()
    if ranks > 1:
        by_rank: list[dict[int, torch.Tensor]] = [{} for _ in range(ranks)]
        dist.all_gather_object(by_rank, sums)
        sums = {first: values for sums_of_rank in by_rank for first, values in sums_of_rank.items()}
    total = torch.stack([sums[numbers[0]] for numbers in batches]).sum(0)  # [2, skills]
    if not total[1].sum():
        raise UserError(f"no document of {len(documents)} has a supervised token, so they have no loss")
    losses = {skill: float(total[0, n] / total[1, n]) for n, skill in enumerate(skills) if total[1, n]}
    return losses | {"": float(total[0].sum() / total[1].sum())}
