"""The ledger of a run counts what became of every row and of every text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table


def ledger_of(
    accounts: Iterable[Mapping[str, Any]], subsets: Sequence[str], sources: Sequence[str], *, lists_faults: bool
) -> dict[str, Any]:
    """Count rows and texts.

    Args:
        accounts: accounts of all rows.
        subsets: names of the data sets that the engine writes.
        sources: names of the sources.
        lists_faults: True lists every bad row.
    Returns:
        `rows`: rows, bad rows and their kinds by source; rows = annotated + bad. `texts`: by kind of text the number
        of texts, those that passed, those dropped by each rule, and the noise ratio, dropped / texts. `subsets`: number
        of texts in each data set. `faults`: the bad rows.
    """
    rows = {name: {"rows": 0, "annotated": 0, "bad": 0, "kinds": Counter()} for name in sources}
    texts: dict[str, Counter[str]] = {}
    outputs = Counter(dict.fromkeys(subsets, 0))
    faults = []
    for account in accounts:
        counts = rows[account["source"]]
        counts["rows"] += 1
        fault = account["fault"]
        if fault is not None:
            counts["bad"] += 1
            counts["kinds"][fault["kind"]] += 1
            if lists_faults:
                faults.append({key: account[key] for key in ("row", "source", "id", "where")} | fault)
        else:
            counts["annotated"] += 1
        for statement in account["statements"]:
            texts.setdefault(statement["kind"], Counter())[statement["rule"]] += 1
        outputs.update(output["subset"] for output in account["outputs"])
    return {
        "rows": {name: counts | {"kinds": dict(sorted(counts["kinds"].items()))} for name, counts in rows.items()},
        "texts": {kind: _texts(rules) for kind, rules in texts.items()},
        "subsets": dict(outputs),
        "faults": faults,
    }


def _texts(rules: Counter[str]) -> dict[str, Any]:
    dropped = {rule: count for rule, count in sorted(rules.items()) if rule}
    total = rules.total()
    return {
        "texts": total,
        "kept": rules[""],
        "dropped": dropped,
        "noise_ratio": round(sum(dropped.values()) / total, 4),
    }


def ledger_table(ledger: Mapping[str, Any]) -> Table:
    """Format the counts of texts as a table for the terminal."""
    table = Table(title="texts", title_justify="left", box=SIMPLE, padding=0)
    table.add_column("kind")
    for column in ("texts", "kept", "dropped", "noise ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("rules")
    for kind, counts in ledger["texts"].items():
        rules = ", ".join(f"{rule} {count:,}" for rule, count in counts["dropped"].items())
        dropped = sum(counts["dropped"].values())
        ratio = f"{counts['noise_ratio']:.1%}"
        table.add_row(kind, f"{counts['texts']:,}", f"{counts['kept']:,}", f"{dropped:,}", ratio, rules)
    return table


def row_lines(ledger: Mapping[str, Any]) -> list[str]:
    """Write one line per source: its rows, and the bad ones by kind."""
    lines = []
    for name, counts in ledger["rows"].items():
        kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in counts["kinds"].items())
        bad = f", {counts['bad']:,} bad ({kinds})" if counts["bad"] else ""
        lines.append(f"{name}: {counts['rows']:,} rows, {counts['annotated']:,} annotated{bad}")
    return lines
