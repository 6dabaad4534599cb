"""Data sets by declaration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lit_mm.datamodules.corpora import Corpora, Corpus
from lit_mm.errors import UserError


@pytest.fixture
def chats(tmp_path: Path) -> str:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    entries = [{"id": str(number), "image": "a.png", "conversations": turns} for number in range(3)]
    (tmp_path / "chats.json").write_text(json.dumps(entries))
    return str(tmp_path / "chats.json")


@pytest.fixture
def pages(tmp_path: Path) -> str:
    images = [{"image_name": "a.png", "matched_text_index": number} for number in (1, 0)]
    (tmp_path / "pages.jsonl").write_text(json.dumps({"text_list": ["One.", "Two."], "image_info": images}) + "\n")
    return str(tmp_path / "pages.jsonl")


def test_it_joins_data_sets_of_several_formats_under_their_names(chats: str, pages: str) -> None:
    joined = Corpora([Corpus("chats", "llava", chats), Corpus("pages", "mmc4", pages, max_images=1)]).source()
    assert (len(joined), joined.names, joined.draws) == (4, ["chats", "pages"], [3, 1])
    assert [len(joined[number].pictures) for number in range(4)] == [1, 1, 1, 1]
    assert joined[3].turns[0].role == "page"


def test_weights_and_repeats_reach_the_mixture(chats: str, pages: str) -> None:
    repeated = [Corpus("chats", "llava", chats, repeat=2), Corpus("pages", "mmc4", pages, repeat=3)]
    assert Corpora(repeated, weights="repeat").source().draws == [6, 3]
    weighed = [Corpus("chats", "llava", chats, weight=1), Corpus("pages", "mmc4", pages, weight=1)]
    assert Corpora(weighed, weights="explicit").source().draws == [2, 2]


def test_nothing_is_opened_before_it_is_asked_for() -> None:
    data = Corpora([Corpus("far", "llava", "nowhere.json")], heldout=Corpus("far", "llava", "nowhere.json"))
    with pytest.raises(UserError, match="nowhere"):
        data.source()
    with pytest.raises(UserError, match="nowhere"):
        data.heldout(1)


def test_held_out_documents_are_those_of_their_own_corpus(chats: str) -> None:
    declared = Corpus("chats", "llava", chats)
    assert [document.id for document in Corpora([declared], heldout=declared).heldout(2)] == ["0", "1"]
    assert Corpora([declared]).heldout() == []


def test_no_data_set_and_an_unknown_format_are_refused(chats: str) -> None:
    with pytest.raises(UserError, match="name at least one data set"):
        Corpora([])
    with pytest.raises(UserError, match="no data format 'lava'"):
        Corpora([Corpus("chats", "lava", chats)]).source()


def test_every_argument_of_a_format_can_be_written_in_a_corpus(tmp_path: Path, chats: str) -> None:
    (source,) = Corpora([Corpus("chats", "llava", chats, image_first=True, limit_pixels=300)]).source().sources
    assert (source.image_first, source.limit_pixels) == (True, 300)
    (source,) = Corpora([Corpus("chats", "llava", chats, literal_placeholders=True)]).source().sources
    assert source.literal_placeholders
    (tmp_path / "lines.jsonl").write_text(json.dumps({"image": "a.png", "caption": "red"}))
    (source,) = Corpora([Corpus("folder", "folder", str(tmp_path), file="lines.jsonl")]).source().sources
    assert source[0].pictures[0].width == 20
    pages = [{"texts": ["a", None], "images": [None, None]}]
    (tmp_path / "pages.jsonl").write_text(json.dumps(pages[0]))
    declared = Corpus("pages", "obelics", str(tmp_path / "pages.jsonl"), gaps="drop", limit_group=1000)
    (source,) = Corpora([declared]).source().sources
    assert (source[0].pictures, source.limit_group) == ((), 1000)
    with pytest.raises(UserError, match="a source of format 'llava' has no 'gaps'"):
        Corpora([Corpus("chats", "llava", chats, gaps="drop")]).source()
    with pytest.raises(
        UserError, match=r"the source '.*chats\.json' has no `format`; expected one of llava, .*looks like llava"
    ):
        Corpora([Corpus("chats", path=chats)]).source()
    with pytest.raises(UserError, match=r"a source of format 'llava' needs \['path'\]"):
        Corpora([Corpus("chats", "llava")]).source()


def test_a_broken_held_out_document_is_left_out_as_the_policy_says(chats: str, tmp_path: Path) -> None:
    entries = json.loads(Path(chats).read_text())
    entries[1]["image"] = "absent.png"
    (tmp_path / "heldout.json").write_text(json.dumps(entries))
    heldout = Corpus("heldout", "llava", str(tmp_path / "heldout.json"))
    data = Corpora([Corpus("chats", "llava", chats)], heldout=heldout, on_bad_sample="skip")
    assert [document.id for document in data.heldout()] == ["0", "2"]
    with pytest.raises(UserError, match=r"absent\.png"):
        Corpora([Corpus("chats", "llava", chats)], heldout=heldout).heldout(1)
