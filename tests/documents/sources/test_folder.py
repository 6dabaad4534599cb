"""A plain folder with a jsonl."""

from __future__ import annotations

import pytest

from lit_mm.documents.sources import PictureFolder, SampleError, open_source
from lit_mm.errors import UserError
from tests.documents.sources.test_pages import parquet


def test_questions_are_conversations_and_captions_pages(folder, write):
    write(
        [
            {"image": "wide.png", "question": "what colour?", "answer": "red"},
            {"images": ["wide.png", "tall.jpg"], "question": "which is taller?", "answer": "the second", "id": 7},
            {"image": "tall.jpg", "caption": "a red page"},
            {"question": "2 + 2?", "answer": ["4"]},
            {"question": "as JSON?", "answer": '["4"]'},
        ],
        "metadata.jsonl",
    )
    source = PictureFolder(str(folder) + "/")
    first, second, third, fourth, fifth = (source[n] for n in range(5))
    assert [turn.role for turn in first.turns] == ["user", "assistant"]
    assert (first.question, first.answer) == ("what colour?", "red")
    assert [(p.width, p.height) for p in second.pictures] == [(20, 10), (16, 32)]
    assert second.turns[0].parts[2] == "which is taller?"  # pictures come first
    assert (second.id, third.id) == ("7", "metadata.jsonl:3")
    assert [turn.role for turn in third.turns] == ["page"]
    assert third.turns[0].parts[1] == "a red page"
    assert (fourth.pictures, fourth.answer) == ((), "4") and fifth.answer == '["4"]'
    assert source.name == "data"


def test_another_file_of_the_folder_can_be_named(folder, write):
    write([{"caption": "text"}], "heldout.json")
    assert PictureFolder(str(folder), file="heldout.json")[0].turns[0].text == "text"
    with pytest.raises(UserError, match=r"has none of metadata\.jsonl, .*name it: `file: heldout\.json`"):
        PictureFolder(str(folder))


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ({"image": "wide.png"}, "bad_entry", "with `question` and `answer`, or with `caption`"),
        ({"caption": "a", "question": "b"}, "bad_entry", "with `question` and `answer`, or with `caption`"),
        ({"question": "a"}, "bad_entry", "`answer` is a text"),
        ({"question": "a", "answer": 4}, "bad_entry", "`answer` is a text"),
        ({"question": "a", "answers": ["b"]}, "bad_entry", "Write one of its `answers` as `answer`"),
        ({"caption": ["a", "b"]}, "bad_entry", "Write one text as `caption`, and a row for each further one"),
        ({"question": "a", "answer": " "}, "empty_answer", "its answer is empty"),
        ({"caption": ""}, "empty_answer", "its caption is empty"),
        ({"caption": "a", "image": "wide.png", "images": ["tall.jpg"]}, "bad_entry", "has `image` and `images`"),
        ({"caption": "a", "image": "absent.png"}, "missing_file", "there is no image"),
        ({"caption": "a", "image": "damaged.png"}, "unreadable_image", "is not an image"),
    ],
)
def test_a_broken_line_is_named(folder, write, entry, kind, message):
    write([{"caption": "sound"}, entry], "metadata.jsonl")
    with pytest.raises(SampleError, match=rf"^metadata\.jsonl:2: .*{message}") as caught:
        PictureFolder(str(folder))[1]
    assert caught.value.kind == kind


def test_hugging_face_s_image_folders_are_read_from_jsonl_csv_and_parquet(folder, write):
    rows = [{"file_name": "wide.png", "text": 'a "red", wide\nbox'}, {"file_name": "tall.jpg", "text": "tall"}]
    parquet(folder / "metadata.parquet", rows)
    parquet(folder / "other.parquet", rows)
    for name in ("metadata.parquet", "metadata.csv", "metadata.jsonl"):  # each is preferred to those before
        if name.endswith("csv"):
            text = '\ufefffile_name,text\r\nwide.png,"a ""red"", wide\nbox"\r\n\r\ntall.jpg,tall\r\n'
            (folder / name).write_bytes(text.encode())
        elif name.endswith("jsonl"):
            write(rows, name)
        source = PictureFolder(str(folder))
        assert source.parts[0].name == name
        assert [source[number].turns[0].parts[1] for number in range(2)] == [row["text"] for row in rows]
        assert [source[number].pictures[0].width for number in range(2)] == [20, 16]
    assert [PictureFolder(str(folder), file="metadata.csv").where(number) for number in (0, 1)] == [
        "metadata.csv:2",
        "metadata.csv:5",
    ]


def test_a_broken_record_of_a_csv_is_named_by_its_line(folder):
    (folder / "metadata.csv").write_bytes(b'file_name,text\nwide.png,a,b\nwide.png,\xff\nwide.png,\nwide.png,"a\nb"\n')
    source = PictureFolder(str(folder))
    for number, message in enumerate(
        (
            r"^metadata\.csv:2: the line has 3 cells, the header names 2 columns",
            r"^metadata\.csv:3: the line is not UTF-8 at byte 9",
            r"^metadata\.csv:4: a line is an object with",
        )
    ):
        with pytest.raises(SampleError, match=message):
            source[number]
    assert source[3].turns[0].text == "a\nb"
    (folder / "metadata.csv").write_bytes(b"file_name,text\n")
    with pytest.raises(UserError, match="holds no line"):
        PictureFolder(str(folder))


def test_a_folder_that_the_datasets_package_saved_is_read(folder):
    import pyarrow as pa

    image = {"bytes": (folder / "wide.png").read_bytes(), "path": None}
    saved = folder / "saved"
    saved.mkdir()
    for number in range(2):
        table = pa.Table.from_pylist([{"images": [image], "query": f"q{number}", "response": "a"}] * 2)
        path = str(saved / f"data-0000{number}-of-00002.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    source = open_source({"format": "query_response", "path": str(saved)})
    assert [source[number].question for number in range(4)] == ["q0", "q0", "q1", "q1"]
    assert tuple(source[3].pictures[0].pixels().shape) == (3, 10, 20)
    assert source[3].id == "data-00001-of-00002.arrow:row 2"
    (saved / "data-00001-of-00002.arrow").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not an arrow stream that can be read"):
        open_source({"format": "query_response", "path": str(saved)})
