"""`fit` with `trainer.fast_dev_run`: every stage shortened, a save and a load, in a temporary folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from lit_mm.commands.config_text import COMMAND_LINE, Entry, config_files, flow, overrides, read_config
from lit_mm.commands.fit import fit
from lit_mm.commands.signatures import merged
from lit_mm.commands.trained import open_trained

DOCUMENTS = 2  # number of held-out documents


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
            open_trained(folder)
            print("rehearsed: every stage was trained and examined, and its checkpoint loaded; nothing is kept")


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
