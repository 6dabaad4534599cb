"""A sweep is checked with its recipe before anything is created; trials run on the server's agent or by Optuna."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
import yaml
from PIL import Image
from wandb.wandb_agent import Agent

from lit_mm.cli import main
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.commands.results import figure_of, interval_of
from lit_mm.commands.sweep import begin_folder, check_recipe, folder_of, open_point
from lit_mm.commands.sweep_offline import config_of, ranked, run_offline, trial_folder
from lit_mm.commands.sweep_online import run_online
from lit_mm.errors import UserError
from lit_mm.report.sweep_chart import draw_sweep
from lit_mm.run.folder import value_at
from lit_mm.sweeps.agent import command_of, words_of
from lit_mm.sweeps.parameters import example_points
from lit_mm.sweeps.search import Search, Trial
from lit_mm.sweeps.specification import Specification, read_specification, specification_of
from tests.test_cli import TINY

ROOT = Path(__file__).parents[2]
LR, RANK = "stages.pretrain.train.connector.lr", "model.init_args.rank"
SWEEP: dict[str, Any] = {
    "command": ["${env}", "${interpreter}", "-m", "lit_mm", "fit", "--config", "tiny.yaml", "${args}"],
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {
        LR: {"values": [1e-3, 1e-5]},
        RANK: {"values": [2, 4]},
        "stages.*.max_steps": {"value": 1},
    },
}
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny recipe, in which the test works; W&B is not reached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    data = TINY["data"] | {"init_args": TINY["data"]["init_args"] | {"heldout_documents": 18}}
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": data, "examine_documents": 9}, sort_keys=False))
    return tmp_path


@pytest.fixture
def typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run `sweep` on a specification. Returns exit code, standard output and standard error."""

    def run(specification: dict[str, Any], *options: str) -> tuple[int, str, str]:
        Path("rates.yaml").write_text(yaml.safe_dump(specification, sort_keys=False))
        code = 0
        try:
            main(["sweep", "rates.yaml", *options])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --- the check -------------------------------------------------------------------------------------------------------
def test_the_check_shows_every_trial_with_its_cost_and_creates_nothing(typed: Typed) -> None:
    parameters = SWEEP["parameters"] | {LR: {"value": 1e-3}}
    # A name that is no folder matters to a sweep without a server alone
    code, output, errors = typed(SWEEP | {"parameters": parameters, "name": "llava/rates"}, "--check")
    assert code == 0, errors
    assert "llava/rates: grid search by minimizing loss, 2 trials" in output
    rows = [line.split() for line in output.splitlines()]
    assert [row[:2] for row in rows[4:6]] == [["0", "2"], ["1", "4"]]
    assert int(rows[4][2].replace(",", "")) < int(rows[5][2].replace(",", ""))  # a larger rank has more parameters
    assert "4 optimizer steps in all" in output
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({RANK: {"values": [2, "two"]}}, f"{RANK}=two is refused: {RANK} (on the command line): expected"),
        ({RANK: {"values": [2]}, "model.init_args.rnak": {"value": 1}}, "Did you mean 'rank'"),
        ({LR: {"values": [0.1, -1.0]}}, "stages.pretrain.train.connector: a part learns with lr > 0"),
        ({"stages.pretran.clip": {"value": 1}}, "the recipe has no stage 'pretran'. Did you mean 'pretrain'?"),
        ({"stages.*.train.visoin.lr": {"value": 1.0}}, "trains unknown parts ['visoin']"),
        ({"data.init_args.kind": {"values": ["questions", "riddles"]}}, "data.init_args.kind=riddles"),
    ],
)
def test_a_key_or_value_that_the_recipe_refuses_is_found_before_anything_is_created(
    typed: Typed, change: dict[str, Any], message: str
) -> None:
    code, output, errors = typed(SWEEP | {"parameters": {"stages.*.max_steps": {"value": 1}} | change}, "--check")
    assert (code, output) == (2, "")
    assert message in errors and len(errors.splitlines()) <= 4
    assert not Path("runs").exists()


def test_a_null_of_a_point_is_null_in_its_recipe(folder: Path) -> None:
    """W&B's agent writes it as the word None."""
    address = "model.init_args.vision.init_args"
    point = {address: {"image_size": 28, "weights": None}, "trainer.max_time": None}
    specification = specification_of(
        SWEEP | {"parameters": {key: {"value": value} for key, value in point.items()}}, "x"
    )
    config = yaml.safe_load(open_point(specification, point).resolved())
    assert value_at(config, f"{address}.weights") is None and value_at(config, "trainer.max_time") is None
    assert value_at(config, f"{address}.image_size") == 28


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("acuracy", "metric.name: a run does not measure 'acuracy'. Did you mean 'accuracy'?"),
        ("x", "It measures loss, tokens, lr/connector, "),
    ],
)
def test_a_metric_that_no_run_measures_is_refused(typed: Typed, metric: str, message: str) -> None:
    code, _, errors = typed(SWEEP | {"metric": {"name": metric, "goal": "maximize"}}, "--check")
    assert code == 2 and message in errors


def test_options_that_contradict_each_other_are_refused(typed: Typed) -> None:
    for options, message in (
        (["--create", "--offline"], "--create needs W&B's server"),
        (["--check", "--storage", "journal"], "--storage, --folder and --retry are for offline sweeps"),
        (["--check", "--retry", "1"], "--storage, --folder and --retry are for offline sweeps"),
        (["--retry", "-1"], "--retry is at least 0, got -1"),
        (["--points", "0"], "--points is at least 1, got 0"),
    ):
        code, _, errors = typed(SWEEP, *options)
        assert code == 2 and message in errors


def test_the_sweeps_of_the_package_name_recipes_and_metrics_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    files = sorted((ROOT / "experiments/sweeps").glob("*.yaml"))
    assert files
    for file in files:
        assert f"sweep experiments/sweeps/{file.name}" in file.read_text()
        specification = read_specification(file)
        check_recipe(specification, open_point(specification, next(example_points(specification.parameters))))


# --- the agent -------------------------------------------------------------------------------------------------------
def agent_command(specification: Specification, point: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that W&B's agent starts for a point."""
    started: list[list[str]] = []
    monkeypatch.setattr(
        "wandb.wandb_agent.AgentProcess", lambda command, **_: started.append(command) or SimpleNamespace()
    )
    monkeypatch.setenv("WANDB_DIR", "agent")
    monkeypatch.setenv("WANDB_RUN_ID", "before")  # the agent changes these two for its process
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    agent = Agent.__new__(Agent)
    agent._sweep_command, agent._function, agent._in_jupyter = list(specification.command), None, False
    agent._forward_signals, agent._run_processes = False, {}
    args = {address: {"value": value} for address, value in point.items()}
    agent._command_run({"type": "run", "run_id": "abc", "program": "lit_mm", "args": args})
    return started[0]


@pytest.mark.parametrize("macro", ["${args}", "${args_no_equals}"])
def test_a_trial_here_has_the_words_that_the_agent_gives_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, macro: str
) -> None:
    specification = specification_of(SWEEP | {"command": [*SWEEP["command"][:-1], macro]}, "x")
    point = {LR: 1e-5, RANK: 2, "stages.*.max_steps": 1, "trainer.max_time": None}
    words = agent_command(specification, point, monkeypatch)
    assert words[:6] == ["/usr/bin/env", "python", "-m", "lit_mm", "fit", "--config"]
    assert command_of(specification, point, Path("here")) == [
        "/usr/bin/env",
        sys.executable,
        *words[2:],
        "--run_dir",
        "here",
    ]
    assert words[5:] == words_of(specification, point)
    cli = RecipeCLI(words[5:], "fit")
    assert cli.stages[0].train["connector"].lr == 1e-5
    assert [stage.max_steps for stage in cli.stages] == [1, 1]


def test_online_the_sweep_is_created_with_flat_addresses_and_an_agent_runs_it(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server is asked: the two functions of wandb's API are replaced."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("lit_mm.commands.sweep.has_account", lambda: True)
    monkeypatch.setattr(wandb, "sweep", lambda content, **names: calls.append((content, names)) or "id7")
    monkeypatch.setattr(wandb, "agent", lambda identity, **names: calls.append((identity, names)))
    nested: dict[str, Any] = {"value": 0.1}
    for name in reversed(LR.split(".")):
        nested = {"parameters": {name: nested}}
    small = SWEEP | nested
    server = {"entity": "lab", "early_terminate": {"type": "hyperband", "min_iter": 3}}
    code, output, errors = typed(small | server, "--trials", "3")
    assert code == 0, errors
    (content, names), agent = calls
    assert names == {"entity": "lab", "project": "lit_mm"}
    assert list(content["parameters"]) == [LR]
    assert content["early_terminate"] == {"type": "hyperband", "min_iter": 3} and content["command"] == SWEEP["command"]
    assert agent == ("id7", {"entity": "lab", "project": "lit_mm", "count": 3})
    assert "wandb agent lab/lit_mm/id7" in output
    calls.clear()
    specification = specification_of(small, "x")
    run_online(specification, create_only=True)
    assert len(calls) == 1

    def refuse(*_: object, **__: object) -> str:
        raise wandb.errors.CommError("no such entity")

    monkeypatch.setattr(wandb, "sweep", refuse)
    with pytest.raises(
        UserError, match=r"refused the sweep: no such entity\. To run it without the server, add --offline"
    ):
        run_online(specification)


# --- offline ---------------------------------------------------------------------------------------------------------
def test_without_optuna_a_sweep_ends_in_one_line(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("lit_mm.commands.sweep.has_account", lambda: False)
    code, output, errors = typed(SWEEP)
    assert (code, output) == (2, "")
    assert "pip install 'lit_mm[sweeps]'" in errors and len(errors.splitlines()) == 1


def test_trials_are_ranked_by_the_goal_and_equal_ones_by_their_number() -> None:
    values = [0.5, None, 0.9, 0.5, 0.1]
    trials = [Trial(number, {}, "finished", value) for number, value in enumerate(values)]
    assert [trial.number for trial in ranked(trials, "maximize")] == [2, 0, 3, 4]
    assert [trial.number for trial in ranked(trials, "minimize")] == [4, 0, 3, 2]


def test_a_figure_is_read_by_the_name_that_wandb_has(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"accuracy": {"overall": 0.5}, "seconds": 3.5, "documents": 20}')
    (tmp_path / "metrics.csv").write_text("step,stage,loss,tokens,lr_vision\n1,a,2.0,7,0.1\n2,a,1.0,8,0.2\n")
    (tmp_path / "accuracy.csv").write_text("step,stage,overall,count\n0,a,0.0,0.0\n2,a,0.4,0.2\n")
    (tmp_path / "figures.csv").write_text("step,stage,figure,value\n0,a,loss/mine,4.0\n2,a,loss/mine,3.0\n")
    names = ("accuracy", "seconds", "loss", "tokens", "lr/vision", "accuracy/overall", "accuracy/count", "loss/mine")
    assert [figure_of(tmp_path, name) for name in names] == [0.5, 3.5, 1.0, 8, 0.2, 0.4, 0.2, 3.0]
    assert figure_of(tmp_path, "blind") is None and figure_of(tmp_path, "accuracy/none") is None
    interval = interval_of(tmp_path, "accuracy")
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.299, 0.701)  # 10 of 20, Wilson
    assert interval_of(tmp_path, "loss") is None


def test_the_picture_has_an_axis_for_each_parameter_that_changes(tmp_path: Path) -> None:
    points = [{"a.lr": 10.0**-n, "b": ["x", "y"][n % 2], "c": 1} for n in range(5)]
    draw_sweep(points, [0.1, 0.5, 0.3, 0.2, 0.4], "accuracy", "maximize", {"a.lr": 0.8, "b": 0.2}, tmp_path / "a.png")
    draw_sweep(points[:1], [0.1], "loss", "minimize", {}, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as wide, Image.open(tmp_path / "b.png") as narrow:
        assert wide.width > narrow.width > 400


# The run of a trial by its number: 0 ends, 1 fails at first, 2 is killed each time, 3 measures nothing
RUN = """
import json, os, pathlib, sys
place = pathlib.Path(sys.argv[1])
number, again = int(place.name), (place / "began").exists()
(place / "began").touch()
print("run", "again" if again else "first")
if number == 1 and not again:
    sys.exit("lit_mm: error: no GPU is free")
if number == 2:
    os.kill(os.getpid(), 9)
(place / "config.yaml").write_text("a: 1\\n")
if number != 3:
    (place / "summary.json").write_text(json.dumps({"accuracy": {"overall": number / 10}, "documents": 9}))
"""


def test_a_trial_that_fails_is_no_result_and_is_retried_on_demand_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="the extra `sweeps` is not installed")
    monkeypatch.setattr(
        "lit_mm.commands.sweep_offline.command_of", lambda _, point, place: [sys.executable, "-c", RUN, str(place)]
    )
    monkeypatch.setattr("lit_mm.commands.sweep_offline.MOST_FAILURES", 4)
    monkeypatch.setattr("lit_mm.commands.sweep_offline.draw_sweep", lambda *_: None)
    specification = specification_of(SWEEP | {"metric": {"name": "accuracy", "goal": "maximize"}}, "x")

    def states(retries: int) -> list[tuple[str, float | None, int]]:
        run_offline(specification, tmp_path, storage="journal", retries=retries)
        trials = Search(tmp_path, specification).trials()
        return [(trial.state, trial.value, trial.failures) for trial in trials]

    once = [("finished", 0.0, 0), ("failed", None, 1), ("failed", None, 1), ("failed", None, 1)]
    assert states(0) == once
    text = capsys.readouterr().out
    assert "trial 1 failed (exit code 1: lit_mm: error: no GPU is free); its output is in" in text
    assert "trial 2 failed (killed by SIGKILL, as systems do that run out of memory: run first)" in text
    assert "trial 3 failed (no accuracy was measured)" in text
    assert "the same command with --retry 1 runs them again" in text
    assert len((tmp_path / "ranking.csv").read_text().splitlines()) == 2
    assert states(0) == once and "trial 1 of 4" not in capsys.readouterr().out
    twice = [once[0], ("finished", 0.1, 1), ("failed", None, 2), ("failed", None, 2)]
    assert states(1) == twice
    assert "trial 1: accuracy 0.1" in capsys.readouterr().out
    assert (trial_folder(tmp_path, 1) / "output.txt").read_text().splitlines()[-1] == "run again"
    assert [row.split(",")[1] for row in (tmp_path / "ranking.csv").read_text().splitlines()[1:]] == ["1", "0"]
    assert states(1) == twice
    assert "trial 2 failed 2 times" in capsys.readouterr().out


# The run of a trial by its number: 0 is refused at first, 1 has no finite figure
LATE = """
import json, pathlib, sys
place = pathlib.Path(sys.argv[1])
number, again = int(place.name), (place / "began").exists()
(place / "began").touch()
if number == 0 and not again:
    sys.exit(f"lit_mm: the run folder {str(place)!r} is in use by process 7 on here")
(place / "config.yaml").write_text("a: 1\\n")
figure = 0.5 if number == 0 else float("inf")
(place / "summary.json").write_text(json.dumps({"accuracy": {"overall": figure}, "documents": 9}))
"""


def test_a_trial_whose_folder_the_run_of_a_killed_worker_locks_late_waits_for_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="the extra `sweeps` is not installed")
    monkeypatch.setattr(
        "lit_mm.commands.sweep_offline.command_of", lambda _, point, place: [sys.executable, "-c", LATE, str(place)]
    )
    holders = iter([None, None, "process 7"])
    monkeypatch.setattr("lit_mm.commands.sweep_offline.living_holder", lambda place: next(holders, None))
    monkeypatch.setattr("lit_mm.commands.sweep_offline.WAIT", 0.0)
    monkeypatch.setattr("lit_mm.commands.sweep_offline.draw_sweep", lambda *_: None)
    metric = {"name": "accuracy", "goal": "maximize"}
    specification = specification_of(SWEEP | {"metric": metric, "run_cap": 2}, "x")
    run_offline(specification, tmp_path, storage="journal", most=1)
    captured = capsys.readouterr()
    assert "trial 0: accuracy 0.5" in captured.out and "failed" not in captured.out
    with pytest.raises(UserError, match="the run of a trial failed"):  # no trial of this worker has a figure
        run_offline(specification, tmp_path, most=1)
    assert "trial 1 failed (accuracy is inf)" in capsys.readouterr().out


def test_the_recipe_of_a_trial_whose_folder_is_gone_is_resolved_anew(folder: Path) -> None:
    trial = Trial(1, {LR: 0.5, RANK: 4, "stages.*.max_steps": 1}, "finished", 0.5)
    config = yaml.safe_load(config_of(specification_of(SWEEP, "x"), trial, Path("none")))
    assert config["stages"][0]["train"]["connector"]["lr"] == 0.5 and config["model"]["init_args"]["rank"] == 4


RECIPE = "{seed_everything: 0, data: {init_args: {num_workers: 1}}, stages: [{name: a, max_steps: 3}]}"


@pytest.mark.parametrize(
    ("change", "recipe", "message"),
    [
        ({"run_cap": 9}, RECIPE.replace("num_workers: 1", "num_workers: 2"), None),
        ({"method": "random"}, RECIPE, r'specification.method \("grid" there, "random" here\)'),
        ({}, RECIPE.replace("max_steps: 3", "max_steps: 4"), r"recipe.stages.a.max_steps \(3 there, 4 here\)"),
        ({}, RECIPE.replace("seed_everything", "examine_documents"), r"recipe.examine_documents"),
        (
            {"parameters": {**SWEEP["parameters"], "data.init_args.micro_batch": {"values": [1, 2]}}},
            RECIPE,
            r"specification.parameters.data.init_args.micro_batch",
        ),
    ],
)
def test_the_number_of_trials_of_a_sweep_may_change_and_its_results_may_not(
    tmp_path: Path, change: dict[str, Any], recipe: str, message: str | None
) -> None:
    assert begin_folder(tmp_path, specification_of(SWEEP | {"run_cap": 3}, "x"), 0, RECIPE)
    before = (tmp_path / "sweep.yaml").read_text()
    assert not begin_folder(tmp_path, specification_of(SWEEP | {"run_cap": 3}, "x"), 0, RECIPE)
    assert (tmp_path / "sweep.yaml").read_text() == before
    changed = specification_of(SWEEP | {"run_cap": 3} | change, "x")
    if message is None:
        assert not begin_folder(tmp_path, changed, 0, recipe)
        assert yaml.safe_load((tmp_path / "sweep.yaml").read_text())["specification"]["run_cap"] == change["run_cap"]
        return
    with pytest.raises(UserError, match=f"holds another sweep; it differs in .*{message}"):
        begin_folder(tmp_path, changed, 0, recipe)


def test_the_number_of_trials_of_a_sweep_does_not_fall(tmp_path: Path) -> None:
    assert begin_folder(tmp_path, specification_of(SWEEP | {"run_cap": 3}, "x"), 0, RECIPE)
    with pytest.raises(UserError, match="at most 3 trials, and `run_cap` is 2 here"):
        begin_folder(tmp_path, specification_of(SWEEP | {"run_cap": 2}, "x"), 0, RECIPE)
    assert not begin_folder(tmp_path, specification_of(SWEEP, "x"), 0, RECIPE)  # no limit


@pytest.mark.parametrize("text", [b"a: [", b"\xff\xfe", b"", b"a: 1", b"recipe: 7\n"])
def test_a_damaged_record_of_a_sweep_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "sweep.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"sweep.yaml' is damaged .*Put a copy back"):
        begin_folder(tmp_path, specification_of(SWEEP, "x"), 0, RECIPE)


def test_a_storage_without_the_record_of_its_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "optuna.journal").touch()
    with pytest.raises(UserError, match=r"has optuna.journal of a sweep, but no sweep.yaml"):
        begin_folder(tmp_path, specification_of(SWEEP, "x"), 0, RECIPE)


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_resumed_ends_as_an_unbroken_one(folder: Path, typed: Typed) -> None:
    pytest.importorskip("optuna", reason="the extra `sweeps` is not installed")
    Path("rates.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    words = [sys.executable, "-m", "lit_mm", "sweep", "rates.yaml", "--offline"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LIT_MM_ALLOW": "tests"}
    worker = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    sweep = Path("runs/sweeps/rates")
    deadline = time.monotonic() + 900
    begun = trial_folder(sweep, 1) / "metrics.csv"
    while not begun.exists() and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)  # the worker; the command of its trial is another group
        worker.wait()
    assert begun.exists()
    resumed = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1500)
    assert resumed.returncode == 0, resumed.stderr
    assert "trial 1 of 4" in resumed.stdout and "trial 0 of 4" not in resumed.stdout
    rows = (sweep / "ranking.csv").read_text().splitlines()
    assert rows[0] == f"rank,trial,loss,low,high,seconds,{LR},{RANK},stages.*.max_steps,folder"
    losses = [figure_of(trial_folder(sweep, number), "loss") for number in range(4)]
    assert [float(row.split(",")[2]) for row in rows[1:]] == sorted(losses)
    for number, (rate, rank) in enumerate([(1e-3, 2), (1e-3, 4), (1e-5, 2), (1e-5, 4)]):
        config = yaml.safe_load((trial_folder(sweep, number) / "config.yaml").read_text())
        assert config["stages"][0]["train"]["connector"]["lr"] == rate
        assert config["model"]["init_args"]["rank"] == rank
    assert RecipeCLI(["--config", str(sweep / "best.yaml")], "fit").resolved()
    with Image.open(sweep / "sweep.png") as picture:
        assert picture.width > 400
    again = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "trial 0 of 4" not in again.stdout
    code, _, errors = typed(SWEEP | {"method": "random", "run_cap": 4}, "--offline")
    assert code == 2 and "holds another sweep; it differs in specification.method" in errors
    main(["evaluate", str(trial_folder(sweep, 3)), "--documents", "2"])
    Image.new("RGB", (60, 40), "red").save("red.png")
    main(
        ["generate", str(trial_folder(sweep, 3)), "--image", "red.png", "--question", "what?", "--max_new_tokens", "3"]
    )


@pytest.mark.parametrize("name", ["../mine", "a/b", "a\nb", "x" * 300])
def test_a_name_that_is_no_folder_needs_one(name: str) -> None:
    specification = specification_of(SWEEP | {"name": name}, "x")
    with pytest.raises(UserError, match="give --folder"):
        folder_of(None, specification)
    assert folder_of("runs/mine", specification) == Path("runs/mine")
