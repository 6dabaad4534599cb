"""The files of a source: entries by number, found through an index of byte offsets. Nothing parsed is kept."""

from __future__ import annotations

import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lit_mm.documents.sources import cache
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.storage import SpanBlob, is_url, mapped, name_of, open_file, read_range, stamp
from lit_mm.errors import UserError

BOM = b"\xef\xbb\xbf"
LIMIT_GROUP = 1 << 28  # bytes of a parquet's row group
SCAN = 1 << 24  # bytes searched for line ends at a time
# What the elements of a JSON list are made of, as far as finding their ends goes
TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]|[^\s,:"{}\[\]]++|"', re.DOTALL)


class Part(ABC):
    """One file of a source.

    Args:
        path: local path or URL.
        expected: what an entry is, for messages ("conversation").
    Raises:
        UserError: there is no such file, or it holds nothing.
    """

    def __init__(self, path: str, expected: str) -> None:
        self.path, self.name, self.expected = path, name_of(path), expected
        version = stamp(path)
        if version is None:
            raise UserError(f"there is no data file {path!r}. Correct the source's `path`")
        self.digest = version.digest
        self.index = self._open_index()
        if not len(self):
            raise UserError(f"the data set is empty: {path!r} holds no {expected}")

    def _open_index(self) -> dict[str, np.ndarray]:
        key = cache.key_of(type(self).__name__, self.digest)
        return cache.load(key) or cache.store(key, self.scan())

    @abstractmethod
    def scan(self) -> dict[str, np.ndarray]:
        """Find the entries: the arrays of the index."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def where(self, number: int) -> str:
        """File and place of an entry."""

    @abstractmethod
    def entry(self, number: int) -> Any:
        """Read and parse an entry.

        Raises:
            SampleError: it cannot be parsed.
        """


class JsonPart(Part):
    """One JSON value an entry. The index has `spans` [N, 3]: start and size in bytes, and the line it begins in."""

    def __len__(self) -> int:
        return len(self.index["spans"])

    def where(self, number: int) -> str:
        """File and line; of several entries in a line also which of the file's it is, from 1."""
        lines = self.index["spans"][:, 2]
        line = int(lines[number])
        shared = any(0 <= other < len(lines) and lines[other] == line for other in (number - 1, number + 1))
        return f"{self.name}:{line}" + (f" (entry {number + 1})" if shared else "")

    def entry(self, number: int) -> Any:
        start, size, _ = (int(n) for n in self.index["spans"][number])
        text = read_range(self.path, start, size, self.digest)
        if len(text) < size:
            raise SampleError(
                f"the file ends inside this {self.expected}: it was cut after it was opened",
                where=self.where(number),
                kind="unreadable_shard",
                remedy="Replace it and start again",
            )
        try:
            return json.loads(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise self._malformed(number, f"is not UTF-8 at byte {error.start}") from error
        except json.JSONDecodeError as error:
            raise self._malformed(number, f"is not JSON ({error.msg}, character {error.pos + 1})") from error
        except RecursionError as error:
            raise self._malformed(number, "is nested too deeply to be read") from error

    def _malformed(self, number: int, what: str) -> SampleError:
        return SampleError(
            f"the {self.expected} {what}",
            where=self.where(number),
            kind="malformed_json",
            remedy="Correct it, or leave it out",
        )


def line_ends(buffer: Any) -> np.ndarray:
    """[K] where the line feeds of a buffer stand."""
    places = [
        np.flatnonzero(np.frombuffer(buffer[start : start + SCAN], dtype=np.uint8) == ord("\n")) + start
        for start in range(0, len(buffer), SCAN)
    ]
    return np.concatenate([*places, np.zeros(0, dtype=np.int64)]).astype(np.int64)


class JsonLines(JsonPart):
    """A .jsonl: one JSON value a line; blank lines count as lines, not as entries."""

    def scan(self) -> dict[str, np.ndarray]:
        with mapped(self.path) as buffer:
            stops = np.concatenate([line_ends(buffer), [len(buffer)]]).astype(np.int64)
            starts = np.concatenate([[0], stops[:-1] + 1])
            if buffer[: len(BOM)] == BOM:
                starts[0] = len(BOM)
            sizes = stops - starts
            filled = sizes > 0
            for line in np.flatnonzero(filled & (sizes < 16)):  # no entry is so short: is it white space?
                filled[line] = bool(buffer[starts[line] : stops[line]].strip())
            spans = np.stack([starts, sizes, np.arange(1, len(starts) + 1)], axis=1)
        return {"spans": spans[filled]}


class JsonList(JsonPart):
    """A .json: one list of entries, in one line or in many."""

    def scan(self) -> dict[str, np.ndarray]:
        """Find the elements by their brackets alone; whether each is JSON shows when it is read.

        Raises:
            UserError: the file is not JSON, or not a list.
        """
        spans: list[tuple[int, int]] = []
        with mapped(self.path) as buffer:
            depth, start, stop = 0, 0, 0
            for token in TOKEN.finditer(buffer, len(BOM) if buffer[: len(BOM)] == BOM else 0):
                mark = buffer[token.start()]
                opens, closes = mark in b"[{", mark in b"]}"
                unclosed = token.end() - token.start() == 1 and mark == ord('"')
                if unclosed or (depth == 0 and (stop or mark != ord("["))):
                    self._refuse(buffer)
                if depth == 1 and not closes:
                    start = token.start()
                depth += opens - closes
                if depth == 1 and not opens:
                    spans.append((start, token.end() - start))
                if depth == 0:
                    stop = token.end()
            rest = buffer[stop:] if stop else bytes(buffer)
            if depth or rest.strip():
                self._refuse(buffer)
            table = np.array(spans, dtype=np.int64).reshape(-1, 2)
            lines = np.searchsorted(line_ends(buffer), table[:, 0]) + 1
        return {"spans": np.concatenate([table, lines[:, None]], axis=1)}

    def _refuse(self, buffer: Any) -> None:
        """Say what the file is, as it is no list."""
        try:
            value = json.loads(bytes(buffer).decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.path!r} is not JSON ({error}). One list, or one object a line in a .jsonl"
            ) from error
        raise UserError(f"{self.path!r} holds {type(value).__name__}, expected a list of {self.expected}s")


class ParquetRows(Part):
    """A .parquet: one row an entry, read by row group. The index has `ends` [G]: rows up to each group's end.

    Parquet has no access to a single row: for one, its row group is decoded (two are kept). A page at random out of a
    group of 300 MB takes 1.4 s and 900 MB of memory, out of one of 20 MB 0.04 s (measured). Reading a group as a stream
    would not help, as writers put a thousand rows into one data page. So large groups are refused.

    Args:
        columns: what is read; all of them must be there.
        limit_group: the most bytes that these columns may take in a row group.
    Raises:
        UserError: it is not parquet, lacks a column, or has a larger row group.
    """

    def __init__(self, path: str, expected: str, columns: Sequence[str], limit_group: int = LIMIT_GROUP) -> None:
        self.columns, self.limit_group = tuple(columns), limit_group
        super().__init__(path, expected)

    def _open_index(self) -> dict[str, np.ndarray]:
        return self.scan()  # the file's own footer is the index

    def scan(self) -> dict[str, np.ndarray]:
        metadata = _parquet(self.path, self.digest, os.getpid()).metadata
        names = _parquet(self.path, self.digest, os.getpid()).schema_arrow.names
        missing = [column for column in self.columns if column not in names]
        if missing:
            raise UserError(f"{self.path!r} has no columns {missing}; it has {names}. Is its `format` another one?")
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        for number, group in enumerate(groups):
            chunks = [group.column(at) for at in range(group.num_columns)]
            size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in self.columns)
            if size > self.limit_group:
                raise UserError(
                    f"row group {number} of {self.path!r} has {group.num_rows} rows in {size / 1e6:.0f} MB, and all of "
                    f"it is read for any one {self.expected}; at most {self.limit_group / 1e6:.0f} MB are. Write the "
                    "file anew with small groups (pyarrow.parquet.write_table(..., row_group_size=100)), or raise "
                    "`limit_group`"
                )
        return {"ends": np.cumsum(np.array([group.num_rows for group in groups], dtype=np.int64))}

    def __len__(self) -> int:
        return int(self.index["ends"][-1]) if len(self.index["ends"]) else 0

    def where(self, number: int) -> str:
        return f"{self.name}:row {number + 1}"

    def entry(self, number: int) -> dict[str, Any]:
        group, row = self._place(number)
        import pyarrow as pa

        try:
            table = _row_group(self.path, self.digest, os.getpid(), group, self.columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise SampleError(
                f"row group {group} cannot be read ({str(error).splitlines()[0]})",
                where=self.where(number),
                kind="unreadable_shard",
                remedy="Replace the file",
            ) from error
        return {column: table.column(column)[row].as_py() for column in self.columns}

    def _place(self, number: int) -> tuple[int, int]:
        """Row group, and row inside it."""
        ends = self.index["ends"]
        group = int(np.searchsorted(ends, number, side="right"))
        return group, number - (int(ends[group - 1]) if group else 0)


# The process's id keeps a forked worker from sharing a file position or arrow's threads with its parent
@lru_cache(maxsize=32)
def _parquet(path: str, digest: str, process: int) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(open_file(path) if is_url(path) else path, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path!r} is not a parquet file that can be read ({str(error).splitlines()[0]})") from error


@lru_cache(maxsize=2)  # a row group may hold a thousand pages with their pictures
def _row_group(path: str, digest: str, process: int, group: int, columns: tuple[str, ...]) -> Any:
    return _parquet(path, digest, process).read_row_group(group, columns=list(columns), use_threads=False)


class TarPart(Part):
    """A .tar in WebDataset's form: neighbouring files of one key (the name up to its first dot) are an entry.

    The index has `members` [M, 2] (start and size in bytes), `firsts` [N + 1] (the first member of each entry, and M),
    `names` (all members' names, end to end) and `ends` [M]. An entry is ending -> span.

    Source: the WebDataset format: members of a key are adjacent, directories belong to the key.
    """

    def scan(self) -> dict[str, np.ndarray]:
        members: list[tuple[int, int]] = []
        firsts: list[int] = []
        names: list[bytes] = []
        before: str | None = None
        try:
            with open_file(self.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # it would keep them all
                    if not member.isfile() or name_of(member.name).startswith("."):
                        continue
                    key = split_member(member.name)[0]
                    if key != before:
                        firsts.append(len(members))
                        before = key
                    members.append((member.offset_data, member.size))
                    names.append(member.name.encode("utf-8", "surrogateescape"))
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"{self.path!r} is not a tar that can be read ({error}). Compressed shards have no random access: "
                "unpack a .tar.gz to a .tar"
            ) from error
        return {
            "members": np.array(members, dtype=np.int64).reshape(-1, 2),
            "firsts": np.array([*firsts, len(members)], dtype=np.int64),
            "names": np.frombuffer(b"".join(names), dtype=np.uint8),
            "ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        }

    def __len__(self) -> int:
        return len(self.index["firsts"]) - 1

    def key(self, number: int) -> str:
        return split_member(self._name(int(self.index["firsts"][number])))[0]

    def where(self, number: int) -> str:
        return f"{self.name}:{self.key(number)}"

    def entry(self, number: int) -> dict[str, SpanBlob]:
        first, stop = (int(n) for n in self.index["firsts"][number : number + 2])
        blobs = {}
        for place in range(first, stop):
            start, size = (int(n) for n in self.index["members"][place])
            name = self._name(place)
            blobs[split_member(name)[1]] = SpanBlob(self.path, start, size, name, self.digest)
        return blobs

    def _name(self, place: int) -> str:
        ends = self.index["ends"]
        start = int(ends[place - 1]) if place else 0
        return self.index["names"][start : int(ends[place])].tobytes().decode("utf-8", "surrogateescape")


def split_member(name: str) -> tuple[str, str]:
    """Key and ending (lower case) of a member: "a/0017.seg.PNG" -> ("a/0017", "seg.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


READERS: Mapping[str, Callable[[str, str], Part]] = {".jsonl": JsonLines, ".json": JsonList}


def open_entries(path: str, expected: str, columns: Sequence[str] = (), limit_group: int = LIMIT_GROUP) -> Part:
    """The file's entries, read as its ending says: .jsonl, .json, or .parquet where `columns` are given.

    Args:
        limit_group: of a .parquet, see `ParquetRows`.

    Raises:
        UserError: another ending, or as `Part`.
    """
    ending = os.path.splitext(name_of(path))[1].lower()
    if ending == ".parquet" and columns:
        return ParquetRows(path, expected, columns, limit_group)
    if ending not in READERS:
        endings = [*READERS, *([".parquet"] if columns else [])]
        raise UserError(f"the data file {path!r} ends in {ending or 'nothing'!r}; this format is read from {endings}")
    return READERS[ending](path, expected)
