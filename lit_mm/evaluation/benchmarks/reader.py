"""The reader of benchmark files: rows of JSON, JSON lines, TSV, CSV or Parquet, or a folder per sub-task."""

from __future__ import annotations

import base64
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

    def check(self, where: str) -> None:
        """Refuse keys that contradict each other.

        Args:
            where: place of the reader in errors, such as "textvqa.yaml: reader of val".
        Raises:
            UserError: rows have neither a file nor bytes of an image, a letter has no options, or a size has not two
                keys.
        """
        if self.kind == "rows" and not self.image and not self.bytes:
            raise UserError(f"{where}: a row needs `image` or `bytes` for its image, got neither")
        if self.answer != "texts" and not self.choices:
            raise UserError(f"{where}: the {self.answer} of `answer` need `choices`, the options of a question")
        if len(self.size) not in (0, 2):
            raise UserError(f"{where}: `size` has the keys of height and width, got {list(self.size)}")

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
            self._check_present(entries, data)
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
            by_key = {str(find(row, "key", self.file)): row for row in rows}
            keys = [str(key) for key in _listed(find(read_json(path), self.only.key, str(path)))]
            if absent := [key for key in keys if key not in by_key]:
                raise UserError(f"{path} lists the key {absent[0]!r}, which {str(data / self.file)!r} does not have")
            rows = [by_key[key] for key in keys]
        if self.join is not None:
            (path,) = self._paths(data, self.join.file)
            partners: dict[Any, list[Entry]] = defaultdict(list)
            for row in read_rows(path, self.join.rows):
                partners[_plain(find(row, self.join.key, str(path)), f"{path}: {self.join.key}")].append(row)
            rows = [
                {**row, "joined": partners[_plain(find(row, self.join.to, self.file), f"{self.file}: {self.join.to}")]}
                for row in rows
            ]
        return [row for row in rows if all(_fits(row.get(key), value) for key, value in self.where.items())]

    def _paths(self, data: Path, name: str) -> list[Path]:
        paths = [Path(path) for path in sorted(glob.glob(str(data / name)))] if "*" in name else [data / name]
        if not paths or not (paths[0].is_dir() if self.kind == "folders" else paths[0].is_file()):
            layout = "\n  ".join(self.layout())
            raise UserError(f"there is no {str(data / name)!r}. The layout under {str(data)!r} is:\n  {layout}")
        return paths

    def _question(
        self, row: Entry, number: int, data: Path, holders: Mapping[str, Entry], opened: dict[Path | str, Picture]
    ) -> Question:
        where = f"{data / self.file}, row {number}"
        id = self._text(self.id, row) if self.id else str(number)
        choices = self._choices(row, where)
        references = self._references(row, choices, where)
        height, width = [_whole(find(row, key, where), f"{where}: {key!r}", 1) for key in self.size] or (0, 0)
        picture, name = self._picture(row, id, data, where, holders, opened)
        return Question(
            id=id,
            picture=picture,
            text=_text_of(find(row, self.question, where), f"{where}: the question {self.question!r}")
            if self.question
            else "",
            references=references,
            group=self._text(self.group or self.image, row) if self.group or self.image else name or id,
            subset=str(find(row, self.subset, where)) if self.subset else "",
            choices=choices,
            hint=_present(row.get(self.hint)) if self.hint else "",
            ocr=tuple(map(str, _listed(find(row, self.ocr, where)))) if self.ocr else (),
            size=(height, width),
            entry=row,
        )

    def _check_present(self, entries: Sequence[Entry], data: Path) -> None:
        """Refuse a key that may be absent in a row if no row has it: it is misspelt."""
        optional = {"image_if": self.image_if, "hint": self.hint}
        if len(self.choices) > 1:
            optional["choices"] = self.choices[0]
        for name, key in optional.items():
            if key and entries and not any(key in row for row in entries):
                raise UserError(f"{data / self.file}: no row has the key {key!r} of `{name}`, only {_keys(entries[0])}")

    def _references(self, row: Entry, choices: Sequence[str], where: str) -> tuple[str, ...]:
        if not self.references:
            return ()
        values = _listed(find(row, self.references, where))
        place = f"{where}: {self.references!r}"
        if all(value is None or value == "" for value in values):
            raise UserError(
                f"{place} has no answer, got {values!r}. Leave the row out; if the answers are not public, leave "
                "out `references`"
            )
        if self.box:
            return (_box(values, self.box, place),)
        if self.labels:
            return tuple(self._label(value, place) for value in values)
        if self.answer == "index":
            return tuple(LETTERS[_whole(value, place, 0, len(choices) - 1)] for value in values)
        if self.answer == "letters":
            letters = LETTERS[: len(choices)]
            if wrong := [value for value in values if not isinstance(value, str) or value not in tuple(letters)]:
                raise UserError(f"{place} is one of the letters {', '.join(letters)}, got {wrong[0]!r}")
        return tuple(_text_of(value, place) for value in values)

    def _label(self, value: Any, place: str) -> str:
        if isinstance(value, str | int | float) and value in self.labels:
            return self.labels[value]
        hint = ". Quote the labels, as the file has texts" if isinstance(value, str) else ""
        raise UserError(f"{place} is one of the `labels` {list(self.labels)}, got {value!r}{hint}")

    def _choices(self, row: Entry, where: str) -> tuple[str, ...]:
        if not self.choices:
            return ()
        place = f"{where}: the options {', '.join(self.choices)}"
        if len(self.choices) > 1:
            cells = [_option(row.get(key)) for key in self.choices]
            choices = tuple(filter(None, cells))
            if any(cells[len(choices) :]):
                raise UserError(f"{place} have a gap, which would change the letters: {cells}")
        else:
            listed = find(row, self.choices[0], where)
            if isinstance(listed, Mapping) and "".join(map(str, listed)) == LETTERS[: len(listed)]:
                listed = list(listed.values())  # {A: text, B: text}
            if not isinstance(listed, list | tuple):
                raise UserError(f"{place} are a list of texts, or texts by letters from A, got {str(listed)[:80]!r}")
            choices = tuple(_text_of(option, place) for option in listed)
        if not 2 <= len(choices) <= len(LETTERS):
            raise UserError(f"{place} are 2 to {len(LETTERS)} texts, got {len(choices)}")
        return choices

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
            raise UserError(f"{self.file}: {template!r} cannot be filled from a row with {_keys(row)}") from error

    def _from_folders(self, data: Path) -> Iterator[Question]:
        (root,) = self._paths(data, self.file)
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            texts = next((files for name in QUESTION_FILES if (files := sorted((folder / name).glob("*.txt")))), [])
            for file in texts:
                images = [folder / name / (file.stem + suffix) for name in IMAGE_FILES for suffix in SUFFIXES]
                path = next((path for path in images if path.is_file()), None)
                if path is None:
                    raise UserError(f"{file} has no image; there is none of {[str(image) for image in images]}")
                for number, line in enumerate(read_text(file).split("\n")):
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
        except ValueError as error:  # binascii.Error, or a letter beyond ASCII
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
    kind = format or path.suffix.removeprefix(".")
    match kind:
        case "json":
            content = read_json(path)
            rows = find(content, place, str(path))
            if isinstance(rows, Mapping) and all(isinstance(row, Mapping) for row in rows.values()):
                rows = [{"key": key, **row} for key, row in rows.items()]
            if not isinstance(rows, list):
                keys = f", only the keys {_keys(content)}" if isinstance(content, Mapping) else ""
                raise UserError(
                    f"{path}: there is no list of rows at {place or 'the top'!r}{keys}. `rows` is the path of the list"
                )
        case "jsonl":
            lines = read_text(path).split("\n")  # texts of JSON may hold other line breaks, such as U+2028
            rows = [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
        case "tsv" | "csv":
            rows = _read_table(path, "," if kind == "csv" else "\t")
        case "parquet":
            import pyarrow.parquet as parquet

            try:
                rows = parquet.read_table(path).to_pylist()
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is no Parquet file ({error}). Was the download complete?") from error
        case _:
            raise UserError(f"{path}: rows are read from files with the endings .json, .jsonl, .tsv, .csv and .parquet")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{path}, row {number}: a row has keys, such as {{question: ...}}, got {str(row)[:80]!r}")
    return rows


def _read_table(path: Path, delimiter: str) -> list[Entry]:
    """Read a table whose first line has the keys; every cell is a text, and absent last cells are None."""
    csv.field_size_limit(LONGEST_CELL)
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter=delimiter):
                if None in row:
                    raise UserError(f"{path}, row {len(rows)}: more cells than keys, which are {_keys(row)}")
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}, row {len(rows)} cannot be read ({error}). Is it a table in UTF-8?") from error
    return rows


def read_text(path: Path) -> str:
    """Read a text in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8 ({error}). Convert it") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: it is not JSON in UTF-8.
    """
    return _parsed(read_text(path), str(path))


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
            keys = _keys(value) if isinstance(value, Mapping) else type(value).__name__
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


def _option(value: Any) -> str:
    """Return the text of an option, "" if it is absent. "None" may be an option."""
    return "" if value is None or value != value else str(value).strip()


def _fits(value: Any, expected: Any) -> bool:
    return value in expected if isinstance(expected, list) else value == expected


def _keys(row: Mapping[Any, Any]) -> list[str]:
    return sorted(str(key) for key in row if key is not None)


def _plain(value: Any, where: str) -> Any:
    """Return a value that identifies a row."""
    if not isinstance(value, str | int | float):
        raise UserError(f"{where} is a text or a number that identifies a row, got {str(value)[:80]!r}")
    return value


def _text_of(value: Any, where: str) -> str:
    """Return a text or a number as a text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        hint = ""
        if isinstance(value, Mapping):
            hint = f". A path such as KEY.{next(iter(value), 'KEY')} descends into it"
        elif isinstance(value, bool):
            hint = '. `labels` gives it a text, such as {true: "yes", false: "no"}'
        raise UserError(f"{where} is a text or a number, got {str(value)[:80]!r}{hint}")
    return str(value)


def _whole(value: Any, where: str, low: int, high: int | None = None) -> int:
    """Return a whole number, or a text of one, between two bounds."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    is_whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
    if isinstance(value, bool) or not is_whole or number < low or (high is not None and number > high):
        bound = f"from {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{where} is a whole number {bound}, got {value!r}")
    return int(number)


def _box(values: Sequence[Any], kind: str, where: str) -> str:
    """Return "x1,y1,x2,y2" of four numbers: two corners, or a corner and two sides."""
    try:
        x, y, x2, y2 = map(float, values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is a box of four numbers, got {values!r}") from error
    if kind == "sides":
        x2, y2 = x + x2, y + y2
    return ",".join(f"{value:g}" for value in (x, y, x2, y2))
