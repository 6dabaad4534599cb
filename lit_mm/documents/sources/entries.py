"""The entries of a data file, whatever it is called: JSON, one value a line, or a table; packed or not."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lit_mm.documents.sources.arrow import ArrowRows
from lit_mm.documents.sources.csv_rows import CsvRows
from lit_mm.documents.sources.json_files import JsonLines, JsonList, holds_list
from lit_mm.documents.sources.packed import ENDINGS, unpack
from lit_mm.documents.sources.parquet import LIMIT_GROUP, ParquetRows
from lit_mm.documents.sources.part import Part, digest_of
from lit_mm.documents.sources.paths import name_of
from lit_mm.documents.sources.storage import open_file
from lit_mm.errors import UserError

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TABLE_ENDINGS = (".csv", ".parquet", ".arrow")
PARQUET = b"PAR1"
WIDE = (b"\xff\xfe", b"\xfe\xff", b"\x00")  # beginnings of UTF-16 and UTF-32


def open_entries(path: str, expected: str, columns: Sequence[str] = (), limit_group: int = LIMIT_GROUP) -> Part:
    """The file's entries. Its beginning decides where it is not what its ending says.

    A .jsonl that holds one list is read as one, a .json with one object a line as lines. A packed file is unpacked into
    the cache folder once, see `lit_mm.documents.sources.packed`.

    Args:
        columns: columns of a table that are read, all of them required; none for all that it has.
        limit_group: of a parquet, see `ParquetRows`.
    Raises:
        UserError: another kind of file, text that is not UTF-8, or as `Part`.
    """
    ending = _ending(path)
    if ending not in (*JSON_ENDINGS, *TABLE_ENDINGS):
        raise UserError(
            f"the data file {path!r} ends in {ending or 'nothing'!r}; this format is read from "
            f"{[*JSON_ENDINGS, *TABLE_ENDINGS]}, each also packed ({', '.join(ENDINGS)})"
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
    if ending == ".csv":
        return CsvRows(path, expected, unpacked)
    if holds_list(unpacked or path, is_json=ending == ".json"):
        return JsonList(path, expected, unpacked)
    return JsonLines(path, expected, unpacked)


def _ending(path: str) -> str:
    """The ending of a file's name in lower case, that of a packed file left out."""
    stem, ending = os.path.splitext(name_of(path).partition("?")[0].lower())
    return os.path.splitext(stem)[1] if ending in ENDINGS else ending
