"""Folders of pictures with one file of questions, answers or captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_mm.documents.document import Turn
from lit_mm.documents.printable import brief
from lit_mm.documents.sources.blobs import Blob
from lit_mm.documents.sources.cells import cells_in
from lit_mm.documents.sources.entries import open_entries
from lit_mm.documents.sources.forms import format_of
from lit_mm.documents.sources.keys import check_keys
from lit_mm.documents.sources.parquet import LIMIT_GROUP
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.paths import expand_home, join
from lit_mm.documents.sources.picture import LIMIT_PIXELS, SourcePicture
from lit_mm.documents.sources.placeholders import check_placeholders
from lit_mm.documents.sources.sample import Sample
from lit_mm.documents.sources.source import Source
from lit_mm.documents.sources.storage import stamp

FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # those of Hugging Face's image folders
READ = ("image", "images", "file_name", "file_names")  # keys of pictures
CAPTIONS = ("caption", "text")  # keys of captions, the second Hugging Face's


class PictureFolder(Source):
    """Reads a folder's list of `{"image": ..., "question": text, "answer": text}` or `{"image": ..., "caption": text}`.

    `image` or `images` holds paths relative to the folder and may be left out. In Hugging Face's image folders
    `file_name` names the picture, and `text` is its caption. Pictures stand in front of the question. A question
    becomes a conversation of two turns, and a caption becomes a page. The key `id` is optional.

    Args:
        path: path or URL of the folder.
        file: name of the file in the folder that lists the pictures; None for the first of metadata.jsonl, .csv and
            .parquet that exists.
        name, limit_pixels: see `Source`.
        limit_group: largest number of bytes of a row group of a parquet, see `ParquetRows`.
        places: see `Source`.
    """

    expected = "line"

    def __init__(
        self,
        path: str,
        file: str | None = None,
        name: str | None = None,
        limit_pixels: int = LIMIT_PIXELS,
        limit_group: int = LIMIT_GROUP,
        places: str | None = None,
    ) -> None:
        self.limit_group = limit_group
        folder = expand_home(path).rstrip("/")
        files = [join(folder, choice) for choice in (FILES if file is None else (file,))]
        data_file = next((choice for choice in files if len(files) == 1 or stamp(choice) is not None), files[0])
        super().__init__(data_file, folder, name or folder.rpartition("/")[2], limit_pixels, places)

    def open_part(self, path: str) -> Part:
        return open_entries(path, self.expected, limit_group=self.limit_group)

    def blobs(self, sample: Sample) -> list[Blob]:
        entry = self._entry(sample)
        filled = [key for key in READ if entry.get(key)]
        if len(filled) > 1:
            raise sample.error(f"has `{filled[0]}` and `{filled[1]}`", "bad_entry", "Keep one of them")
        check_keys(sample, READ, has_pictures=bool(filled))
        question = entry.get("question")
        if isinstance(question, str):
            check_placeholders(
                sample, [("user", question)], placeholder="", format_name="folder", has_media=bool(filled)
            )
        return [self.blob(cell, sample) for key in filled for cell in cells_in(entry[key])]

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture | None]) -> tuple[Turn, ...]:
        entry = self._entry(sample)
        caption = next((key for key in CAPTIONS if entry.get(key) is not None), None)
        if caption is not None:
            return (Turn("page", (*pictures, self._text(caption, sample))),)
        question, answer = self._text("question", sample), self._text("answer", sample)
        return (Turn("user", (*pictures, question)), Turn("assistant", (answer,)))

    @staticmethod
    def _entry(sample: Sample) -> Mapping:
        entry = sample.entry
        # A row of a table has all columns, and None where it has no value
        keys = ("question", *CAPTIONS)
        if not isinstance(entry, Mapping) or sum(entry.get(key) is not None for key in keys) != 1:
            guess = format_of(entry)
            raise sample.error(
                f"a line is an object with `question` and `answer`, or with `caption` or `text`, got {brief(entry)}",
                "bad_entry",
                "" if guess is None else f"Is its `format` {guess}?",
            )
        return entry

    @staticmethod
    def _text(key: str, sample: Sample) -> str:
        text = sample.field(key, str, f"`{key}` is a text")
        if not text.strip():
            raise sample.error(f"its {key} is empty", "empty_answer" if key != "question" else "bad_entry", "Write it")
        return text
