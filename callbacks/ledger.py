"""Keeps account of every sample, and of the loss of every source: sources.csv, ledger.jsonl, ledger.json."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch import Tensor

from callbacks.step_table import Row, StepTable, read_rows
from callbacks.steps import Step, StepObserver
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import TOKENS, Batch
from lit_mm.samples.fault import Fault
from lit_mm.stream.datamodule import StreamDataModule
from lit_mm.stream.ledger import OUTCOMES, Entry, entries_of, ledger_table, quarantined, reason_lines, summarise
from lit_mm.stream.screen import Screen

COLUMNS = ("step", "stage", "source", "loss", "tokens", *OUTCOMES)
TYPES = {"step": int, "stage": str, "source": str, "tokens": int} | dict.fromkeys(OUTCOMES, int)


class DataLedger(StepObserver):
    """Accounts for every sample that the plan draws, step by step, over all ranks and workers.

    What the plan says about a step is compared with what the batches of all ranks held, so a sample that went missing
    or came twice stops the run. Three files, each taken back to the resumed step after a kill:

    - sources.csv: a row per optimizer step and source in it: mean loss over the source's supervised tokens, these
      tokens, and its samples by outcome. (A single source has the loss and the denominator of the step.)
    - ledger.jsonl: a line for what was not simply trained on: step, source, outcome, reason, count; quarantined samples
      have a line each with their id.
    - ledger.json: per stage the sums, reconciled to the sizes of the sources, and the list of quarantined samples. Its
      table is printed at the end of a stage.

    Samples that planning left out are told in the step that begins their window of the stream (`Plan.left_out`). A data
    module that plans no samples (the encoder's prints) has no ledger. Put this before the callback that saves.

    Args:
        folder: the run folder.
        console: where the table goes (default: standard output).
    """

    def __init__(self, folder: str | Path, console: Console | None = None) -> None:
        self.folder, self.console = Path(folder), console
        self.table = StepTable(self.folder / "sources.csv", COLUMNS, TYPES)
        self.lines = self.folder / "ledger.jsonl"
        self.screen: Screen | None = None

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        data = trainer.datamodule
        self.screen = data.screen if isinstance(data, StreamDataModule) else None
        if self.screen is None:
            return
        self.names, self.sizes = self.screen.maker.documents.names, self.screen.maker.documents.sizes
        self._begin()
        samples = bad = 0
        if trainer.is_global_zero:
            rows = [row for row in self.table.restart(module.step) if row["stage"] == module.stage.name]
            take_back(self.lines, module.step)
            samples = sum(row[outcome] for row in rows for outcome in OUTCOMES)
            bad = sum(row["skipped"] + row["quarantined"] for row in rows)
            bad -= sum(t["count"] for t in self._told(module.stage.name) if t["kind"] == "no_supervision")
        self.seen, self.bad = trainer.strategy.broadcast(
            (samples, bad)
        )  # draws, and the bad ones that `max_bad` counts

    def _begin(self) -> None:
        self._held: list[tuple[int, ...]] = []
        self._lost: list[Fault] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: MultimodalModule, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.screen is not None:
            self._held.append(batch.num_by_source)
            self._lost += batch.lost
            self._step_tokens = batch.units[TOKENS]

    def on_after_backward(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        if self.screen is not None and len(self.names) > 1:
            self._losses.append(pl_module.loss_by_source)

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if self.screen is None:
            return
        sums = self._sums(trainer)
        lost = _gathered(self._lost, trainer) if sums[-1] else []
        size = len(self.names)
        counts, losses, tokens = sums[:size], sums[size : 2 * size], sums[2 * size : 3 * size]
        if size == 1:
            losses, tokens = [step.loss * self._step_tokens], [self._step_tokens]
        self._begin()
        data, finished = trainer.datamodule, trainer.global_step - 1
        entries = entries_of(data.stream.samples(finished), lost, data.screen_at(finished))
        self.seen += sum(entry.count for entry in entries)
        self.bad += sum(e.count for e in entries if e.outcome in OUTCOMES[2:] and e.kind != "no_supervision")
        if trainer.is_global_zero:
            planned = [sum(e.count for e in entries if e.source == n and e.outcome in OUTCOMES[:2]) for n in self.names]
            assert planned == [int(n) for n in counts], (
                f"step {step.number}: planned {planned} samples, trained on {counts}"
            )
            self._write(step, entries, losses, tokens)
            self._log(trainer, step, losses, tokens)
        if lost:
            self.screen.refuse_more_than(self.screen.max_bad, "max_bad", self.bad, self.seen, lost)

    def _sums(self, trainer: L.Trainer) -> list[float]:
        """Over micro-batches and ranks: samples held, loss and tokens of each source, and samples lost."""
        device = trainer.strategy.root_device
        wide = torch.float32 if device.type == "mps" else torch.float64
        counts = torch.tensor(self._held, dtype=wide, device=device).sum(dim=0)
        lost = torch.tensor([len(self._lost)], dtype=wide, device=device)
        losses = torch.stack(self._losses).to(wide).sum(dim=0).flatten() if self._losses else counts.new_zeros(0)
        return trainer.strategy.reduce(torch.cat([counts, losses, lost]), reduce_op="sum").tolist()

    def _write(self, step: Step, entries: Sequence[Entry], losses: Sequence[float], tokens: Sequence[float]) -> None:
        for name, loss, supervised in zip(self.names, losses, tokens, strict=True):
            counts = {o: sum(e.count for e in entries if e.source == name and e.outcome == o) for o in OUTCOMES}
            if any(counts.values()):
                mean = loss / supervised if supervised else float("nan")
                row = {"step": step.number, "stage": step.stage, "source": name, "loss": mean}
                self.table.append(row | {"tokens": int(supervised)} | counts)
        exceptions = [entry for entry in entries if entry.outcome != "trained"]
        if exceptions:
            head = {"step": step.number, "stage": step.stage}
            with self.lines.open("a") as file:
                file.write("".join(json.dumps(head | entry.as_json()) + "\n" for entry in exceptions))

    def _log(self, trainer: L.Trainer, step: Step, losses: Sequence[float], tokens: Sequence[float]) -> None:
        if len(self.names) == 1:
            return
        metrics = {f"loss/{n}": x / t for n, x, t in zip(self.names, losses, tokens, strict=True) if t}
        metrics |= {f"tokens/{n}": t for n, t in zip(self.names, tokens, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step.number)

    def _told(self, stage: str) -> list[dict[str, Any]]:
        return [line for line in read_lines(self.lines) if line["stage"] == stage]

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        if self.screen is None or not trainer.is_global_zero:
            return
        stage = pl_module.stage.name
        rows: list[Row] = [row for row in read_rows(self.table.path, TYPES) if row["stage"] == stage]
        account = summarise(stage, self.names, self.sizes, rows, self._told(stage))
        if stage in pl_module.ends:
            account["stopped"] = pl_module.ends[stage]
        file = self.folder / "ledger.json"
        earlier = json.loads(file.read_text())["stages"] if file.exists() else []
        stages = [entry for entry in earlier if entry["stage"] != stage] + [account]
        text = json.dumps({"stages": stages, "quarantined": quarantined(read_lines(self.lines))}, indent=1)
        _replace(file, text)
        console = self.console or Console()
        console.print(ledger_table(account), *reason_lines(account), sep="\n")


def _gathered(lost: list[Fault], trainer: L.Trainer) -> list[Fault]:
    """The samples that any rank lost in this step, in the order of ranks."""
    if trainer.world_size == 1:
        return lost
    of_ranks: list[list[Fault]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(of_ranks, lost)
    return [fault for of_rank in of_ranks for fault in of_rank]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a ledger.jsonl; none if there is no file. A last line without its end is left out.

    Raises:
        UserError: a line is not JSON.
    """
    if not path.exists():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise UserError(f"{str(path)!r} is not a ledger of this program ({error}). Remove the broken line") from error


def take_back(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last one that a kill cut short."""
    lines = [line for line in read_lines(path) if line["step"] <= step]
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, "".join(json.dumps(line) + "\n" for line in lines))


def _replace(file: Path, text: str) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(text)
    os.replace(part, file)
