"""Conversations about image files."""

import json

import pytest
from PIL import Image

from lit_mm.datamodules.conversations import Conversations
from lit_mm.documents.sources import XComposerConversations
from lit_mm.errors import UserError

TURNS = [{"from": "user", "value": "<ImageHere>what colour ?"}, {"from": "assistant", "value": "red"}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / "pictures" / name)
    return tmp_path


def entry(identity="one", image="pictures/a.png", turns=TURNS):
    return {"id": identity, "image": image, "conversations": turns}


def written(folder, entries, name="data.json"):
    lines = "\n\n".join(json.dumps(one) for one in entries)
    (folder / name).write_text(json.dumps(entries) if name.endswith(".json") else lines, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_list_and_a_file_of_lines_are_read_alike(folder, name):
    source = XComposerConversations(written(folder, [entry("one"), entry("two", ["pictures/b.png"])], name))
    assert [source[n].id for n in range(len(source))] == ["one", "two"]
    assert [p.path.name for p in source[1].pictures] == ["b.png"]
    assert (source[0].pictures[0].width, source[0].pictures[0].height) == (20, 10)
    assert source[0].answer == "red"
    assert source[0].source == "data"


def test_images_may_lie_elsewhere_and_text_needs_none(folder):
    text = {"conversations": [{"from": "user", "value": "hello"}, {"from": "assistant", "value": "hi"}]}
    source = XComposerConversations(written(folder, [entry(image="a.png"), text]), images=str(folder / "pictures"))
    assert source[0].pictures[0].path == folder / "pictures" / "a.png"
    assert source[1].pictures == ()
    assert source[1].id == "data.json:1 (entry 2)"


def test_a_text_file_named_png_is_refused_where_it_stands(folder):
    (folder / "pictures" / "a.png").write_text("no pixels")
    with pytest.raises(UserError, match=r"a\.png' is not an image"):
        XComposerConversations(written(folder, [entry()]))[0]


@pytest.mark.parametrize("bad", ["text", 3, {"id": "x"}, {"conversations": "no list"}])
def test_an_entry_of_another_form_is_named_by_its_place(folder, bad):
    source = XComposerConversations(written(folder, [entry(), bad]))
    with pytest.raises(UserError, match=r"data\.json:1 \(entry 2\): an entry is an object with a list `conversations`"):
        source[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no conversation"), ("[]", "holds no conversation"), ("{", "is not JSON"), ('{"a": 1}', "holds dict")],
)
def test_a_file_that_is_no_list_of_conversations_is_refused(tmp_path, text, message):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=message):
        XComposerConversations(str(tmp_path / "data.json"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no data file .*Correct the source's `path`"):
        Conversations(str(tmp_path / "absent.json"), format="xcomposer").source()


def test_heldout_conversations_come_from_their_own_file(folder):
    train = written(folder, [entry("train")])
    heldout = written(folder, [entry(f"h{n}") for n in range(3)], "heldout.json")
    assert Conversations(train, format="xcomposer").heldout() == []
    data = Conversations(train, heldout_path=heldout, format="xcomposer")
    assert [document.id for document in data.heldout()] == ["h0", "h1", "h2"]
    assert [len(data.heldout(count)) for count in (0, 2, 9)] == [0, 2, 3]
    assert [document.id for document in (data.source()[0],)] == ["train"]


@pytest.mark.parametrize(
    ("question", "guess"),
    [
        ("<image>what?", "looks like llava"),
        ("<img>a.png</img>what?", "looks like qwen_vl"),
        ("<ImageHere>what?", "looks like xcomposer"),
    ],
)
def test_the_format_has_to_be_declared_and_the_error_says_what_the_file_looks_like(folder, question, guess):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}]
    with pytest.raises(UserError, match=rf"has no `format`; expected one of llava, qwen_vl, xcomposer.* {guess}$"):
        Conversations(written(folder, [entry(turns=turns)]))
    with pytest.raises(UserError, match=r"the source .*absent\.json. has no `format`"):
        Conversations(str(folder / "absent.json"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpaca", "Did you mean 'query_response'"),
        ("lava", "Did you mean 'llava'"),
        ("folder", "Declare a corpus: .*format: folder, path"),
        ("coco", "Declare a corpus: .*format: folder, path"),
        ("webdataset", "Declare a corpus: .*format: captions, path"),
    ],
)
def test_a_format_that_holds_no_conversations_is_answered_with_the_way_to_read_it(name, message):
    with pytest.raises(UserError, match=message):
        Conversations("data.json", format=name)


def test_a_broken_held_out_conversation_follows_the_policy(folder, capsys):
    (folder / "pictures" / "half.png").write_bytes((folder / "pictures" / "b.png").read_bytes()[:45])  # a good header
    entries = [entry("one"), entry("half", "pictures/half.png"), entry("absent", "c.png"), entry("two")]
    heldout = written(folder, entries, "heldout.json")
    train = written(folder, [entry("train")])
    data = Conversations(train, heldout_path=heldout, format="xcomposer", on_bad_sample="skip")
    assert [document.id for document in data.heldout(1)] == ["one"]
    assert capsys.readouterr().err == ""
    assert [document.id for document in data.heldout()] == ["one", "two"]
    assert [document.id for document in data.heldout(2)] == ["one", "two"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1:3] for line in lines] == [
        ["a held-out document is left out", f"heldout.json:1 (entry {number})"] for number in (2, 3)
    ]
    failing = Conversations(train, heldout_path=heldout, format="xcomposer")
    with pytest.raises(UserError, match=r"^heldout\.json:1 \(entry 2\): .*half\.png"):
        failing.heldout(1)  # before anything is trained
    heldout = written(folder, entries[1:3], "heldout.json")
    hopeless = Conversations(train, heldout_path=heldout, format="xcomposer", on_bad_sample="skip")
    with pytest.raises(UserError, match="all 2 held-out documents are broken"):
        hopeless.heldout()


def test_a_held_out_conversation_that_ends_in_a_question_is_asked_its_last_answered_one(folder):
    turns = [*TURNS, {"from": "user", "value": "and now ?"}]
    heldout = written(folder, [entry(turns=turns)], "heldout.json")
    (document,) = Conversations(heldout, heldout_path=heldout, format="xcomposer").heldout()
    assert (document.question, document.answer) == ("what colour ?", "red")


def test_other_formats_are_declared(folder):
    turns = [{"from": "human", "value": "<image>what colour ?"}, {"from": "gpt", "value": "red"}]
    path = written(folder, [entry(turns=turns)])
    assert Conversations(path, format="llava").source()[0].turns[0].parts[1] == "what colour ?"
    assert [document.id for document in Conversations(path, heldout_path=path, format="llava").heldout()] == ["one"]
    turns = [{"from": "user", "value": "<img>pictures/a.png</img>what colour ?"}, {"from": "assistant", "value": "red"}]
    path = written(folder, [{"id": "one", "conversations": turns}])
    assert Conversations(path, format="qwen_vl").source()[0].pictures[0].path == folder / "pictures" / "a.png"


def test_what_becomes_of_bad_samples_is_passed_on(folder):
    data = Conversations(
        written(folder, [entry()]),
        format="xcomposer",
        too_long="truncate",
        on_bad_sample="skip",
        max_bad=0.5,
        max_unsupervised=0.25,
    )
    assert (data.too_long, data.on_bad_sample, data.max_bad, data.max_unsupervised) == ("truncate", "skip", 0.5, 0.25)
