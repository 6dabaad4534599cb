"""Compares the names in `inputs.by_source` with the sources of the data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from lit_mm.documents.document import Document
from lit_mm.errors import UserError, nearest
from lit_mm.evaluation.benchmarks.benchmark import benchmark_names
from lit_mm.samples.processor import Processor
from lit_mm.stages.stage import Stage
from lit_mm.stream.datamodule import StreamDataModule


def check_stage_sources(stage: Stage, data: StreamDataModule) -> None:
    """Refuse a tiling of a stage for a source that its data do not have.

    Raises:
        UserError: there is one; the message has the sources of the stage.
    """
    changes = {"inputs": stage.inputs} | {f"inputs_from.{step}": inputs for step, inputs in stage.inputs_from.items()}
    for key, inputs in changes.items():
        if inputs is not None and inputs.by_source:
            names = data.source_names()
            unknown = inputs.by_source.keys() - set(names) - set(benchmark_names())
            _refuse(sorted(unknown), names, f"stages.{stage.name}.{key}.by_source")


def check_model_sources(
    processor: Processor | None, data: Sequence[StreamDataModule], held_out: Callable[[], Iterable[Document]]
) -> None:
    """Refuse a tiling of the model for a source that no stage, no held-out document and no benchmark has.

    Args:
        processor: processor of the model.
        data: data of all stages.
        held_out: function that returns held-out documents; it is called only for names that no stage has.
    Raises:
        UserError: there is one; the message has the sources.
    """
    by_source: Mapping[str, Any] = {} if processor is None else processor.by_source
    names = {name for each in data for name in each.source_names()} if by_source else set()
    unknown = by_source.keys() - names - set(benchmark_names()) if by_source else set()
    if unknown:
        names |= {document.source for document in held_out()}
    _refuse(sorted(unknown - names), names, "model.init_args.inputs.by_source")


def _refuse(unknown: Sequence[str], names: Collection[str], key: str) -> None:
    if unknown:
        raise UserError(
            f"{key}: the data have no source {unknown[0]!r}{nearest(unknown[0], names) or '.'} They have "
            f"{', '.join(sorted(filter(None, names)))}. Correct the name, or remove it"
        )
