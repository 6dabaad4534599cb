"""The data of the demo: titles and files of drawings, without rendering or a language model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.tiny import document

SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="http://purl.org/dc/elements/1.1/">
<metadata><dc:title>{}</dc:title><dc:title>Open Clip Art Library</dc:title></metadata></svg>"""


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parents[1] / "scripts/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("content", "title"),
    [
        (SVG.format("Red Apple"), "red apple"),
        (SVG.format("apple_with_worm 01"), "apple with worm"),
        (SVG.format("one two three four five six"), "one two three four five"),
        (SVG.format("りんご"), ""),
        ("<svg/>", ""),
        ("<svg", ""),
    ],
)
def test_the_title_of_a_drawing_has_up_to_five_small_words(
    demo: ModuleType, content: str, title: str, tmp_path: Path
) -> None:
    (tmp_path / "a.svg").write_text(content)
    assert demo.title_of(tmp_path / "a.svg") == title


def test_every_kind_gives_at_most_its_share_of_titled_drawings_in_a_fixed_order(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MOST", 3)
    for folders in demo.KINDS.values():
        (tmp_path / folders[0] / "inner").mkdir(parents=True)
        for number in range(5):
            text = SVG.format(f"title {'abcde'[number]}" if number else "")
            (tmp_path / folders[0] / "inner" / f"{number}.svg").write_text(text)
    rows = list(demo.drawings(tmp_path))
    assert [kind for kind, _, _ in rows] == [kind for kind in demo.KINDS for _ in range(3)]
    assert all(title for _, title, _ in rows)
    assert rows == list(demo.drawings(tmp_path))


def test_a_folder_without_drawings_is_refused(demo: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Name the folder svg of the package openclipart-svg"):
        list(demo.drawings(tmp_path))


def test_the_sheet_shows_answers_below_their_drawings(demo: ModuleType, tmp_path: Path) -> None:
    documents = [document(number, pictures=1) for number in range(20)]
    demo.draw_sheet(documents, ["card: king"] * 20, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * demo.SIDE and sheet.height > 4 * demo.SIDE
