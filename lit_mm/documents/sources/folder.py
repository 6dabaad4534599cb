"""A plain folder: pictures, and a jsonl that says what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_mm.documents.document import Turn
from lit_mm.documents.sources.parts import Part, open_entries
from lit_mm.documents.sources.source import LIMIT_PIXELS, Sample, Source, SourcePicture, names_in
from lit_mm.documents.sources.storage import Blob, join


class PictureFolder(Source):
    """A folder with a file of `{"image": name, "question": text, "answer": text}` or `{"image": ..., "caption": text}`.

    `image` or `images` names one picture or several, from the folder on; `image` may be left out. Pictures stand in
    front of the question. A question becomes a conversation of two turns, a caption a page. An `id` is used where there
    is one.

    Args:
        path: the folder, local or a URL.
        file: the .jsonl or .json inside it.
        name, limit_pixels: see `Source`.
    """

    expected = "line"

    def __init__(
        self, path: str, file: str = "metadata.jsonl", name: str | None = None, limit_pixels: int = LIMIT_PIXELS
    ) -> None:
        folder = path.rstrip("/")
        super().__init__(join(folder, file), folder, name or folder.rpartition("/")[2], limit_pixels)

    def open_part(self, path: str) -> Part:
        return open_entries(path, self.expected)

    def blobs(self, sample: Sample) -> list[Blob]:
        entry = self._entry(sample)
        if entry.get("image") and entry.get("images"):
            raise sample.error("has `image` and `images`", "bad_entry", "Keep one of them")
        return [self.blob(name, sample) for key in ("image", "images") for name in names_in(entry.get(key))]

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        entry = self._entry(sample)
        if "caption" in entry:
            return (Turn("page", (*pictures, self._text("caption", sample))),)
        question, answer = self._text("question", sample), self._text("answer", sample)
        return (Turn("user", (*pictures, question)), Turn("assistant", (answer,)))

    @staticmethod
    def _entry(sample: Sample) -> Mapping:
        entry = sample.entry
        if not isinstance(entry, Mapping) or ("caption" in entry) == ("question" in entry):
            raise sample.error(
                f"a line is an object with `question` and `answer`, or with `caption`, got {str(entry)[:80]!r}",
                "bad_entry",
            )
        return entry

    @staticmethod
    def _text(key: str, sample: Sample) -> str:
        text = sample.field(key, str, f"`{key}` is a text")
        if not text.strip():
            raise sample.error(f"its {key} is empty", "empty_answer" if key != "question" else "bad_entry", "Write it")
        return text
