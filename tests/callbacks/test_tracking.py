from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import wandb
import yaml
from PIL import Image

from lit_mm.callbacks import tracking
from lit_mm.callbacks.metrics_csv import MetricsCSV, read_metrics
from lit_mm.callbacks.tracking import (
    Tracking,
    check_mode,
    finish,
    log_examples,
    side_by_side,
    sync_command,
    tracking_logger,
    tracking_mode,
)
from lit_mm.cli import main
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.evaluation.score import Prediction
from tests.commands.test_stage_keys import RECIPE


@pytest.fixture
def wandb_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home and the working folder of somebody who has not logged in; wandb reads its settings afresh."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
    monkeypatch.chdir(home)
    wandb.teardown()
    yield home
    wandb.teardown()


@pytest.fixture
def offline(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is logged in, and any connection but W&B's own local one fails."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a connection to {address} was tried")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    yield
    if wandb.run is not None:
        wandb.finish()


def history(run_dir: Path) -> list[dict[str, Any]]:
    """Read every logged row back from the LevelDB files of all launches, whose records are protocol buffers."""
    wandb.teardown()  # waits until W&B's own process has written everything
    return [row for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")) for row in rows_of(file.read_bytes())]


def rows_of(data: bytes) -> list[dict[str, Any]]:
    from wandb.proto import wandb_internal_pb2

    at, whole, rows = 7, b"", []  # the first 7 bytes name the format
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no record header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            items = record.history.item if record.WhichOneof("record_type") == "history" else []
            if items:
                rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def test_an_offline_run_holds_loss_rates_and_stage_on_our_step_axis(
    recipe: Any, offline: None, capfd: pytest.CaptureFixture[str]
):
    logger = tracking_logger(recipe.folder, "tiny", {"model": {"width": 4}})
    recipe.run(recipe.module(), [MetricsCSV(recipe.folder / "metrics.csv"), Tracking()], loggers=[logger])
    assert logger.experiment.config["model"] == {"width": 4}
    finish(logger, {"accuracy": 0.5})
    rows = [row for row in history(recipe.folder) if "loss" in row]
    kept = read_metrics(recipe.folder / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["loss"] for row in rows] == [row["loss"] for row in kept]
    assert [row["stage"] for row in rows] == [row["stage"] for row in kept]
    assert [row["lr/language"] for row in rows] == [row["lr_language"] for row in kept]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert "wandb" not in capfd.readouterr().err.lower()


def test_examples_are_a_table_with_their_pictures(
    tmp_path: Path, offline: None, documents: Callable[[int], list[Document]]
):
    logger = tracking_logger(tmp_path, "tiny", "model: {width: 4}")
    first, second = documents(2)
    log_examples(logger, [Prediction(first, first.answer, True), Prediction(second, "", False)], step=7)
    finish(logger)
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["skill", "image", "question", "truth", "answer", "correct"]
    assert [row[0] for row in table["data"]] == ["read", "count"]
    assert [row[2:] for row in table["data"]] == [
        ["question 0", "answer 0", "answer 0", True],
        ["question 1", "answer 1", "", False],
    ]
    pictures = [file for file in tmp_path.glob("wandb/artifacts/staging/*") if file.read_bytes()[:4] == b"\x89PNG"]
    assert {Image.open(file).size for file in pictures} == {(12, 8)}
    assert history(tmp_path)[-1]["step"] == 7


def test_pages_stand_side_by_side_in_one_picture():
    red, blue = Image.new("RGB", (5, 8), "red"), Image.new("RGB", (7, 3), "blue")
    strip = side_by_side([red, blue])
    assert strip.size == (5 + 4 + 7, 8)
    assert [strip.getpixel((x, 2)) for x in (4, 5, 9, 15)] == [(255, 0, 0), (255, 255, 255), (0, 0, 255), (0, 0, 255)]
    assert side_by_side([]).size == (1, 1)


def test_the_same_folder_continues_the_same_run(tmp_path: Path, offline: None):
    first = tracking_logger(tmp_path, "tiny", {})
    second = tracking_logger(tmp_path, "tiny", {})
    other = tracking_logger(tmp_path / "other", "tiny", {})
    assert first.version == second.version == (tmp_path / "wandb_id").read_text().strip()
    assert other.version != first.version


def test_a_step_that_was_logged_before_a_kill_is_not_logged_again(tmp_path: Path, offline: None):
    for launch in ([1, 2, 3], [2, 3, 4]):
        logger = tracking_logger(tmp_path, "tiny", {})
        for step in launch:
            logger.log_metrics({"loss": 1.0 / step}, step=step)
            if step == 3 and launch[0] == 1:
                break  # killed before it was examined
            if step >= 3:
                logger.log_metrics({"accuracy/overall": 0.5}, step=step)
        finish(logger)
    assert sorted(row["step"] for row in history(tmp_path) if "loss" in row) == [1, 2, 3, 4]
    assert sorted(row["step"] for row in history(tmp_path) if "accuracy/overall" in row) == [3, 4]


def test_the_id_that_wandb_gave_is_kept_and_another_runs_steps_do_not_count(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_RUN_ID", "sweep123")
    (tmp_path / "wandb_id").write_text("earlier\n")
    (tmp_path / "wandb_steps.json").write_text('{"loss": 7}')
    assert tracking_logger(tmp_path, "tiny", {}).version == "sweep123"
    assert (tmp_path / "wandb_id").read_text() == "sweep123\n" and not (tmp_path / "wandb_steps.json").exists()
    monkeypatch.delenv("WANDB_RUN_ID")
    assert tracking_logger(tmp_path, "tiny", {}).version == "sweep123"


@pytest.mark.parametrize(
    ("environment", "name"),
    [({}, "tiny"), ({"WANDB_NAME": "mine"}, None), ({"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "r"}, None)],
)
def test_a_name_of_wandbs_wins(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str | None
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    logger = tracking_logger(tmp_path, "tiny", {})
    assert logger._wandb_init["name"] == name
    logger.open()
    assert logger.experiment.name == environment.get("WANDB_NAME", name)
    finish(logger)
    assert tracking_logger(tmp_path, "tiny", {})._wandb_init["name"] is None  # renamed in W&B, it keeps that name


KEY = "k" * 40


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": KEY}, "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "run"}, "online"),
    ],
)
def test_it_is_online_only_where_an_account_is_configured(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: str
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert tracking_mode() == mode


def netrc_of(host: str) -> str:
    return f"machine {host}\n  login user\n  password {KEY}\n"


def test_a_login_is_an_account_wherever_wandb_keeps_it(wandb_home: Path, monkeypatch: pytest.MonkeyPatch):
    (wandb_home / ".netrc").write_text(netrc_of("api.wandb.ai"))
    assert tracking_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    wandb.teardown()
    assert tracking_mode() == "offline"
    (wandb_home / ".netrc").write_text(netrc_of("wandb.example.org"))
    assert tracking_mode() == "online"


def test_the_host_of_wandb_login_is_honoured(wandb_home: Path):
    (wandb_home / "config").mkdir()
    (wandb_home / "config/settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    (wandb_home / ".netrc").write_text(netrc_of("wandb.example.org"))
    assert tracking_mode() == "online"
    (wandb_home / ".netrc").write_text(netrc_of("api.wandb.ai"))
    assert tracking_mode() == "offline"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_who_switched_wandb_off_is_not_sent_online(wandb_home: Path, tmp_path: Path, mode: str):
    (wandb_home / ".netrc").write_text(netrc_of("api.wandb.ai"))
    subprocess.run([sys.executable, "-m", "wandb", mode], check=True, capture_output=True)  # in the working folder
    wandb.teardown()
    assert tracking_mode() == mode
    assert (tracking_logger(tmp_path, "tiny", {}) is None) == (mode == "disabled")


def test_a_mode_that_wandb_does_not_have_is_refused_at_the_start():
    for mode in ("", "online", "shared"):
        check_mode({"WANDB_MODE": mode})
    with pytest.raises(UserError, match=r"WANDB_MODE is 'ofline'. Did you mean 'offline'\?"):
        check_mode({"WANDB_MODE": "ofline"})


def test_a_key_that_is_none_is_the_users_to_cure(wandb_home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match=r"key of the W&B account cannot be used: .*WANDB_MODE=offline"):
        tracking_mode()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("answers", ["never", "refused"])
def test_without_a_network_the_run_goes_on_offline_under_its_id(
    answers: str,
    wandb_home: Path,
    tmp_path: Path,
    silent_server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server if answers == "never" else "http://127.0.0.1:9")
    logger = tracking_logger(tmp_path, "tiny", {})
    started = time.monotonic()
    logger.open()
    assert time.monotonic() - started < 20  # starting wandb's own process included
    assert "W&B cannot be reached and is kept offline" in capsys.readouterr().err
    logger.log_metrics({"loss": 1.0}, step=1)
    finish(logger)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert folder.name.endswith((tmp_path / "wandb_id").read_text().strip())
    assert sync_command(logger) == f"wandb sync {folder}"


def test_a_copy_of_a_run_folder_is_another_run_and_a_moved_one_is_not(
    tmp_path: Path, offline: None, capfd: pytest.CaptureFixture[str]
) -> None:
    identity, _ = tracking._run_id(new_folder(tmp_path / "a"), {})
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "copy" / tracking.STEPS).write_text('{"loss": 3}')
    other, is_new = tracking._run_id(tmp_path / "copy", {})
    assert other != identity and is_new and not (tmp_path / "copy" / tracking.STEPS).exists()
    assert "is a copy of" in capfd.readouterr().err
    assert tracking._run_id(tmp_path / "copy", {}) == (other, False)
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert tracking._run_id(tmp_path / "moved", {}) == (identity, False)
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert tracking._run_id(tmp_path / "link", {}) == (identity, False)
    assert not capfd.readouterr().err
    (tmp_path / "moved" / tracking.FOLDER).unlink()  # a run of an earlier version
    assert tracking._run_id(tmp_path / "moved", {}) == (identity, False)


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


class LostProcess:
    """A W&B run whose own process was killed."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionResetError(104, "Connection reset by peer")


def test_a_run_whose_wandb_fails_goes_on_without_it_and_says_so_once(
    tmp_path: Path, offline: None, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = tracking_logger(tmp_path, "tiny", {})
    logger._experiment = LostProcess()
    for step in (1, 2):
        logger.log_metrics({"loss": 1.0}, step=step)
    finish(logger, {"accuracy": 0.5})
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "lit_mm: W&B has failed (ConnectionResetError: [Errno 104] Connection reset by peer). The run"
    )
    assert not (tmp_path / "wandb_steps.json").exists()  # a later launch logs these steps
    again = tracking_logger(tmp_path, "tiny", {})
    again._experiment = LostProcess()
    finish(again, {"accuracy": 0.5})
    assert again.is_lost and "goes on without it" in capfd.readouterr().err


def test_a_wandb_that_cannot_write_is_the_users_to_cure(tmp_path: Path, offline: None) -> None:
    logger = tracking_logger(tmp_path, "tiny", {})
    (tmp_path / "wandb").touch()  # a file where W&B makes a folder
    with pytest.raises(
        UserError, match=r"W&B cannot be started: .*Not a directory.*To train without it: --track false"
    ):
        logger.open()


def test_an_offline_run_can_be_sent_later(tmp_path: Path, offline: None):
    logger = tracking_logger(tmp_path, "tiny", {})
    assert sync_command(logger) is None
    logger.log_metrics({"loss": 1.0}, step=1)
    finish(logger)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert sync_command(logger) == f"wandb sync {folder}"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"loss": null}'])
def test_damaged_steps_of_before_are_the_users_to_remove(tmp_path: Path, offline: None, text: str):
    (tmp_path / "wandb_id").write_text("x\n")
    (tmp_path / "wandb_steps.json").write_text(text)
    with pytest.raises(UserError, match=r"wandb_steps.json' is damaged"):
        tracking_logger(tmp_path, "tiny", {})


# --- what a user's callback logs -------------------------------------------------------------------------------------
class Notes(L.Callback):
    """Logs the number of the step in its stage and its mean over the stage, and another metric in the second stage."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        pl_module.log("mine", float(trainer.global_step))
        if pl_module.stage.name == "finetune":
            pl_module.log("another", 0.1)
        pl_module.log("mean", float(trainer.global_step), on_step=False, on_epoch=True)


@pytest.mark.slow
def test_what_a_callback_logs_reaches_wandb_and_metrics_csv_in_every_stage_and_launch(
    offline: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    third = {"name": "third", "train": {"connector": {"lr": 1e-3}}, "max_steps": 2}
    early = {"class_path": "EarlyStopping", "init_args": {"monitor": "mine", "patience": 99}}
    notes = {"class_path": f"{__name__}.Notes"}
    trainer = RECIPE["trainer"] | {"callbacks": [notes, early]}
    recipe = RECIPE | {"stages": [*RECIPE["stages"], third], "trainer": trainer, "examine_documents": 2}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["fit", "--config", "recipe.yaml", "--run_dir=run", "--data.init_args.micro_batch=1"]
    try:
        main([*words, "--stages=pretrain,finetune"])
        main(words)
    finally:
        torch.use_deterministic_algorithms(False)
    rows = read_metrics("run/metrics.csv")
    assert [row["mine"] for row in rows] == [1, 2, 1, 2, 1, 2]
    assert [row["another"] == pytest.approx(0.1) for row in rows] == [False, False, True, True, False, False]
    logged = history(Path("run"))
    assert [(row["step"], row["mine"]) for row in logged if "mine" in row] == [
        (row["step"], row["mine"]) for row in rows
    ]
    assert [(row["step"], row["mean"]) for row in logged if "mean" in row] == [(2, 1.0), (4, 1.0), (6, 1.0)]
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert not any("epoch" in row for row in logged)


def test_a_metric_that_no_callback_has_logged_is_named_after_the_first_step(
    offline: None, capsys: pytest.CaptureFixture[str]
):
    early = {"class_path": "EarlyStopping", "init_args": {"monitor": "mined"}}
    trainer = RECIPE["trainer"] | {"callbacks": [{"class_path": f"{__name__}.Notes"}, early]}
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"trainer": trainer}))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "recipe.yaml", "--track=false", "--run_dir=run"])
    torch.use_deterministic_algorithms(False)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "EarlyStopping monitors 'mined', which is not measured. Measured are loss, " in error and ", mine, " in error
