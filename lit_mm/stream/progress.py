"""A progress bar for what takes long before training: checking, indexing, laying out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(described: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on the terminal, nothing in a log; gives a function that takes how many are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(described, total=total)
        yield lambda completed: progress.update(task, completed=completed)
