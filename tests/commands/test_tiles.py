"""`tiles` on the tiny recipe: numbers, JSON and a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lit_mm.cli import main
from tests.commands.test_describe import write


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*options: str) -> str:
        capsys.readouterr()
        main(["tiles", "--config", write(), *options])
        return capsys.readouterr().out

    return run


def test_every_view_is_told_with_what_it_shows(printed: Callable) -> None:
    found = json.loads(printed("--size", "56x28", "--format", "json"))
    assert {key: found[key] for key in ("width", "height", "views", "grid", "visual_tokens", "thumbnail")} == {
        "width": 56,
        "height": 28,
        "views": 2 + 1,
        "grid": [2, 1],
        "visual_tokens": 14,
        "thumbnail": "first",
    }
    whole, left, right = found["cuts"]
    assert (whole["number"], whole["kind"], whole["size"], whole["tokens"]) == (1, "whole", [28, 28], [2, 2])
    assert [left["kind"], right["kind"]] == ["tile", "tile"]
    assert [one["shows"] for one in found["cuts"]] == [[0, 0, 56, 28], [0, 0, 28, 28], [28, 0, 56, 28]]
    assert (right["resize"], right["canvas"], right["offset"], right["box"]) == (
        [56, 28],
        [56, 28],
        [0, 0],
        [28, 0, 28, 28],
    )


@pytest.mark.parametrize(("options", "line"), [((), "decoded at 1/4 of its size"), (("true",), "2 x 1 tiles")])
def test_a_large_jpeg_is_named_unless_it_is_decoded_whole(here: Path, printed: Callable, options, line) -> None:
    Image.new("RGB", (560, 280), "red").save(here / "large.jpg")
    words = [word for value in options for word in ("--model.init_args.inputs.whole_jpegs", value)]
    output = printed("--image", "large.jpg", *words)
    assert line in output and ("decoded at" in output) == (not options)


def test_the_numbers_are_those_of_the_json(printed: Callable) -> None:
    lines = printed("--size", "56x28").splitlines()
    assert lines[0] == "56 x 28 pixels: 2 x 1 tiles, 3 views, 14 visual tokens"
    assert lines[-1].split() == ["3", "tile", "28", "x", "28", "2", "x", "2", "28,", "0,", "56,", "28"]


def test_a_stage_may_tile_otherwise(printed: Callable) -> None:
    assert json.loads(printed("--size", "28x14", "--stage", "pretrain", "--format", "json"))["views"] == 1


def test_an_image_is_drawn_with_its_tiles_and_its_padding(printed: Callable, here: Path) -> None:
    Image.new("RGB", (60, 20), "yellow").save("page.png")
    assert printed("--image", "page.png", "--picture", "tiles.png").startswith("60 x 20 pixels: 3 x 1 tiles")
    with Image.open("tiles.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    outlines = {(230, 25, 75), (60, 180, 75), (67, 99, 216), (0, 0, 0)}
    assert {(255, 255, 0), *outlines} <= colours
    Image.new("RGB", (30, 20), "yellow").save("page.png")
    printed("--image", "page.png", "--picture", "tiles.png")
    with Image.open("tiles.png") as picture:
        assert (48, 48, 48) in {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}  # padding


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --image FILE or --size"),
        (["--size", "1x1", "--image", "page.png"], "either --image FILE or --size"),
        (["--size", "12"], "--size takes sizes as WIDTHxHEIGHT"),
        (["--image", "none.png"], "none.png"),
        (["--size", "9x9", "--stage", "other"], "--stage names 'other'; the recipe has ['pretrain', 'finetune']"),
        (["--size", "9x9", "--picture", "x.nothing"], "cannot be written to 'x.nothing'"),
        (["--size", "9x9,8x8", "--picture", "x.png"], "--picture draws one image, --size names 2 sizes"),
        (["--siz", "9x9", "--size", "9x9"], "no option --siz. Did you mean --size?"),
    ],
)
def test_a_mistake_exits_with_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["tiles", "--config", write(), *arguments])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 3


def test_several_sizes_go_on_after_one_that_is_refused(printed: Callable) -> None:
    layouts = json.loads(printed("--size", "56x28,1x90000000,28x28", "--stage", "pretrain", "--format", "json"))
    assert [layout.get("views") for layout in layouts] == [1, None, 1]
    assert layouts[1].keys() == {"width", "height", "refused"}
    text = printed("--size", "56x28,1x90000000,28x28", "--stage", "pretrain")
    assert "1 x 90000000 pixels: refused. plan_centre_crop cannot take an image of 1 x 90000000 pixels" in text
    assert text.count("visual tokens") == 2
