"""Small data sets in their original formats, written by the tests that read them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Write = Callable[..., str]
SIZES = {"wide.png": (20, 10), "tall.jpg": (16, 32), "small.webp": (9, 8)}  # name -> (width, height)


def image_bytes(width: int, height: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures of `SIZES`, a text file named damaged.png, and a separate cache."""
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    for name, size in SIZES.items():
        kind = name.partition(".")[2].upper().replace("JPG", "JPEG")
        (data / name).write_bytes(image_bytes(*size, kind))
    (data / "damaged.png").write_text("these are no pixels")
    return data


@pytest.fixture
def write(folder: Path) -> Write:
    """A function (entries, name) -> path that writes a JSON list or one entry per line; it writes strings unchanged."""

    def written(entries: Iterable[Any], name: str = "data.jsonl") -> str:
        texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        text = f"[{', '.join(texts)}]" if name.endswith(".json") else "\n".join(texts)
        (folder / name).write_text(text, encoding="utf-8")
        return str(folder / name)

    return written
