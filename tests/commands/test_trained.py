"""A trained model answers without its training data, on another device, and from any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lit_mm.callbacks.ledger import read_lines
from lit_mm.checkpoints.manifest import find, read
from lit_mm.cli import main
from lit_mm.commands.trained import for_answers
from tests.command_line import run_command
from tests.run.test_lock import HOLD, ROOT
from tests.test_cli import TINY

CHAT = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a page"}]


def conversations(file: Path, count: int) -> None:
    """A data file of that many conversations, with an image each beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{file.stem}-{number}.png"
        Image.new("RGB", (30, 20), (number * 20, 0, 0)).save(file.parent / name)
        rows.append({"id": f"{file.stem}/{number}", "image": name, "conversations": CHAT})
    file.write_text(json.dumps(rows))


def recipe() -> dict[str, Any]:
    config = deepcopy(TINY) | {"track": False, "examine_documents": 2, "checkpoint_every": 1}
    config["data"] = {
        "class_path": "lit_mm.datamodules.conversations.Conversations",
        "init_args": {
            "path": "data/train.json",
            "heldout_path": "heldout/asked.json",
            "format": "llava",
            "global_batch": 2,
            "num_workers": 0,
        },
    }
    del config["stages"][1]["data"]
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where a run on data files was launched; the run is in runs/tiny."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit_mm"])
        patch.chdir(place)
        conversations(place / "data/train.json", 6)
        conversations(place / "heldout/asked.json", 3)
        Path("tiny.yaml").write_text(yaml.safe_dump(recipe(), sort_keys=False))
        main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/tiny"])
        yield place
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


@pytest.fixture
def command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A command typed in the folder of the launch. Returns exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(place)

    def typed(*arguments: str) -> tuple[int, str, str]:
        return run_command(capsys, *arguments)

    return typed


@pytest.fixture
def without(place: Path, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Takes a folder of the launch away for the test's time."""
    names: list[str] = []

    def remove(name: str) -> None:
        shutil.move(place / name, tmp_path / f"away-{name}")
        names.append(name)

    yield remove
    for name in names:
        shutil.move(tmp_path / f"away-{name}", place / name)


QUESTION = ("--question", "what?", "--max_new_tokens", "4")


def test_generate_needs_no_data(place: Path, command, without) -> None:
    shutil.copy(place / "data/train-0.png", place / "page.png")
    answer = command("generate", "runs/tiny", "--image", "page.png", *QUESTION)
    assert answer[0] == 0, answer[2]
    without("data")
    without("heldout")
    assert command("generate", "runs/tiny", "--image", "page.png", *QUESTION) == answer


def test_generate_and_evaluate_work_from_any_folder(place: Path, command, tmp_path: Path, monkeypatch) -> None:
    figures = json.loads(command("evaluate", "runs/tiny", "--format", "json")[1])
    assert figures["documents"] == 3
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("page.png")
    assert json.loads(command("evaluate", str(place / "runs/tiny"), "--format", "json")[1]) == figures
    code, _, error = command("generate", str(place / "runs/tiny"), "--image", "page.png", *QUESTION)
    assert code == 0, error
    assert Path.cwd() == tmp_path


def test_evaluate_reads_the_held_out_files_alone(place: Path, command, without) -> None:
    figures = command("evaluate", "runs/tiny", "--format", "json")
    without("data")
    assert command("evaluate", "runs/tiny", "--format", "json") == figures
    without("heldout")
    code, _, error = command("evaluate", "runs/tiny")
    assert code == 2 and "held-out documents of the run: there is no data file 'heldout/asked.json'" in error
    assert "--data" in error and len(error.strip().splitlines()) == 1


def test_evaluate_asks_about_other_data(place: Path, command, without, tmp_path: Path, monkeypatch) -> None:
    without("data")
    without("heldout")
    monkeypatch.chdir(tmp_path)
    conversations(tmp_path / "mine/asked.json", 2)
    inline = "{format: llava, path: mine/asked.json}"
    (tmp_path / "asked.yaml").write_text("format: llava\npath: mine/asked.json\nimages: mine\n")
    for words in (inline, "asked.yaml"):
        code, output, error = command("evaluate", str(place / "runs/tiny"), "--data", words, "--format", "json")
        assert code == 0, error
        assert json.loads(output)["documents"] == 2
    for words, message in (
        ("nowhere.yaml", "there is no file 'nowhere.yaml'"),
        ("{format: llava", "--data is not YAML"),
        ("{format: llava, path: none.json}", "there is no data file"),
        ("{path: mine/asked.json}", "has no `format`"),
    ):
        code, _, error = command("evaluate", str(place / "runs/tiny"), "--data", words)
        assert code == 2 and message in error


def test_a_mixture_of_files_that_are_gone_is_evaluated(place: Path, command, tmp_path: Path) -> None:
    conversations(place / "more/train.json", 4)
    config = recipe()
    source = {"class_path": "lit_mm.documents.sources.LlavaConversations", "init_args": {"path": "more/train.json"}}
    config["data"] = {
        "class_path": "lit_mm.datamodules.mixture.Mixture",
        "init_args": {
            "sources": [{"source": source}],
            "heldout_source": {"format": "llava", "path": "heldout/asked.json"},
            "global_batch": 2,
            "num_workers": 0,
        },
    }
    (place / "mixture.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert command("fit", "--config", "mixture.yaml", "--stages", "pretrain", "--run_dir", "runs/mixture")[0] == 0
    shutil.rmtree(place / "more")
    code, output, error = command("evaluate", "runs/mixture", "--format", "json")
    assert code == 0, error
    assert json.loads(output)["documents"] == 3
    assert command("generate", "runs/mixture", *QUESTION)[0] == 0


def test_a_config_of_the_users_opens_the_held_out_files_alone(place: Path, command, tmp_path: Path) -> None:
    conversations(place / "gone/train.json", 4)
    config = recipe()
    config["data"] = {
        "class_path": "lit_mm.datamodules.mixture.Mixture",
        "init_args": {
            "sources": [{"source": {"format": "llava", "path": "gone/train.json"}}],
            "heldout_source": {"format": "llava", "path": "heldout/asked.json"},
            "global_batch": 2,
            "num_workers": 0,
        },
    }
    text = yaml.safe_dump(config, sort_keys=False).replace("lr: 0.001", "lr: 1e-3")
    assert "lr: 1e-3" in text
    (place / "other.yaml").write_text(text)
    shutil.rmtree(place / "gone")
    words = ("evaluate", "runs/tiny", "--format", "json")
    code, output, error = command(*words, "--config", "other.yaml")
    assert code == 0, error
    assert json.loads(output)["accuracy"] == json.loads(command(*words)[1])["accuracy"]
    assert command("generate", "runs/tiny", "--config", "other.yaml", *QUESTION)[0] == 0
    for before, after, message in (
        ("heldout/asked.json", "heldout/none.json", "there is no data file 'heldout/none.json'"),
        ("global_batch: 2", "global_bach: 2", "other.yaml, line "),
        ("lr: 1e-3", "lr: -1e-3", "finetune.train.connector: a part learns with lr > 0"),
    ):
        (place / "other.yaml").write_text(text.replace(before, after))
        code, _, error = command(*words, "--config", "other.yaml")
        assert code == 2 and message in error and len(error.strip().splitlines()) <= 3


def test_a_second_start_in_a_run_folder_in_use_is_refused(place: Path, command) -> None:
    (place / "runs/busy").mkdir()
    words = [sys.executable, "-c", HOLD, "runs/busy"]
    other = subprocess.Popen(
        words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    code, _, error = command("fit", "--config", "tiny.yaml", "--run_dir", "runs/busy")
    other.kill()
    other.wait()
    assert code == 2 and "is in use by process" in error and len(error.strip().splitlines()) == 1
    assert not (place / "runs/busy/config.yaml").exists()
    assert command("fit", "--config", "tiny.yaml", "--run_dir", "runs/busy")[0] == 0


def test_a_run_whose_folder_of_launch_is_gone_is_asked_where_the_user_is(place: Path, command, tmp_path: Path) -> None:
    shutil.copytree(place / "runs/tiny", tmp_path / "tiny")
    file = next((tmp_path / "tiny/checkpoints").glob("02-*3.ckpt")) / "manifest.json"
    content = json.loads(file.read_text())
    assert content["folder"] == str(place)
    del content["blake2b"]
    file.write_text(json.dumps(content | {"folder": "/nowhere/else", "format": 1}))
    assert command("generate", str(tmp_path / "tiny"), *QUESTION)[0] == 0


def test_the_accelerator_can_be_named(command) -> None:
    assert command("generate", "runs/tiny", "--accelerator", "cpu", *QUESTION)[0] == 0
    assert command("evaluate", "runs/tiny", "--accelerator", "cpu", "--format", "json")[0] == 0
    missing = "cuda" if torch.mps.is_available() else "mps"
    code, _, error = command("generate", "runs/tiny", "--accelerator", missing, *QUESTION)
    assert code == 2 and "--accelerator cpu" in error and len(error.strip().splitlines()) <= 3


def test_answers_need_no_callback_logger_or_profiler_of_the_training() -> None:
    trainer = {
        "accelerator": "gpu",
        "precision": "bf16-mixed",
        "callbacks": [{"class_path": "users.Own"}],
        "logger": True,
    }
    assert for_answers({"model": {}, "trainer": trainer}, "cpu") == {
        "model": {},
        "trainer": {"accelerator": "cpu", "precision": "bf16-mixed"},
    }
    assert for_answers({"model": {}, "trainer": None}) == {"model": {}, "trainer": {}}


# --- starting from another run ---------------------------------------------------------------------------------------
def test_a_later_stage_alone_needs_a_trained_model_to_start_from(place: Path, command) -> None:
    folders = sorted(path.name for path in (place / "runs").iterdir())
    code, _, error = command("fit", "--config", "tiny.yaml", "--stages", "finetune", "--run_dir", "runs/none")
    assert code == 2
    assert "--stages begins with 'finetune', but 'pretrain' before it has not been trained here" in error
    assert "--init_from" in error
    assert sorted(path.name for path in (place / "runs").iterdir()) == folders  # nothing was made


def test_what_a_run_started_from_is_recorded_and_not_needed_any_more(place: Path, command, tmp_path: Path) -> None:
    shutil.copytree(place / "runs/tiny", place / "runs/base")
    words = ("fit", "--config", "tiny.yaml", "--stages", "finetune", "--run_dir", "runs/picked")
    assert command(*words, "--init_from", "runs/base")[0] == 0
    record = json.loads((place / "runs/picked/init_from.json").read_text())
    assert record["init_from"] == str(place / "runs/base") and len(record["digest"]) == 32
    rows = (place / "runs/picked/metrics.csv").read_text()
    shutil.rmtree(place / "runs/base")
    for again in (words, (*words, "--init_from", "runs/base")):
        code, _, error = command(*again)
        assert code == 0, error
    assert (place / "runs/picked/metrics.csv").read_text() == rows
    code, _, error = command(*words, "--init_from", "runs/tiny/checkpoints/01-pretrain-step=000002.ckpt")
    assert code == 2 and f"started from {record['checkpoint']}, not from 'runs/tiny/" in error


def test_a_run_may_start_from_latest_and_resumes_though_latest_is_that_run_by_then(place: Path, command) -> None:
    latest = place / "runs/latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to("tiny")
    words = (
        "fit",
        "--config",
        "tiny.yaml",
        "--stages",
        "finetune",
        "--run_dir",
        "runs/on",
        "--init_from",
        "runs/latest",
    )
    code, _, error = command(*words)
    assert code == 0, error
    assert latest.resolve() == place / "runs/on"
    assert not (place / "runs/on/profile").exists()  # no profiler was asked for
    assert str(place / "runs/tiny") in json.loads((place / "runs/on/init_from.json").read_text())["checkpoint"]
    shutil.rmtree(place / "runs/on/checkpoints")  # as if it had been killed before its first checkpoint
    assert command(*words)[0] == 0
    latest.unlink()
    latest.symlink_to("tiny")
    assert command("fit", "--config", "tiny.yaml", "--model.init_args.language.init_args.weights", "llama:none")[0] == 2
    assert latest.resolve() == place / "runs/tiny"  # a start that fails does not move it


def test_a_damaged_checkpoint_to_start_from_or_to_ask_names_a_whole_one(place: Path, command, tmp_path: Path) -> None:
    shutil.copytree(place / "runs/tiny", tmp_path / "base")
    older, newest = sorted((tmp_path / "base/checkpoints").iterdir())[-2:]
    file = newest / "state.pt"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    words = ("fit", "--config", "tiny.yaml", "--stages", "finetune", "--run_dir", "runs/from_damaged")
    code, _, error = command(*words, "--init_from", str(tmp_path / "base"))
    assert code == 2 and f"The newest whole checkpoint there is {str(older)!r}" in error
    file.unlink()
    code, _, error = command("generate", str(tmp_path / "base"), *QUESTION)
    assert code == 2 and f"state.pt' is missing. The newest whole checkpoint there is {str(older)!r}" in error


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_recorded_one(place: Path, command) -> None:
    words = ("fit", "--config", "tiny.yaml", "--stages", "finetune", "--run_dir", "runs/early")
    assert command(*words, "--init_from", "runs/tiny")[0] == 0
    losses = [line.split(",")[2] for line in (place / "runs/early/metrics.csv").read_text().splitlines()]
    shutil.rmtree(place / "runs/early/checkpoints")
    assert command(*words)[0] == 0
    assert [line.split(",")[2] for line in (place / "runs/early/metrics.csv").read_text().splitlines()] == losses
    shutil.rmtree(place / "runs/early/checkpoints")
    record = json.loads((place / "runs/early/init_from.json").read_text())
    (place / "runs/early/init_from.json").write_text(json.dumps(record | {"digest": "0" * 32}))
    code, _, error = command(*words)
    assert code == 2 and "which has changed since" in error


def test_a_refusal_to_resume_names_init_from_where_that_is_the_way(place: Path, command) -> None:
    words = ("fit", "--config", "tiny.yaml", "--run_dir", "runs/tiny")
    code, _, error = command(*words, "--stages", "pretrain")
    assert code == 2 and "which is not stage 2 of this recipe or of --stages" in error
    assert "--init_from runs/tiny" in error
    code, _, error = command(*words, "--model.init_args.rank", "4")
    assert code == 2 and "differs in model.init_args.rank" in error and "--init_from" not in error


@pytest.mark.parametrize(
    "option",
    [
        ("--trainer.enable_progress_bar", "false"),
        ("--trainer.max_time", "00:01:00:00"),
        ("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelSummary"),
        ("--trainer.enable_model_summary", "true"),
    ],
)
def test_a_run_is_resumed_with_another_bar_limit_or_callback(place: Path, command, option: tuple[str, str]) -> None:
    code, _, error = command("fit", "--config", "tiny.yaml", "--run_dir", "runs/tiny", *option)
    assert code == 0, error
    assert os.path.isdir(place / "runs/tiny")


# --- changed data ----------------------------------------------------------------------------------------------------
@pytest.fixture
def broken_off(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of the launch, whose run lacks the last step of its second stage."""
    shutil.copytree(place, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    (last,) = Path("runs/tiny/checkpoints").glob("02-finetune-step=000003.ckpt")
    shutil.rmtree(last)
    return tmp_path / "copy"


def resume(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """The exit code and the errors of the command that resumes."""
    capsys.readouterr()
    try:
        main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/tiny", *options])
    except SystemExit as left:
        return left.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


def rows_of(folder: Path) -> list[list[str]]:
    """Step, stage, loss, tokens and samples of every step."""
    return [line.split(",")[:5] for line in (folder / "runs/tiny/metrics.csv").read_text().splitlines()]


def test_a_checkpoint_has_the_digests_of_its_sources(place: Path) -> None:
    content = read(find(place / "runs/tiny")).content
    assert [file["name"] for file in content["data"]["train"]["files"]] == ["train.json"]
    assert content["data"]["train"]["samples"] == 6


def test_data_that_were_moved_and_touched_are_resumed_on(place: Path, broken_off: Path, capsys) -> None:
    shutil.move("data", "moved")
    os.utime("moved/train.json", (1, 1))
    code, error = resume(capsys, "--data.init_args.path", "moved/train.json")
    assert code == 0, error
    assert rows_of(broken_off) == rows_of(place)
    assert len({row[4] for row in rows_of(broken_off)[1:]}) > 1


def test_data_that_changed_are_refused_or_written_into_the_ledger(place: Path, broken_off: Path, capsys) -> None:
    conversations(Path("data/train.json"), 8)
    code, error = resume(capsys)
    assert code == 2
    assert "the data of stage 'finetune' differ from those of its checkpoint" in error
    assert "train: 2 rows appended behind the old ones of 'train.json'" in error and "--other_data" in error
    code, error = resume(capsys, "--other_data")
    assert code == 0, error
    (line,) = [line for line in read_lines(Path("runs/tiny/ledger.jsonl")) if line["outcome"] == "data_changed"]
    assert line["step"] == 4 and line["reason"] == "2 rows appended behind the old ones of 'train.json'"
    assert json.loads(Path("runs/tiny/ledger.json").read_text())["data_changed"] == [line]
    assert "other_data" not in (broken_off / "runs/tiny/config.yaml").read_text()


def test_other_data_in_another_place_are_refused(broken_off: Path, capsys) -> None:
    conversations(Path("other/train.json"), 5)
    code, error = resume(capsys, "--data.init_args.path", "other/train.json")
    assert code == 2 and "'train.json' changed (" in error
