"""Run folders are listed, compared and deleted with care."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_mm.checkpoints import manifest
from lit_mm.cli import main
from lit_mm.commands.run_folders import config_of_run, last_row
from lit_mm.run.folder import differences, value_at
from lit_mm.run.lock import BEAT, MISSED, FolderLock, living_holder

CONFIG: dict[str, Any] = {
    "model": {"class_path": "lit_mm.families.Llava", "init_args": {"image_size": 112}},
    "stages": [{"name": "pretrain", "max_steps": 2, "clip": 1.0}, {"name": "finetune", "max_steps": 3}],
    "data": {"class_path": "lit_mm.datamodules.nano.NanoDocuments"},
    "only": [],
}
Typed = Callable[..., tuple[int, str, str]]


def run_folder(place: str, step: int = 3, accuracy: float | None = 0.5, origin: str = "", **config: Any) -> Path:
    """A run folder that has reached a step of its second stage; 0 is a run without a checkpoint."""
    folder = Path(place)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | config))
    if step:
        saved = folder / "checkpoints" / manifest.checkpoint_name(2, "finetune", step)
        saved.mkdir()
        files = {name: {"bytes": 0, "blake2b": ""} for name in manifest.REQUIRED}
        content: dict[str, Any] = {
            "format": 2,
            "files": files,
            "weights": {},
            "moments": {},
            "steps": step,
            "frozen": {},
        }
        content["frozen"] = {"vision": {"origin": origin}} if origin else {}
        (saved / "manifest.json").write_text(manifest.sealed(content))
        (folder / "metrics.csv").write_text(
            f"step,stage,loss,seconds\n1,pretrain,2,0.5\n{step + 2},finetune,1,7.5\n9,fi"
        )
    elif origin:
        (folder / "init_from.json").write_text(json.dumps({"init_from": "", "checkpoint": origin, "digest": ""}))
    if accuracy is not None:
        shares = {"accuracy": {"overall": accuracy}, "blind": {"overall": 0.1}}
        (folder / "summary.json").write_text(json.dumps(shares | {"seconds": 7200.0, "documents": 20}))
    return folder


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run `runs` in an empty folder. Returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main(["runs", *arguments])
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    return run


def paths(output: str) -> list[str]:
    return [record["path"] for record in json.loads(output)]


# --- list ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["a/new", "b/begun", "b/half", "c/good"]),
        (["--state", "stopped"], ["b/half"]),
        (["--state", "empty"], ["b/begun"]),
        (["--state", "finished"], ["a/new", "c/good"]),
        (["--family", "llava"], ["a/new", "b/begun", "b/half"]),
        (["--stage", "align"], ["c/good"]),
        (["--min_accuracy", "0.6"], ["c/good"]),
        (["--max_hours", "1"], ["b/begun", "b/half"]),
    ],
)
def test_runs_are_listed_and_filtered(typed: Typed, options: list[str], names: list[str]) -> None:
    run_folder("runs/a/new", accuracy=0.5)
    run_folder("runs/b/half", step=2, accuracy=None)
    run_folder("runs/b/begun", step=0, accuracy=None)
    other = {"model": {"class_path": "lit_mm.families.Vila"}, "stages": [*CONFIG["stages"], {"name": "align"}]}
    run_folder("runs/c/good", accuracy=0.9, **other)
    Path("runs/latest").symlink_to("a/new")
    Path("runs/notes").mkdir()
    Path("runs/notes/config.yaml").write_text("mine: true")
    code, output, errors = typed("list", "--format", "json", *options)
    assert code == 0, errors
    assert sorted(paths(output)) == [f"runs/{name}" for name in names]


def test_the_table_says_how_far_a_run_has_come_and_what_it_cost(typed: Typed) -> None:
    run_folder("runs/half", step=2, accuracy=None)
    run_folder("runs/good", accuracy=0.75)
    _, output, _ = typed("list", "--sort", "accuracy")
    rows = [line.split("   ") for line in output.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[2][:8] == [
        "runs/half",
        "Llava",
        "pretrain + finetune",
        "stopped in finetune",
        "4",
        "-",
        "-",
        "0:00:08",
    ]
    assert cells[3][:8] == ["runs/good", "Llava", "pretrain + finetune", "finished", "5", "75.0 %", "10.0 %", "2:00:00"]
    code, _, errors = typed("list", "none")
    assert code == 2 and "there is no folder 'none' with runs" in errors


def test_a_run_whose_last_stage_has_all_its_steps_is_finished_without_an_accuracy(typed: Typed) -> None:
    run_folder("runs/a", accuracy=None)
    run_folder("runs/b", step=2, accuracy=None, only=["pretrain"])
    assert paths(typed("list", "--state", "finished", "--format", "json")[1]) == ["runs/a"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("checkpoints/02-finetune-step=000002.ckpt/manifest.json", b"{", "cannot be read as a checkpoint"),
        ("checkpoints/03-more-step=000001.ckpt", b"", "was written by an earlier version of lit_mm"),
        ("summary.json", b"{", "summary.json' is damaged"),
        ("summary.json", b"[]", "summary.json' is damaged"),
        ("summary.json", b'{"accuracy": 1}', "summary.json' is damaged"),
        ("metrics.csv", b"step,seconds\n\xff,\x00\n", "metrics.csv' is damaged"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_listed(
    typed: Typed, file: str, content: bytes, message: str
) -> None:
    run_folder("runs/good", accuracy=0.5)
    broken = run_folder("runs/broken", step=2, accuracy=None)
    (broken / file).write_bytes(content)
    code, output, errors = typed("list", "--format", "json")
    assert code == 0 and paths(output) == ["runs/good"]
    assert errors.startswith("lit_mm: 'runs/broken' is not listed: ") and message in errors
    assert len(errors.splitlines()) == 1


def test_a_config_without_named_stages_is_no_run(tmp_path: Path) -> None:
    folder = run_folder(str(tmp_path / "a"), stages=["pretrain"])
    assert config_of_run(folder) is None


def test_a_cut_line_of_a_table_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    assert last_row(file) == {}
    for text, row in (("", {}), ("a,b\n", {}), ("a,b\n1,2", {}), ("a,b\n1,2\n3,", {"a": "1", "b": "2"})):
        file.write_text(text)
        assert last_row(file) == row


def test_a_living_job_is_seen_without_touching_its_lock(tmp_path: Path) -> None:
    assert living_holder(tmp_path) is None
    with FolderLock(tmp_path) as lock:
        assert living_holder(tmp_path) == lock.holder
    assert living_holder(tmp_path) is None
    record = {"host": "elsewhere", "process": 1, "started": 1.0, "launches": {}}
    (tmp_path / "run.lock").write_text(json.dumps(record))
    assert living_holder(tmp_path).host == "elsewhere"
    past = (tmp_path / "run.lock").stat().st_mtime - MISSED * BEAT - 1
    os.utime(tmp_path / "run.lock", (past, past))
    assert living_holder(tmp_path) is None


# --- diff ------------------------------------------------------------------------------------------------------------
def test_a_diff_names_each_key_with_both_values(typed: Typed) -> None:
    run_folder("a")
    stages = [CONFIG["stages"][0] | {"clip": 2.0}, CONFIG["stages"][1]]
    run_folder("b", stages=stages, seed_everything=3)
    assert typed("diff", "a", "b") == (0, "seed_everything: null -> 3\nstages.pretrain.clip: 1.0 -> 2.0\n", "")
    assert json.loads(typed("diff", "a", "b/config.yaml", "--format", "json")[1]) == {
        "seed_everything": {"a": None, "b": 3},
        "stages.pretrain.clip": {"a": 1.0, "b": 2.0},
    }
    assert typed("diff", "a", "a")[1] == "the configs are equal\n"
    for place, message in (("none", "cannot be read"), ("b/checkpoints", "is not a run folder")):
        code, _, errors = typed("diff", "a", place)
        assert code == 2 and message in errors


def test_every_key_of_a_difference_has_a_value() -> None:
    a = {"x.y": 1, "l": [{"name": "s", "v": 1}, 2], "n": {"m": [1]}}
    b = {"x.y": 2, "l": [{"name": "s", "v": 3}, 4], "n": {"m": [1, 2]}}
    assert {key: (value_at(a, key), value_at(b, key)) for key in differences(a, b)} == {
        "l.1": (2, 4),
        "l.s.v": (1, 3),
        "n.m": ([1], [1, 2]),
        "x.y": (1, 2),
    }


# --- delete ----------------------------------------------------------------------------------------------------------
def test_a_run_is_deleted_with_its_link_and_nothing_else(typed: Typed) -> None:
    run_folder("runs/a")
    run_folder("runs/b")
    Path("runs/latest").symlink_to("a")
    code, _, errors = typed("delete", "runs/a")
    assert code == 2 and "without a terminal add --yes" in errors and Path("runs/a").is_dir()
    code, output, errors = typed("delete", "runs/a", "--yes")
    assert code == 0, errors
    assert "deleted 1 run," in output
    assert sorted(os.listdir("runs")) == ["b"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("runs/latest", "is a link to 'a'. Name the run folder itself"),
        ("runs", "is not a run folder"),
        ("runs/a/checkpoints", "is not a run folder"),
        ("none", "is not a run folder"),
        ("runs/base", "has weights that '{here}/runs/tuned' still loads"),
        ("runs/start", "has weights that '{here}/runs/new' still loads"),
        ("runs/sweep/trials/0000", "is a trial of the sweep in"),
    ],
)
def test_what_is_no_run_or_is_needed_stays(typed: Typed, tmp_path: Path, place: str, message: str) -> None:
    for name in ("a", "base", "start", "sweep/trials/0000"):
        run_folder(f"runs/{name}")
    run_folder("runs/tuned", origin="runs/base/checkpoints/02-finetune-step=000003.ckpt")
    run_folder("runs/new", step=0, accuracy=None, origin=str(tmp_path / "runs/start/checkpoints/x.ckpt"))
    Path("runs/latest").symlink_to("a")
    Path("runs/sweep/sweep.yaml").write_text("{specification: {}, seed: 0, recipe: {}}")
    before = sorted(Path().rglob("*"))
    code, _, errors = typed("delete", "runs/a", place, "--yes")
    assert code == 2 and message.format(here=tmp_path) in errors
    assert sorted(Path().rglob("*")) == before
    assert typed("delete", "runs/base", "runs/tuned", "--yes")[0] == 0  # together they are not needed
    code, output, errors = typed("delete", "runs/sweep", "--yes")
    assert code == 0 and "deleted 1 run," in output, errors
    assert not Path("runs/sweep").exists()


def test_a_run_stays_while_a_damaged_one_may_need_it(typed: Typed) -> None:
    run_folder("runs/a")
    start = run_folder("runs/start", step=0, accuracy=None)
    (start / "init_from.json").write_text("{")
    code, _, errors = typed("delete", "runs/a", "--yes")
    assert code == 2 and Path("runs/a").is_dir()
    assert (
        "a run that may need 'runs/a' cannot be read: " in errors
        and "Mend that run, or delete both in one command" in errors
    )
    assert typed("delete", "runs/start", "--yes")[0] == 0
    assert typed("delete", "runs/a", "--yes")[0] == 0


def test_what_the_system_does_not_delete_is_named(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder("runs/a")

    def refuse(place: Path) -> None:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr("lit_mm.commands.runs.shutil.rmtree", refuse)
    code, _, errors = typed("delete", "runs/a", "--yes")
    assert code == 2 and "'runs/a' cannot be deleted: [Errno 13] Permission denied: " in errors
    assert "the rest of it is 'runs/.deleted-a-" in errors


def test_a_run_that_a_job_uses_stays(typed: Typed) -> None:
    folder = run_folder("runs/a")
    work = (
        "import time\nfrom pathlib import Path\nfrom lit_mm.run.lock import FolderLock\n"
        f"with FolderLock(Path({str(folder)!r})):\n    print(1, flush=True)\n    time.sleep(99)\n"
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    process = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, env=environment)
    try:
        process.stdout.readline()
        code, _, errors = typed("delete", "runs/a", "--yes")
        assert code == 2 and f"is in use by process {process.pid}" in errors
        assert paths(typed("list", "--state", "running", "--format", "json")[1]) == ["runs/a"]
    finally:
        process.kill()
        process.wait()
    assert paths(typed("list", "--state", "running", "--format", "json")[1]) == []
    assert typed("delete", "runs/a", "--yes")[0] == 0
    assert config_of_run(folder) is None
