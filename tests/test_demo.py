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


def write_drawings(demo: ModuleType, folder: Path) -> None:
    """Write five drawings of every kind, of which the first has no title."""
    for folders in demo.KINDS.values():
        (folder / folders[0] / "inner").mkdir(parents=True)
        for number in range(5):
            text = SVG.format(f"title {'abcde'[number]}" if number else "")
            (folder / folders[0] / "inner" / f"{number}.svg").write_text(text)


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
    write_drawings(demo, tmp_path)
    rows = list(demo.drawings(tmp_path))
    assert [kind for kind, _, _ in rows] == [kind for kind in demo.KINDS for _ in range(3)]
    assert all(title for _, title, _ in rows)
    assert rows == list(demo.drawings(tmp_path))


def test_a_folder_without_drawings_is_refused(demo: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no drawings in animals\. Install Debian's package openclipart-svg"):
        list(demo.drawings(tmp_path))


def test_prepare_names_all_missing_packages_before_it_renders(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "PACKAGES", {"json": "json", "no_gguf": "gguf", "no_resvg": "resvg-py"})
    with pytest.raises(SystemExit, match=r"missing packages\. .*pip install --no-deps gguf resvg-py"):
        demo.prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_given_again_renders_the_missing_pictures_alone(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []

    def render(file: Path) -> Image.Image:
        if len(rendered) == 10 and not (tmp_path / "out/train.json").exists():
            rendered.append("")
            raise KeyboardInterrupt
        rendered.append(file.name)
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(demo, "PACKAGES", {})
    monkeypatch.setattr(demo, "render", render)
    write_drawings(demo, tmp_path / "svg")
    (tmp_path / "out/smollm2").mkdir(parents=True)
    (tmp_path / "out/smollm2/config.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        demo.prepare(tmp_path / "svg", tmp_path / "out")
    demo.prepare(tmp_path / "svg", tmp_path / "out")
    texts = [(tmp_path / f"out/{name}.json").read_text() for name in ("train", "heldout")]
    assert len(rendered) == 4 * len(demo.KINDS) + 1 and "pictogram_4.png" in "".join(texts)
    demo.prepare(tmp_path / "svg", tmp_path / "out")
    assert len(rendered) == 4 * len(demo.KINDS) + 1
    assert texts == [(tmp_path / f"out/{name}.json").read_text() for name in ("train", "heldout")]


def test_a_report_without_a_trained_model_is_refused(demo: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no trained model\. Train it: make demo"):
        demo.report(tmp_path, tmp_path, tmp_path / "sheet.png")


def test_the_sheet_shows_answers_below_their_drawings(demo: ModuleType, tmp_path: Path) -> None:
    documents = [document(number, pictures=1) for number in range(20)]
    demo.draw_sheet(documents, ["card: king"] * 20, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * demo.SIDE and sheet.height > 4 * demo.SIDE
