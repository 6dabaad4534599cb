"""The costs of a stage in `describe`: operations, activations, data, time and money."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.commands.recipe import RecipeCLI
    from lit_mm.planning.row import Row
    from lit_mm.planning.work import Work
    from lit_mm.samples.processor import Processor
    from lit_mm.stages.stage import Stage
    from lit_mm.stream.order import Stream

SIDE = 336  # of the image of a sample, if no size is given, pixels
LAID_OUT = 64  # rows of a stage that are laid out to know their sizes
COUNTED = 1 << 20  # rows of a stage that are counted by the index of lengths; those of a longer stage are estimated


@dataclass(frozen=True)
class Assumptions:
    """Assumptions of a plan about facts that the recipe does not set.

    Attributes:
        text: number of text tokens of a sample, half of which is learnt.
        data: True reads the lengths of the stage's data.
        device: name of the device, or its peak in TFLOP/s; None: no time is planned.
        utilisation: MFU, the share of the device's peak that is used, 0 to 1.
        price: price of a device for an hour; None: no money is planned.
        memory: memory of a device, GiB; None: that of `device`.
    Raises:
        UserError: a number is out of its range, or there is a price without a device.
    """

    text: int = 64
    data: bool = False
    device: str | None = None
    utilisation: float = 0.4
    price: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        if self.text < 0:
            raise UserError(f"--text counts the text tokens of a sample, got {self.text}")
        if not 0 < self.utilisation <= 1:
            raise UserError(f"--utilisation is a share of the peak above 0 and at most 1, got {self.utilisation}")
        if self.price is not None and (not 0 <= self.price < math.inf or self.device is None):
            raise UserError("--price is a number from 0, the price of an hour of a --device. Add --device")
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise UserError(f"--memory is a number above 0 GiB, got {self.memory}")


def costs_of(
    cli: RecipeCLI,
    stage: Stage,
    memory: Mapping[str, Any] | None,
    sizes: Sequence[tuple[int, int]] | None,
    assumptions: Assumptions,
) -> dict[str, Any] | None:
    """Return the costs of a stage that has begun, for JSON; None for a model that reads pixels alone.

    Args:
        memory: plan of the stage's memory; None if there is none for its precision.
        sizes: (width, height) of images, pixels; None: a square of `SIDE` pixels.
        assumptions: assumptions of the plan.
    """
    work, processor = stage_work(cli, stage, memory), cli.model.processor_of(stage)
    samples = sample_rows(processor, [(SIDE, SIDE)] if sizes is None else sizes, assumptions.text)
    if work is None or not samples:
        return None
    ranks = 1 if memory is None else memory["ranks"]
    data = cli.data_of(stage)
    micro_batch = data.micro_batch_on(ranks)
    facts, rows = rows_of_data(cli, stage, ranks) if assumptions.data else ({}, [])
    rows = rows or assumed_rows(cli, stage, samples[0][1], ranks)
    activations = activation_plan(work, rows, micro_batch)
    activations["checkpointing"] = checkpointing_by_part(cli.model.network)
    if (budget := budget_of(assumptions)) and memory is not None:
        activations["largest_micro_batch"] = largest_micro_batch(activations, memory, budget)
    each = sum(operations_plan(work, row)["total"] for row in rows) / len(rows) / micro_batch
    steps = facts.get("steps", stage.max_steps)
    return {
        "samples": [{**sample, **operations_plan(work, row)} for sample, row in samples],
        "activations": activations,
        "data": facts or None,
        "whole": price_plan(each * data.global_batch, steps, ranks, assumptions),
    }


def budget_of(assumptions: Assumptions) -> float:
    """Return the memory of the assumed device, bytes; 0 if it is unknown."""
    from lit_mm.planning.devices import GIB, find_device

    if assumptions.memory is not None:
        return assumptions.memory * GIB
    return find_device(assumptions.device).memory if assumptions.device is not None else 0


def checkpointing_by_part(network: Any) -> dict[str, str]:
    """Return child of the network -> what its layers keep for the backward pass, for children with such a choice."""
    from lit_mm.planning.work import Checkpointed, checkpointing_of

    children = network.named_children()
    return {
        name: checkpointing_of(child)
        for name, child in children
        if any(isinstance(inner, Checkpointed) for inner in child.modules())
    }


def stage_work(cli: RecipeCLI, stage: Stage, memory: Mapping[str, Any] | None) -> Work | None:
    """Build the work of a stage that has begun; None for a model that reads pixels alone.

    The weights of the network get the dtype that they train in.

    Args:
        memory: plan of the stage's memory, which has precision and ZeRO stage.
    """
    import torch

    from lit_mm.planning.counting import Precision
    from lit_mm.planning.work import work_of

    precision = "32-true" if memory is None else memory["precision"]
    kind = torch.float16 if precision.startswith("16") else torch.bfloat16
    narrow = not precision.startswith(("32", "64"))
    accelerator = cli.config.trainer.accelerator
    planned = Precision(
        autocast=kind if narrow and precision.endswith("mixed") else None,
        repeats_keys=accelerator == "cpu" and not narrow,
    )
    cli.model.network.to(kind if narrow and (precision.endswith("true") or (memory or {}).get("zero")) else torch.float)
    objectives = [cli.model.objectives[name] for name in cli.model.weights_of_objectives(stage)]
    return work_of(cli.model.network, objectives, planned)


def operations_plan(work: Work, row: Row) -> dict[str, Any]:
    """Return the operations of a micro-batch, for JSON."""
    from lit_mm.planning.work import in_all

    operations = work.operations(row)
    total = in_all(operations)
    return {
        **asdict(total),
        "total": total.total,
        "parts": {part: asdict(of_part) for part, of_part in operations.items()},
    }


def sample_rows(
    processor: Processor | None, sizes: Sequence[tuple[int, int]], text: int
) -> list[tuple[dict[str, int], Row]]:
    """Return (facts for JSON, sizes) of a sample of each image size with a text; refused images are left out.

    A model without images has one sample of text alone. The list is empty for a model that reads pixels alone.
    """
    from lit_mm.planning.row import Row

    if processor is None:
        return []
    if processor.token_grid is None:
        return [({"text": text}, Row.of_image(processor, 1, 1, text))]
    rows = []
    for width, height in sizes:
        try:
            row = Row.of_image(processor, height, width, text)
        except UserError:  # the table of images says why
            continue
        rows.append(({"width": width, "height": height, "text": text}, row))
    return rows


def rows_of_data(cli: RecipeCLI, stage: Stage, ranks: int) -> tuple[dict[str, Any], list[Row]]:
    """Return the length of a stage by its data, for JSON, and the sizes of its first micro-batches on rank 0.

    With an index of lengths the rows of the stage are planned as `fit` plans them, and their samples, tokens and views
    are counted. Without one the first `LAID_OUT` rows or more are laid out, and the counts of the stage are estimates.

    Args:
        ranks: number of processes.
    Raises:
        UserError: the data cannot be read, or the batch does not split over the ranks.
    """
    from dataclasses import replace
    from itertools import chain, islice

    from lit_mm.planning.row import Row
    from lit_mm.stream import lengths
    from lit_mm.stream.datamodule import StreamDataModule

    data, processor = cli.data_of(stage), cli.model.processor_of(stage)
    if not isinstance(data, StreamDataModule) or processor is None:
        return {}, []
    maker = data.maker(processor)
    tables = lengths.load(maker)
    indexed = all(table is not None for table in tables)
    facts: dict[str, Any] = {
        "samples_in_epoch": sum(maker.documents.draws),
        "indexed": indexed,
        "can_be_indexed": all(isinstance(source, lengths.Stored) for source in maker.documents.sources),
    }
    if indexed:
        counts = [table[table[:, 3] != 0].sum(axis=0) for table in tables]  # state 0: the sample is not trained on
        facts |= {
            f"{name}_in_data": int(sum(of[column] for of in counts))
            for column, name in enumerate(("tokens", "views", "supervised"))
        }
    has_length = stage.max_steps is not None or indexed
    planned = stage if has_length else replace(stage, max_steps=sys.maxsize)  # epochs are not counted
    steps = data.begin(processor, planned, seed=cli.seed, world=ranks)
    rows = []
    micro_batches = list(islice(data.stream, max(1, LAID_OUT // data.micro_batch_on(ranks))))
    for micro in micro_batches:
        rows.append(Row.of_samples([maker(number)[0] for number in chain(*micro.rows)], processor))
    counted = min(steps, -(-COUNTED // data.global_batch)) if indexed else micro_batches[-1].step + 1
    totals = totals_of(data.stream.plan, range(counted), data.global_batch)
    if not has_length:
        steps = math.ceil(facts["samples_in_epoch"] * stage.epochs * counted / totals["samples"])
    return facts | {
        "steps": steps,
        "estimated": ([] if has_length else ["steps"]) + (list(totals) if counted < steps else []),
        "counted_rows": counted * data.global_batch,
        **{name: round(total * steps / counted) for name, total in totals.items()},
    }, rows


def totals_of(plan: Stream, steps: range, global_batch: int) -> dict[str, int]:
    """Count samples, tokens, supervised tokens and views of optimizer steps, over all ranks.

    Args:
        plan: stream of rows.
        steps: numbers of optimizer steps.
        global_batch: rows of a step.
    """
    samples = tokens = views = supervised = 0
    for step in steps:
        start = step * global_batch
        length_of = plan.length_at(start)
        for row in plan.rows(start, start + global_batch):
            for length in map(length_of, row):
                assert length is not None  # samples that are left out are in no row
                samples += 1
                tokens += length.tokens
                views += length.views
                supervised += length.supervised
    return {"samples": samples, "tokens": tokens, "supervised": supervised, "views": views}


def assumed_rows(cli: RecipeCLI, stage: Stage, sample: Row, ranks: int) -> list[Row]:
    """Return the sizes of a micro-batch of equal samples: `row_tokens` filled with them, or one for each row."""
    data = cli.data_of(stage)
    each = 1
    if data.row_tokens is not None:
        each = max(1, data.row_tokens // max(1, sum(sample.lengths) + sum(sample.targets)))
    return [sample.times(each * data.micro_batch_on(ranks))]


def activation_plan(work: Work, rows: Sequence[Row], micro_batch: int) -> dict[str, Any]:
    """Return the bytes that the largest of some micro-batches keeps for the backward pass, for JSON.

    Args:
        rows: sizes of micro-batches.
        micro_batch: rows of a micro-batch.
    """
    largest = max(rows, key=lambda row: sum(work.saved(row).values()))
    parts = work.saved(largest)
    twice = sum(work.saved(largest.times(2)).values())
    total = sum(parts.values())
    return {"parts": parts, "total": total, "micro_batch": micro_batch, "per_row": (twice - total) / micro_batch}


def largest_micro_batch(activations: Mapping[str, Any], memory: Mapping[str, Any], budget: float) -> int:
    """Compute the number of rows of the largest micro-batch that fits in a device; 0 if none does.

    Args:
        activations: see `activation_plan`.
        memory: plan of the stage's memory without activations.
        budget: memory of the device, bytes.
    """
    fixed = activations["total"] - activations["per_row"] * activations["micro_batch"]
    return max(0, int((budget - memory["device"]["total"] - fixed) // max(activations["per_row"], 1)))


def price_plan(operations: float, steps: int | None, ranks: int, assumptions: Assumptions) -> dict[str, Any]:
    """Return the operations, the time and the money of a whole stage, for JSON; null where the steps are unknown.

    Args:
        operations: operations of an optimizer step over all ranks, without recomputation.
        steps: optimizer steps of the stage.
        ranks: number of devices.
        assumptions: device, utilisation and price.
    """
    from lit_mm.planning.devices import HOUR, find_device, seconds_of

    total = None if steps is None else operations * steps
    plan: dict[str, Any] = {"operations_per_step": operations, "operations": total}
    if assumptions.device is not None:
        device = find_device(assumptions.device)
        seconds = None if total is None else seconds_of(total, device, ranks, assumptions.utilisation)
        plan |= {"device": device.name, "utilisation": assumptions.utilisation, "seconds": seconds}
        if assumptions.price is not None:
            plan["price"] = None if seconds is None else seconds / HOUR * ranks * assumptions.price
    return plan
