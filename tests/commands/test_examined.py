"""A stage measures the figures that it names while it trains, and keeps the checkpoint that is best by one of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_mm.callbacks.figures import TYPES, score_by
from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.callbacks.step_table import read_rows
from lit_mm.checkpoints.manifest import published
from lit_mm.cli import main
from lit_mm.commands.recipe import rehearsed
from lit_mm.errors import UserError
from lit_mm.stages.examine import Examine
from lit_mm.stages.stage import Stage, Train, best_figure
from tests.commands.test_trained import conversations, recipe
from tests.evaluation.benchmarks.files import MAKERS

EXAMINE = {
    "metrics": ["loss", "equality"],
    "sources": {"mine": {"format": "llava", "path": "heldout/asked.json"}},
    "benchmarks": ["vsr"],
    "data": "files",
    "questions": 2,
    "best": "loss/mine",
}


def with_examine(**changes: Any) -> dict[str, Any]:
    config = deepcopy(recipe())
    config["stages"][-1] |= {"examine": EXAMINE | changes, "max_steps": 4}
    return config | {"examine_every": 1, "keep_checkpoints": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data files, a recipe and its run in runs/tiny."""
    place = tmp_path_factory.mktemp("examined")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit_mm"])
        patch.chdir(place)
        conversations(place / "data/train.json", 6)
        conversations(place / "heldout/asked.json", 3)
        MAKERS["vsr"](place / "files")
        Path("tiny.yaml").write_text(yaml.safe_dump(with_examine(), sort_keys=False))
        main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/tiny"])
        yield place
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


def test_every_step_of_the_stage_has_every_figure(place: Path) -> None:
    rows = read_rows(place / "runs/tiny/figures.csv", TYPES)
    stage = with_examine()["stages"][-1]["name"]
    names = {"loss/held_out", "equality/held_out", "loss/mine", "equality/mine", "benchmark/vsr:test"}
    assert {row["stage"] for row in rows} == {stage}
    steps = sorted({row["step"] for row in rows})
    assert steps == list(range(steps[0], steps[0] + 5))
    for step in steps:
        assert sorted(row["figure"] for row in rows if row["step"] == step) == sorted(names)
    values = {(row["step"], row["figure"]): row["value"] for row in rows}
    assert all(values[step, "loss/mine"] == values[step, "loss/held_out"] for step in steps)  # the same documents


def test_the_checkpoint_with_the_lowest_loss_stays(place: Path) -> None:
    rows = [row for row in read_rows(place / "runs/tiny/figures.csv", TYPES) if row["figure"] == "loss/mine"]
    score_at = score_by(place / "runs/tiny/figures.csv", "loss/mine")
    last = rows[-1]["step"]
    best = max((row["step"] for row in rows[1:]), key=score_at)
    first = rows[0]["step"]
    left = {first + saved.step for saved in published(place / "runs/tiny/checkpoints") if saved.number == 2}
    assert {best, last} <= left and len(left) <= 2
    assert score_at(best) == -min(row["value"] for row in rows[1:])
    assert score_at(10**6) is None


def test_measuring_does_not_disturb_the_training(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    config = with_examine()
    del config["stages"][-1]["examine"]
    Path("undisturbed.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    main(["fit", "--config", "undisturbed.yaml", "--run_dir", "runs/undisturbed"])
    losses = [
        [row["loss"] for row in read_metrics(Path(f"runs/{name}/metrics.csv"))] for name in ("tiny", "undisturbed")
    ]
    assert losses[0] == losses[1]
    # a run goes on with other figures, because no result depends on them
    main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/undisturbed"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["los"]}, "examine: unknown metric 'los'"),
        ({"best": "loss/theirs"}, "'loss/theirs' is not measured"),
        ({"benchmarks": ["vsrs"]}, "Did you mean 'vsr'"),
        ({"data": None}, "set `examine.data` to the folder of the benchmarks"),
        ({"metrics": [], "benchmarks": []}, "name `metrics`"),
        ({"questions": 0}, "examine.questions is at least 1"),
        ({"sources": {"mine": {"format": "llava", "path": "none.json"}}}, "there is no data file"),
    ],
)
def test_a_mistake_is_told_before_training(
    changes: dict[str, Any], message: str, place: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    Path("bad.yaml").write_text(yaml.safe_dump(with_examine(**changes), sort_keys=False))
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "bad.yaml", "--run_dir", "runs/bad"])
    assert end.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_stages_name_one_figure_for_the_best_checkpoint() -> None:
    def stage(name: str, best: str) -> Stage:
        return Stage(name, {"language": Train(1e-3)}, max_steps=1, examine=Examine(["loss"], best=best))

    assert best_figure([stage("a", ""), stage("b", "loss/held_out")]) == "loss/held_out"
    with pytest.raises(UserError, match="compared by one figure"):
        best_figure([stage("a", "loss/mine"), stage("b", "loss/held_out")])


def test_a_rehearsal_asks_few_questions() -> None:
    stage = Stage("a", {"language": Train(1e-3)}, max_steps=9, examine=Examine(["loss"], questions=500))
    assert rehearsed(stage, 1).examine == Examine(["loss"], questions=2)
    assert rehearsed(Stage("a", {"language": Train(1e-3)}, max_steps=9), 1).examine is None
