"""The ledger counts the outcome of every drawn sample: trained, truncated, skipped or quarantined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from lit_mm.samples.fault import Fault
from lit_mm.stream.order import StepSamples
from lit_mm.stream.screen import Screen

OUTCOMES = ("trained", "truncated", "skipped", "quarantined")  # a truncated sample is trained on up to a cut


@dataclass(frozen=True, slots=True)
class Entry:
    """A count of samples of one source with the same outcome in one optimizer step.

    Attributes:
        source: name of the source.
        outcome: one of `OUTCOMES`.
        kind: reason for the outcome, such as "too_long"; "" for "trained".
        count: number of samples.
        fault: the fault of a quarantined sample, which has an entry to itself; None for all other outcomes.
    """

    source: str
    outcome: str
    kind: str
    count: int
    fault: Fault | None = None

    def as_json(self) -> dict[str, Any]:
        line: dict[str, Any] = {"source": self.source, "outcome": self.outcome, "kind": self.kind, "count": self.count}
        if self.fault is not None:
            line |= {"id": self.fault.sample_id, "where": self.fault.where, "reason": self.fault.reason}
        return line


def entries_of(samples: StepSamples, lost: Sequence[Fault], screen: Screen) -> list[Entry]:
    """Count the outcomes of the samples of one optimizer step.

    Args:
        samples: samples of the step by plan, over all ranks.
        lost: faults of the samples in its rows that a worker of any rank could not read.
        screen: screen of the stage, which holds the truncated samples and the faults of those left out.
    Returns:
        Entries sorted by source and outcome, then one entry per quarantined sample.
    Raises:
        AssertionError: a worker lost a sample that is not in the rows of the step.
    """
    documents = screen.maker.documents
    left = Counter(samples.in_rows)
    left.subtract(Counter(fault.number for fault in lost))
    assert min(left.values(), default=0) >= 0, "a sample was lost that the step does not hold"
    counts: Counter[tuple[int, str, str]] = Counter()
    for number, count in left.items():
        cut = screen.was_cut(number)
        counts[documents.source_of(number), "truncated" if cut else "trained", "too_long" if cut else ""] += count
    single: list[Entry] = []
    for fault in [*(screen.faults[number] for number in samples.left_out), *lost]:
        source = documents.source_of(fault.number)
        if screen.on_bad_sample == "quarantine":
            single.append(Entry(documents.names[source], "quarantined", fault.kind, 1, fault))
        else:
            counts[source, "skipped", fault.kind] += 1
    entries = [
        Entry(documents.names[source], outcome, kind, count)
        for (source, outcome, kind), count in sorted(counts.items())
        if count
    ]
    return entries + single


def summarise(
    stage: str,
    names: Sequence[str],
    sizes: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    exceptions: Sequence[dict],
) -> dict[str, Any]:
    """Summarise a stage and reconcile the counts with the sizes of the sources.

    Args:
        stage: name of the stage.
        names: names of the sources.
        sizes: number of samples in each source.
        rows: rows of sources.csv of the stage.
        exceptions: lines of ledger.jsonl of the stage.
    Returns:
        For each source its `size`; `drawn`, the sum of the four outcomes; `passes`, the number of passes over the
        source, the last one included; `not_reached`, the samples of the last pass that were not drawn; and the counts
        by reason. It holds that drawn + not_reached = passes * size.
    """
    accounts = []
    for name, size in zip(names, sizes, strict=True):
        rows_of_source = [row for row in rows if row["source"] == name]
        outcomes = {outcome: sum(row[outcome] for row in rows_of_source) for outcome in OUTCOMES}
        draws = sum(outcomes.values())
        passes = -(-draws // size)
        reasons: Counter[str] = Counter()
        for line in exceptions:
            if line["source"] == name:
                reasons[line["kind"]] += line["count"]
        accounts.append(
            {"source": name, "size": size, "drawn": draws, **outcomes}
            | {"passes": passes, "not_reached": passes * size - draws, "reasons": dict(sorted(reasons.items()))}
        )
    return {"stage": stage, "sources": accounts}


def quarantined(exceptions: Sequence[dict]) -> list[dict[str, Any]]:
    """List the quarantined samples. A sample that was drawn several times is listed once."""
    once = {(line["source"], line["id"], line["kind"]): line for line in exceptions if line["outcome"] == "quarantined"}
    return [{key: line[key] for key in ("source", "id", "where", "kind", "reason")} for line in once.values()]


def ledger_table(account: Mapping[str, Any]) -> Table:
    """Format the result of `summarise` as a table for the terminal."""
    columns = ("size", "drawn", *OUTCOMES, "not_reached")
    table = Table(title=f"samples of stage {account['stage']}", title_justify="left", box=SIMPLE, padding=0)
    table.add_column("source")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right", no_wrap=True)
    for entry in account["sources"]:
        table.add_row(entry["source"], *(f"{entry[column]:,}" for column in columns))
    if len(account["sources"]) > 1:
        table.add_section()
        table.add_row("all", *(f"{sum(entry[column] for entry in account['sources']):,}" for column in columns))
    return table


def reason_lines(account: Mapping[str, Any]) -> list[str]:
    """Write one line per source that has truncated or left out samples, with the counts by reason."""
    return [
        f"{entry['source']}: "
        + ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in entry["reasons"].items())
        for entry in account["sources"]
        if entry["reasons"]
    ]
