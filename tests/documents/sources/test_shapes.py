"""Data files in the shapes in which people have them are read, or refused with the reason and the remedy."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pytest

from lit_mm.documents.sources import SampleError, open_source
from lit_mm.errors import UserError

from .conftest import image_bytes

ENTRY = {
    "id": "1",
    "image": "wide.png",
    "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}],
}
LINE, PRETTY = json.dumps(ENTRY), json.dumps(ENTRY, indent=2)


def faults(source: Any) -> list[str]:
    return [str(error) for number in range(len(source)) for error in source.check(number)[2]]


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", f"{PRETTY}\n{PRETTY}", ["a.jsonl:1", f"a.jsonl:{PRETTY.count(chr(10)) + 2}"]),
        ("b.json", f"{PRETTY}\n{PRETTY}", ["b.json:1", f"b.json:{PRETTY.count(chr(10)) + 2}"]),
        ("c.jsonl", PRETTY, ["c.jsonl:1"]),
        ("d.jsonl", f"{LINE},\n{LINE},\n", ["d.jsonl:1", "d.jsonl:2"]),
        ("e.jsonl", f"{LINE}{LINE}", ["e.jsonl:1 (entry 1)", "e.jsonl:1 (entry 2)"]),
        ("f.jsonl", f"{LINE}\r{LINE}\r", ["f.jsonl:1 (entry 1)", "f.jsonl:1 (entry 2)"]),
        ("g.jsonl", f"\ufeff{LINE}\r\n\r\n{LINE}\r\n", ["g.jsonl:1", "g.jsonl:3"]),
    ],
)
def test_entries_behind_one_another_are_read_whatever_separates_them(
    folder: Path, name: str, content: str, places: list[str]
) -> None:
    (folder / name).write_bytes(content.encode())
    source = open_source({"format": "llava", "path": str(folder / name)})
    assert [source.where(number) for number in range(len(source))] == places
    assert not faults(source)


def test_one_broken_line_stays_the_fault_of_that_line(folder: Path) -> None:
    (folder / "a.jsonl").write_text(f"{LINE}\n{{oops\n{LINE}\n")
    (error,) = faults(open_source({"format": "llava", "path": str(folder / "a.jsonl")}))
    assert error.startswith("a.jsonl:2: the conversation is not JSON")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", f"{PRETTY}\n{PRETTY[:-20]}", "one behind another, and a bracket or a quote in it is not closed"),
        ("a.json", json.dumps({"x": ENTRY, "y": ENTRY}), "write them as a list, without their keys"),
        (
            "a.json",
            json.dumps({"images": [], "annotations": []}),
            "one of its lists `images` and `annotations` is empty",
        ),
        ("a.json", json.dumps({"annotations": [{"image_id": "2", "caption": "x"}]}), "Its `annotations` name no files"),
        (
            "a.json",
            json.dumps({"train": [ENTRY], "test": [ENTRY]}),
            "'train', 'test' hold lists: write each into a file",
        ),
        ("a.json", json.dumps({"images": [{"filename": "a.jpg"}], "dataset": "coco"}), "Its key 'images' holds a list"),
        ("a.csv", "a.jpg,a cat\nb.png,a dog\n", "it seems to be a row. Write a header"),
        ("a.json", json.dumps({"info": {}, "questions": [{}]}), "It is of VQAv2's form: write a row"),
        ("a.csv", "id;query\n1;q\n", "The cells seem to be separated by semicolons"),
        ("a.tsv", "id,query\n1,q\n", "The cells seem to be separated by commas"),
        ("a.csv", "id,query,id\n1,q,2\n", "has the column 'id' twice"),
        ("noending", LINE, "has no ending that tells what it holds"),
        ("a.xlsx", "PK", "ends in '.xlsx'"),
        ("a.jsonl.zst", pa.Codec("zstd").compress(LINE.encode(), asbytes=True)[:-4], r"cannot be unpacked \("),
    ],
)
def test_a_file_that_cannot_be_read_says_what_it_is(folder: Path, name: str, content: Any, message: str) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        open_source({"format": "llava", "path": str(folder / name)})


def test_a_folder_in_the_place_of_a_file_names_a_file_in_it(folder: Path, write: Any) -> None:
    write([ENTRY], "train.json")
    with pytest.raises(UserError, match=r"is a folder, .*Name a file in it, such as 'train\.json'"):
        open_source({"format": "llava", "path": str(folder)})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["data/train-00000-of-00002.json", "data/train-00001-of-00002.json"], r"such as 'data/train-\*\.json'$"),
        (["0000.json", "0001.json", "v1_5.json", "v1_6.json"], r"such as '\*\.json', 'v1_5\.json', 'v1_6\.json'$"),
        (["dataset_dict.json", "train/data-00000-of-00001.arrow"], r"such as 'train/data-00000-of-00001\.arrow'$"),
        (["deep/er/0000.json"], "Name a file in it$"),
    ],
)
def test_shards_of_a_folder_are_named_by_their_pattern(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match=message):
        open_source({"format": "llava", "path": str(tmp_path)})


def test_a_table_of_pictures_in_shards_is_read_by_its_pattern(folder: Path, write: Any) -> None:
    for number in range(2):
        write([{"image": "wide.png", "caption": "a"}], f"train-0000{number}.jsonl")
    with pytest.raises(UserError, match=r"name it: `file: train-\*\.jsonl`"):
        open_source({"format": "folder", "path": str(folder)})
    for declaration in ({"path": str(folder), "file": "train-*.jsonl"}, {"path": f"{folder}/train-*.jsonl"}):
        assert len(open_source({"format": "folder", **declaration})) == 2
    assert open_source({"format": "folder", "path": f"{folder}/train-*.jsonl"}).name == "train"
    assert open_source({"format": "folder", "path": f"{folder}/*.jsonl"}).name == "data"


def test_zstd_is_unpacked(folder: Path) -> None:
    packed = pa.Codec("zstd").compress(LINE.encode(), asbytes=True)
    (folder / "a.jsonl.zst").write_bytes(packed + packed)  # zstd files may be joined
    assert len(open_source({"format": "llava", "path": str(folder / "a.jsonl.zst")})) == 2


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        (
            "a.csv",
            'image,caption\nwide.png,a 12" box\nwide.png,b\nwide.png,a 14" box\n',
            ['a 12" box', "b", 'a 14" box'],
        ),
        ("a.csv", 'image, caption\nwide.png,"x, ""y""\nz"\nwide.png,b', ['x, "y"\nz', "b"]),
        ("a.csv", f"image,caption\nwide.png,{'w ' * 200_000}\n", ["w " * 200_000]),
        ("a.tsv", "image\tcaption\nwide.png\ta, b\n", ["a, b"]),
        ("a.tsv", "\ufeffimage\tcaption\r\nwide.png\ta\r\n\r\nwide.png\tb\r\n", ["a", "b"]),
    ],
)
def test_every_record_of_a_table_is_an_entry(folder: Path, name: str, content: str, texts: list[str]) -> None:
    (folder / name).write_bytes(content.encode())
    source = open_source({"format": "folder", "path": str(folder / name)})  # a file in place of its folder
    assert [source[number].turns[0].parts[1] for number in range(len(source))] == texts
    assert source.name == "a"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('wide.png,"open\nwide.png,b\n', r"a\.csv:3: .*unexpected end of data\) and reaches to line 4\. Close every"),
        ('wide.png,"open\nwide.png,"b"\n', r"a\.csv:3: .*expected after .*and reaches to line 4\. Close every"),
        ("wide.png,a\rwide.png,b\n", r"a\.csv:3: the line cannot be read"),
    ],
)
def test_a_quote_that_is_not_closed_loses_no_record_in_silence(folder: Path, record: str, message: str) -> None:
    (folder / "a.csv").write_bytes(f"image,caption\nwide.png,a\n{record}".encode())
    source = open_source({"format": "folder", "path": str(folder / "a.csv")})
    assert source[0].turns[0].parts[1] == "a"
    with pytest.raises(SampleError, match=message):
        source[1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["captions.csv"], r"`file: captions\.csv`"),
        (["a.png", "a.txt"], "are read from a tar"),
        (["a.png"], r"Write one, such as a metadata\.jsonl"),
        (["train/metadata.csv"], r"Its folder 'train' has one: `path: .*/train`"),
        (["0.tar"], r"`format: captions`, `path: .*/\*\.tar`"),
    ],
)
def test_a_folder_without_a_list_says_what_to_do(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        open_source({"format": "folder", "path": str(tmp_path)})


@pytest.mark.parametrize(
    ("format", "name", "message"),
    [
        ("captions", "sub", r"is a folder, but `path` names shards: write `path: .*sub/\*\.tar`"),
        ("folder", "list.xlsx", r"ends in '\.xlsx'"),
        ("llava", "someone/their_data", "there is no data file"),
        (None, "sub", "looks like captions"),
    ],
)
def test_a_path_of_another_kind_says_what_it_is(tmp_path: Path, format: str | None, name: str, message: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.tar").write_bytes(b"")
    (tmp_path / "list.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=message):
        open_source({"format": format, "path": str(tmp_path / name)})


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_the_other_form_of_its_accents_is_read(folder: Path, write: Any, forms: tuple[str, str]) -> None:
    file, name = (normalize(form, "bücher/é 1.png") for form in forms)
    (folder / file).parent.mkdir()
    (folder / file).write_bytes(image_bytes(7, 5))
    source = open_source({"format": "llava", "path": write([{**ENTRY, "image": name}], "a.json")})
    assert source[0].pictures[0].width == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a%20b.png", "There is 'a b.png': write the name as it is"),
        ("wide.png ", "There is 'wide.png': write the name as it is"),
        ("lost.png", "It is a link to 'nowhere.png', which does not exist"),
        ("sub", "It is a folder"),
        ("wide.jpg", "There is 'wide.png': the endings differ"),
        ("wide", "There is 'wide.png': the endings differ"),
        ("data/wide.png", r"data/wide.png': the folder `images` is part of the name already"),
        (5, "the name of an image is text, got 5. Write its path"),
        ({"src": "wide.png"}, "image holds neither bytes nor a path, got {'src': 'wide.png'}. Name its file as `path`"),
    ],
)
def test_a_missing_image_is_explained(folder: Path, write: Any, name: Any, message: str) -> None:
    (folder / "a b.png").write_bytes(image_bytes(7, 5))
    (folder / "lost.png").symlink_to("nowhere.png")
    (folder / "sub").mkdir()
    (error,) = faults(open_source({"format": "llava", "path": write([{**ENTRY, "image": name}], "a.json")}))
    assert message in error


def test_pictures_of_a_tar_may_end_in_avif_and_a_missing_text_names_the_json(folder: Path) -> None:
    members = {
        "a.avif": image_bytes(8, 8, "AVIF"),
        "a.txt": b"c",
        "b.jp2": image_bytes(8, 8, "JPEG2000"),
        "b.json": b"{}",
    }
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = open_source({"format": "captions", "path": str(folder / "a.tar")})
    assert source[0].pictures[0].width == 8
    with pytest.raises(SampleError, match=r"`text: json` reads the caption from the \.json under its key 'caption'"):
        source[1]
    with pytest.raises(UserError, match="use `format: folder`"):
        open_source({"format": "captions", "path": "rows.parquet"})


def test_a_picture_s_part_may_have_its_content_in_a_source(folder: Path, write: Any) -> None:
    part = {"type": "image", "source": {"type": "url", "url": "wide.png"}}
    answer = {"role": "assistant", "content": "a"}
    entry = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "q"}]}, answer]}
    source = open_source({"format": "messages", "path": write([entry], "a.json")})
    assert source[0].pictures[0].width == 20


def test_a_table_with_line_ends_of_old_systems_is_refused_as_such(folder: Path) -> None:
    (folder / "a.csv").write_bytes(b"image,caption\rwide.png,a\r")
    with pytest.raises(UserError, match=r"header of .* \(a carriage return without a line feed"):
        open_source({"format": "folder", "path": str(folder / "a.csv")})


def test_a_link_to_a_folder_is_a_folder(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "linked.png").symlink_to("real")
    (folder / "a.csv").write_bytes(b"image,caption\nlinked.png,a\n")
    with pytest.raises(SampleError, match="It is a folder"):
        open_source({"format": "folder", "path": str(folder / "a.csv")})[0]


COCO = {
    "info": {"x": [{}]},
    "images": [{"id": 9, "file_name": "tall.jpg", "width": 16}, {"id": 7, "file_name": "wide.png"}],
    "licenses": "none",
    "annotations": [
        {"id": 1, "image_id": 7, "caption": 'a "wide" [box]'},
        {"id": 2, "image_id": 9, "caption": "a tall box"},
        {"id": 3, "image_id": 8, "caption": "a lost box"},
        {"id": 4, "image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 3},
    ],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_captions_of_coco_s_form_are_read_beside_their_images_or_elsewhere(folder: Path, indent: int | None) -> None:
    (folder / "annotations").mkdir()
    (folder / "annotations" / "captions.json").write_text(json.dumps(COCO, indent=indent))
    path = str(folder / "annotations" / "captions.json")
    source = open_source({"format": "folder", "path": path, "images": str(folder)})
    assert len(source) == 4
    assert [(source[n].id, source[n].pictures[0].width, source[n].turns[0].text) for n in (0, 1)] == [
        ("1", 20, 'a "wide" [box]'),
        ("2", 16, "a tall box"),
    ]
    with pytest.raises(SampleError, match=r"`image_id` 8 is not among the `images` of the file"):
        source[2]
    with pytest.raises(SampleError, match="a line is an object with `question` and `answer`, or with `caption`"):
        source[3]
    with pytest.raises(SampleError, match="Is its `format` folder"):
        open_source({"format": "llava", "path": path})[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({**COCO, "images": [{"id": "x", "file_name": "y"}]}), "has a number `id` and a text `file_name`"),
        (json.dumps({**COCO, "images": [{"id": 7, "file_name": "y"}] * 2}), "two `images` of .* have the id 7"),
        (json.dumps(COCO)[:-9], "is not JSON"),
        (json.dumps(COCO) + "[]", "is not JSON"),
    ],
)
def test_a_damaged_file_of_coco_s_form_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_source({"format": "folder", "path": str(folder / "a.json")})
