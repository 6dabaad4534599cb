"""Paths of data files, local or at a URL, and patterns that name several files."""

from __future__ import annotations

import os
import re
from glob import escape, glob
from itertools import product
from pathlib import Path
from urllib.parse import unquote

from lit_mm.errors import UserError

SCHEME = re.compile(r"[A-Za-z][\w+.-]*://")
BRACES = re.compile(r"\{([^{}]*)\}")
WILD = re.compile(r"[*?\[]")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_url(path: str) -> bool:
    """Return True for a path with a scheme, such as https:// or memory://."""
    return SCHEME.match(path) is not None


def join(folder: str, name: str) -> str:
    """Join a folder and a name. An absolute path or a URL is unchanged, and `file://` becomes a local path."""
    name = _local(name)
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def folder_of(path: str) -> str:
    """Return the folder of a path or URL, without a slash at its end."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def name_of(path: str) -> str:
    """Return the last piece of a path or URL."""
    return path.rpartition("/")[2] if is_url(path) else os.path.basename(path)


def expand(pattern: str) -> list[str]:
    """Return the paths of a pattern, in order.

    `a-{00..02}.tar` gives three paths, `{x,y}.json` two, `train-*.parquet` all matching files, sorted. `~` is the home
    folder. A folder with .arrow files stands for these files.

    Raises:
        UserError: a range runs backwards, braces hold neither a range nor a list, or no file matches.
    """
    return [path for braceless in _without_braces(expand_home(pattern)) for path in _matching(braceless)]


def expand_home(path: str) -> str:
    """Replace `~` by the home folder and remove `file://`. Other URLs are unchanged."""
    path = _local(path)
    return path if is_url(path) else os.path.expanduser(path)


def _local(path: str) -> str:
    """Return the local path of a `file://` URL. Other paths are unchanged."""
    if not path.startswith("file://"):
        return path
    return unquote(path.removeprefix("file://").removeprefix("localhost"))


def _matching(pattern: str) -> list[str]:
    """Return the files that match a pattern with `*`, `?` or `[`. Other texts, and existing files, are paths."""
    if not is_url(pattern) and os.path.isdir(pattern) and (tables := sorted(glob(f"{escape(pattern)}/*.arrow"))):
        return tables  # a folder that the `datasets` package saved
    if not WILD.search(pattern) or pattern.startswith(("http://", "https://")):
        return [pattern]
    if is_url(pattern):
        from fsspec.core import url_to_fs

        system, inside = url_to_fs(pattern)
        paths = [system.unstrip_protocol(path) for path in sorted(system.glob(inside))]
    elif os.path.exists(pattern):
        return [pattern]
    else:
        paths = sorted(glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"no file matches {pattern!r}. Correct the source's `path`")
    return paths


def _without_braces(pattern: str) -> list[str]:
    """Return the paths of a pattern with braces, in order."""
    choices: list[list[str]] = []
    for inside in BRACES.findall(pattern):
        span = RANGE.fullmatch(inside)
        if span:
            first, last = span.groups()
            if int(last) < int(first):
                raise UserError(f"the range {{{inside}}} in {pattern!r} runs backwards: write the smaller number first")
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        elif "," in inside:
            choices.append(inside.split(","))
        else:
            raise UserError(f"the braces in {pattern!r} hold {inside!r}: write a range {{000..127}} or a list {{a,b}}")
    pieces = BRACES.split(pattern)[::2]  # what stands between the braces
    return [pieces[0] + "".join(c + p for c, p in zip(words, pieces[1:], strict=True)) for words in product(*choices)]


def local_path(path: str) -> Path:
    """Return a path as the file system knows it; for a URL, the text behind its scheme."""
    return Path(SCHEME.sub("", path))
