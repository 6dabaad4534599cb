"""Inputs of kinds that people report: what each becomes, with file, line, reason and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_mm.documents.document import Document
from lit_mm.documents.sources import SampleError, open_source
from lit_mm.documents.sources.check import Summary, check_source

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))


def opened(name: str, format: str = "llava", **options: Any) -> Any:
    return open_source({"format": format, "path": str(CASES / name)} | options)


def conversations(name: str, format: str = "llava", **options: Any) -> Any:
    return opened(name, format, images=str(CASES / "images"), **options)


def shape(document: Document) -> list[list[Any]]:
    """The parts of every turn; a picture as its (width, height)."""
    return [
        [part if isinstance(part, str) else (part.width, part.height) for part in turn.parts] for turn in document.turns
    ]


def checked(source: Any) -> tuple[list[SampleError], Summary]:
    errors: list[SampleError] = []
    return errors, check_source("case", source, errors.append)


A, B = (120, 80), (120, 80)


@pytest.mark.parametrize(
    ("name", "format", "where", "kind", "message"),
    [
        (
            "image_tag.json",
            "qwen_vl",
            "image_tag.json:1",
            "foreign_placeholder",
            "turn 0 has <image>, a placeholder of the format llava; the declared format is qwen_vl, which has <img>",
        ),
        (
            "qwen_in_llava.json",
            "llava",
            "qwen_in_llava.json:1",
            "foreign_placeholder",
            "turn 0 has <img>a.jpg</img>, a placeholder of the format qwen_vl; the declared format is llava",
        ),
        ("video.json", "llava", "video.json:1", "foreign_placeholder", "<video>, and video is not read here"),
        (
            "images_key_no_ph.json",
            "llava",
            "images_key_no_ph.json:1",
            "placeholder_mismatch",
            "0 x <image>, its `images` names 1",
        ),
        (
            "image_tag_in_code.json",
            "llava",
            "image_tag_in_code.json:1",
            "placeholder_mismatch",
            "its `image` names 0. Name the image, or declare <image> in rows without pictures as text "
            "(`literal_placeholders: true`)",
        ),
        (
            "surrogate_text.json",
            "llava",
            "surrogate_text.json:1",
            "malformed_text",
            r"the text of turn 1 holds the lone surrogate '\ud83d' at character 7, which is half of a character",
        ),
        ("s3_url.json", "llava", "s3_url.json:1", "outside_folder", "`places: s3` allows them"),
    ],
)
def test_a_sample_fault_has_its_place_and_its_remedy(
    name: str, format: str, where: str, kind: str, message: str
) -> None:
    source = conversations(name, format)
    errors, summary = checked(source)
    assert [(error.where, error.kind) for error in errors] == [(where, kind)]
    assert message in str(errors[0])
    assert summary.broken == 1
    with pytest.raises(SampleError) as caught:
        source[0]
    assert str(caught.value) == str(errors[0])


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("images_key_ph.json", {}, [[A, "\nWhat is it?"], ["red"]]),
        ("two_middle.json", {}, [["Image A: ", A, " Image B: ", B, " Which is red?"], ["red"]]),
        ("base64_uri.json", {}, [[(200, 200), "\nq"], ["red"]]),
        ("image_tag_in_code.json", {"literal_placeholders": True}, [["How do I write <image> in SVG?"], ["red"]]),
        (
            "numeric.json",
            {},
            [[A, "\nHow many birds are there?"], ["2"], ["Are they red?"], ["yes"], ["In which year?"], ["2019"]],
        ),
        ("pretty_list.jsonl", {}, [[A, "\nq café \u2028 x"], ["a"]]),
    ],
)
def test_a_sound_sample_is_read_as_it_is_meant(name: str, options: dict[str, Any], parts: list[Any]) -> None:
    source = conversations(name, **options)
    errors, _ = checked(source)
    assert errors == []
    assert shape(source[0]) == parts


def test_base64_is_decoded_and_in_no_message() -> None:
    source = conversations("base64_uri.json")
    picture = source[0].pictures[0]
    assert tuple(picture.pixels().shape) == (3, picture.height, picture.width)
    assert "/9j/" not in picture.blob.place


def test_ids_that_repeat_are_a_note() -> None:
    errors, summary = checked(conversations("dup_ids.json"))
    assert errors == []
    assert summary.lines() == [
        "1 of 2 samples have an id that an earlier one has, the first at dup_ids.json:1 (entry 2)"
    ]


def test_a_pretty_list_in_a_jsonl_is_read_as_the_list_that_it_is() -> None:
    source = conversations("pretty_list.jsonl")
    assert [source[number].id for number in range(len(source))] == ["0", "1", "2"]


def test_hugging_face_s_file_name_is_read_and_another_key_is_refused(tmp_path: Path) -> None:
    shutil.copy(CASES / "folder_metadata.jsonl", tmp_path / "metadata.jsonl")
    shutil.copy(CASES / "images" / "a.jpg", tmp_path / "a.jpg")
    source = open_source({"format": "folder", "path": str(tmp_path)})
    assert [shape(source[number]) for number in (0, 1)] == [[[A, "What?"], ["red"]], [[A, "a red box"]]]
    errors, summary = checked(source)
    assert [str(error) for error in errors] == [
        "metadata.jsonl:3: its `image_path` names 'a.jpg' and is not read, and the sample has no picture otherwise. "
        "Write `image`"
    ]
    assert (summary.pictures, summary.illustrated) == (2, 2)


def test_a_byte_order_mark_and_carriage_returns_are_no_caption() -> None:
    assert opened("bomtxt.tar", "captions")[0].turns[0].text == "one"


def test_dots_in_the_names_of_members_are_explained() -> None:
    errors, _ = checked(opened("dots.tar", "captions"))
    assert [error.kind for error in errors] == ["missing_file"]
    assert "A key ends at the first dot: 'a.b.jpg' has the key 'a' and the ending 'b.jpg'" in str(errors[0])


def test_a_member_that_comes_twice_is_a_fault_of_its_sample() -> None:
    (error,), _ = checked(opened("dup.tar", "captions"))
    assert (error.where, error.kind) == ("dup.tar:1", "duplicate_member")
    assert "two members '1.txt'" in str(error)


def test_an_image_of_34_bytes_with_89_megapixels_is_refused_by_its_header(tmp_path: Path) -> None:
    """Its 89 megapixels are over a limit that a user can set; the decoded bytes are never made."""
    shutil.copy(CASES / "89_megapixels_in_34_bytes.webp", tmp_path / "a.webp")
    (tmp_path / "metadata.jsonl").write_text('{"image": "a.webp", "caption": "x"}')
    source = open_source({"format": "folder", "path": str(tmp_path), "limit_pixels": 80_000_000})
    (error,), _ = checked(source)
    assert error.kind == "too_many_pixels"
