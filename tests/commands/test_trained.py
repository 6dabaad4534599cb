"""A trained model answers without its training data, on another device, and from any folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lit_mm.cli import main
from lit_mm.commands.trained import for_answers
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
        "class_path": "datamodules.conversations.Conversations",
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
        capsys.readouterr()
        code = 0
        try:
            main(arguments)
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

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
    assert "--stages begins with 'finetune'; 'pretrain' before it has not been trained here" in error
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
    assert code == 2 and "differs in only" in error and "--init_from runs/tiny" in error
    code, _, error = command(*words, "--model.init_args.rank", "4")
    assert code == 2 and "differs in model.init_args.rank" in error and "--init_from" not in error


@pytest.mark.parametrize(
    "option",
    [
        ("--trainer.enable_progress_bar", "false"),
        ("--trainer.max_time", "00:01:00:00"),
        ("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelSummary"),
        ("--trainer.log_every_n_steps", "3"),
    ],
)
def test_a_run_is_resumed_with_another_bar_limit_or_callback(place: Path, command, option: tuple[str, str]) -> None:
    code, _, error = command("fit", "--config", "tiny.yaml", "--run_dir", "runs/tiny", *option)
    assert code == 0, error
    assert os.path.isdir(place / "runs/tiny")
