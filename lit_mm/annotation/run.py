"""The run of an engine: sharded over processes, and resumed by the same command without repeating a batch."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lit_mm.annotation.description import Account, Identity, Row
from lit_mm.annotation.engine import Engine
from lit_mm.annotation.experts import ExpertError
from lit_mm.annotation.inputs import Entry, Inputs
from lit_mm.annotation.journal import Journal
from lit_mm.annotation.ledger import ledger_of
from lit_mm.annotation.page import write_page
from lit_mm.annotation.shards import (
    LEDGER,
    PAGE,
    PLAN,
    SPEED,
    WORK,
    accounts_path,
    journal_path,
    read_accounts,
    write_shard,
)
from lit_mm.errors import UserError
from lit_mm.run.files import write_whole
from lit_mm.samples.fault import Fault

FEW = 1000  # least number of rows over which a share of bad rows is computed; fewer rows count whole
BadImage = Literal["fail", "skip", "quarantine"]


@dataclass(frozen=True)
class Settings:
    """Settings of a run. `on_bad_image` and `max_bad` may differ between launches of one run.

    Attributes:
        seed: seed of all random draws, each of which also depends on its row and expert.
        shard_rows: number of rows per shard.
        batch_rows: number of rows that experts see together; shards are cut into batches.
        on_bad_image: "fail" stops at a bad row; "skip" counts it; "quarantine" also lists it in the ledger.
        max_bad: share of bad rows above which the run stops.
    Raises:
        UserError: a number is out of its range.
    """

    seed: int = 0
    shard_rows: int = 1000
    batch_rows: int = 16
    on_bad_image: BadImage = "fail"
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        if self.shard_rows < 1 or self.batch_rows < 1 or not 0 <= self.max_bad <= 1:
            raise UserError(
                "annotate: `shard_rows` and `batch_rows` are at least 1 and `max_bad` is 0 to 1, got "
                f"{self.shard_rows}, {self.batch_rows} and {self.max_bad:g}"
            )


def plan_of(engine: Engine, config: Mapping[str, Any], inputs: Inputs, settings: Settings) -> dict[str, Any]:
    """Return everything that decides the output, as a JSON object. The engine is loaded."""
    return {
        "engine": config,
        "experts": {name: asdict(identity) for name, identity in engine.identities().items()},
        "subsets": list(engine.subsets),
        "sources": inputs.content(),
        "rows": len(inputs),
        "seed": settings.seed,
        "shard_rows": settings.shard_rows,
        "batch_rows": settings.batch_rows,
    }


def agree(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan of a new run, or compare it with that of the run in the folder.

    Raises:
        UserError: the folder holds another run, or something else, or cannot be written.
    """
    file = folder / PLAN
    if not file.is_file():
        if folder.exists() and (not folder.is_dir() or any(entry.name[0] != "." for entry in folder.iterdir())):
            if not file.is_file():  # another process may have begun the run in this moment
                raise UserError(f"--out {str(folder)!r} exists, but is not a run of `annotate`. Choose another folder")
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps(plan, ensure_ascii=False, indent=2), synced=True)
            except OSError as error:
                raise UserError(
                    f"--out {str(folder)!r} cannot be written ({error.strerror}). Choose another folder"
                ) from error
    earlier = json.loads(file.read_text(encoding="utf-8"))
    current = json.loads(json.dumps(plan))
    if keys := [key for key in {**earlier, **current} if earlier.get(key) != current.get(key)]:
        raise UserError(
            f"{str(folder)!r} holds a run that differs in {', '.join(keys)}. Resume with the same engine, sources and "
            "settings, or choose another folder with --out"
        )


class Run:
    """A run of an engine over all rows of its inputs.

    Shards are ranges of rows, so their bounds depend on `shard_rows` alone. Each process works on every n-th shard. A
    finished batch is on the disk before the next one begins.

    Args:
        engine: engine with loaded experts.
        inputs: rows.
        folder: folder of the output.
        settings: settings.
        rank, ranks: number of this process, and number of processes.
    """

    def __init__(
        self, engine: Engine, inputs: Inputs, folder: Path, settings: Settings, rank: int = 0, ranks: int = 1
    ) -> None:
        self.engine, self.inputs, self.folder, self.settings = engine, inputs, folder, settings
        self.rank, self.ranks = rank, ranks
        self.identities: dict[str, Identity] = engine.identities()
        self.shards = -(-len(inputs) // settings.shard_rows)
        self.bad = self.examined = 0  # rows of unfinished shards of this process

    @property
    def shards_of_rank(self) -> range:
        return range(self.rank, self.shards, self.ranks)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first row of a shard, and the row behind its last one."""
        start = shard * self.settings.shard_rows
        return start, min(start + self.settings.shard_rows, len(self.inputs))

    def num_rows(self) -> int:
        """Count the rows of this process."""
        return sum(stop - start for start, stop in map(self.bounds, self.shards_of_rank))

    def work(self, progress: Callable[[int], None] = lambda rows: None) -> int:
        """Annotate the unfinished shards of this process. Return the number of rows that were annotated now.

        Args:
            progress: function that is called with the number of finished rows of this process.
        Raises:
            UserError: a row is bad and `on_bad_image` is "fail", too many rows are bad, or another process writes one
                of the shards.
        """
        begin, annotated = time.monotonic(), 0
        finished = 0
        for shard in self.shards_of_rank:
            start, stop = self.bounds(shard)
            if not accounts_path(self.folder, shard).is_file():
                with Journal(journal_path(self.folder, shard)) as journal:
                    for account in (account for batch in journal.batches for account in batch):
                        self._count(account)
                    first = start + len(journal.batches) * self.settings.batch_rows
                    for row in range(first, stop, self.settings.batch_rows):
                        progress(finished + row - start)
                        numbers = range(row, min(row + self.settings.batch_rows, stop))
                        journal.append(self.batch(numbers))
                        annotated += len(numbers)
                    write_shard(
                        self.folder, shard, [account for batch in journal.batches for account in batch], self.inputs
                    )
            journal_path(self.folder, shard).unlink(missing_ok=True)
            finished += stop - start
            progress(finished)
        self._note_speed(annotated, time.monotonic() - begin)
        return annotated

    def is_complete(self) -> bool:
        """Return True if all shards of all processes are finished."""
        return all(accounts_path(self.folder, shard).is_file() for shard in range(self.shards))

    def finish(self) -> dict[str, Any]:
        """Write the ledger and the page of a complete run, and return the ledger."""
        ledger = ledger_of(
            read_accounts(self.folder, self.shards),
            self.engine.subsets,
            [entry.name for entry in self.inputs.inputs],
            lists_faults=self.settings.on_bad_image == "quarantine",
        )
        write_whole(self.folder / LEDGER, json.dumps(ledger, ensure_ascii=False, indent=2), synced=True)
        page = write_page(read_accounts(self.folder, self.shards), ledger, self.identities, self.inputs)
        write_whole(self.folder / PAGE, page.encode("utf-8", "xmlcharrefreplace"), synced=True)
        work = self.folder / WORK
        with suppress(FileNotFoundError):  # another process may remove it in this moment
            if not any(work.iterdir()):
                work.rmdir()
        return ledger

    # --- batches ---------------------------------------------------------------------------------------------------
    def batch(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Annotate the rows of a batch and return their accounts as JSON objects, in order."""
        entries: dict[int, Entry] = {}
        rows: list[Row] = []
        faults: dict[int, Fault] = {}
        for number in numbers:
            try:
                entries[number] = self.inputs.entry(number)
                rows.append(self.inputs.row(number, entries[number]))
            except UserError as error:
                faults[number] = self._fault(number, error, entries.get(number))
        accounts: dict[int, Account] = {}
        try:
            annotated = self.engine.annotate(rows, self.settings.seed) if rows else []
            accounts = {row.number: account for row, account in zip(rows, annotated, strict=True)}
        except ExpertError:
            raise
        except UserError:  # an expert refuses a row: the rows are annotated alone to find it
            for row in rows:
                try:
                    (accounts[row.number],) = self.engine.annotate([row], self.settings.seed)
                except ExpertError:
                    raise
                except UserError as error:
                    faults[row.number] = self._fault(row.number, error, entries[row.number])
        records = [
            self._record(number, entries.get(number), accounts.get(number), faults.get(number)) for number in numbers
        ]
        for record in records:
            self._count(record)
        return records

    def _fault(self, number: int, error: UserError, entry: Entry | None) -> Fault:
        """Return the fault of a bad row.

        Raises:
            UserError: bad rows stop the run.
        """
        fault = Fault.of(number, error, entry.identity if entry is not None else self.inputs.where(number))
        if self.settings.on_bad_image == "fail":
            place, message = f"{self.inputs.where(number)}: ", str(error)
            raise UserError(
                f"source {self.inputs.source_of(number)!r}, {place}{message.removeprefix(place)}. "
                "`on_bad_image: skip` or `quarantine` leaves such rows out"
            ) from error
        return fault

    def _count(self, record: Mapping[str, Any]) -> None:
        """Count a row.

        Raises:
            UserError: too many rows of this process are bad.
        """
        self.examined += 1
        self.bad += record["fault"] is not None
        if self.bad > self.settings.max_bad * max(self.examined, min(FEW, len(self.inputs))):
            raise UserError(
                f"{self.bad} of the first {self.examined} rows of this process are bad, more than "
                f"`max_bad: {self.settings.max_bad:g}` allows. The last: {(record['fault'] or {}).get('reason')}"
            )

    def _record(self, number: int, entry: Entry | None, account: Account | None, fault: Fault | None) -> dict[str, Any]:
        """Return the account of a row as it stands in the output."""
        statements = account.statements if account is not None else ()
        outputs = account.outputs if account is not None else ()
        names = {name for statement in statements for name in (statement.expert, statement.scorer) if name}
        return {
            "row": number,
            "source": self.inputs.source_of(number),
            "id": entry.identity if entry is not None else fault.sample_id if fault is not None else "",
            "where": entry.where if entry is not None else self.inputs.where(number),
            "licence": entry.licence if entry is not None else "",
            "fault": None if fault is None else {"kind": fault.kind, "reason": fault.reason},
            "experts": {name: asdict(self.identities[name]) for name in sorted(names)},
            "statements": [statement.as_json() for statement in statements],
            "outputs": [asdict(output) for output in outputs],
        }

    def _note_speed(self, rows: int, seconds: float) -> None:
        """Append the throughput of this launch to a file of its own, which two equal runs do not share."""
        speed = Counter(self.engine.seconds)
        line = {
            "rank": self.rank,
            "ranks": self.ranks,
            "rows": rows,
            "seconds": round(seconds, 3),
            "rows_per_second": round(rows / seconds, 3) if seconds else 0.0,
            "seconds_by_expert": {name: round(value, 3) for name, value in sorted(speed.items())},
        }
        with (self.folder / SPEED).open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
