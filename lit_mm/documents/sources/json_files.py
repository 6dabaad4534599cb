"""JSON files, which hold one list of entries, or one entry per line."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from lit_mm.documents.printable import brief, printable
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.storage import mapped, open_file, read_range
from lit_mm.errors import UserError

BOM = b"\xef\xbb\xbf"
ENTRIES = ("conversations", "messages", "texts", "text_list", "images")  # keys of a file that holds a single entry
HEAD = 1 << 20  # bytes that show whether a file holds a list
NOT_UTF8 = "Save the file as UTF-8"
SCAN = 1 << 24  # bytes searched for line ends at a time
# Tokens of a JSON list that decide where its elements end
TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]|[^\s,:"{}\[\]]++|"', re.DOTALL)


class JsonPart(Part):
    """Reads JSON values as entries. The index has `spans` [N, 3]: start and size in bytes, and the first line."""

    def __len__(self) -> int:
        return len(self.index["spans"])

    def where(self, number: int) -> str:
        """Return file and line, and for one of several entries in a line the entry's number in the file, from 1."""
        lines = self.index["spans"][:, 2]
        line = int(lines[number])
        shared = any(0 <= other < len(lines) and lines[other] == line for other in (number - 1, number + 1))
        return f"{self.name}:{line}" + (f" (entry {number + 1})" if shared else "")

    def entry(self, number: int) -> Any:
        start, size, _ = (int(n) for n in self.index["spans"][number])
        text = read_range(self.file, start, size, self.digest)
        if len(text) < size:
            raise SampleError(
                f"the file ends inside this {self.expected}: it was cut after it was opened",
                where=self.where(number),
                kind="unreadable_shard",
                remedy="Replace it and start again",
            )
        try:
            return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object)
        except UnicodeDecodeError as error:
            raise self._malformed(number, f"is not UTF-8 at byte {error.start}", NOT_UTF8) from error
        except json.JSONDecodeError as error:
            raise self._malformed(number, f"is not JSON ({error.msg}, character {error.pos + 1})") from error
        except RecursionError as error:
            raise self._malformed(number, "is nested too deeply to be read") from error
        except DuplicateKey as error:
            raise SampleError(
                f"the {self.expected} has the key {error.key!r} twice",
                where=self.where(number),
                kind="duplicate_member",
                remedy="Keep one of them",
            ) from error
        except ValueError as error:  # Python refuses to read numbers of more than 4300 digits
            raise self._malformed(number, f"cannot be read ({error})") from error

    def _malformed(self, number: int, what: str, remedy: str = "Correct it, or leave it out") -> SampleError:
        return SampleError(
            f"the {self.expected} {what}",
            where=self.where(number),
            kind="malformed_json",
            remedy=remedy,
        )


class DuplicateKey(ValueError):
    """The error of an object that has a key twice. Python's reader would silently take the last value."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object from its pairs.

    Raises:
        DuplicateKey: a key appears twice.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        raise DuplicateKey(next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at])))
    return table


def line_ends(buffer: Any) -> np.ndarray:
    """Find the places [K] of the line feeds in a buffer."""
    places = [
        np.flatnonzero(np.frombuffer(buffer[start : start + SCAN], dtype=np.uint8) == ord("\n")) + start
        for start in range(0, len(buffer), SCAN)
    ]
    return np.concatenate([*places, np.zeros(0, dtype=np.int64)]).astype(np.int64)


class JsonLines(JsonPart):
    """Reads a .jsonl with one JSON value per line. Blank lines count as lines but not as entries."""

    def scan(self) -> dict[str, np.ndarray]:
        with mapped(self.file) as buffer:
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
    """Reads a .json that holds one list of entries, in one line or several."""

    depth = 1  # brackets around an entry

    def scan(self) -> dict[str, np.ndarray]:
        """Find the elements by their brackets alone. Each element is parsed when it is read.

        Raises:
            UserError: the file is not JSON, or not a list.
        """
        spans: list[tuple[int, int]] = []
        with mapped(self.file) as buffer:
            depth, start, stop = 0, 0, 0
            for token in TOKEN.finditer(buffer, len(BOM) if buffer[: len(BOM)] == BOM else 0):
                mark = buffer[token.start()]
                opens, closes = mark in b"[{", mark in b"]}"
                unclosed = token.end() - token.start() == 1 and mark == ord('"')
                if unclosed or depth < closes or (depth < self.depth and (stop or mark != ord("["))):
                    self._refuse(buffer)
                if depth == self.depth and not closes:
                    start = token.start()
                depth += opens - closes
                if depth == self.depth and not opens:
                    spans.append((start, token.end() - start))
                if depth == 0:
                    stop = token.end()
            rest = buffer[stop:] if stop else bytes(buffer)
            if depth or (self.depth and rest.strip()):
                self._refuse(buffer)
            table = np.array(spans, dtype=np.int64).reshape(-1, 2)
            lines = np.searchsorted(line_ends(buffer), table[:, 0]) + 1
        return {"spans": np.concatenate([table, lines[:, None]], axis=1)}

    def _refuse(self, buffer: Any) -> None:
        """Report what the file holds instead of a list.

        Raises:
            UserError: always.
        """
        try:
            value = json.loads(bytes(buffer).decode("utf-8-sig"))
        except RecursionError as error:
            raise UserError(f"{self.path!r} is not JSON that can be read: it is nested too deeply") from error
        except ValueError as error:
            raise UserError(
                f"{self.path!r} is not JSON ({error}). Expected one list, or a .jsonl with one object per line"
            ) from error
        lists = [key for key, content in value.items() if isinstance(content, list)] if isinstance(value, dict) else []
        rows = [key for key in lists if value[key] and isinstance(value[key][0], dict)]
        inside = ". A single entry stands in brackets too" if lists else ""
        if len(lists) == 1 and (lists[0] not in ENTRIES or (lists == rows == ["images"])):
            inside = f". Its key {lists[0]!r} holds a list: write that list alone"
        if {"images", "annotations"} <= set(lists):
            inside = ". It is of COCO's form, and one of its lists `images` and `annotations` is empty"
        elif "annotations" in rows and "caption" in value["annotations"][0]:
            inside = ". Its `annotations` name no files: write a row {image, caption} for each, `format: folder`"
        elif lists and lists[0] in ("questions", "annotations"):
            inside = ". It is of VQAv2's form: write a row {image, question, answer} for each, `format: folder`"
        elif len(rows) > 1 and not set(rows) & set(ENTRIES):
            inside = f". Its keys {', '.join(map(repr, rows))} hold lists: write each into a file of its own"
        elif isinstance(value, dict) and value and all(isinstance(content, dict) for content in value.values()):
            inside = ". Its values seem to be the entries: write them as a list, without their keys"
        raise UserError(
            f"{self.path!r} holds {type(value).__name__}, expected a list of {self.expected}s{printable(inside)}"
        )


class JsonValues(JsonList):
    """Reads JSON values one behind another, each in one line or several, such as `jq '.[]'` writes them."""

    depth = 0

    def _refuse(self, buffer: Any) -> None:
        raise UserError(
            f"{self.path!r} holds {self.expected}s one behind another, and a bracket or a quote in it is not closed. "
            "Was it copied whole?"
        )


class CocoAnnotations(JsonList):
    """Reads a .json of COCO's form, an object of lists: `images` have ids, which the `annotations` name.

    An entry is an annotation with the file name of its picture as `image`, such as {"image": ..., "caption": ...}. The
    index also has `images` [I, 3]: id, start and size in bytes of each image's object, sorted by id.

    Source: https://cocodataset.org/#format-data
    """

    def scan(self) -> dict[str, np.ndarray]:
        """Find the elements of both lists by their brackets. Each annotation is parsed when it is read.

        Raises:
            UserError: the file is not JSON of this form, or two images have one id.
        """
        spans: dict[bytes, list[tuple[int, int]]] = {b'"images"': [], b'"annotations"': []}
        with mapped(self.file) as buffer:
            depth, start, key = 0, 0, b""
            for token in TOKEN.finditer(buffer, len(BOM) if buffer[: len(BOM)] == BOM else 0):
                mark = buffer[token.start()]
                opens, closes = mark in b"[{", mark in b"]}"
                unclosed = token.end() - token.start() == 1 and mark == ord('"')
                if unclosed or depth < closes or (depth == 0 and (any(spans.values()) or mark != ord("{"))):
                    self._refuse(buffer)
                if depth == 2 and not closes:
                    start = token.start()
                if depth == 1 and not opens:  # a key, or a plain value behind one
                    key = b"" if key else token[0]
                depth += opens - closes
                if depth == 2 and not opens and key in spans:
                    spans[key].append((start, token.end() - start))
                if depth == 1 and closes:
                    key = b""
            if depth or not all(spans.values()):
                self._refuse(buffer)
            images = np.array(
                [(self._image(buffer[start : start + size])["id"], start, size) for start, size in spans[b'"images"']],
                dtype=np.int64,
            )
            images = images[np.argsort(images[:, 0], kind="stable")]
            repeated = images[1:, 0][np.diff(images[:, 0]) == 0]
            if len(repeated):
                raise UserError(f"two `images` of {self.path!r} have the id {repeated[0]}")
            table = np.array(spans[b'"annotations"'], dtype=np.int64)
            lines = np.searchsorted(line_ends(buffer), table[:, 0]) + 1
        return {"spans": np.concatenate([table, lines[:, None]], axis=1), "images": images}

    def _image(self, text: bytes) -> dict[str, Any]:
        """Parse an image of the list `images`.

        Raises:
            UserError: it is not JSON, or has no number `id` or no text `file_name`.
        """
        try:
            image = json.loads(text)
        except ValueError as error:
            raise UserError(f"an image of {self.path!r} is not JSON ({error})") from error
        kinds = {"id": int, "file_name": str}
        is_image = isinstance(image, dict) and all(isinstance(image.get(key), kind) for key, kind in kinds.items())
        if not is_image or abs(image["id"]) >= 2**63:
            raise UserError(
                f"each of the `images` of {self.path!r} has a number `id` and a text `file_name`, got {brief(image)}"
            )
        return image

    def entry(self, number: int) -> Any:
        annotation = super().entry(number)
        if not isinstance(annotation, dict):
            return annotation
        images, identity = self.index["images"], annotation.get("image_id")
        at = int(np.searchsorted(images[:, 0], identity)) if isinstance(identity, int) else len(images)
        if at == len(images) or images[at, 0] != identity:
            raise SampleError(
                f"the annotation's `image_id` {brief(identity)} is not among the `images` of the file",
                where=self.where(number),
                kind="bad_entry",
                remedy="Correct it, or leave the annotation out",
            )
        _, start, size = (int(n) for n in images[at])
        return {**annotation, "image": self._image(read_range(self.file, start, size, self.digest))["file_name"]}


def layout_of(path: str, *, is_json: bool) -> type[JsonPart]:
    """Return the class that reads a file. The content decides: a list, an entry per line, values in a row, or COCO's.

    Args:
        is_json: True if the file's ending is .json, False if it is .jsonl.
    """
    with open_file(path) as file:
        head = file.read(HEAD).removeprefix(BOM).lstrip()
    first, _, others = head.partition(b"\n")
    is_line = _is_value(first)
    rest = _behind_value(head) if head[:1] == b"{" and not is_line else None
    if rest is not None and (rest[:1] == "{" or (not rest and not is_json)):
        return JsonValues
    is_lines = bool(others.strip()) and is_line
    if is_json and head[:1] == b"{":
        return JsonLines if is_lines else CocoAnnotations
    if is_json:
        return JsonList
    is_list = head[:1] == b"[" and head[1:].lstrip()[:1] in (b"{", b"]") and not is_lines
    return JsonList if is_list else JsonLines


def _behind_value(head: bytes) -> str | None:
    """Return the text behind the first value of a file, without a comma between them; None if there is no value."""
    text = head.decode("utf-8", "replace")
    try:
        _, stop = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return text[stop:].lstrip(", \t\r\n")


def _is_value(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
