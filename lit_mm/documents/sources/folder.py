"""Folders of pictures with one file of questions, answers or captions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from lit_mm.documents.document import Turn
from lit_mm.documents.printable import brief
from lit_mm.documents.sources.blobs import Blob
from lit_mm.documents.sources.cells import cells_in
from lit_mm.documents.sources.entries import is_data_file, open_entries, patterns
from lit_mm.documents.sources.forms import format_of
from lit_mm.documents.sources.keys import check_keys
from lit_mm.documents.sources.parquet import LIMIT_GROUP
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.paths import expand_home, folder_of, is_url, join, name_of
from lit_mm.documents.sources.picture import LIMIT_PIXELS, SourcePicture
from lit_mm.documents.sources.placeholders import check_placeholders
from lit_mm.documents.sources.sample import Sample
from lit_mm.documents.sources.source import Source
from lit_mm.documents.sources.storage import stamp
from lit_mm.errors import UserError

FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # those of Hugging Face's image folders
READ = ("image", "images", "file_name", "file_names")  # keys of pictures
CAPTIONS = ("caption", "text")  # keys of captions, the second Hugging Face's


class PictureFolder(Source):
    """Reads a folder's list of `{"image": ..., "question": text, "answer": text}` or `{"image": ..., "caption": text}`.

    `image` or `images` holds paths relative to the folder and may be left out. In Hugging Face's image folders
    `file_name` names the picture, and `text` is its caption. Pictures stand in front of the question. A question
    becomes a conversation of two turns, and a caption becomes a page. The key `id` is optional. A list of one text is
    that text. A .json of COCO's form has an entry for each of its `annotations`.

    Args:
        path: path or URL of the folder, or of the file in it that lists the pictures, such as pictures/captions.csv.
        file: name of the file in the folder that lists the pictures; None for the first of metadata.jsonl, .csv and
            .parquet that exists.
        name, limit_pixels: see `Source`.
        limit_group: largest number of bytes of a row group of a parquet, see `ParquetRows`.
        places: see `Source`.
        images: folder or URL that the names of pictures start from; None for the folder of `path`. The list may then
            lie elsewhere, such as COCO's captions_val2017.json.
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
        images: str | None = None,
    ) -> None:
        self.limit_group = limit_group
        folder = expand_home(path).rstrip("/")
        is_file = os.path.isfile(folder) or (is_data_file(folder) and (is_url(folder) or not os.path.isdir(folder)))
        if file is None and is_file:
            file = name_of(folder)
            name, folder = name or file.partition(".")[0].strip("*-_"), folder_of(folder)
        files = [join(folder, choice) for choice in (FILES if file is None else (file,))]
        data_file = next((choice for choice in files if len(files) == 1 or stamp(choice) is not None), files[0])
        if file is None and not is_url(folder) and not os.path.isfile(data_file):
            raise _without_list(folder)
        pictures = folder if images is None else images
        super().__init__(data_file, pictures, name or folder.rpartition("/")[2], limit_pixels, places)

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
        keys = [key for key in ("question", *CAPTIONS) if isinstance(entry, Mapping) and entry.get(key) is not None]
        if len(keys) != 1:
            guess = format_of(entry)
            raise sample.error(
                f"a line is an object with `question` and `answer`, or with `caption` or `text`, got {brief(entry)}",
                "bad_entry",
                f"Keep one of {' and '.join(f'`{key}`' for key in keys)}"
                if keys
                else "Rename the key that holds the text"
                if guess is None
                else f"Is its `format` {guess}?",
            )
        return entry

    @staticmethod
    def _text(key: str, sample: Sample) -> str:
        texts = sample.entry.get(key)
        if isinstance(texts, list) and len(texts) == 1 and isinstance(texts[0], str):
            text = texts[0]
        else:
            text = sample.field(key, str, f"`{key}` is a text")
        if not text.strip():
            raise sample.error(f"its {key} is empty", "empty_answer" if key != "question" else "bad_entry", "Write it")
        return text


def _without_list(folder: str) -> UserError:
    """Return the error of a folder without a file that lists its pictures."""
    if not os.path.isdir(folder):
        return UserError(f"there is no folder {folder!r}. Correct the source's `path`")
    names = sorted(os.listdir(folder))
    lists = patterns(name for name in names if is_data_file(name))
    below = next(
        (name for name in names if any(os.path.isfile(join(join(folder, name), file)) for file in FILES)), None
    )
    stems = {name.partition(".")[0] for name in names if name.endswith(".txt")}
    if lists:
        advice = f"If {lists[0]!r} does, name it: `file: {lists[0]}`"
    elif below is not None:
        advice = f"Its folder {below!r} has one: `path: {join(folder, below)}`"
    elif any(name.endswith(".tar") for name in names):
        advice = f"Pairs of an image and a text in shards are of `format: captions`, `path: {join(folder, '*.tar')}`"
    elif any(name.partition(".")[0] in stems for name in names if not name.endswith(".txt")):
        advice = (
            "Pairs of an image and a .txt are read from a tar: `tar --sort=name -cf pairs.tar *`, `format: captions`"
        )
    else:
        advice = 'Write one, such as a metadata.jsonl with a line {"file_name": ..., "text": ...} for each picture'
    return UserError(f"the folder {folder!r} has none of {', '.join(FILES)}, which list its pictures. {advice}")
