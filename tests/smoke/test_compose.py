"""A tiny nano recipe of XComposer runs through all stages; `compose` runs with it and with XComposer2."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import yaml
from PIL import Image

from lit_mm.cli import main
from lit_mm.documents.document import Picture
from tests.reader import Reader

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAMES = ("blue circle", "red <square>", "green & small", "b/yellow")


def tiny(recipe: str) -> dict[str, Any]:
    """The recipe with its stages and data, but few and small steps, from random weights."""
    config = yaml.safe_load((EXPERIMENTS / f"{recipe}.yaml").read_text())
    model = config["model"]["init_args"]
    model["vision"]["init_args"].update(image_size=28, width=16, layers=1, heads=2, weights=None)
    model["language"]["init_args"].update(width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, weights=None)
    model.update(image_size=28, rank=2)
    if recipe == "xcomposer":
        model["connector"]["init_args"].update(queries=4, width=16, layers=2, heads=2, ffn_width=24)
    config["data"]["init_args"].update(documents=12, global_batch=2, window=8, heldout_documents=9)
    for stage in config["stages"]:
        stage["max_steps"] = 2
    return config | {"track": False, "examine_documents": 9, "checkpoint_every": 1}


def typed(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run of each family and a pool of images."""
    place = tmp_path_factory.mktemp("compose")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit_mm"])
        patch.chdir(place)
        for recipe in ("xcomposer", "xcomposer2"):
            Path(f"{recipe}.yaml").write_text(yaml.safe_dump(tiny(recipe), sort_keys=False))
            assert typed("fit", "--config", f"{recipe}.yaml", "--run_dir", f"runs/{recipe}") == 0
        for number, name in enumerate(NAMES):
            path = Path("pool", f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + number, 30), (60 * number, 0, 0)).save(path)
        Path("pool/notes.txt").write_text("no image")
        Path("pool/.hidden.png").write_bytes(b"")
        yield place
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(place)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run `compose` with options; required options have defaults. Returns exit code, output, errors."""

    def run(*options: str, run: str = "runs/xcomposer", **given: str) -> tuple[int, str, str]:
        capsys.readouterr()
        values = {"instruction": "a red circle", "images": "pool", "out": str(tmp_path / "out")} | given
        words = [word for name, value in values.items() for word in (f"--{name}", value)]
        code = typed("compose", run, *words, *options)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --- the recipe ------------------------------------------------------------------------------------------------------
def test_the_recipe_trains_every_stage(place: Path) -> None:
    with (place / "runs/xcomposer/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    stages = tiny("xcomposer")["stages"]
    assert [row["stage"] for row in rows] == [stage["name"] for stage in stages for _ in range(2)]
    assert all(3 < float(row["loss"]) < 10 for row in rows)  # ln 512 = 6.2: a random model guesses among 512 tokens
    for row, stage in zip(rows[::2], stages, strict=True):
        learns = {name.removeprefix("lr_") for name, rate in row.items() if name.startswith("lr_") and float(rate)}
        assert learns == set(stage["train"])


def test_a_trained_model_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("evaluate", "runs/xcomposer", "--documents", "9", "--format", "json") == 0
    assert 0 <= json.loads(capsys.readouterr().out)["accuracy"]["overall"] <= 1


# --- compose ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["xcomposer", "xcomposer2"])
def test_it_writes_an_article_with_images_in_place(family: str, command: Callable, tmp_path: Path) -> None:
    code, output, error = command("--slots", "2", "--max_new_tokens", "60", run=f"runs/{family}")
    assert code == 0, error
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"article.md", "article.html", "composition.json", "images"}
    record = json.loads((out / "composition.json").read_text())
    assert record["lines"] and record["instruction"] == "a red circle"
    for note in record["notes"]:  # a random model names no lines
        assert f"note: {note}" in output
    chosen = [slot for slot in record["slots"] if slot["image"]]
    assert 1 <= len(chosen) <= 2
    assert len({slot["image"] for slot in chosen}) == len(chosen)
    for slot in chosen:
        assert slot["image"] in slot["candidates"] and Path(slot["image"]).parts[0] == "pool"
        assert (out / slot["file"]).read_bytes() == Path(slot["image"]).read_bytes()
    page = Reader((out / "article.html").read_text())
    linked = [unquote(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert linked == [slot["file"] for slot in chosen]
    assert sorted(path.name for path in (out / "images").iterdir()) == sorted(Path(file).name for file in linked)
    text = (out / "article.md").read_text()
    assert [text.count(f"]({slot['file']})") for slot in chosen] == [1] * len(chosen)
    blocks = [tag for tag, _ in page.tags if tag in ("p", "h1", "h2", "h3", "h4", "h5", "h6", "figure")]
    assert [n for n, tag in enumerate(blocks) if tag == "figure"] == [
        slot["after"] + 1 + at for at, slot in enumerate(chosen)
    ]


def test_the_same_seed_writes_the_same_article(command: Callable, tmp_path: Path) -> None:
    def written(name: str, seed: str) -> str:
        options = ("--slots", "1", "--max_new_tokens", "30", "--seed", seed)
        assert command(*options, run="runs/xcomposer2", out=str(tmp_path / name))[0] == 0
        return (tmp_path / name / "composition.json").read_text()

    first = written("a", "1")
    assert written("b", "1") == first
    assert written("c", "2") != first


def test_a_retriever_can_be_named_or_configured(command: Callable, tmp_path: Path) -> None:
    named = ("--retriever", "lit_mm.composition.retrieve.ByFileName")
    (tmp_path / "search.yaml").write_text(
        yaml.safe_dump({"class_path": "tests.smoke.test_compose.Fixed", "init_args": {"first": 3}})
    )
    options = ("--slots", "1", "--max_new_tokens", "20", "--candidates", "1")
    assert command(*options, *named, out=str(tmp_path / "a"))[0] == 0
    code, _, error = command(*options, "--retriever", str(tmp_path / "search.yaml"), out=str(tmp_path / "b"))
    assert code == 0, error
    (slot,) = json.loads((tmp_path / "b/composition.json").read_text())["slots"]
    assert slot["image"] == "pool/red <square>.png"  # the last; neither a hidden file nor a text is counted


class Fixed:
    """A search that proposes images from a fixed number on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def over(self, module: object, pictures: Sequence[Picture]) -> Callable[..., list[int]]:
        def retrieve(caption: str, count: int, exclude: Collection[int]) -> list[int]:
            return [n for n in range(self.first, len(pictures)) if n not in exclude][:count]

        return retrieve


def test_an_image_that_cannot_be_decoded_is_named_and_left_out(command: Callable, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    Image.new("RGB", (9, 9)).save(pool / "good.png")
    code, _, error = command("--slots", "1", "--max_new_tokens", "20", images=str(pool))
    assert code == 0
    assert "left out" in error and "broken.png" in error and "good.png" not in error
    (pool / "good.png").unlink()
    code, _, error = command(images=str(pool), out=str(tmp_path / "other"))
    assert code == 2 and "none of the 1 image files" in error


def test_another_familys_template_must_be_chosen(command: Callable, tmp_path: Path) -> None:
    code, _, error = command("--template", "xcomposer3")
    assert code == 2 and "--template is one of xcomposer, xcomposer2, got 'xcomposer3'" in error
    options = ("--slots", "1", "--max_new_tokens", "20", "--template", "xcomposer2")
    assert command(*options, run="runs/xcomposer")[0] == 0


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ((), {"instruction": " "}, "--instruction is empty"),
        ((), {"images": "nowhere"}, "--images 'nowhere' is no folder"),
        ((), {"images": "runs/xcomposer/checkpoints"}, "holds no image"),
        ((), {"out": "pool"}, "--out 'pool' exists and is not an empty folder"),
        ((), {"out": "xcomposer.yaml"}, "not an empty folder"),
        ((), {"run": "nowhere"}, "there is no checkpoint 'nowhere'"),
        (("--slots", "-1"), {}, "--slots is at least 0, got -1"),
        (("--candidates", "27"), {}, "--candidates is 1 to 26"),
        (("--max_new_tokens", "0"), {}, "--max_new_tokens is at least 1"),
        (("--slot", "1"), {}, "there is no option --slot. Did you mean --slots?"),
        (("--retriever", "nothing.Here"), {}, "there is no 'nothing'"),
        (("--retriever", "lit_mm.errors.UserError"), {}, "has no method `over(module, pictures)`"),
        (("--retriever", "missing.yaml"), {}, "--retriever 'missing.yaml' cannot be read"),
        (("--retriever", "xcomposer.yaml"), {}, "needs `class_path:`"),
        ((), {"instruction": "a<|im_end|>b"}, "contains the marker '<|im_end|>'"),
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(
    options: tuple, given: dict, message: str, command: Callable, tmp_path: Path
) -> None:
    code, _, error = command(*options, **given)
    assert code == 2
    assert message in error and error.startswith("lit_mm: ") and len(error.strip().splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_search_in_yaml_names_what_it_does_not_take(command: Callable, tmp_path: Path) -> None:
    for held, message in (
        ({"class_path": "lit_mm.composition.retrieve.ByLikelihood", "init_args": {"size": 1}}, "does not take"),
        ({"class_path": "lit_mm.composition.retrieve.ByLikelihood", "args": {}}, "got ['args']"),
        ({"class_path": "lit_mm.composition.retrieve.ByLikelihood", "init_args": {"batch_size": 0}}, "`batch_size`"),
    ):
        (tmp_path / "search.yaml").write_text(yaml.safe_dump(held))
        code, _, error = command("--retriever", str(tmp_path / "search.yaml"))
        assert code == 2 and message in error


def test_a_retriever_of_a_users_package_needs_to_be_allowed(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_search.py").write_text("from lit_mm.composition.retrieve import ByFileName as Own\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, error = command("--retriever", "own_search.Own", out=str(tmp_path / "a"))
    assert code == 2 and "add --allow own_search" in error
    monkeypatch.setenv("LIT_MM_ALLOW", "")  # the option sets it; the test restores it
    code, _, error = command("--retriever", "own_search.Own", "--allow", "own_search", out=str(tmp_path / "b"))
    assert not code, error
