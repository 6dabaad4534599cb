"""A worker of a sweep without a server: it runs trials, resumes lost ones, and writes the report."""

from __future__ import annotations

import csv
import io
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from lit_mm.commands.results import figure_of, interval_of, read_summary
from lit_mm.errors import UserError
from lit_mm.report.sweep_chart import draw_sweep
from lit_mm.run.files import write_whole
from lit_mm.run.interruption import CTRL_C, HEARD, REQUEUE, say
from lit_mm.run.lock import FolderInUse, FolderLock, living_holder
from lit_mm.sweeps.agent import command_of, words_of
from lit_mm.sweeps.parameters import written_point
from lit_mm.sweeps.search import Search, Trial, storage_errors
from lit_mm.sweeps.specification import Specification

MOST_FAILURES = 3  # failed trials in a row after which a worker ends
WAIT = 5.0  # seconds between looks at a process that still writes in the folder of a trial
OUTPUT = "output.txt"  # what the command of a trial prints, in its run folder
REFUSED = (1, 2)  # exit codes of `fit` by torchrun and of `fit` for a folder that another process uses
TAIL = 3  # last lines of a failed command in a message


def run_offline(
    specification: Specification,
    folder: Path,
    *,
    seed: int = 0,
    storage: Literal["sqlite", "journal"] | None = None,
    most: int | None = None,
    retries: int = 0,
) -> None:
    """Run trials until the sweep has all of them, and write the report.

    A worker claims a trial by the lock of a folder, whose heartbeats other workers see. It first goes on with trials
    that run according to the study and that no worker claims, in their run folders and with their values. After the
    last new trial it runs failed ones again, if they may be retried.

    Args:
        specification: checked sweep.
        folder: folder of the sweep.
        seed: seed of the search.
        storage: kind of storage, see `Search`.
        most: most trials that this worker runs; None for all.
        retries: number of times that a failed trial is run again.
    Raises:
        UserError: Optuna is not installed, the storage of the sweep cannot be used, or trial after trial fails.
        SystemExit: a signal stopped the worker; the code is that of a stopped `fit`.
    """
    count = failures = last = 0
    with storage_errors(folder), Signals() as signals:
        search = Search(folder, specification, seed=seed, storage=storage)
        while (most is None or count < most) and failures < MOST_FAILURES:
            with next_trial(search, folder, retries) as trial:
                if trial is None:
                    break
                count, last = count + 1, trial.number
                failures = 0 if run_trial(search, trial, folder, signals) else failures + 1
        print(write_report(search, folder))
    if failures and failures in (MOST_FAILURES, count):
        output = trial_folder(folder, last) / OUTPUT
        subject = f"{failures} runs of trials in a row" if failures > 1 else "the run of a trial"
        raise UserError(f"{subject} failed. The last lines of {str(output)!r}:\n{tail_of(output)}")


def trial_folder(folder: Path, number: int) -> Path:
    """Return the run folder of a trial."""
    return folder / "trials" / f"{number:04d}"


@contextmanager
def next_trial(search: Search, folder: Path, retries: int = 0) -> Iterator[Trial | None]:
    """Claim a lost trial, or else a new one, or else a failed one, inside a `with` block.

    The result is None if every trial has ended or has a worker.

    Args:
        search: the search.
        folder: folder of the sweep.
        retries: number of times that a failed trial is run again.
    """
    skipped: set[int] = set()
    while True:
        trials = [trial for trial in search.trials() if trial.number not in skipped]
        lost = (trial for trial in trials if trial.state == "running")
        failed = [trial for trial in trials if trial.state == "failed" and may_be_retried(trial, retries)]
        trial = next(lost, None) or search.ask() or min(failed, key=lambda trial: trial.failures, default=None)
        if trial is None:
            yield None
            return
        skipped.add(trial.number)
        claims = folder / "claims" / f"{trial.number:04d}"
        claims.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(FolderLock(claims, take_over=True))
            except FolderInUse:
                continue
            trial = search.complete(trial.number)
            if trial.state == "running" or (trial.state == "failed" and may_be_retried(trial, retries)):
                yield trial
                return


def may_be_retried(trial: Trial, retries: int) -> bool:
    """Return True if a trial has failed, at most `retries` times."""
    return 0 < trial.failures <= retries


def run_trial(search: Search, trial: Trial, folder: Path, signals: Signals) -> bool:
    """Run the command of a trial in the trial's run folder and store the figure; return False if the trial failed.

    Raises:
        SystemExit: a signal or the time limit of the run stopped the trial, which goes on later.
    """
    specification, place = search.specification, trial_folder(folder, trial.number)
    place.mkdir(parents=True, exist_ok=True)
    signals.wait_for_owner(place)
    print(f"trial {trial.number} of {search.limit}: {written_point(trial.point)}", flush=True)
    start = time.monotonic()
    code = run_command(specification, trial, place, signals)
    # The command of a killed worker may lock the run folder only now, because a start takes some seconds
    while code in REFUSED and signals.received is None and living_holder(place) is not None:
        signals.wait_for_owner(place)
        code = run_command(specification, trial, place, signals)
    if signals.received is not None or code in (REQUEUE, CTRL_C):
        say(f"lit_mm: trial {trial.number} was stopped; the same command goes on with it")
        sys.exit(code if code in (REQUEUE, CTRL_C) else REQUEUE)
    name = specification.metric.name
    value = figure_of(place, name) if code == 0 else None
    if value is None or not math.isfinite(value):
        error = failure_of(code, name, value, place / OUTPUT)
        search.fail(trial.number, error)
        print(f"trial {trial.number} failed ({error}); its output is in {place / OUTPUT}", flush=True)
        return False
    search.finish(trial.number, value)
    print(f"trial {trial.number}: {name} {value:.4g} after {time.monotonic() - start:.0f} s", flush=True)
    return True


def run_command(specification: Specification, trial: Trial, place: Path, signals: Signals) -> int:
    """Run the command of a trial to its end, append its output to a file, and return the exit code.

    Args:
        specification: the sweep.
        trial: the trial.
        place: run folder of the trial.
        signals: signals to pass on.
    """
    with (place / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            command_of(specification, trial.point, place),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment_of(specification, trial.number),
            process_group=0,  # Ctrl+C reaches the worker alone, which passes it on
        )
        return signals.wait(process)


def failure_of(code: int, name: str, value: float | None, output: Path) -> str:
    """Return the reason of a failure: the end of the command, and the last line of its output.

    Args:
        code: exit code of the command, below 0 if a signal killed it.
        name: name of the metric.
        value: figure of the metric; None if there is none.
        output: file with the output of the command.
    """
    if code == 0:
        return f"no {name} was measured" if value is None else f"{name} is {value}"
    number = -code if code < 0 else code - 128  # a shell or torchrun adds 128
    if number == signal.SIGKILL:
        end = "killed by SIGKILL, as systems do that run out of memory"
    elif code < 0:
        end = f"killed by {signal.Signals(number).name}"
    else:
        end = f"exit code {code}"
    last = tail_of(output, lines=1).strip()
    return f"{end}: {last}" if last else end


def environment_of(specification: Specification, number: int) -> dict[str, str]:
    """Return the environment of a trial: its W&B run has the name of the trial and is grouped by sweep."""
    names = {"WANDB_RUN_GROUP": specification.name, "WANDB_NAME": f"{specification.name}-{number:04d}"}
    return names | {key: value for key, value in os.environ.items() if key != "WANDB_RUN_ID"}


class Signals:
    """Passes signals on to the command of a trial inside a `with` block.

    Attributes:
        received: the last signal; None before the first.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Signals:
        self.earlier = {number: signal.signal(number, self._pass_on) for number in HEARD}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def wait(self, process: subprocess.Popen) -> int:
        """Wait for a command and return the exit code, below 0 if a signal killed it."""
        self.process = process
        if self.received is not None:  # it came before the command started
            process.send_signal(self.received)
        try:
            return process.wait()
        finally:
            self.process = None

    def wait_for_owner(self, place: Path) -> None:
        """Wait until no process writes in a run folder: the command of a killed worker may still run.

        Raises:
            SystemExit: a signal came while waiting.
        """
        holder = living_holder(place)
        if holder is not None:
            say(f"lit_mm: {str(place)!r} is still in use by {holder}; waiting for its end")
        while living_holder(place) is not None:
            if self.received is not None:
                sys.exit(CTRL_C if self.received == signal.SIGINT else REQUEUE)
            time.sleep(WAIT)

    def _pass_on(self, number: int, _: object) -> None:
        self.received = signal.Signals(number)
        if self.process is not None:
            self.process.send_signal(number)


# --- the report ------------------------------------------------------------------------------------------------------
def ranked(trials: Sequence[Trial], goal: str) -> list[Trial]:
    """Return the finished trials, the best first; of equal trials the earlier first."""
    finished = [(trial, trial.value) for trial in trials if trial.value is not None]
    sign = 1 if goal == "minimize" else -1
    return [trial for trial, _ in sorted(finished, key=lambda pair: (sign * pair[1], pair[0].number))]


def write_report(search: Search, folder: Path) -> str:
    """Write ranking.csv, sweep.png and best.yaml in the folder of a sweep, and return the table for people.

    Args:
        search: the search.
        folder: folder of the sweep.
    """
    trials, metric = search.trials(), search.specification.metric
    best_first = ranked(trials, metric.goal)
    notes = notes_of(trials, search.limit - len(best_first), search.limit, folder)
    if lost := [
        trial.number for trial in best_first if not (trial_folder(folder, trial.number) / "config.yaml").exists()
    ]:
        notes.append(f"run folders that are not there any more: of trial {', '.join(map(str, lost))}")
    rows = [_row(folder, rank, trial, metric.name) for rank, trial in enumerate(best_first, start=1)]
    if not rows:
        return "\n".join([f"no trial of {search.specification.name} has a figure yet", *notes])
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / "ranking.csv", buffer.getvalue())
    draw_sweep(
        [trial.point for trial in best_first],
        [trial.value for trial in best_first if trial.value is not None],
        metric.name,
        metric.goal,
        search.importances(),
        folder / "sweep.png",
    )
    best, file = best_first[0], folder / "best.yaml"
    head = (
        f"# The best of {len(rows)} trials of the sweep {search.specification.name}: {metric.name} {best.value:.4g}\n"
        f"# {written_point(best.point)}\n#   python -m lit_mm fit --config {file}\n"
    )
    write_whole(file, head + config_of(search.specification, best, folder))
    if (interval := interval_of(trial_folder(folder, best.number), metric.name)) is not None:
        near = [trial.number for trial in best_first[1:] if interval.low <= (trial.value or 0.0) <= interval.high]
        if near:
            trials_near = f"{'trials' if near[1:] else 'trial'} {', '.join(map(str, near))}"
            notes.append(
                f"within the 95 % interval of the best: {trials_near}. More questions or seeds would tell them apart"
            )
    return "\n".join(
        [
            _table(rows, metric.name),
            *notes,
            f"table, picture and best recipe: {folder}/ranking.csv, sweep.png, best.yaml",
        ]
    )


def config_of(specification: Specification, trial: Trial, folder: Path) -> str:
    """Return the resolved config of a trial; it is resolved anew if the run folder is not there any more.

    Args:
        specification: the sweep.
        trial: the trial.
        folder: folder of the sweep.
    """
    file = trial_folder(folder, trial.number) / "config.yaml"
    if file.exists():
        return file.read_text()
    import torch

    from lit_mm.commands.recipe import RecipeCLI

    with torch.device("meta"):  # no memory for the model
        return RecipeCLI(words_of(specification, trial.point), "fit").resolved()


def notes_of(trials: Sequence[Trial], unranked: int, limit: int, folder: Path) -> list[str]:
    """Describe the trials of a sweep that have no figure, in sentences.

    Args:
        trials: trials of the sweep.
        unranked: number of trials without a figure, those that have not begun included.
        limit: number of trials of the whole sweep.
        folder: folder of the sweep.
    """
    failed = [trial for trial in trials if trial.state == "failed"]
    open_trials = [trial.number for trial in trials if trial.state == "running"]
    notes = []
    if left := unranked - len(failed):
        notes.append(f"{left} of {limit} trials have not ended; the same command goes on")
    if open_trials:
        notes.append(f"begun and not ended: {', '.join(map(str, open_trials))}")
    for trial in failed:
        times = f" {trial.failures} times" if trial.failures > 1 else ""
        notes.append(
            f"trial {trial.number} failed{times} ({trial.error or 'unknown reason'}); its output is in "
            f"{trial_folder(folder, trial.number) / OUTPUT}"
        )
    if retries := max((trial.failures for trial in failed), default=0):
        notes.append(f"failed trials have no rank; the same command with --retry {retries} runs them again")
    elif failed:
        notes.append("failed trials have no rank, and those of an earlier version of lit_mm are not run again")
    return notes


def _row(folder: Path, rank: int, trial: Trial, metric: str) -> dict[str, Any]:
    """Return the row of a finished trial in ranking.csv; `low` and `high` bound the 95 % interval."""
    place = trial_folder(folder, trial.number)
    interval = interval_of(place, metric)
    seconds = read_summary(place).get("seconds", "")
    return {
        "rank": rank,
        "trial": trial.number,
        metric: trial.value,
        "low": "" if interval is None else round(interval.low, 6),
        "high": "" if interval is None else round(interval.high, 6),
        "seconds": seconds,
        **trial.point,
        "folder": str(place),
    }


def _table(rows: Sequence[Mapping[str, Any]], metric: str, most: int = 20) -> str:
    """Format the first rows of the ranking. Parameters with one value in all rows are left out."""
    from lit_mm.commands.describe import aligned

    fixed = ("rank", "trial", metric, "low", "high", "seconds", "folder")
    varied = [key for key in rows[0] if key not in fixed and len({repr(row[key]) for row in rows}) > 1]
    cells = [["rank", "trial", metric, "95 % interval", "seconds", *varied]]
    for row in rows[:most]:
        bounds = "-" if row["low"] == "" else f"{row['low']:.3f} to {row['high']:.3f}"
        values = [f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for key in varied]
        cells.append([str(row["rank"]), str(row["trial"]), f"{row[metric]:.4g}", bounds, str(row["seconds"]), *values])
    rest = [f"and {len(rows) - most} more"] if len(rows) > most else []
    return "\n".join([aligned(cells), *rest])


def tail_of(file: Path, lines: int = TAIL) -> str:
    """Return the last lines of a text."""
    text = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(f"  {line[:200]}" for line in text[-lines:])
