"""The part of `evaluate` that examines checkpoints on held-out documents, each with the examiner of its family."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from lit_mm.commands.benchmarks import (
    Progress,
    digest_of_weights,
    folder_of_evaluations,
    joined_ranks,
    model_names,
    on_device_of_rank,
)
from lit_mm.commands.trained import launch_folder, open_model, open_trained
from lit_mm.datamodules.held_out import HeldOut
from lit_mm.documents.examination import Examination, Score
from lit_mm.errors import UserError
from lit_mm.evaluation.examiners import measure_of
from lit_mm.evaluation.held_out import digest_of_examination, examine_stored, image_names
from lit_mm.evaluation.measurement import Contrast, Measurement, adjusted, contrast_of
from lit_mm.evaluation.statistics import bootstrap_interval
from lit_mm.module import MultimodalModule
from lit_mm.report.benchmark_tables import contrast_table
from lit_mm.report.tables import RunLine, accuracy_table, run_table

if TYPE_CHECKING:
    from lightning import LightningDataModule

    from lit_mm.documents.document import Document
    from lit_mm.documents.sources import Source


@dataclass(frozen=True)
class ExaminedRun:
    """A checkpoint on its held-out documents.

    Attributes:
        name: name of the checkpoint in tables.
        checkpoint: path of the checkpoint.
        family: class of the model.
        sighted, blind: shares of right answers, with the documents' images and with those of others.
        measurement: figure with its interval; its scores have a name for each question, the same in all runs.
    """

    name: str
    checkpoint: str
    family: str
    sighted: Score
    blind: Score
    measurement: Measurement


@joined_ranks()
def examine_runs(choices: Namespace, source: Source | None) -> None:
    """Examine checkpoints and print their figures with 95 % intervals, and comparisons on the same questions.

    Args:
        choices: parsed options of `evaluate`.
        source: source of the documents to ask about; None for the held-out documents of each recipe.
    Raises:
        UserError: a checkpoint or its held-out documents cannot be read.
    """
    names = model_names(choices.checkpoint)
    runs = []
    for place, name in zip(choices.checkpoint, names, strict=True):
        with launch_folder(place, choices.config, choices.stage) as path:
            runs.append(examined_run(name, path, choices, source))
    if dist.is_initialized() and dist.get_rank():
        return
    contrasts, notes = compare(runs, choices.difference and choices.difference / 100)
    if choices.format == "json":
        entries = [as_json(run) for run in runs]
        comparisons = [asdict(contrast) for contrast in contrasts]
        print(json.dumps(entries[0] if len(runs) == 1 else {"models": entries, "comparisons": comparisons}))
        return
    if len(runs) == 1:
        (run,) = runs
        interval = run.measurement.interval
        print(accuracy_table(run.sighted, run.blind))
        print(f"{run.measurement.metric}, 95 % interval over images: {interval.low:.1f} to {interval.high:.1f} %")
        return
    print(run_table([line_of(run) for run in runs]))
    if contrasts:
        print(contrast_table(contrasts))
    for note in notes:
        print(note)


def examined_run(name: str, path: str, choices: Namespace, source: Source | None) -> ExaminedRun:
    """Open a checkpoint and examine it with its pictures and with shuffled ones.

    Args:
        name: name of the checkpoint in tables.
        path: absolute path of the checkpoint.
        choices, source: see `examine_runs`.
    """
    averaged = choices.averaged
    if source is not None:
        module = open_model(path, choices.config, accelerator=choices.accelerator, averaged=averaged)
        documents = HeldOut(source, "fail").documents(choices.documents)
    else:
        module, data, _ = open_trained(path, choices.config, accelerator=choices.accelerator, averaged=averaged)
        documents = held_out(data, choices.documents)
    module = on_device_of_rank(module)
    images = image_names(documents)
    weights = digest_of_weights(Path(path), choices.config, averaged=averaged)

    def examination(*, blind: bool) -> Examination:
        key = digest_of_examination(
            module, documents, images, weights=weights, blind=blind, batch_size=choices.batch_size
        )
        folder = writable(folder_of_evaluations(Path(path)) / "held_out" / key)
        title = f"{name}: held-out documents{' without sight' if blind else ''}"
        return examine_stored(
            module, documents, folder, blind=blind, batch_size=choices.batch_size, progress=Progress(title)
        )

    sighted = examination(blind=False)
    blind = examination(blind=True).figures
    family = type(module).__name__
    return ExaminedRun(name, path, family, sighted.figures, blind, measurement_of(module, documents, images, sighted))


def writable(folder: Path) -> Path | None:
    """Return a folder if it can be written, else None, and say that answers are not stored."""
    place = folder
    while not place.exists():
        place = place.parent
    if os.access(place, os.W_OK):
        return folder
    print(f"lit_mm: {str(place)!r} cannot be written, so answers are not stored", file=sys.stderr)
    return None


def measurement_of(
    module: MultimodalModule, documents: Sequence[Document], images: Sequence[str], examination: Examination
) -> Measurement:
    """Return the figure of an examination in percent, with the interval clustered by image.

    Args:
        module: model, whose examiner names the measure.
        documents: held-out documents.
        images: names of the documents' images.
        examination: predictions on the documents.
    """
    image_of = {(page.source, page.id): image for page, image in zip(documents, images, strict=True)}
    scores: dict[str, float] = {}
    groups: dict[str, str] = {}
    for prediction in examination.predictions:
        document = prediction.document
        image = image_of[document.source, document.id]
        question = json.dumps([document.id, image, document.skill, document.question, document.answer])
        scores[question], groups[question] = float(prediction.correct), image
    interval = bootstrap_interval(list(scores.values()), list(groups.values()))
    return Measurement(
        metric=measure_of(module),
        figure=100 * examination.figures.overall,
        interval=type(interval)(100 * interval.low, 100 * interval.high),
        count=examination.figures.count,
        details=examination.figures.skills,
        scores=scores,
        groups=groups,
    )


def compare(runs: Sequence[ExaminedRun], difference: float | None = None) -> tuple[list[Contrast], list[str]]:
    """Compare every two runs that were asked the same questions by the same measure.

    Args:
        runs: examined runs.
        difference: see `lit_mm.evaluation.measurement.contrast`.
    Returns:
        The comparisons, with p values adjusted by Holm, and a line that names the groups of comparable runs if there
        are several.
    """
    groups: dict[tuple[str, frozenset[str]], list[ExaminedRun]] = {}
    for run in runs:
        groups.setdefault((run.measurement.metric, frozenset(run.measurement.scores)), []).append(run)
    contrasts = [
        contrast_of(f"{b.name} - {a.name}", a.measurement, b.measurement, is_binary=True, difference=difference)
        for group in groups.values()
        for a, b in combinations(group, 2)
    ]
    notes = []
    if len(groups) > 1:
        lists = " | ".join(", ".join(run.name for run in group) for group in groups.values())
        notes = [
            f"comparable are: {lists}. The others answer other questions or have another measure; --data asks all "
            "about the same documents"
        ]
    return adjusted(contrasts), notes


def line_of(run: ExaminedRun) -> RunLine:
    """Return the line of a run in the table."""
    result = run.measurement
    return RunLine(
        run.name, run.family, result.metric, result.figure, result.interval, 100 * run.blind.overall, result.count
    )


def as_json(run: ExaminedRun) -> dict[str, object]:
    """Return a run as data; shares are fractions."""
    interval = run.measurement.interval
    return {
        "model": run.name,
        "family": run.family,
        "checkpoint": run.checkpoint,
        "documents": run.sighted.count,
        "measure": run.measurement.metric,
        "accuracy": {"overall": run.sighted.overall, "skills": run.sighted.skills},
        "interval": [interval.low / 100, interval.high / 100],
        "blind": {"overall": run.blind.overall, "skills": run.blind.skills},
    }


def held_out(data: LightningDataModule, count: int | None) -> list[Document]:
    """Return the held-out documents of a run's recipe.

    Args:
        data: data module of the run.
        count: number of documents; None for the recipe's number.
    Raises:
        UserError: the documents cannot be read, or the recipe names none.
    """
    try:
        documents = data.heldout(count)
    except UserError as error:
        raise UserError(f"the held-out documents of the run: {error}. Use others with --data") from error
    if not documents:
        raise UserError("the recipe of the run has no held-out documents. Add --data")
    return documents
