"""`check` reads a whole source."""

from __future__ import annotations

from lit_mm.documents.document import Document, Turn
from lit_mm.documents.sources import (
    CaptionShards,
    LlavaConversations,
    QwenVLConversations,
    SampleError,
    Source,
    open_source,
)
from lit_mm.documents.sources.check import Summary, check_source, content_hashes
from lit_mm.errors import UserError
from tests.documents.sources.test_captions import pair, shard
from tests.documents.sources.test_conversations import llava, qwen
from tests.documents.sources.test_pages import parquet


def found(source: Source) -> tuple[list[tuple[str, str]], Summary]:
    errors: list[SampleError] = []
    summary = check_source("name", source, errors.append)
    assert sum(summary.kinds.values()) == len(errors)
    return [(error.where, error.kind) for error in errors], summary


def test_every_fault_is_found_where_it_was_planted(write):
    unnamed = {key: value for key, value in llava().items() if key != "id"}
    entries = [
        llava(id="a"),
        "{oops",
        unnamed,
        llava(id="a"),
        llava("absent.png", id="b"),
        llava("damaged.png", id="c"),
        llava("wide.png", "no place", "x", id="d"),
        llava("wide.png", "<image>", " ", id="e"),
        llava("wide.png", "<image>", id="f"),
        llava(["absent.png", "damaged.png"], "<image>", "x", id="g"),
        llava(id="h"),
    ]
    places, summary = found(LlavaConversations(write(entries)))
    assert places == [
        ("data.jsonl:2", "malformed_json"),
        ("data.jsonl:5", "missing_file"),
        ("data.jsonl:6", "unreadable_image"),
        ("data.jsonl:7", "placeholder_mismatch"),
        ("data.jsonl:8", "empty_answer"),
        ("data.jsonl:9", "no_supervision"),
        ("data.jsonl:10", "missing_file"),
        ("data.jsonl:10", "unreadable_image"),
        ("data.jsonl:10", "placeholder_mismatch"),
    ]
    assert (summary.samples, summary.broken, summary.pictures) == (11, 7, 11)
    assert summary.notes == {"duplicate_id": 1, "missing_id": 1}
    assert summary.first_notes == {"duplicate_id": "data.jsonl:4", "missing_id": "data.jsonl:3"}


def test_regions_and_shards_are_checked_too(write, folder):
    sound = qwen("<img>wide.png</img>", "<box>(0,0),(9,9)</box>", id="a")
    outside = qwen("<img>wide.png</img>", "<box>(0,0),(9,1009)</box>", id="b")
    assert found(QwenVLConversations(write([sound, outside])))[0] == [("data.jsonl:2", "box_outside")]
    shard(folder / "s-0.tar", {**pair("0", "a"), **pair("1", "b")})
    shard(folder / "s-1.tar", {**pair("1", "c"), "2.jpg": b"no", "2.txt": b"d"})
    places, summary = found(CaptionShards(str(folder / "s-{0..1}.tar")))
    assert places == [("s-1.tar:2", "unreadable_image")]
    assert summary.first_notes == {"duplicate_id": "s-1.tar:1"}
    assert (summary.samples, summary.pictures) == (4, 4)


def test_headers_are_read_afresh_though_there_is_an_index(write, folder):
    source = LlavaConversations(write([llava()]))
    source.build_index()
    (folder / "wide.png").unlink()
    assert found(LlavaConversations(source.parts[0].path))[0] == [("data.jsonl:1", "missing_file")]


def test_a_sound_source_has_nothing_to_tell_and_no_pixel_is_decoded(write, monkeypatch):
    monkeypatch.setattr("lit_mm.documents.decode.decode", lambda *_, **__: 1 / 0)
    places, summary = found(LlavaConversations(write([llava(id=str(n)) for n in range(3)])))
    assert places == []
    assert summary.as_dict() == {
        "name": "name",
        "samples": 3,
        "pictures": 3,
        "illustrated": 3,
        "broken": 0,
        "kinds": {},
        "notes": {},
        "first_notes": {},
    }
    assert summary.lines() == []


def test_published_mixtures_repeat_ids_and_that_is_a_note(write):
    entries = [llava(None, "q", "a", id="000000033471") for _ in range(3)]
    places, summary = found(LlavaConversations(write(entries)))
    assert places == []
    assert (summary.broken, summary.notes) == (0, {"duplicate_id": 2})
    assert summary.lines() == [
        "2 of 3 samples have an id that an earlier one has, the first at data.jsonl:2",
        "0 of 3 samples have a picture",
    ]


def test_of_documents_alone_what_they_refuse_is_told():
    class Refusing:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, number: int) -> Document:
            if number == 1:
                raise UserError("this one is bad")
            return Document("same", (Turn("user", ("x",)),))

    errors: list[SampleError] = []
    done: list[int] = []
    summary = check_source("generated", Refusing(), errors.append, done.append)
    assert [error.kind for error in errors] == ["bad_entry"]
    assert summary.first_notes == {"duplicate_id": "number 2"}
    assert str(errors[0]) == "this one is bad"
    assert summary.broken == 1
    assert done == [1, 2, 3]


def test_gaps_and_placeholders_that_are_text_are_notes(write):
    pages = [{"texts": ["a", None], "images": [None, None]}, {"texts": ["a"], "images": [None]}]
    summary = check_source("pages", open_source({"format": "obelics", "path": write(pages), "gaps": "drop"}), print)
    assert summary.lines()[0] == "1 of 2 pages lack a picture, whose place is left out, the first at data.jsonl:1"
    rows = [llava(None, "q", "a"), llava(None, "the <video> tag", "a", id="b"), llava(id="c")]
    summary = check_source("chat", open_source({"format": "llava", "path": write(rows)}), print)
    assert summary.lines() == [
        "1 of 3 samples have a placeholder that is read as text (HTML, code), the first at data.jsonl:2"
    ]
    assert (summary.pictures, summary.illustrated, summary.broken) == (1, 1, 0)


def test_training_samples_that_are_held_out_as_well_are_counted(write, folder):
    picture = {"bytes": (folder / "wide.png").read_bytes(), "path": None}
    entries = [llava(id="a"), llava(None, "q", "a", id="b"), llava("tall.jpg", id="c"), llava("absent.png", id="d")]
    source = LlavaConversations(write(entries))
    other = [llava(id="x"), llava(None, "q", "b", id="b"), "{oops", llava("absent.png", id="d")]
    held_out = content_hashes(LlavaConversations(write(other, "held.jsonl"), images=f"{folder}/./"))
    summary = check_source("name", source, lambda error: None, held_out=held_out)
    assert (summary.notes, summary.first_notes) == ({"held_out": 1}, {"held_out": "data.jsonl:1"})
    assert summary.lines() == [
        "1 of 4 samples are held out as well, so the examination asks what was trained on, the first at data.jsonl:1"
    ]
    table = LlavaConversations(parquet(folder / "t.parquet", [llava(picture)] * 2))
    held_out = content_hashes(LlavaConversations(parquet(folder / "u.parquet", [llava(picture)])))
    assert check_source("table", table, print, held_out=held_out).notes["held_out"] == 2
    assert content_hashes([]) == set()
