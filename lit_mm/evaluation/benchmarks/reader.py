"""The reader of benchmark files: rows of JSON, JSON lines, TSV, CSV or Parquet, or a folder per sub-task."""

from __future__ import annotations

import base64
import binascii
import csv
import glob
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_mm.documents.document import Picture
from lit_mm.documents.files import FilePicture
from lit_mm.documents.sources.blobs import BytesBlob
from lit_mm.documents.sources.boundary import Boundary
from lit_mm.documents.sources.picture import SourcePicture
from lit_mm.errors import UserError
from lit_mm.evaluation.benchmarks.question import LETTERS, Question

ABSENT = ("", "nan", "none")  # cells of tables that hold nothing, in lower case
REFERENCE = 64  # a cell shorter than this number of characters names the row that has the image
LONGEST_CELL = 1 << 30  # characters of a CSV cell; csv's default of 131072 is smaller than an image in base64
QUESTION_FILES = ("questions_answers_YN", "")  # folders of a sub-task with its text files
IMAGE_FILES = ("images", "")  # folders of a sub-task with its images
SUFFIXES = (".jpg", ".png")
Entry = dict[str, Any]


@dataclass(frozen=True)
class Join:
    """Rows of a second file that belong to a row of the first; they are its key "joined", a list.

    Attributes:
        file: path of the second file.
        key: key of the second file's rows.
        to: key of the first file's rows that has the same value.
        rows: path of the list of rows in the second file.
    """

    file: str
    key: str
    to: str
    rows: str = ""


@dataclass(frozen=True)
class Only:
    """A list of the keys of rows to read, in another file.

    Attributes:
        file: path of the file, JSON.
        key: path of the list in the file.
    """

    file: str
    key: str


@dataclass(frozen=True)
class Reader:
    """Where the parts of a question stand in the published files.

    Paths start from the folder of all benchmarks. A path of keys, such as "answers.answer", descends in mappings and
    collects over lists. A template, such as "val/{image_id:012d}.jpg", is filled from the row.

    Attributes:
        file: file of the rows; several Parquet files are named by a pattern with "*". The folder of the sub-tasks if
            `kind` is "folders".
        kind: "rows" reads one row per question; "folders" reads a folder per sub-task that has, per image, a text file
            with lines "question<TAB>answer".
        format: format of `file`; "" takes the ending of its name. A row has the name of its file, without ending, as
            "file".
        rows: path of the rows in a JSON file; the values of a mapping are rows that have their key as "key".
        join: second file whose rows belong to those of the first.
        only: list of the keys of rows to read, in its order.
        where: key -> value that a row must have, or list of values.
        once: True keeps the first row of every id.
        id: key or template of the id; "" numbers the rows from 0.
        image: template of the image's path; "" if the row holds the image itself.
        bytes: path of the image's bytes or base64 in a row, "" if it is a file. A short cell holds the id of another
            row that has the image.
        image_if: key that is empty in rows without an image, "" if all rows have one.
        only_with_image: True leaves out rows without an image.
        group: key or template of the image's name; "" takes `image`, and the digest of the image if the row holds it.
        question: key of the question; "" for a caption.
        references: path of the right answers; "" if they are not public.
        labels: value of `references` -> answer, for labels that are numbers.
        choices: path of the options, or a list of keys of one option each; absent options are left out.
        answer: "texts" if `references` are answers; "letters" if they are letters of options, "index" if numbers of
            options from 0.
        hint: key of a hint.
        ending: text at the end of every question of a sub-task's folder, which becomes the hint.
        ocr: path of the words in the image.
        subset: key of the sub-task.
        size: keys of height and width of the image, pixels, if the metric needs them.
        box: "corners" if `references` are x1, y1, x2, y2 in pixels, "sides" if they are x, y, width, height, "" if they
            are no box.
    """

    file: str
    kind: Literal["rows", "folders"] = "rows"
    format: Literal["json", "jsonl", "tsv", "csv", "parquet", ""] = ""
    rows: str = ""
    join: Join | None = None
    only: Only | None = None
    where: dict[str, Any] = field(default_factory=dict)
    once: bool = False
    id: str = ""
    image: str = ""
    bytes: str = ""
    image_if: str = ""
    only_with_image: bool = False
    group: str = ""
    question: str = ""
    references: str = ""
    labels: dict[Any, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    answer: Literal["texts", "letters", "index"] = "texts"
    hint: str = ""
    ending: str = ""
    ocr: str = ""
    subset: str = ""
    size: tuple[str, ...] = ()
    box: Literal["corners", "sides", ""] = ""

    def files(self) -> list[str]:
        """Return the files that are read, without images."""
        others = [part.file for part in (self.join, self.only) if part is not None]
        return list(dict.fromkeys([self.file, *others]))

    def layout(self) -> list[str]:
        """Return the paths that must exist, images included, as lines for people."""
        if self.kind == "folders":
            return [
                f"{self.file}/SUBTASK/[images/]NAME.jpg or .png",
                f"{self.file}/SUBTASK/[questions_answers_YN/]NAME.txt",
            ]
        return self.files() + ([self.image] if self.image else [])

    def digest(self, data: Path) -> str:
        """Compute the digest of all files except images."""
        checksum = hashlib.blake2b(digest_size=16)
        for name in self.files():
            for path in self._paths(data, name):
                for file in sorted(path.rglob("*.txt")) if path.is_dir() else [path]:
                    checksum.update(str(file.relative_to(data)).encode())
                    with file.open("rb") as stream:
                        checksum.update(hashlib.file_digest(stream, "sha256").digest())
        return checksum.hexdigest()

    def questions(self, data: Path, limit: int | None = None) -> list[Question]:
        """Read questions in the order of the files.

        Args:
            data: folder of all benchmarks.
            limit: number of questions; None for all.
        Raises:
            UserError: a file or an image is missing, a key is missing, or two questions have one id.
        """
        if self.kind == "folders":
            questions = self._from_folders(data)
        else:
            entries = self.entries(data)
            holders = {self._text(self.id, row): row for row in entries} if self.bytes and self.id else {}
            opened: dict[Path | str, Picture] = {}  # several questions may show one image
            questions = (self._question(row, number, data, holders, opened) for number, row in enumerate(entries))
        result: dict[str, Question] = {}
        for question in questions:
            if question.picture is None and self.only_with_image:
                continue
            if question.id in result:
                if self.once:
                    continue
                raise UserError(f"{data / self.file}: the id {question.id!r} occurs twice")
            result[question.id] = question
            if len(result) == limit:
                break
        if not result:
            raise UserError(f"{data / self.file} has no question that fits {dict(self.where) or 'the reader'}")
        return list(result.values())

    def entries(self, data: Path) -> list[Entry]:
        """Read the rows, with joined rows, and select them by `only` and `where`."""
        rows = [
            {"file": path.stem, **row}
            for path in self._paths(data, self.file)
            for row in read_rows(path, self.rows, self.format)
        ]
        if self.only is not None:
            (path,) = self._paths(data, self.only.file)
            by_key = {row["key"]: row for row in rows}
            rows = [by_key[str(key)] for key in find(read_json(path), self.only.key, str(path))]
        if self.join is not None:
            (path,) = self._paths(data, self.join.file)
            partners: dict[Any, list[Entry]] = defaultdict(list)
            for row in read_rows(path, self.join.rows):
                partners[find(row, self.join.key, str(path))].append(row)
            rows = [{**row, "joined": partners[find(row, self.join.to, self.file)]} for row in rows]
        return [row for row in rows if all(_fits(row.get(key), value) for key, value in self.where.items())]

    def _paths(self, data: Path, name: str) -> list[Path]:
        paths = [Path(path) for path in sorted(glob.glob(str(data / name)))] if "*" in name else [data / name]
        if not paths or not paths[0].exists():
            layout = "\n  ".join(self.layout())
            raise UserError(f"there is no {str(data / name)!r}. The layout under {str(data)!r} is:\n  {layout}")
        return paths

    def _question(
        self, row: Entry, number: int, data: Path, holders: Mapping[str, Entry], opened: dict[Path | str, Picture]
    ) -> Question:
        where = f"{data / self.file}, row {number}"
        id = self._text(self.id, row) if self.id else str(number)
        references = self._references(row, where)
        height, width = (int(find(row, key, where)) for key in self.size) if self.size else (0, 0)
        picture, name = self._picture(row, id, data, where, holders, opened)
        return Question(
            id=id,
            picture=picture,
            text=str(find(row, self.question, where)) if self.question else "",
            references=references,
            group=self._text(self.group or self.image, row) if self.group or self.image else name or id,
            subset=str(find(row, self.subset, where)) if self.subset else "",
            choices=self._choices(row, where),
            hint=_present(row.get(self.hint)) if self.hint else "",
            ocr=tuple(map(str, _listed(find(row, self.ocr, where)))) if self.ocr else (),
            size=(height, width),
            entry=row,
        )

    def _references(self, row: Entry, where: str) -> tuple[str, ...]:
        if not self.references:
            return ()
        values = _listed(find(row, self.references, where))
        if self.box:
            x, y, *rest = map(float, values)
            x2, y2 = rest if self.box == "corners" else (x + rest[0], y + rest[1])
            return (",".join(f"{value:g}" for value in (x, y, x2, y2)),)
        if self.labels:
            return tuple(self.labels[value] for value in values)
        if self.answer == "index":
            return tuple(LETTERS[int(value)] for value in values)
        return tuple(map(str, values))

    def _choices(self, row: Entry, where: str) -> tuple[str, ...]:
        if len(self.choices) == 1:
            return tuple(map(str, _listed(find(row, self.choices[0], where))))
        return tuple(text for key in self.choices if (text := _present(row.get(key))))

    def _picture(
        self,
        row: Entry,
        id: str,
        data: Path,
        where: str,
        holders: Mapping[str, Entry],
        opened: dict[Path | str, Picture],
    ) -> tuple[Picture | None, str]:
        """Open the image of a row. Rows with the same image share the picture.

        Returns:
            The picture, None for a row without one, and the digest of an image that the row holds, else "".
        """
        if self.image_if and not _present(row.get(self.image_if)):
            return None, ""
        if not self.bytes:
            path = data / self._text(self.image, row)
            if (refusal := Boundary().refusal(str(path), str(data))) is not None:
                raise UserError(f"{where}: {refusal[0]}")
            if path not in opened:
                if not path.is_file():
                    raise UserError(f"{where}: there is no image {str(path)!r}. The layout is {self.image!r}")
                opened[path] = FilePicture.open(path)
            return opened[path], ""
        cell = find(row, self.bytes, where)
        if isinstance(cell, str) and len(cell) < REFERENCE:
            if cell not in holders:
                raise UserError(f"{where}: the image is that of row {cell!r}, which does not exist")
            cell = find(holders[cell], self.bytes, where)
        picture = picture_in(cell, where, id)
        name = hashlib.blake2b(picture.blob.read(), digest_size=12).hexdigest()
        return opened.setdefault(name, picture), name

    def _text(self, template: str, row: Entry) -> str:
        if "{" not in template:
            return str(find(row, template, self.file))
        try:
            return template.format_map(row)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{self.file}: {template!r} cannot be filled from a row with {sorted(row)}") from error

    def _from_folders(self, data: Path) -> Iterator[Question]:
        (root,) = self._paths(data, self.file)
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            texts = next((files for name in QUESTION_FILES if (files := sorted((folder / name).glob("*.txt")))), [])
            for file in texts:
                images = [folder / name / (file.stem + suffix) for name in IMAGE_FILES for suffix in SUFFIXES]
                path = next((path for path in images if path.is_file()), None)
                if path is None:
                    raise UserError(f"{file} has no image; there is none of {[str(image) for image in images]}")
                for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
                    if not line.strip():
                        continue
                    question, tab, answer = line.rpartition("\t")
                    text = question.strip()
                    shortened = text.removesuffix(self.ending).strip()
                    if not tab:
                        raise UserError(f"{file}, line {number + 1}: expected question<TAB>answer, got {line!r}")
                    yield Question(
                        id=f"{folder.name}/{file.stem}/{number}",
                        picture=FilePicture.open(path),
                        text=shortened,
                        hint=self.ending if shortened != text else "",
                        references=(answer.strip(),),
                        group=f"{folder.name}/{file.stem}",
                        subset=folder.name,
                        entry={"image": path.name, "question": question, "answer": answer},
                    )


def picture_in(cell: Any, where: str, id: str) -> SourcePicture:
    """Open an image that stands in a row: bytes, base64, or a mapping with the key "bytes".

    Raises:
        UserError: it is none of these.
    """
    from lit_mm.documents.decode import read_header

    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if isinstance(content, str):
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise UserError(f"{where}: the base64 of the image is damaged ({error})") from error
    if not isinstance(content, bytes):
        raise UserError(f"{where}: an image is bytes or base64, got {type(cell).__name__}")
    height, width = read_header(content, name=where)
    return SourcePicture(BytesBlob(content, where, "image"), height, width, where, id)


def read_rows(path: Path, place: str, format: str = "") -> list[Entry]:
    """Read the rows of a file.

    Args:
        path: file to read.
        place: path of the rows in a JSON file.
        format: json, jsonl, tsv, csv or parquet; "" takes the ending of the name.
    Raises:
        UserError: the file cannot be parsed, or its format is another.
    """
    match format or path.suffix.removeprefix("."):
        case "json":
            rows = find(read_json(path), place, str(path))
            if isinstance(rows, Mapping):
                return [{"key": key, **row} for key, row in rows.items()]
            return list(rows)
        case "jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
        case "tsv" | "csv":
            csv.field_size_limit(LONGEST_CELL)
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))
        case "parquet":
            import pyarrow.parquet as parquet

            return parquet.read_table(path).to_pylist()
    raise UserError(f"{path}: rows are read from files with the endings .json, .jsonl, .tsv, .csv and .parquet")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: it is not JSON.
    """
    return _parsed(path.read_text(encoding="utf-8"), str(path))


def find(value: Any, place: str, where: str) -> Any:
    """Follow a path of keys; a list on the way gives the list of all values.

    Raises:
        UserError: a key is missing.
    """
    for number, key in enumerate(place.split(".") if place else ()):
        if isinstance(value, list):
            rest = ".".join(place.split(".")[number:])
            return [item for element in value for item in _listed(find(element, rest, where))]
        if not isinstance(value, Mapping) or key not in value:
            keys = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise UserError(f"{where}: there is no key {key!r} (of the path {place!r}), only {keys}")
        value = value[key]
    return value


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}). Was the download complete?") from error


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _present(value: Any) -> str:
    """Return the text of a cell, "" if it is absent."""
    text = "" if value is None else str(value)
    return "" if text.strip().lower() in ABSENT else text


def _fits(value: Any, expected: Any) -> bool:
    return value in expected if isinstance(expected, list) else value == expected
