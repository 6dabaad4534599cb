"""`data check`: errors of a data set, found without decoding pixels."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_mm.commands.data_sources import sources_of
from lit_mm.errors import UserError
from lit_mm.stream.progress import bar

if TYPE_CHECKING:  # seconds of import, which --help and a misspelt option need not wait for
    from lit_mm.documents.sources import SampleError
    from lit_mm.documents.sources.check import Summary

BROKEN = 2  # exit code of a data set with errors


def check(choices: argparse.Namespace) -> None:
    """Check all samples without decoding pixels: placeholders against images, ids, files, image headers, empty answers,
    regions, JSON. The exit code is 2 if anything is wrong."""
    from lit_mm.documents.sources.check import as_record, check_source

    if choices.lines < 0:
        raise UserError(f"--lines is at least 0, got {choices.lines}")
    errors_listed: list[tuple[str, SampleError]] = []
    summaries = []
    for name, source in sources_of(choices, heldout=True):

        def append(error: SampleError, name: str = name) -> None:
            if not choices.lines or len(errors_listed) < choices.lines:
                errors_listed.append((name, error))

        with bar(f"checking {name}", len(source)) as progress:
            summaries.append(check_source(name, source, append, progress))
    errors = sum(sum(summary.kinds.values()) for summary in summaries)
    if choices.format == "json":
        report = {
            "ok": not errors,
            "errors": errors,
            "findings": [as_record(name, error) for name, error in errors_listed],
            "sources": [summary.as_dict() for summary in summaries],
        }
        print(json.dumps(report))
    else:
        for _, error in errors_listed:
            print(". ".join(filter(None, (f"{error.where}: {error.kind}: {error.reason}", error.remedy))))
        if errors > len(errors_listed):
            print(f"... and {errors - len(errors_listed)} more; --lines 0 lists all")
        print(summary_table(summaries))
    if errors:
        sys.exit(BROKEN)


def summary_table(summaries: Sequence[Summary]) -> str:
    """A table of the samples, pictures and errors of every source."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
    for column, justify in (("source", "left"), ("samples", "right"), ("pictures", "right"), ("broken", "right")):
        table.add_column(column, justify=justify)
    table.add_column("errors")
    for summary in summaries:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.kinds.most_common()) or "none"
        table.add_row(summary.name, str(summary.samples), str(summary.pictures), str(summary.broken), kinds)
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")
