from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from callbacks.metrics_csv import MetricsCSV, read_metrics
from callbacks.tracking import (
    Tracking,
    finish,
    log_examples,
    side_by_side,
    sync_command,
    tracking_logger,
    tracking_mode,
)
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.evaluation.score import Prediction


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Log W&B out and make every connection fail, except the local one of W&B itself."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_BASE_URL", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
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


def test_a_sweep_agents_run_is_used(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_RUN_ID", "sweep123")
    assert tracking_logger(tmp_path, "tiny", {}).version == "sweep123"


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
    ],
)
def test_it_is_online_only_where_an_account_is_configured(tmp_path: Path, environment: dict[str, str], mode: str):
    assert tracking_mode({"NETRC": str(tmp_path / "none"), **environment}) == mode


def test_a_netrc_entry_of_the_wandb_host_is_an_account(tmp_path: Path):
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai\n  login user\n  password p\n")
    assert tracking_mode({"NETRC": str(file)}) == "online"
    assert tracking_mode({"NETRC": str(file), "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"
    file.write_text("machine\n")
    with pytest.raises(UserError, match="netrc"):
        tracking_mode({"NETRC": str(file)})


def test_an_offline_run_can_be_sent_later(tmp_path: Path, offline: None):
    logger = tracking_logger(tmp_path, "tiny", {})
    assert sync_command(logger) is None
    logger.log_metrics({"loss": 1.0}, step=1)
    finish(logger)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert sync_command(logger) == f"wandb sync {folder}"


@pytest.mark.slow  # a fresh interpreter imports torch
def test_nothing_of_wandb_is_imported_before_the_first_value():
    code = (
        "import sys; from callbacks.tracking import tracking_logger, Tracking;"
        "import tempfile; tracking_logger(tempfile.mkdtemp(), 'tiny', {});"
        "sys.exit('wandb.sdk' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
