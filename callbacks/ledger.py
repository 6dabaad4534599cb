"""The ledger accounts for every sample and for the loss of every source: sources.csv, ledger.jsonl, ledger.json."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch import Tensor

from lit_mm.callbacks.step_table import Row, StepTable, read_rows
from lit_mm.callbacks.steps import Numbers, Step, StepObserver, data_module
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.run.files import write_whole
from lit_mm.samples.batch import TOKENS, Batch
from lit_mm.samples.fault import Fault
from lit_mm.stream.datamodule import StreamDataModule
from lit_mm.stream.ledger import OUTCOMES, Entry, entries_of, ledger_table, quarantined, reason_lines, summarise
from lit_mm.stream.screen import Screen

CHANGED = "data_changed"  # outcome of a line about a whole source
LINE = {"step": int, "stage": str, "source": str, "outcome": str, "kind": str, "count": int}  # keys of a line
COLUMNS = ("step", "stage", "source", "loss", "tokens", *OUTCOMES)
TYPES = {"step": int, "stage": str, "source": str, "tokens": int} | dict.fromkeys(OUTCOMES, int)


class DataLedger(StepObserver):
    """Accounts for every sample that the plan draws, step by step, over all ranks and workers.

    In every step the samples of the plan are compared with those in the batches of all ranks: a sample that is missing
    or occurs twice stops the run. There are three files. After a kill, each is cut back to the resumed step.

    - sources.csv has a row per optimizer step and source: mean loss over the source's supervised tokens, number of
      these tokens, and samples by outcome. (A single source has the loss and the tokens of the step.)
    - ledger.jsonl has a line per outcome other than "trained": step, source, outcome, reason, count. Every quarantined
      sample has a line with its id. A run that went on with other data has a line of outcome "data_changed" for every
      source that differs.
    - ledger.json has the sums of each stage, reconciled to the sizes of the sources, and all quarantined samples.

    The table of ledger.json is printed at the end of a stage. Samples that planning has left out are reported in the
    step that begins their window of the stream (`Plan.left_out`). A data module that screens no samples (the encoder's
    prints) has no ledger. This callback must precede the one that saves.

    Args:
        folder: run folder.
        console: console for the table; None: standard output.
    """

    def __init__(self, folder: str | Path, console: Console | None = None) -> None:
        self.folder, self.console = Path(folder), console
        self.table = StepTable(self.folder / "sources.csv", COLUMNS, TYPES)
        self.lines = self.folder / "ledger.jsonl"
        self.screen: Screen | None = None

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        data = data_module(trainer)
        self.screen = data.screen if isinstance(data, StreamDataModule) else None
        if self.screen is None:
            return
        self.names, self.sizes = self.screen.maker.documents.names, self.screen.maker.documents.sizes
        self._begin()
        self._measured: deque[tuple[int, list[Fault]]] = deque()  # of steps to come: tokens, lost samples of this rank
        samples = bad = 0
        if trainer.is_global_zero:
            rows = [row for row in self.table.restart(module.step) if row["stage"] == module.current_stage.name]
            self._accounts()  # a damaged file ends the run here, not at the end of the stage
            take_back(self.lines, module.step)
            self._write_changes(module)
            samples = sum(row[outcome] for row in rows for outcome in OUTCOMES)
            bad = sum(row["skipped"] + row["quarantined"] for row in rows)
            bad -= sum(t["count"] for t in self._lines_of(module.current_stage.name) if t["kind"] == "no_supervision")
        # All draws of the stage so far, and the bad samples that `max_bad` counts
        self.draws, self.bad = trainer.strategy.broadcast((samples, bad))

    def _write_changes(self, module: MultimodalModule) -> None:
        """Write a line for every source whose data have changed since the stage began. Each change is written once."""
        head = {"step": module.step, "stage": module.current_stage.name}
        lines = [
            head | {"source": source, "outcome": CHANGED, "kind": CHANGED, "count": 0, "reason": difference}
            for source, difference in module.data_changes.items()
        ]
        earlier = read_lines(self.lines)
        with self.lines.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines if line not in earlier))

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return False

    def _begin(self) -> None:
        self._counts: list[tuple[int, ...]] = []
        self._lost: list[Fault] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: MultimodalModule, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.screen is not None:
            self._counts.append(batch.num_by_source)
            self._lost += batch.lost
            self._step_tokens = batch.units[TOKENS]

    def on_after_backward(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        if self.screen is not None and len(self.names) > 1:
            losses = pl_module.loss_by_source
            if losses is None:  # objectives that compare pairs have no loss of a token, and so none of a source
                losses = torch.zeros(2, len(self.names), device=pl_module.device)
            self._losses.append(losses)

    def numbers_of_step(self, trainer: L.Trainer) -> Numbers:
        """Return samples of each source and lost samples; on the device, loss and tokens of each of several sources."""
        if self.screen is None:
            return Numbers()
        samples = [sum(counts) for counts in zip(*self._counts, strict=True)]
        losses = torch.stack(self._losses).flatten(start_dim=1) if self._losses else None
        numbers = Numbers([*samples, len(self._lost)], losses)
        self._measured.append((self._step_tokens, self._lost))
        self._begin()
        return numbers

    def figures_of_step(self, trainer: L.Trainer, sums: Sequence[float], seconds: float) -> dict[str, float]:
        """Keep the sums for `on_step_end`, which follows. Returns no figures."""
        self._sums = sums
        return {}

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        data = data_module(trainer)
        if self.screen is None or not isinstance(data, StreamDataModule) or data.stream is None:
            return
        size = len(self.names)
        counts, (num_lost, *sums) = self._sums[:size], self._sums[size:]
        losses, tokens = sums[:size], sums[size:]
        step_tokens, lost_here = self._measured.popleft()
        lost = _from_all_ranks(lost_here, trainer) if num_lost else []
        if size == 1:
            losses, tokens = [step.loss * step_tokens], [step_tokens]
        finished = step.number - module.first_step - 1
        entries = entries_of(data.stream.samples(finished), lost, data.screen_at(finished))
        self.draws += sum(entry.count for entry in entries)
        self.bad += sum(e.count for e in entries if e.outcome in OUTCOMES[2:] and e.kind != "no_supervision")
        if trainer.is_global_zero:
            planned = [sum(e.count for e in entries if e.source == n and e.outcome in OUTCOMES[:2]) for n in self.names]
            assert planned == [int(n) for n in counts], (
                f"step {step.number}: planned {planned} samples, trained on {counts}"
            )
            self._write(step, entries, losses, tokens)
            self._log(trainer, step, losses, tokens)
        if lost:
            self.screen.refuse_more_than(self.screen.max_bad, "max_bad", self.bad, self.draws, lost)

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

    def _accounts(self) -> list[dict[str, Any]]:
        """Return the accounts of the stages that have ended.

        Raises:
            UserError: ledger.json is damaged.
        """
        file = self.folder / "ledger.json"
        if not file.exists():
            return []
        try:
            return [entry for entry in json.loads(file.read_bytes())["stages"] if entry["stage"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{str(file)!r} is damaged ({type(error).__name__}). Move it away and start again"
            ) from error

    def _lines_of(self, stage: str) -> list[dict[str, Any]]:
        return [line for line in read_lines(self.lines) if line["stage"] == stage and line["outcome"] != CHANGED]

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        if self.screen is None or not trainer.is_global_zero:
            return
        stage = pl_module.current_stage.name
        rows: list[Row] = [row for row in read_rows(self.table.path, TYPES) if row["stage"] == stage]
        account = summarise(stage, self.names, self.sizes, rows, self._lines_of(stage))
        if stage in pl_module.ends:
            account["stopped"] = pl_module.ends[stage]
        stages = [entry for entry in self._accounts() if entry["stage"] != stage] + [account]
        lines = read_lines(self.lines)
        changes = [line for line in lines if line["outcome"] == CHANGED]
        text = json.dumps(
            {"stages": stages, "quarantined": quarantined(lines), **({CHANGED: changes} if changes else {})}, indent=1
        )
        write_whole(self.folder / "ledger.json", text)
        console = self.console or Console()
        console.print(ledger_table(account), *reason_lines(account), sep="\n")


def _from_all_ranks(lost: list[Fault], trainer: L.Trainer) -> list[Fault]:
    """Return the faults of all ranks in this step, in the order of the ranks."""
    if trainer.world_size == 1:
        return lost
    of_ranks: list[list[Fault]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(of_ranks, lost)
    return [fault for of_rank in of_ranks for fault in of_rank]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a ledger.jsonl; none if there is no file. A last line that a kill cut short is left out.

    Raises:
        UserError: a line is not as this program writes it.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    lines = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            entry = json.loads(line)
            if not all(isinstance(entry[key], kind) for key, kind in LINE.items()):
                raise TypeError(f"its keys are {', '.join(LINE)}")
        except (ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or no UTF-8
            raise UserError(
                f"{str(path)!r}, line {number}: this is not a line of a ledger ({error}). Remove the line"
            ) from error
        lines.append(entry)
    return lines


def take_back(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line that a kill cut short."""
    lines = [line for line in read_lines(path) if line["step"] <= step]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
