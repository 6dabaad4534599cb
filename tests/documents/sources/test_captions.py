"""Caption pairs in WebDataset tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from lit_mm.documents.sources import CaptionShards, SampleError
from lit_mm.documents.sources.tar import TarPart
from lit_mm.errors import UserError
from tests.documents.sources.conftest import image_bytes


def shard(path: Path, members: dict[str, bytes], *, kind: int = tarfile.PAX_FORMAT) -> str:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def pair(key: str, caption: str | dict, width: int = 12, height: int = 8, image: str = "jpg") -> dict[str, bytes]:
    text = caption if isinstance(caption, str) else json.dumps(caption)
    ending = "txt" if isinstance(caption, str) else "json"
    kind = {"jpg": "JPEG", "png": "PNG"}[image]
    return {f"{key}.{image}": image_bytes(width, height, kind), f"{key}.{ending}": text.encode()}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_pairs_are_read_in_place_in_the_order_of_the_shards(folder, kind):
    long = "a/" * 60 + "x" * 90 if kind != tarfile.USTAR_FORMAT else "deep/x"  # longer than a tar header's field
    shard(folder / "s-00.tar", {**pair("000", "a red page"), **pair(long, "ünïcode 码", 7, 5, "png")}, kind=kind)
    shard(folder / "s-01.tar", pair("002", "the third"), kind=kind)
    source = CaptionShards(str(folder / "s-{00..01}.tar"))
    assert len(source) == 3
    documents = [source[n] for n in range(3)]
    assert [document.id for document in documents] == ["000", long, "002"]
    assert [document.turns[0].role for document in documents] == ["page"] * 3
    assert [document.turns[0].text for document in documents] == ["a red page", "ünïcode 码", "the third"]
    assert [(p.width, p.height) for d in documents for p in d.pictures] == [(12, 8), (7, 5), (12, 8)]
    assert tuple(documents[1].pictures[0].pixels().shape) == (3, 5, 7)
    assert documents[1].pictures[0].path.name == "s-00.tar"
    assert source.name == "s-00"


def test_captions_may_be_in_a_json(folder):
    path = shard(folder / "s.tar", {**pair("0", {"caption": "c", "blurb": "b"}), **pair("1", {"blurb": 3})})
    assert CaptionShards(path, text="json")[0].turns[0].text == "c"
    assert CaptionShards(path, text="json", caption="blurb")[0].turns[0].text == "b"
    with pytest.raises(SampleError, match=r"^s\.tar:1: the \.json has no text under 'caption'") as caught:
        CaptionShards(path, text="json")[1]
    assert (caught.value.kind, caught.value.sample_id) == ("bad_entry", "1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"caption": ["c", "d"]}, "Write one caption for each picture"),
        ({"text": "c"}, "Correct `caption`"),
        ({"question": "q", "answer": "a"}, "It looks like query_response, which is read from a file of entries"),
    ],
)
def test_a_json_of_another_form_says_what_to_do(folder, content, message):
    path = shard(folder / "s.tar", {**pair("0", {"caption": ["c"]}), **pair("1", content)})
    assert CaptionShards(path, text="json")[0].turns[0].text == "c"
    with pytest.raises(SampleError, match=message):
        CaptionShards(path, text="json")[1]


def test_opening_again_reads_no_header_of_the_tar(folder, monkeypatch):
    path = shard(folder / "s.tar", pair("0", "text"))
    assert len(CaptionShards(path)) == 1
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("read again"))
    assert CaptionShards(path)[0].turns[0].text == "text"


@pytest.mark.parametrize(
    ("members", "kind", "message"),
    [
        ({"7.txt": b"alone"}, "missing_file", "a pair has one image file, got 0"),
        ({"7.jpg": image_bytes(4, 4, "JPEG")}, "missing_file", "there is no .txt beside the image"),
        ({**pair("7", " \n")}, "empty_answer", "the caption is empty"),
        ({**pair("7", "two"), "7.png": image_bytes(4, 4)}, "bad_entry", "got 2"),
        ({"7.jpg": b"no image", "7.txt": b"text"}, "unreadable_image", "7.jpg' is not an image"),
        ({"7.jpg": image_bytes(4, 4, "JPEG"), "7.txt": b"\xff\xfe"}, "malformed_json", "not UTF-8 at byte 0"),
    ],
)
def test_a_broken_pair_is_named_by_shard_and_key(folder, members, kind, message):
    source = CaptionShards(shard(folder / "s.tar", {**pair("0", "sound"), **members}))
    assert source[0].turns[0].text == "sound"
    with pytest.raises(SampleError, match=rf"^s\.tar:7: .*{message}") as caught:
        source[1]
    assert caught.value.kind == kind


def test_hidden_files_and_folders_are_no_samples(folder):
    part = TarPart(shard(folder / "s.tar", {"._0.jpg": b"x", **pair("d/0", "text"), "d/.hidden": b"x"}), "sample")
    assert [part.key(n) for n in range(len(part))] == ["d/0"]
    assert sorted(part.entry(0)) == ["jpg", "txt"]


def test_a_shard_that_is_no_tar_or_was_cut_is_refused(folder):
    (folder / "s.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match=r"s\.tar' cannot be read as a tar file"):
        CaptionShards(str(folder / "s.tar"))
    path = Path(shard(folder / "t.tar", {**pair("0", "text"), "1.jpg": b"x" * 9000}))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match=r"t\.tar' cannot be read as a tar file"):
        CaptionShards(str(path))


def test_a_missing_shard_and_an_unknown_ending_of_captions_are_refused(folder):
    shard(folder / "s-0.tar", pair("0", "text"))
    with pytest.raises(UserError, match=r"there is no data file .*s-1\.tar"):
        CaptionShards(str(folder / "s-{0..1}.tar"))
    with pytest.raises(UserError, match="`text` is 'txt' or 'json', got 'cap'"):
        CaptionShards(str(folder / "s-0.tar"), text="cap")


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (b"\xef\xbb\xbfone\r\n", "one"),
        (b"one\r\ntwo\r\n\r\n", "one\ntwo"),
        (b"one\n", "one"),
        (b" one ", " one "),
        ("\ufeffüber".encode(), "über"),
    ],
)
def test_a_byte_order_mark_and_line_ends_of_a_text_file_are_no_caption(folder, text, caption):
    path = shard(folder / "s.tar", {"0.jpg": image_bytes(4, 4, "JPEG"), "0.txt": text})
    assert CaptionShards(path)[0].turns[0].text == caption
    path = shard(
        folder / "j.tar", {"0.jpg": image_bytes(4, 4, "JPEG"), "0.json": b"\xef\xbb\xbf" + b'{"caption": "a\\r"}'}
    )
    assert CaptionShards(path, text="json")[0].turns[0].text == "a\r"


def test_triplets_are_read_by_the_file_that_is_declared(folder):
    members = {**pair("0", "from the text"), "0.json": json.dumps({"caption": "from the json"}).encode()}
    path = shard(folder / "s.tar", members)
    assert CaptionShards(path)[0].turns[0].text == "from the text"
    assert CaptionShards(path, text="json")[0].turns[0].text == "from the json"


@pytest.mark.parametrize(
    ("members", "kind", "message"),
    [
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], "missing_file", "stand elsewhere in the shard: sort it"),
        (["a.v2.jpg", "a.v2.txt"], "missing_file", "'a.v2.jpg' has the key 'a' and the ending 'v2.jpg'"),
        (["a.jpg", "a.txt", "a.txt"], "duplicate_member", "two members 'a.txt'"),
        (["a.jpg", "a.JPG", "a.txt"], "duplicate_member", "'a.jpg' and 'a.JPG', which differ in upper and lower case"),
        (["a.jpg", "a.text"], "missing_file", "there is no .txt beside the image, only ['jpg', 'text']"),
    ],
)
def test_members_that_do_not_belong_together_are_explained(folder, members, kind, message):
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name in members:
            data = image_bytes(4, 4, "JPEG") if name.lower().endswith("jpg") else b"text"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(SampleError) as caught:
        CaptionShards(str(folder / "s.tar"))[0]
    assert (caught.value.kind, caught.value.where) == (kind, "s.tar:a")
    assert message in str(caught.value)


def test_a_member_s_name_is_escaped_in_messages(folder):
    path = shard(folder / "s.tar", {"a\x1b[2J.jpg": image_bytes(4, 4, "JPEG")})
    with pytest.raises(SampleError) as caught:
        CaptionShards(path)[0]
    assert str(caught.value).startswith(r"s.tar:a\x1b[2J: there is no .txt")


def test_a_folder_in_place_of_shards_is_answered_with_both_ways_to_name_what_is_in_it(tmp_path):
    with pytest.raises(UserError, match=r"is a folder, but `path` names shards: write .*`format: folder`"):
        CaptionShards(str(tmp_path))
