"""`fit` with `trainer.fast_dev_run`: every stage shortened, a save, a load and an export, in a temporary folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from lit_mm.commands.config_text import COMMAND_LINE, Entry, config_files, flow, overrides, read_config
from lit_mm.commands.conversions.conversion import all_conversions, is_of, refusal
from lit_mm.commands.export import export_to
from lit_mm.commands.export_start import imported_run
from lit_mm.commands.fit import fit
from lit_mm.commands.signatures import merged
from lit_mm.commands.trained import open_trained
from lit_mm.errors import UserError
from lit_mm.module import family_of

DOCUMENTS = 2  # number of held-out documents
HF = "hf"  # format of the export of a run that was not imported


def fit_or_rehearse(arguments: Sequence[str]) -> None:
    """Run a recipe, or rehearse it if `trainer.fast_dev_run` is set.

    Raises:
        UserError: a real run would raise the same error.
    """
    if not is_rehearsal(arguments):
        fit(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="lit_mm_rehearsal_") as folder, latest_run():
        options = {"run_dir": folder, "track": "false", "checkpoint_every": 1, "examine_documents": DOCUMENTS}
        fit([*arguments, *(f"--{name}={value}" for name, value in options.items())])
        if os.environ.get("RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0":
            module, *_ = open_trained(folder)
            problem = rehearse_export(Path(folder), family_of(module))
            checked = "" if problem else " and exported"
            print(
                f"rehearsed: every stage was trained and examined, and its checkpoint loaded{checked}; nothing is kept"
            )
            if problem:
                print(f"not exported: {problem}")


def rehearse_export(run: Path, family: str) -> str:
    """Export a run; return the reason if this is not possible, else "".

    A run that started from an imported checkpoint is written in the layout of the checkpoint, any other one for
    transformers.

    Args:
        run: run folder.
        family: import path of the family's class.
    """
    source, _ = imported_run(run)
    if source is None and not any(is_of(each, family, HF) for each in all_conversions()):
        return f"--format {HF}: {refusal(family, HF)}"
    layout = f"/{HF}" if source is None else json.loads((source / "published.json").read_text())["layout"]
    try:
        export_to(str(run), run / "exported", layout.rpartition("/")[2])
    except UserError as error:
        return str(error)
    return ""


def is_rehearsal(arguments: Sequence[str]) -> bool:
    """Return True if the configs and options of a command line set `trainer.fast_dev_run`."""
    entries = Entry({}, COMMAND_LINE)
    for entry in (*map(read_config, config_files(arguments)), *overrides(arguments)):
        if "trainer" in entry.keys:
            entries = merged(entries, Entry({"trainer": entry.keys["trainer"]}, entry.place))
    trainer = entries.keys.get("trainer", Entry({}, COMMAND_LINE))
    return bool(yaml.safe_load(flow(trainer.keys.get("fast_dev_run", Entry(None, COMMAND_LINE)))))


@contextmanager
def latest_run() -> Iterator[None]:
    """Restore `runs/latest` at the end of a `with` block, and remove a folder `runs` that did not exist before."""
    runs, link = Path("runs"), Path("runs/latest")
    existed, target = runs.is_dir(), os.readlink(link) if link.is_symlink() else None
    try:
        yield
    finally:
        link.unlink(missing_ok=True)
        if target is not None:
            link.symlink_to(target, target_is_directory=True)
        if not existed and runs.is_dir():
            runs.rmdir()
