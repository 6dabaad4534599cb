"""Conversations about image files, in the format that the XComposer family's released code trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datamodules.stream import Source, StreamDataModule
from lit_mm.data.document import Document
from lit_mm.data.files import FilePicture
from lit_mm.errors import UserError
from lit_mm.prompts.xcomposer2 import conversation_to_document


class ConversationFile:
    """A json list, or one json object a line, of conversations with their images.

    Each has `id`, `conversations` (turns of `{"from": "user" | "assistant", "value": text}`, `<ImageHere>` where an
    image stands) and optionally `image`, a path or a list of paths.

    Args:
        path: the .json or .jsonl file.
        images: folder that relative image paths start from; the file's own when left out.
    Raises:
        UserError: there is no such file, it is not JSON, or it holds no conversation.
    """

    def __init__(self, path: str, images: str | None = None) -> None:
        self.path = Path(path)
        self.images = Path(images) if images else self.path.parent
        if not self.path.is_file():
            raise UserError(f"there is no data file {path!r}. Correct `data.init_args.path`")
        self.entries = self._read()
        if not self.entries:
            raise UserError(f"the data set is empty: {path!r} holds no conversation")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> Document:
        entry = self.entries[number]
        where = f"{self.path.name}:{number + 1}"
        if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
            raise UserError(f"{where}: an entry is an object with a list `conversations`, got {str(entry)[:80]!r}")
        names = entry.get("image") or []
        pictures = [FilePicture.open(self.images / name) for name in ([names] if isinstance(names, str) else names)]
        identity = str(entry.get("id", where))
        return conversation_to_document(entry["conversations"], pictures, id=identity, source=self.path.stem)

    def _read(self) -> list[Any]:
        text = self.path.read_text(encoding="utf-8")
        try:
            if self.path.suffix == ".jsonl":
                return [json.loads(line) for line in text.splitlines() if line.strip()]
            entries = json.loads(text or "[]")
        except json.JSONDecodeError as error:
            raise UserError(
                f"{str(self.path)!r} is not JSON ({error}). One list, or one object a line in a .jsonl"
            ) from error
        if not isinstance(entries, list):
            raise UserError(f"{str(self.path)!r} holds {type(entries).__name__}, expected a list of conversations")
        return entries


class Conversations(StreamDataModule):
    """Supervised fine-tuning on conversations about images; see `ConversationFile` for the format.

    Args:
        path: the .json or .jsonl file.
        images: folder that relative image paths start from; the file's own when left out.
        heldout_path: conversations that are never trained on, asked at the end; none when left out.
        global_batch, micro_batch, row_tokens, row_views, window, num_workers: see `StreamDataModule`.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        heldout_path: str | None = None,
        global_batch: int = 64,
        micro_batch: int | None = None,
        row_tokens: int | None = None,
        row_views: int | None = None,
        window: int = 1024,
        num_workers: int = 4,
    ) -> None:
        super().__init__(global_batch, micro_batch, row_tokens, row_views, window, num_workers)
        self.path, self.images, self.heldout_path = path, images, heldout_path

    def source(self) -> Source:
        return ConversationFile(self.path, self.images)

    def heldout(self, count: int | None = None) -> list[Document]:
        if self.heldout_path is None:
            return []
        source = ConversationFile(self.heldout_path, self.images)
        return [source[i] for i in range(len(source) if count is None else min(count, len(source)))]
