"""Every example of docs/data.md is read in the format that it declares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lit_mm.documents.sources import FORMATS, open_source

from .conftest import image_bytes

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
EXAMPLES = re.findall(r"^```(jsonl|json) (\w+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("ending", "format", "text"), EXAMPLES)
def test_every_example_of_the_page_is_read(folder: Path, ending: str, format: str, text: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(image_bytes(8, 8, "JPEG"))
    (folder / f"data.{ending}").write_text(text)
    source = open_source({"format": format, "path": str(folder / f"data.{ending}")})
    assert len(source) == (len(text.splitlines()) if ending == "jsonl" else 1)
    for number in range(len(source)):
        assert source.check(number)[2] == []
        assert source[number].pictures


def test_the_page_has_every_format() -> None:
    assert {format for _, format, _ in EXAMPLES} | {"captions"} == set(FORMATS)
