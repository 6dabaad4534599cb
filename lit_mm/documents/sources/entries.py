"""The entries of a data file, whatever it is called: JSON, one value a line, or a table; packed by gzip or not."""

from __future__ import annotations

import gzip
import os
import shutil
import uuid
import zlib
from collections.abc import Sequence

from lit_mm.documents.sources import cache
from lit_mm.documents.sources.arrow import ArrowRows
from lit_mm.documents.sources.csv_rows import CsvRows
from lit_mm.documents.sources.json_files import JsonLines, JsonList, holds_list
from lit_mm.documents.sources.parquet import LIMIT_GROUP, ParquetRows
from lit_mm.documents.sources.part import Part, digest_of
from lit_mm.documents.sources.paths import name_of
from lit_mm.documents.sources.storage import open_file
from lit_mm.errors import UserError

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TABLE_ENDINGS = (".csv", ".parquet", ".arrow")
GZIP, ZIP, PARQUET = b"\x1f\x8b", b"PK\x03\x04", b"PAR1"
WIDE = (b"\xff\xfe", b"\xfe\xff", b"\x00")  # beginnings of UTF-16 and UTF-32


def open_entries(path: str, expected: str, columns: Sequence[str] = (), limit_group: int = LIMIT_GROUP) -> Part:
    """The file's entries. Its beginning decides where it is not what its ending says.

    A .jsonl that holds one list is read as one, a .json with one object a line as lines; a file that gzip packed is
    unpacked into the cache folder once.

    Args:
        columns: columns of a table that are read, all of them required; none for all that it has.
        limit_group: of a parquet, see `ParquetRows`.
    Raises:
        UserError: another kind of file, text that is not UTF-8, or as `Part`.
    """
    name = name_of(path).partition("?")[0].lower()
    ending = os.path.splitext(name.removesuffix(".gz"))[1]
    if ending not in (*JSON_ENDINGS, *TABLE_ENDINGS):
        raise UserError(
            f"the data file {path!r} ends in {ending or 'nothing'!r}; this format is read from "
            f"{[*JSON_ENDINGS, *TABLE_ENDINGS]}, the text files also with .gz"
        )
    digest_of(path)  # refuses a file that does not exist
    with open_file(path) as file:
        beginning = file.read(4)
    if beginning == PARQUET or (ending == ".parquet" and beginning[:2] != GZIP):
        return ParquetRows(path, expected, columns, limit_group)
    if ending == ".arrow":
        return ArrowRows(path, expected)
    unpacked = _unpack(path) if beginning[:2] == GZIP else None
    if unpacked is not None:
        with open_file(unpacked) as file:
            beginning = file.read(4)
    if beginning == ZIP:
        raise UserError(f"the data file {path!r} is a zip archive: unpack it, and name the file that was in it")
    if beginning.startswith(WIDE) or beginning[1:2] == b"\x00":
        raise UserError(f"the data file {path!r} is UTF-16 or UTF-32, and text is read as UTF-8: save it as UTF-8")
    if ending == ".csv":
        return CsvRows(path, expected, unpacked)
    if holds_list(unpacked or path, is_json=ending == ".json"):
        return JsonList(path, expected, unpacked)
    return JsonLines(path, expected, unpacked)


def _unpack(path: str) -> str:
    """The content of a file that gzip packed, as a file of the cache folder that bears the name of the content.

    Raises:
        UserError: it is damaged, or the cache folder cannot be written.
    """
    target = cache.cache_folder() / "unpacked" / digest_of(path)
    if target.is_file():
        return str(target)
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_file(path) as packed, gzip.open(packed) as content, aside.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        os.replace(aside, target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"the data file {path!r} cannot be unpacked ({error}). Was it copied whole?") from error
    except OSError as error:
        raise cache.unwritable(error) from error
    finally:
        aside.unlink(missing_ok=True)
    return str(target)
