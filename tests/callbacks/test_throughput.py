"""The figures of the throughput are those of the samples in the ledger, and cost no wait for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_mm.callbacks.metrics_csv import MetricsCSV, read_metrics
from lit_mm.callbacks.progress import throughput_text
from lit_mm.callbacks.steps import Step
from lit_mm.callbacks.throughput import Throughput, imbalance
from lit_mm.planning.devices import find_device
from lit_mm.planning.row import Row
from lit_mm.planning.work import in_all, meta_copy, work_of
from lit_mm.samples.processor import Sample
from lit_mm.stages.stage import Stage, Train
from tests.kills import Launch, launch_all
from tests.tiny import PARTS, document, run_recipe, stages, xcomposer2

ROW_TOKENS, GLOBAL_BATCH = 192, 4


def steps_of(folder: Path, turns: int) -> list[list[tuple[int, list[str]]]]:
    """Read from the ledger, per optimizer step, (rank, ids of the samples) of every micro-batch."""
    steps: dict[tuple[str, int], list[tuple[int, list[str]]]] = {}
    for path in sorted(folder.glob("ledger*.txt")):
        rank = int(path.stem.split("-")[2]) if "-" in path.stem else 0
        for line in path.read_text().splitlines():
            stage, micro, *ids = line.split()
            steps.setdefault((stage, int(micro) // turns), []).append((rank, ids))
    order = sorted(steps, key=lambda key: (["pretrain", "finetune"].index(key[0]), key[1]))
    return [steps[key] for key in order]


def check(folder: Path, ranks: int, micro_batch: int) -> None:
    """Compare every row of metrics.csv with counts of the samples that the ledger lists."""
    module = xcomposer2()
    rows = read_metrics(folder / "metrics.csv")
    samples = {f"tiny/{number}": module.processor.sample(document(number)) for number in range(24)}
    works = {}
    for stage in stages():
        module.begin(stage, total_steps=1)
        works[stage.name] = work_of(meta_copy(module.network), list(module.objectives.values()))
    ledger = steps_of(folder, GLOBAL_BATCH // (ranks * micro_batch))
    assert len(rows) == len(ledger) > 0
    for row, micro_batches in zip(rows, ledger, strict=True):
        rows_of_step = [[samples[name] for name in ids] for _, ids in micro_batches]
        every: Sequence[Sample] = [sample for of_row in rows_of_step for sample in of_row]
        tokens: Counter[int] = Counter({rank: 0 for rank in range(ranks)})
        views: Counter[int] = Counter({rank: 0 for rank in range(ranks)})
        for (rank, _), of_row in zip(micro_batches, rows_of_step, strict=True):
            tokens[rank] += sum(map(len, of_row))
            views[rank] += sum(len(sample.tokens_per_view) for sample in of_row)
        assert row["tokens"] == tokens.total() == sum(map(len, every))
        assert row["visual_tokens"] == sum(sum(sample.tokens_per_view) for sample in every)
        assert row["images"] == sum(len(sample.plans) for sample in every)
        assert row["num_samples"] == len(every)
        assert row["token_imbalance"] == imbalance(list(tokens.values()))
        assert row["view_imbalance"] == imbalance(list(views.values()))
        assert row["waste"] == 1 - len_of(every) / (GLOBAL_BATCH * ROW_TOKENS)
        planned = [
            in_all(works[row["stage"]].operations(Row.of_samples(of_row, module.processor))).total
            for of_row in rows_of_step
        ]
        assert row["operations"] == sum(planned) > 0
        assert row["tokens_per_second"] * row["step_seconds"] == pytest.approx(row["tokens"])
        assert row["images_per_second"] * row["step_seconds"] == pytest.approx(row["images"])
        assert 0 <= row["data_wait"] < row["step_seconds"] and row["peak_memory_mb"] > 100
        assert row["mfu"] != row["mfu"]  # the peak of a CPU is not known


def len_of(samples: Sequence[Sample]) -> int:
    return sum(map(len, samples))


def test_figures_are_the_counts_of_the_ledger_on_one_rank(tmp_path: Path) -> None:
    run_recipe(xcomposer2(), stages(steps=2), tmp_path, callbacks=[Throughput(always=True)], micro_batch=2)
    check(tmp_path, ranks=1, micro_batch=2)


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["", "zero2", "zero3"])
def test_figures_are_the_counts_of_the_ledger_on_two_ranks(tmp_path: Path, strategy: str) -> None:
    launch_all([Launch("run", micro_batch=1, ranks=2, steps=2, throughput=True, strategy=strategy)], tmp_path)
    check(tmp_path / "run", ranks=2, micro_batch=1)


class Waits(TorchDispatchMode):
    """Counts operations that wait for a device if there is one: reads of values by the host and copies to it."""

    NAMES = ("_local_scalar_dense", "_to_copy", "nonzero", "is_nonzero", "equal", "item")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        on_meta = any(isinstance(value, torch.Tensor) and value.device.type == "meta" for value in (*args, out))
        if name in self.NAMES and not on_meta:  # the plan of the work runs on the meta device, once
            self.counts[name] += 1
        return out


class Watched(L.Callback):
    """Watches the micro-batches of a stage from their start to their end, with what all observers do there."""

    def __init__(self) -> None:
        self.waits = Waits()

    def on_train_batch_start(self, *_: object) -> None:
        self.waits.__enter__()

    def on_train_end(self, *_: object) -> None:
        while torch.utils._python_dispatch._get_current_dispatch_mode() is self.waits:
            self.waits.__exit__(None, None, None)


def test_no_operation_that_waits_for_the_device_is_added_to_a_step(tmp_path: Path) -> None:
    counts = []
    for name, callbacks in (("without", []), ("with", [Throughput(always=True)])):
        watched = Watched()
        run_recipe(xcomposer2(), stages(steps=2)[1:], tmp_path / name, callbacks=[watched, *callbacks], every=9)
        counts.append(watched.waits.counts)
    assert counts[0] == counts[1] and counts[0].total() > 0


def test_a_part_that_thaws_late_costs_no_gradients_before(tmp_path: Path) -> None:
    late = {part: Train(lr=1e-2, from_step=1 if part == "language" else 0) for part in PARTS}
    run_recipe(
        xcomposer2(),
        [Stage("pretrain", late, max_steps=2)],
        tmp_path,
        callbacks=[Throughput(always=True)],
        row_tokens=None,
    )
    before, after = read_metrics(tmp_path / "metrics.csv")
    module = xcomposer2()
    for row, parts in ((before, set(PARTS) - {"language"}), (after, PARTS)):
        module.begin(Stage("s", {part: Train(lr=1e-2) for part in parts}), total_steps=1)
        work = work_of(meta_copy(module.network), list(module.objectives.values()))
        ids = steps_of(tmp_path, 1)[int(row["step"]) - 1][0][1]
        samples = [module.processor.sample(document(int(name.split("/")[1]))) for name in ids]
        assert row["operations"] == in_all(work.operations(Row.of_samples(samples, module.processor))).total


def test_operations_are_not_counted_where_no_peak_is_known(tmp_path: Path) -> None:
    throughput = Throughput()
    run_recipe(xcomposer2(), stages(steps=1), tmp_path, callbacks=[throughput])
    assert throughput.work is None
    assert all(row["operations"] != row["operations"] for row in read_metrics(tmp_path / "metrics.csv"))


def test_a_model_without_a_plan_of_its_work_still_has_its_counts(recipe: Any) -> None:
    path = recipe.folder / "metrics.csv"
    recipe.run(recipe.module(), [Throughput(always=True), MetricsCSV(path)])
    rows = read_metrics(path)
    assert {(row["visual_tokens"], row["images"], row["operations"], row["waste"]) for row in rows} == {(0, 0, 0, 0)}


def test_mfu_is_the_used_share_of_the_peak_of_all_ranks() -> None:
    throughput = Throughput(always=True)
    throughput.device = find_device("100")
    trainer = type("Trainer", (), {"world_size": 2, "datamodule": None})()
    sums = [30.0, 8, 2, 4, 50e12, 10, 20, 1, 3, 0.1, 0.2, 500, 700]
    figures = throughput.figures_of_step(trainer, sums, seconds=0.5)
    assert figures["mfu"] == pytest.approx(50e12 / 0.5 / (2 * 100e12))
    assert figures["token_imbalance"] == pytest.approx(20 / 15 - 1) and figures["view_imbalance"] == 0.5
    assert (figures["data_wait"], figures["peak_memory_mb"], figures["images_per_second"]) == (0.2, 700, 4)


def test_the_bar_shows_images_waiting_mfu_and_memory() -> None:
    figures = {"images": 6.0, "data_wait": 0.5, "mfu": 0.4, "peak_memory_mb": 2048.0}
    steps = [Step(1, "a", 1.0, 10, 2.0, {}, figures=figures)]
    assert throughput_text(steps) == "  3.0 images/s  25% waiting  MFU 40%  2.0 GB"
    assert "MFU" not in throughput_text([Step(1, "a", 1.0, 10, 2.0, {}, figures=figures | {"mfu": float("nan")})])
    assert throughput_text([Step(1, "a", 1.0, 10, 2.0, {})]) == ""


@pytest.mark.parametrize(("counts", "expected"), [([30, 10], 0.5), ([5, 5], 0), ([0, 0], 0), ([7], 0)])
def test_imbalance_is_what_the_fullest_rank_has_above_the_mean(counts: list[float], expected: float) -> None:
    assert imbalance(counts) == expected
