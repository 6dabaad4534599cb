"""`annotate` reads pipelines, and names what is wrong with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_mm.annotation.capfilt import NUCLEUS, CapFilt
from lit_mm.annotation.filters import MonkeyRules
from lit_mm.annotation.monkey import Monkey
from lit_mm.annotation.pipeline import Pipeline
from lit_mm.annotation.shards import SPEED
from lit_mm.cli import main
from lit_mm.commands.annotate import annotate, build, pipeline_config
from lit_mm.errors import UserError
from tests.annotation.stubs import write_images

STUBS = "tests.annotation.stubs"
ENGINE: dict[str, Any] = {
    "class_path": "lit_mm.annotation.monkey.Monkey",
    "init_args": {
        "overall": {"class_path": f"{STUBS}.Captions"},
        "regions": {"class_path": f"{STUBS}.Halves"},
        "score": {"class_path": f"{STUBS}.Scores"},
        "merge": {"class_path": "lit_mm.annotation.language_models.Template"},
    },
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_images(Path("photographs"), 5)
    return tmp_path


def pipeline(**changes: Any) -> str:
    config = {"engine": ENGINE, "sources": [{"name": "mine", "path": "photographs"}]} | changes
    Path("pipeline.yaml").write_text(yaml.safe_dump(config))
    return "pipeline.yaml"


@pytest.mark.parametrize("name", ["monkey", "capfilt"])
def test_the_pipelines_of_the_package_are_as_published(name: str) -> None:
    built, _ = build(pipeline_config(name, ["photographs"], []), Pipeline)
    if name == "capfilt":
        assert isinstance(built.engine, CapFilt) and built.engine.threshold == 0.5
        assert built.engine.captioner.decoding == NUCLEUS
    else:
        assert isinstance(built.engine, Monkey) and built.engine.rules == MonkeyRules()
        assert set(built.engine.experts()) == {
            *("overall", "regions", "segments", "segment_captions", "text", "score", "merge"),
        }
    assert [(entry.name, entry.format) for entry in built.sources] == [("photographs", "images")]


def test_a_pipeline_runs_and_the_check_of_data_passes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = pipeline(settings={"shard_rows": 2})
    annotate(["--config", config, "--out", "out", "--engine.init_args.rules.region_score", "0.1"])
    output = capsys.readouterr().out
    assert "mine: 5 rows, 5 annotated" in output and "described: 5 texts" in output
    assert json.loads(Path("out/engine.json").read_text())["engine"]["init_args"]["rules"]["region_score"] == 0.1
    source = f"{{name: described, format: captions, path: {place}/out/described-*.tar}}"
    assert f"--source '{source}'" in output
    assert main(["data", "check", "--source", source]) in (0, None)
    assert "described" in capsys.readouterr().out


def test_processes_of_torchrun_share_the_shards(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pipeline(settings={"shard_rows": 2})
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, message in (("0", "others are still at work"), ("1", "look at: out/page.html")):
        monkeypatch.setenv("RANK", rank)
        annotate(["--config", config, "--out", "out"])
        assert message in capsys.readouterr().out


@pytest.mark.distributed
def test_two_processes_of_torchrun_write_the_bytes_of_one(place: Path) -> None:
    config = pipeline(settings={"shard_rows": 1, "batch_rows": 1})
    annotate(["--config", config, "--out", "alone"])
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lit_mm")
    finished = subprocess.run(
        [*launcher, "annotate", "--config", config, "--out", "shared", "--allow", "tests"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    speeds = [json.loads(line) for line in Path("shared", SPEED).read_text().splitlines()]
    assert sorted((speed["rank"], speed["ranks"], speed["rows"]) for speed in speeds) == [(0, 2, 3), (1, 2, 2)]

    def contents(folder: str) -> dict[str, bytes]:
        files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != SPEED)
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    assert contents("shared") == contents("alone") and len(contents("alone")) == 13


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"engin": ENGINE}, [], "has no key 'engin'. Did you mean 'engine'?"),
        ({"sources": []}, [], "an engine needs `sources`"),
        ({"sources": [{"name": "a", "path": "nowhere"}]}, [], "there is no folder 'nowhere'"),
        ({"settings": {"shard_row": 2}}, [], "has no key 'shard_row'. Did you mean 'shard_rows'?"),
        ({"settings": {"shard_rows": 0}}, [], "`shard_rows` and `batch_rows` are at least 1"),
        ({"settings": {"shard_rows": "many"}}, [], r"shard_rows: expected a whole number, got 'many'"),
        ({}, ["--engine.init_args.overall.class_path", f"{STUBS}.Halves"], "expected a subclass of"),
        ({}, ["--engine.init_args.text.class_path", "os.system"], "cannot be imported"),
        ({}, ["--engine.init_args.score", "None"], "name a `score` expert"),
        ({}, ["--source", "{name: a}"], "needs `path`"),
        ({}, ["--source", "{name: a"], "--source is a folder, or a mapping"),
        ({}, ["--sources.path", "x"], "sources"),
    ],
)
def test_a_mistake_in_a_pipeline_is_named(place: Path, changes: dict, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        annotate(["--config", pipeline(**changes), "--out", "out", *words])
    assert not Path("out").exists()


def test_a_pipeline_that_does_not_exist_is_named(place: Path) -> None:
    with pytest.raises(UserError, match="there is no config file 'monkeys'"):
        annotate(["--config", "monkeys", "--out", "out"])
