"""`data check`, `data show` and `data index` on small data sets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lit_mm.cli import main
from lit_mm.commands.data_show import as_image, side_by_side
from lit_mm.commands.data_sources import data_modules
from lit_mm.errors import UserError
from lit_mm.stream.maker import SampleMaker
from tests.tiny import MODEL, xcomposer2

ROOT = Path(__file__).parents[2]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


SOUND = {"id": "a", "image": "red.png", "conversations": chat("<image>\nwhat colour ?", "red")}
WIDE = {"id": "b", "image": ["red.png", "wide.png"], "conversations": chat("<image> near <image> ?", "this page")}
EMPTY = {"id": "c", "image": "red.png", "conversations": chat("<image>", "")}
MISSING = {"id": "d", "image": "absent.png", "conversations": chat("<image>", "red")}
NO_MODEL = """
import sys
from lit_mm.cli import main
main({arguments})
heavy = sorted({{"torch", "lightning", "transformers", "jsonargparse"}} & sys.modules.keys())
assert not heavy, heavy
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder of the commands, with two pictures and a separate cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    Image.new("RGB", (20, 20), (255, 0, 0)).save("red.png")
    Image.new("RGB", (40, 10), (0, 0, 255)).save("wide.png")
    return tmp_path


def lines(*entries: dict[str, Any], name: str = "chat.jsonl") -> str:
    Path(name).write_text("\n".join(json.dumps(entry) for entry in entries))
    return f"{{format: llava, path: {name}}}"


def recipe(heldout: str | None = None, **stages: dict[str, Any]) -> str:
    """Build a recipe over chat.jsonl; the argument maps a stage name to the changes that the stage makes in `data`."""
    described = {
        "model": MODEL,
        "stages": [
            {"name": name, "train": {"connector": {"lr": 1e-3}}, "max_steps": 1, "data": changes}
            for name, changes in (stages or {"only": {}}).items()
        ],
        "data": {
            "class_path": "lit_mm.datamodules.Conversations",
            "init_args": {"path": "chat.jsonl", "format": "llava", "heldout_path": heldout, "global_batch": 2},
        },
        "trainer": {"accelerator": "cpu"},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(described))
    return "recipe.yaml"


def leaves(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command. Returns exit code, standard output and standard error."""
    code = 0
    try:
        main(["data", *arguments])
    except SystemExit as left:
        code = int(left.code or 0)
    done = capsys.readouterr()
    return code, done.out, done.err


# --- check -----------------------------------------------------------------------------------------------------------
def test_a_sound_source_leaves_with_zero(capsys):
    code, out, _ = leaves(capsys, "check", "--source", lines(SOUND, WIDE))
    assert code == 0
    assert [line.split() for line in out.splitlines() if line.strip().startswith("chat")] == [
        ["chat", "2", "3", "0", "none"]
    ]


def test_a_broken_one_leaves_with_two_and_names_file_line_reason_and_remedy(capsys):
    code, out, _ = leaves(capsys, "check", "--source", lines(SOUND, EMPTY, MISSING))
    assert code == 2
    first, second, *_ = out.splitlines()
    assert first == "chat.jsonl:2: empty_answer: the answer in turn 1 is empty. Write it, or remove the turn"
    assert second.startswith("chat.jsonl:3: missing_file: there is no image 'absent.png'")
    assert "1 empty_answer, 1 missing_file" in out


def test_json_holds_the_same_for_machines(capsys):
    code, out, _ = leaves(capsys, "check", "--source", lines(SOUND, EMPTY, MISSING), "--format", "json")
    report = json.loads(out)
    assert code == 2
    assert (report["ok"], report["errors"]) == (False, 2)
    assert report["findings"][0] == {
        "source": "chat",
        "where": "chat.jsonl:2",
        "id": "c",
        "kind": "empty_answer",
        "reason": "the answer in turn 1 is empty",
        "remedy": "Write it, or remove the turn",
    }
    assert report["sources"][0]["kinds"] == {"empty_answer": 1, "missing_file": 1}
    code, out, _ = leaves(capsys, "check", "--source", lines(SOUND), "--format", "json")
    assert (code, json.loads(out)["ok"]) == (0, True)


def test_a_long_list_is_cut_and_says_so(capsys):
    declared = lines(*({**EMPTY, "id": str(n)} for n in range(5)))
    _, out, _ = leaves(capsys, "check", "--source", declared, "--lines", "2")
    assert out.count("empty_answer: ") == 2
    assert "... and 3 more" in out
    _, out, _ = leaves(capsys, "check", "--source", declared, "--lines", "0")
    assert out.count("empty_answer: ") == 5


def test_a_recipe_is_checked_with_all_stages_and_its_held_out_data(capsys):
    lines(SOUND)
    lines(SOUND, EMPTY, name="later.jsonl")
    lines(SOUND, MISSING, {**SOUND, "id": "a"}, name="heldout.jsonl")
    path = recipe("heldout.jsonl", first={}, again={}, later={"path": "later.jsonl"})
    code, out, _ = leaves(capsys, "check", "--config", path, "--format", "json")
    report = json.loads(out)
    assert code == 2
    assert [(one["name"], one["samples"]) for one in report["sources"]] == [("chat", 1), ("later", 2), ("held-out", 3)]
    assert [one["notes"].get("held_out") for one in report["sources"]] == [1, 1, None]  # SOUND is in all files
    assert [(one["source"], one["kind"]) for one in report["findings"]] == [
        ("later", "empty_answer"),
        ("held-out", "missing_file"),
    ]
    code, out, _ = leaves(capsys, "check", "--config", path, "--stage", "first", "--format", "json")
    assert [one["name"] for one in json.loads(out)["sources"]] == ["chat", "held-out"]


def test_the_sources_of_a_mixture_are_checked_by_name(capsys):
    lines(SOUND, WIDE)
    Image.new("RGB", (8, 8)).save("page.png")
    Path("metadata.jsonl").write_text(json.dumps({"image": "page.png", "caption": ""}))
    path = recipe()
    described = yaml.safe_load(Path(path).read_text())
    members = [
        {"class_path": "lit_mm.documents.sources.LlavaConversations", "init_args": {"path": "chat.jsonl"}},
        {"class_path": "lit_mm.documents.sources.PictureFolder", "init_args": {"path": ".", "name": "pages"}},
    ]
    described["data"] = {
        "class_path": "lit_mm.datamodules.mixture.Mixture",
        "init_args": {"sources": [{"source": member} for member in members], "global_batch": 2},
    }
    Path(path).write_text(yaml.safe_dump(described))
    code, out, _ = leaves(capsys, "check", "--config", path, "--format", "json")
    report = json.loads(out)
    assert code == 2
    assert [(one["name"], one["samples"]) for one in report["sources"]] == [("chat", 2), ("pages", 1)]
    assert [(one["source"], one["where"], one["kind"]) for one in report["findings"]] == [
        ("pages", "metadata.jsonl:1", "empty_answer")
    ]


@pytest.mark.parametrize("action", ["check", "index"])
def test_one_source_is_looked_through_without_torch(action):
    arguments = ["data", action, "--source", lines(SOUND)]
    done = subprocess.run(
        [sys.executable, "-c", NO_MODEL.format(arguments=arguments)],
        env={"PYTHONPATH": str(ROOT), "LIT_MM_CACHE": "cache"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- index -----------------------------------------------------------------------------------------------------------
def test_an_index_is_made_once_and_made_again_when_asked(capsys):
    declared = lines(SOUND, WIDE, MISSING)
    code, out, _ = leaves(capsys, "index", "--source", declared)
    assert code == 0
    assert out.startswith("chat: 3 samples, 4 pictures; the index is in ")
    assert "1 pictures could not be read" in out
    Image.new("RGB", (5, 5)).save("absent.png")
    assert "could not be read" in leaves(capsys, "index", "--source", declared)[1]
    assert "could not be read" not in leaves(capsys, "index", "--source", declared, "--rebuild")[1]


def test_the_lengths_of_a_recipe_are_indexed_by_stage_and_layout(capsys, monkeypatch):
    lines(SOUND, WIDE, EMPTY)
    path = recipe(first={}, second={}, third={"row_tokens": 64})
    monkeypatch.setattr("lit_mm.stream.lengths.CHUNK", 2)
    code, out, _ = leaves(capsys, "index", "--config", path)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("chat: lengths")] == [
        "chat: lengths of 3 samples as stage 'first' lays them out; 1 of them cannot be trained on",
        "chat: lengths of 3 samples as stage 'third' lays them out; 1 of them cannot be trained on",
    ]
    built: list[int] = []
    original = SampleMaker.make
    monkeypatch.setattr(SampleMaker, "make", lambda self, d: built.append(1) or original(self, d))
    assert leaves(capsys, "index", "--config", path)[1] == out
    assert not built  # the kept index
    assert leaves(capsys, "index", "--config", path, "--stage", "third", "--rebuild")[1].count(": lengths of 3") == 1
    assert len(built) == 2  # the empty answer is no document


def test_generated_documents_need_none(capsys):
    path = recipe()
    described = yaml.safe_load(Path(path).read_text())
    described["data"] = {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": {"documents": 8}}
    Path(path).write_text(yaml.safe_dump(described))
    code, out, _ = leaves(capsys, "index", "--config", path)
    assert (code, out) == (0, "NanoSource: 8 samples are generated, there is nothing to index\n")


# --- show ------------------------------------------------------------------------------------------------------------
def test_a_sample_is_shown_with_what_is_learnt_and_its_views(capsys):
    lines(SOUND, WIDE)
    code, out, _ = leaves(capsys, "show", "1", "--config", recipe(), "--output", "views.png")
    assert code == 0
    assert "sample 'b' of chat" in out
    assert "8 of pictures (2 pictures, 2 views); the model takes 4096" in out
    assert "[picture 1: 20 x 20, 4 tokens] near [picture 2: 40 x 10, 4 tokens] ?" in out
    assert "{+this page<|im_end|>" in out.replace("\n", "")
    sheet = np.asarray(Image.open("views.png"))
    assert sheet.shape == (36, 68, 3)  # two views of 28, 4 pixels around each
    np.testing.assert_array_equal(sheet[18, 18], (255, 0, 0))
    np.testing.assert_array_equal(sheet[18, 50], (0, 0, 255))
    np.testing.assert_array_equal(sheet[18, 34], (128, 128, 128))


def test_the_learnt_tokens_that_are_counted_are_those_that_are_marked(capsys):
    lines(SOUND)
    out = leaves(capsys, "show", "0", "--config", recipe())[1]
    counted = int(out.split(" tokens: ")[1].split(" learnt")[0])
    marked = out.partition("{+")[2].partition("+}")[0]
    assert counted == len(xcomposer2().processor.tokenizer.encode(marked))
    assert Path("sample-0.png").is_file()


def test_the_second_text_is_shown_as_the_stage_reads_it(capsys):
    recipe_of_second_texts = str(ROOT / "experiments/instructblip.yaml")
    code, out, _ = leaves(capsys, "show", "0", "--config", recipe_of_second_texts, "--stage", "instruct")
    assert code == 0 and "second text, " in out and " tokens: read the page" in out


def test_another_source_can_be_shown_through_the_recipe_s_model(capsys):
    path = recipe()
    lines(SOUND)
    declared = lines({"id": "t", "conversations": chat("what is this ?", "red")}, name="text.jsonl")
    code, out, _ = leaves(capsys, "show", "0", "--config", path, "--source", declared)
    assert code == 0
    assert "sample 't' of text" in out
    assert not Path("sample-0.png").exists()  # it has no views


def test_control_characters_of_a_sample_reach_no_terminal(capsys):
    lines(SOUND | {"id": "\x1b[2J", "conversations": chat("<image>\nwhat \x1b]0;title\x07 ?", "red\x1b[31m")})
    code, out, err = leaves(capsys, "show", "0", "--config", recipe())
    assert code == 0 and "\x1b" not in out + err and "\x07" not in out + err
    code, out, err = leaves(capsys, "show", "0", "--config", recipe(), "--stage", "\x1b[31m")
    assert code == 2 and "\x1b" not in out + err


def test_views_stand_in_rows(here):
    views = [Image.new("RGB", size) for size in ((10, 10), (10, 20), (30, 10), (10, 10), (10, 10))]
    assert side_by_side(views).size == (3 * 34 + 4, 2 * 24 + 4)


def test_a_view_looks_as_it_did_before_it_was_normalised():
    processor = xcomposer2().processor
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 5), dtype=np.uint8)
    mean, std = (np.array(one).reshape(3, 1, 1) for one in (processor.normalise.mean, processor.normalise.std))
    image = as_image((pixels / 255 - mean) / std, processor)
    np.testing.assert_array_equal(np.asarray(image), pixels.transpose(1, 2, 0))


# --- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "data check needs --config or --source"),
        (["show", "0"], "data show needs --config"),
        (["show", "2", "--config", "recipe.yaml"], "there are 2 samples, from 0 to 1; got 2"),
        (
            ["show", "2", "--config", "recipe.yaml", "--data.init_args.heldout_share", "0.4"],
            "there are 1 samples, from 0 to 0; held-out rows are not among them; got 2",
        ),
        (["show", "x", "--config", "recipe.yaml"], "invalid int value: 'x'"),
        (["show", "0", "--config", "recipe.yaml", "--output", "no/folder.png"], "cannot be written to 'no/folder.png'"),
        (["check", "--config", "recipe.yaml", "--stage", "later"], "--stage names 'later'; the recipe has ['only']"),
        (["show", "0", "--config", "recipe.yaml", "--stage", "later"], "--stage names 'later'"),
        (["check", "--config", "absent.yaml"], "there is no config file 'absent.yaml'"),
        (["check", "--source", "{format: llava, path: absent.jsonl}"], "there is no data file 'absent.jsonl'"),
        (["check", "--source", "llava"], "--source is a mapping such as"),
        (["check", "--source", "{format: [}"], "--source is not YAML"),
        (["check", "--config", "recipe.yaml", "--data.init_args.paht", "x"], "Did you mean"),
        (
            ["check", "--data.init_args.path", "x"],
            "--data.init_args.path is a key of a recipe. Add the recipe with --config",
        ),
        (["check", "--config", "recipe.yaml", "--stages", "later"], "--stages names ['later']"),
        (["check", "--sorce", "x"], "there is no option --sorce"),
        (["check", "--source", "{format: llava, path: chat.jsonl}", "--lines", "-1"], "--lines is at least 0"),
        (["chek"], "invalid choice: 'chek'"),
        ([], "the following arguments are required"),
    ],
)
def test_a_mistake_ends_in_one_line_and_two(capsys, arguments, message):
    lines(SOUND, WIDE)
    recipe()
    code, out, err = leaves(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert 1 <= len(err.strip().splitlines()) <= 3


def test_a_mistake_in_the_data_section_names_its_key(here):
    path = recipe()
    text = Path(path).read_text()
    Path(path).write_text(text.replace("format: llava", "fromat: llava"))
    with pytest.raises(UserError, match=r"data\.init_args\.fromat.*Did you mean 'format'"):
        data_modules(["--config", path], None)
    Path(path).write_text(yaml.safe_dump({"model": MODEL}))
    with pytest.raises(UserError, match=r"`data:` missing. A recipe has model, stages and data"):
        data_modules(["--config", path], None)


# --- recipes as fit takes them ---------------------------------------------------------------------------------------
def test_a_recipe_may_be_changed_as_for_fit(capsys):
    lines(SOUND)
    lines(SOUND, EMPTY, name="other.jsonl")
    path = recipe()
    changed = ["--config", path, "--data.init_args.path", "other.jsonl", "--trainer.max_time=00:01:00:00"]
    code, out, _ = leaves(capsys, "check", *changed, "--format", "json")
    assert (code, json.loads(out)["sources"][0]["samples"]) == (2, 2)
    code, out, _ = leaves(capsys, "check", "--data.init_args.path=other.jsonl", "--config", path)
    assert code == 2
    Path("overlay.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"path": "other.jsonl"}}}))
    code, out, _ = leaves(capsys, "index", "--config", path, "--config", "overlay.yaml")
    assert (code, out.partition(":")[0]) == (0, "other")


def test_a_sample_is_shown_as_a_changed_model_sees_it(capsys):
    lines(SOUND, WIDE)
    arguments = ["show", "1", "--config", recipe(), "--output", "views.png"]
    assert "[picture 1: 20 x 20, 4 tokens]" in leaves(capsys, *arguments)[1]
    larger = ["--model.init_args.image_size", "42", "--model.init_args.vision.init_args.image_size", "42"]
    assert "[picture 1: 20 x 20, 9 tokens]" in leaves(capsys, *arguments, *larger)[1]


def test_some_stages_may_be_chosen_as_for_fit(capsys):
    lines(SOUND)
    lines(SOUND, EMPTY, name="later.jsonl")
    path = recipe(first={}, later={"path": "later.jsonl"})
    out = leaves(capsys, "check", "--config", path, "--stages", "later", "--format", "json")[1]
    assert [one["name"] for one in json.loads(out)["sources"]] == ["later"]
    assert leaves(capsys, "check", "--config", path, "--stages=first")[0] == 0
