"""Interleaved pages of OBELICS and MMC4, in parquet and in lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_mm.documents.document import Document
from lit_mm.documents.sources import Mmc4Pages, ObelicsPages, SampleError
from lit_mm.documents.sources.parquet import ParquetRows
from lit_mm.errors import UserError
from tests.documents.sources.conftest import image_bytes


def parquet(path: Path, rows: list[dict[str, Any]], *, group: int = 2) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return str(path)


def shape(document: Document) -> list[Any]:
    """Summarise the parts of a page; a picture becomes (width, height)."""
    (page,) = document.turns
    assert page.role == "page"
    return [part if isinstance(part, str) else (part.width, part.height) for part in page.parts]


def broken(source: Any, number: int) -> SampleError:
    with pytest.raises(SampleError) as caught:
        source[number]
    return caught.value


# --- OBELICS ---------------------------------------------------------------------------------------------------------
def test_obelics_pictures_stay_where_they_stand_whether_named_or_stored(folder):
    named = [
        {"texts": ["Before", None, "after", "and more"], "images": [None, "wide.png", None, None]},
        {"texts": [None, "only after"], "images": ["tall.jpg", None]},
        {"texts": ["text alone"], "images": [None]},
    ]
    expected = [["Before", (20, 10), "after\n\nand more"], [(16, 32), "only after"], ["text alone"]]
    source = ObelicsPages(parquet(folder / "named.parquet", named))
    assert [shape(source[n]) for n in range(3)] == expected

    def bytes_of(name: str | None) -> bytes | None:
        return None if name is None else (folder / name).read_bytes()

    stored = [{**row, "images": [bytes_of(name) for name in row["images"]]} for row in named]
    source = ObelicsPages(parquet(folder / "stored.parquet", stored))
    assert [shape(source[n]) for n in range(3)] == expected
    assert tuple(source[1].pictures[0].pixels().shape) == (3, 32, 16)

    both = [
        {
            **row,
            "images": [None if name is None else {"bytes": bytes_of(name), "path": name} for name in row["images"]],
        }
        for row in named
    ]
    source = ObelicsPages(parquet(folder / "both.parquet", both))
    assert [shape(source[n]) for n in range(3)] == expected


def test_obelics_is_read_from_lines_too(write):
    source = ObelicsPages(write([{"texts": ["a", None], "images": [None, "wide.png"]}], "pages.jsonl"))
    assert shape(source[0]) == ["a", (20, 10)]
    assert source[0].id == "pages.jsonl:1"


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"texts": ["a", "b"], "images": [None]}, "placeholder_mismatch", "2 `texts` and 1 `images`"),
        ({"texts": ["a", None], "images": [None, None]}, "placeholder_mismatch", "place 1 holds neither"),
        ({"texts": ["a", "b"], "images": [None, "x.png"]}, "placeholder_mismatch", "place 1 holds both"),
        (
            {"texts": ["a", None], "images": [None, "absent.png"]},
            "missing_file",
            "absent.png'. `gaps: drop` leaves out pictures",
        ),
        ({"texts": ["a", None], "images": [None, "damaged.png"]}, "unreadable_image", "is not an image"),
        ({"texts": [None], "images": ["wide.png"]}, "no_supervision", "nothing in it can be learnt"),
        ({"texts": None, "images": ["wide.png"]}, "bad_entry", "a page has two lists"),
    ],
)
def test_a_broken_obelics_page_is_named_by_file_and_row(folder, row, kind, message):
    sound = {"texts": ["sound"], "images": [None]}
    source = ObelicsPages(parquet(folder / "p.parquet", [sound, sound, row]))
    assert shape(source[1]) == ["sound"]
    error = broken(source, 2)
    assert (error.kind, error.where) == (kind, "p.parquet:row 3")
    assert message in str(error)


# --- MMC4 ------------------------------------------------------------------------------------------------------------
def mmc4(*images: tuple[str, int], sentences: tuple[str, ...] = ("One.", "Two.", "Three.")) -> dict[str, Any]:
    infos = [{"image_name": name, "matched_text_index": at, "matched_sim": 0.3} for name, at in images]
    return {"text_list": list(sentences), "image_info": infos, "url": "https://example.org"}


@pytest.mark.parametrize("container", ["parquet", "jsonl"])
def test_mmc4_pictures_stand_directly_before_their_sentence(folder, write, container):
    rows = [
        mmc4(("tall.jpg", 2), ("wide.png", 0)),
        mmc4(("wide.png", 1), ("tall.jpg", 1)),
        mmc4(),
    ]
    path = parquet(folder / "m.parquet", rows) if container == "parquet" else write(rows, "m.jsonl")
    source = Mmc4Pages(path)
    wide, tall = (20, 10), (16, 32)
    assert shape(source[0]) == [wide, "One. Two. ", tall, "Three."]
    assert shape(source[1]) == ["One. ", wide, tall, "Two. Three."]
    assert shape(source[2]) == ["One. Two. Three."]
    assert [p.path.name for p in source[0].pictures] == ["wide.png", "tall.jpg"]


def test_mmc4_keeps_the_first_pictures_as_they_are_listed(write):
    path = write([mmc4(("tall.jpg", 2), ("wide.png", 0), ("small.webp", 1))])
    assert shape(Mmc4Pages(path, max_images=2)[0]) == [(20, 10), "One. Two. ", (16, 32), "Three."]
    with pytest.raises(UserError, match="`max_images` is at least 1, got 0"):
        Mmc4Pages(path, max_images=0)


def test_mmc4_pictures_may_be_bytes(folder):
    row = {
        "text_list": ["One."],
        "image_info": [{"image_name": None, "bytes": image_bytes(6, 4), "matched_text_index": 0}],
    }
    assert shape(Mmc4Pages(parquet(folder / "m.parquet", [row]))[0]) == [(6, 4), "One."]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (mmc4(("wide.png", 3)), "placeholder_mismatch"),
        (mmc4(("wide.png", -1)), "placeholder_mismatch"),
        ({"text_list": ["a"], "image_info": [{"image_name": "wide.png"}]}, "bad_entry"),
        ({"text_list": ["a"], "image_info": [{"matched_text_index": 0}]}, "bad_entry"),
        ({"text_list": ["a", 3], "image_info": []}, "bad_entry"),
        ({"text_list": "a", "image_info": []}, "bad_entry"),
        (mmc4(sentences=(" ",)), "no_supervision"),
    ],
)
def test_a_broken_mmc4_page_is_named(write, row, kind):
    error = broken(Mmc4Pages(write([mmc4(), row])), 1)
    assert (error.kind, error.where) == (kind, "data.jsonl:2")


# --- parquet ---------------------------------------------------------------------------------------------------------
def test_rows_are_found_through_all_row_groups(folder):
    path = parquet(folder / "p.parquet", [{"texts": [str(n)], "images": [None]} for n in range(11)], group=3)
    part = ParquetRows(path, "page", ("texts", "images"))
    assert pq.ParquetFile(path).num_row_groups == 4
    assert [part.entry(n)["texts"] for n in (10, 0, 3, 2, 8, 9)] == [["10"], ["0"], ["3"], ["2"], ["8"], ["9"]]


def test_a_row_group_that_cannot_be_held_is_refused_when_the_file_is_opened(folder):
    pages = [{"texts": [None], "images": [{"bytes": bytes([n]) * 50_000, "path": None}]} for n in range(8)]
    path = parquet(folder / "large.parquet", pages)
    with pytest.raises(UserError, match=r"row group 0 of .* has \d rows in 0 MB.* row_group_size=100.*`limit_group`"):
        ObelicsPages(path, limit_group=1000)
    assert len(ObelicsPages(path)) == len(ObelicsPages(path, limit_group=500_000)) == 8
    beside = [{**page, "clip_scores": "x" * 100_000} for page in pages]
    assert len(ObelicsPages(parquet(folder / "wide.parquet", beside), limit_group=500_000)) == 8  # it is not read


def test_another_table_and_another_file_are_refused(folder):
    path = parquet(folder / "p.parquet", [{"text": "a"}])
    with pytest.raises(UserError, match=r"has no columns \['texts', 'images'\]; it has \['text'\]"):
        ObelicsPages(path)
    (folder / "q.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"q\.parquet' is not a parquet file"):
        ObelicsPages(str(folder / "q.parquet"))
    empty = pa.table({"texts": pa.array([], pa.list_(pa.string())), "images": pa.array([], pa.list_(pa.string()))})
    pq.write_table(empty, folder / "e.parquet")
    with pytest.raises(UserError, match="holds no page"):
        ObelicsPages(str(folder / "e.parquet"))


def test_a_damaged_row_group_is_told_of_where_it_is_read(folder):
    rows = [{"texts": [f"{n} " * 400], "images": [None]} for n in range(4)]
    path = Path(parquet(folder / "p.parquet", rows))
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)  # in the first group; the footer is sound
    path.write_bytes(data)
    source = ObelicsPages(str(path))
    error = broken(source, 0)
    assert (error.kind, error.where) == ("unreadable_shard", "p.parquet:row 1")
    assert shape(source[3])[0].startswith("3 3")
