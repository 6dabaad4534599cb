"""Digests of a source's data files, by which a resumed run knows that its data are the same as before.

A digest covers a whole annotation file, or sampled blocks of a shard. For a remote file it covers the size and the
server's ETag, or both ends of the file if there is no ETag. It does not cover pictures beside an annotation file, nor
the place of a file or its time of change, so data may be moved, copied or touched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from lit_mm.documents.sources.storage import is_url, open_file

Kind = Literal["whole", "sampled", "remote"]
SHARDS = (".tar", ".parquet", ".arrow")
SAMPLED, BLOCK = 64, 1 << 16  # number of sampled blocks of a shard, and bytes of each
CHUNK = 1 << 22  # bytes read at once
TAIL = 1 << 16  # bytes at the end of an annotation file that are searched for the end of its last row


class DataFile(Protocol):
    """One file of a source."""

    path: str


class Files(Protocol):
    """A source that reads files."""

    @property
    def parts(self) -> Sequence[DataFile]: ...

    def __len__(self) -> int: ...


def digest_of(source: Files) -> dict[str, Any]:
    """Return the digest of a source: its number of `samples`, and its `files` in order, see `digest_of_file`."""
    return {"samples": len(source), "files": [digest_of_file(part.path) for part in source.parts]}


def kind_of(path: str) -> Kind:
    """Return how a file is read for its digest."""
    if is_url(path):
        return "remote"
    return "sampled" if path.lower().endswith(SHARDS) else "whole"


def digest_of_file(path: str, kind: Kind | None = None) -> dict[str, Any]:
    """Return the facts of a data file that a checkpoint stores.

    Args:
        path: local path or URL.
        kind: how the file is read; None: as `kind_of` says.
    Returns:
        `name`, `kind`, `bytes` and `digest`. An annotation file also has `rows`: the number of bytes up to the end of
        its last row, and their digest. These bytes stay the same when rows are appended.
    """
    kind = kind or kind_of(path)
    if kind == "remote":
        return _remote_entry(path)
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        hashed = hashlib.blake2b(digest_size=16)
        if kind == "sampled":
            hashed.update(str(size).encode())
            for number in range(SAMPLED):
                file.seek(max(0, size - BLOCK) * number // (SAMPLED - 1))
                hashed.update(file.read(BLOCK))
            return _entry(path, kind, size, hashed)
        rows = _end_of_rows(file, size, closing=b"]" if path.lower().endswith(".json") else b"")
        file.seek(0)
        _feed(hashed, file, rows)
        digest_of_rows = hashed.hexdigest()
        _feed(hashed, file, size - rows)
        return _entry(path, kind, size, hashed) | {"rows": [rows, digest_of_rows]}


def changes(earlier: Mapping[str, Any], source: Files) -> list[str]:
    """Describe the differences from an earlier digest of a source; the result is empty if there are none.

    Args:
        earlier: earlier result of `digest_of`.
    """
    entries, paths = earlier["files"], [part.path for part in source.parts]
    differences = []
    for entry, path in zip(entries, paths, strict=False):
        now = digest_of_file(path, entry["kind"] if entry["kind"] != "remote" else kind_of(path))
        if now["kind"] != entry["kind"]:
            differences.append(f"{now['name']!r} was at a URL and is local now: only its size can be compared")
        elif now["digest"] != entry["digest"]:
            more = len(source) - earlier["samples"]
            if "rows" in entry and _begins_with(path, *entry["rows"]):
                rows = f"{more} row{'s' * (more != 1)}" if len(paths) == 1 else "rows"
                differences.append(f"{rows} appended behind the old ones of {now['name']!r}")
            else:
                differences.append(f"{now['name']!r} changed ({entry['bytes']:,} bytes before, {now['bytes']:,} now)")
    if more := paths[len(entries) :]:
        differences.append(f"{len(more)} file{'s' * (len(more) > 1)} appended: {_listed(map(_name, more))}")
    if fewer := entries[len(paths) :]:
        differences.append(f"{len(fewer)} file{'s' * (len(fewer) > 1)} missing: {_listed(e['name'] for e in fewer)}")
    return differences


def _entry(path: str, kind: Kind, size: int, hashed: Any) -> dict[str, Any]:
    return {"name": _name(path), "kind": kind, "bytes": size, "digest": hashed.hexdigest()}


def _remote_entry(path: str) -> dict[str, Any]:
    from fsspec.core import url_to_fs

    system, inside = url_to_fs(path)
    info = system.info(inside)
    size, tag = int(info["size"]), info.get("ETag") or info.get("etag") or ""
    hashed = hashlib.blake2b(repr((size, tag)).encode(), digest_size=16)
    if not tag:
        hashed.update(system.cat_file(inside, start=0, end=BLOCK))
        hashed.update(system.cat_file(inside, start=max(0, size - BLOCK), end=size))
    return _entry(path, "remote", size, hashed)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _end_of_rows(file: Any, size: int, closing: bytes) -> int:
    """Count the bytes of an annotation file before the white space and the bracket at its end."""
    start = max(0, size - TAIL)
    file.seek(start)
    tail = file.read(TAIL).rstrip()
    if closing and tail.endswith(closing):
        tail = tail[:-1].rstrip()
    return start + len(tail)


def _feed(hashed: Any, file: Any, size: int) -> None:
    while size > 0 and (block := file.read(min(size, CHUNK))):
        hashed.update(block)
        size -= len(block)


def _begins_with(path: str, size: int, digest: str) -> bool:
    """Return True if the first `size` bytes of a file have this digest."""
    hashed = hashlib.blake2b(digest_size=16)
    with open_file(path) as file:
        _feed(hashed, file, size)
    return hashed.hexdigest() == digest


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
