"""Articles are written to files with images in place, and text by the model never becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from lit_mm.composition.compose import Article, Slot
from lit_mm.composition.publish import escape_markdown, publish
from lit_mm.documents.files import FilePicture
from tests.reader import Reader
from tests.tiny import Noise

EVIL = '<script>alert(1)</script> [x](javascript:alert(1)) ![y](z) "quoted" & `code` *bold* \x1b[31m\x00'


@pytest.fixture
def pool(tmp_path: Path) -> list[FilePicture]:
    (tmp_path / "pool").mkdir()
    for name in ('a "b" <c>.PNG', "d.tiff", "e.png"):
        Image.new("RGB", (9, 7), "red").save(tmp_path / "pool" / name)
    return [FilePicture.open(path) for path in sorted((tmp_path / "pool").iterdir())]


def test_images_are_copied_and_stand_after_their_lines(pool: list[FilePicture], tmp_path: Path) -> None:
    slots = (Slot(0, "one", (0, 1), 0), Slot(1, "two", (1,), 1), Slot(2, "three", (), None))
    article = Article("whales", ("# Head", "first", "second"), slots, ("a note",))
    files = publish(article, pool, tmp_path / "out" / "deep")
    folder = tmp_path / "out" / "deep"
    assert files["markdown"].read_text() == (
        "# Head\n\n![one](images/1-a-b-c.png)\n\nfirst\n\n![two](images/2-d.png)\n\nsecond\n"
    )
    assert (folder / "images/1-a-b-c.png").read_bytes() == pool[0].path.read_bytes()
    assert Image.open(folder / "images/2-d.png").size == (9, 7)  # browsers show no TIFF
    page = Reader(files["html"].read_text())
    kinds = [tag for tag, _ in page.tags if tag in ("h1", "p", "img")]
    assert kinds == ["h1", "img", "p", "img", "p"]
    for tag, attributes in page.tags:
        if tag == "img":
            assert (folder / unquote(attributes["src"])).is_file()
    record = json.loads(files["record"].read_text())
    assert record["slots"][0]["image"] == str(pool[0].path)
    assert [slot["file"] for slot in record["slots"]] == ["images/1-a-b-c.png", "images/2-d.png", None]
    assert record["notes"] == ["a note"]


def test_what_the_model_wrote_is_text(pool: list[FilePicture], tmp_path: Path) -> None:
    article = Article(EVIL, (f"## {EVIL}", EVIL), (Slot(1, EVIL, (0,), 0),))
    files = publish(article, pool, tmp_path / "out")
    page = Reader(files["html"].read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("img") == 1 and not {"script", "a", "code", "b"} & set(tags)
    said = EVIL.replace("\x1b", "").replace("\x00", "")
    assert page.text.count(said) == 4  # title, heading, paragraph, caption
    assert dict(page.tags)["img"]["alt"] == said
    text = files["markdown"].read_text()
    assert "<" not in text and "\x00" not in text and "\x1b" not in text
    assert len(re.findall(r"(?<!\\)\]\(", text)) == 1  # the image alone
    assert "\\[x\\](javascript" in text and "\\`code\\`" in text and "\\*bold\\*" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text, (with) signs! 1.5 a-b", "plain text, (with) signs! 1.5 a-b"),
        ("- no list", "\\- no list"),
        ("12. no list", "12\\. no list"),
        ("1) no list", "1\\) no list"),
        ("#tag", "\\#tag"),
        ("=== no rule", "\\=== no rule"),
        ("> quote", "&gt; quote"),
        ("a | b", "a \\| b"),
        ("back\\slash", "back\\\\slash"),
    ],
)
def test_markdown_reads_nothing_into_it(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_images_that_are_no_files_are_written(tmp_path: Path) -> None:
    files = publish(Article("x", ("line",), (Slot(0, "c", (0,), 0),)), [Noise(1)], tmp_path / "out")
    assert "images/1-image.png" in files["markdown"].read_text()
    assert Image.open(tmp_path / "out/images/1-image.png").size == (30, 20)


def test_halves_of_surrogate_pairs_do_not_stop_it(tmp_path: Path) -> None:
    files = publish(Article("a\udc80b", ("c\ud800d",)), [], tmp_path / "out")
    assert files["markdown"].read_text() == "cd\n"
    assert json.loads(files["record"].read_text())["lines"] == ["cd"]
