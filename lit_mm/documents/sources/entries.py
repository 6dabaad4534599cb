"""Entries of a data file: a JSON list, one JSON value per line, or a table, compressed or not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from glob import escape, glob

from lit_mm.documents.sources.arrow import ArrowRows
from lit_mm.documents.sources.csv_rows import SEPARATORS, CsvRows
from lit_mm.documents.sources.json_files import layout_of
from lit_mm.documents.sources.packed import ENDINGS, unpack
from lit_mm.documents.sources.parquet import LIMIT_GROUP, ParquetRows
from lit_mm.documents.sources.part import Part, digest_of, missing
from lit_mm.documents.sources.paths import is_url, name_of
from lit_mm.documents.sources.storage import open_file
from lit_mm.errors import UserError

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".arrow")
PARQUET = b"PAR1"
DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")  # of `datasets`
SHARD = re.compile(r"(.*?)\d{4,}")  # a name with a long number, such as train-00000-of-00005.parquet
WIDE = (b"\xff\xfe", b"\xfe\xff", b"\x00")  # beginnings of UTF-16 and UTF-32


def open_entries(path: str, expected: str, columns: Sequence[str] = (), limit_group: int = LIMIT_GROUP) -> Part:
    """Open the entries of a file. If content and ending of the file disagree, the content decides.

    A .jsonl that holds one list is read as a list, a .json with one object per line is read as lines, and values that
    take several lines each are read one behind another. A compressed
    file is decompressed into the cache folder once, see `lit_mm.documents.sources.packed`.

    Args:
        columns: required columns of a table, the only ones that are read; an empty list reads all columns.
        limit_group: largest number of bytes of a row group of a parquet, see `ParquetRows`.
    Raises:
        UserError: the file is of another kind, or its text is not UTF-8; see also `Part`.
    """
    ending = _ending(path)
    if ending not in (*JSON_ENDINGS, *TABLE_ENDINGS):
        if not is_url(path) and not os.path.exists(path):
            raise missing(path)
        if not is_url(path) and os.path.isdir(path):
            raise UserError(f"{path!r} is a folder, but `path` is a data file. Name a file in it{_data_files(path)}")
        raise UserError(
            f"the data file {path!r} {f'ends in {ending!r}' if ending else 'has no ending that tells what it holds'}; "
            f"this format is read from {', '.join((*JSON_ENDINGS, *TABLE_ENDINGS))}, each also packed "
            f"(such as .json.gz, of {', '.join(ENDINGS)}). Name the file by what it holds"
        )
    digest_of(path)  # refuses a file that does not exist
    if ending == ".arrow":
        return ArrowRows(path, expected)
    unpacked = unpack(path)
    with open_file(unpacked or path) as file:
        beginning = file.read(4)
    if beginning == PARQUET or ending == ".parquet":
        return ParquetRows(path, expected, columns, limit_group, unpacked)
    if beginning.startswith(WIDE) or beginning[1:2] == b"\x00":
        raise UserError(f"the data file {path!r} is UTF-16 or UTF-32, and text is read as UTF-8: save it as UTF-8")
    if ending in SEPARATORS:
        return CsvRows(path, expected, unpacked, SEPARATORS[ending])
    return layout_of(unpacked or path, is_json=ending == ".json")(path, expected, unpacked)


def is_data_file(path: str) -> bool:
    """Return True if entries are read from files with this ending."""
    return _ending(path) in (*JSON_ENDINGS, *TABLE_ENDINGS)


def patterns(names: Iterable[str]) -> list[str]:
    """Shorten the names of shards to patterns: a-0000.json, a-0001.json, b.json -> a-*.json, b.json."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folder, base = os.path.split(name)
        shard = SHARD.match(base)
        pattern = name if shard is None else os.path.join(folder, f"{shard[1]}*{os.path.splitext(base)[1]}")
        groups.setdefault(pattern, []).append(name)
    return [pattern if len(members) > 1 else members[0] for pattern, members in groups.items()]


def _data_files(folder: str) -> str:
    """Return some data files of a folder, or else of the folders in it, for a message; "" if there are none."""
    for depth in ("*", "*/*"):
        paths = sorted(
            p for p in glob(f"{escape(folder)}/{depth}") if is_data_file(p) and name_of(p) not in DESCRIPTIONS
        )
        if names := patterns(os.path.relpath(path, folder) for path in paths):
            return f", such as {', '.join(map(repr, names[:3]))}"
    return ""


def _ending(path: str) -> str:
    """Return the ending of a file's name in lower case, without the ending of the compression."""
    stem, ending = os.path.splitext(name_of(path).partition("?")[0].lower())
    return os.path.splitext(stem)[1] if ending in ENDINGS else ending
