"""An Optuna study holds the trials of a sweep: its points, its workers, and what a killed worker leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_mm.errors import UserError
from lit_mm.sweeps.parameters import grid_points, random_point
from lit_mm.sweeps.search import FILES, NO_OPTUNA, Search, cut_to_lines, require_optuna, storage_errors
from lit_mm.sweeps.specification import Specification, specification_of
from tests.sweeps.test_specification import LR, SWEEP

BAYES = SWEEP | {
    "method": "bayes",
    "run_cap": 14,
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {
        LR: {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
        "a.kind": {"values": ["x", {"y": 1}]},
        "a.step": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25},
        "a.fixed": {"value": 7},
    },
}


@pytest.fixture
def optuna() -> Any:
    return pytest.importorskip("optuna", reason="the extra `sweeps` is not installed")


def loss(point: dict[str, Any]) -> float:
    return abs(point[LR] - 0.01) + (point["a.kind"] == "x") + point["a.step"]


def points_after(folder: Path, specification: Specification, count: int, *, reopen: bool, **options: Any) -> list[Any]:
    """The points of a search with one worker; with `reopen`, of a new worker for each trial."""
    folder.mkdir(exist_ok=True)
    search = Search(folder, specification, **options)
    for _ in range(count):
        search = Search(folder, specification, **options) if reopen else search
        trial = search.ask()
        search.finish(trial.number, loss(trial.point))
    return [trial.point for trial in search.trials()]


def test_without_optuna_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'lit_mm\[sweeps\]'") as refusal:
        require_optuna()
    assert str(refusal.value) == NO_OPTUNA


@pytest.mark.parametrize(("storage", "count"), [("sqlite", 3), ("journal", 13)])  # TPE begins after ten trials
def test_a_search_does_not_depend_on_how_often_its_worker_was_replaced(
    optuna: Any, tmp_path: Path, storage: Any, count: int
) -> None:
    specification = specification_of(BAYES, "x")
    whole = points_after(tmp_path / "a", specification, count, reopen=False, seed=3, storage=storage)
    pieces = points_after(tmp_path / "b", specification, count, reopen=True, seed=3, storage=storage)
    assert whole == pieces
    assert all(point["a.fixed"] == 7 and point["a.kind"] in ("x", {"y": 1}) for point in whole)
    other = points_after(tmp_path / "c", specification, 3, reopen=False, seed=4, storage=storage)
    assert other != whole[:3]


@pytest.mark.parametrize("method", ["grid", "random"])
def test_the_points_of_grid_and_random_search_are_those_of_the_check(optuna: Any, tmp_path: Path, method: str) -> None:
    specification = specification_of(SWEEP | {"method": method, "run_cap": 5}, "x")
    search = Search(tmp_path, specification, seed=2, storage="journal")
    trials = [search.ask() for _ in range(6)]
    assert trials[5] is None
    parameters = specification.parameters
    expected = [random_point(parameters, 2, number) for number in range(5)]
    assert [trial.point for trial in trials[:5]] == (
        list(grid_points(parameters))[:5] if method == "grid" else expected
    )


def test_a_trial_keeps_its_state_for_other_workers(optuna: Any, tmp_path: Path) -> None:
    specification = specification_of(SWEEP, "x")
    one, two = Search(tmp_path, specification, storage="journal"), Search(tmp_path, specification, storage="journal")
    for number in range(3):
        assert one.ask().number == number
    two.finish(0, 0.5)
    two.fail(1, "exit code 2")
    two.fail(0, "late")
    one.finish(0, 0.9)  # it has ended before
    assert [(trial.state, trial.value) for trial in one.trials()] == [
        ("finished", 0.5),
        ("failed", None),
        ("running", None),
    ]
    assert [(trial.failures, trial.error) for trial in one.trials()] == [(0, ""), (1, "exit code 2"), (0, "")]
    one.finish(1, 0.7)  # it was run again
    assert [(trial.state, trial.value) for trial in two.trials()][1] == ("finished", 0.7)


def test_a_trial_of_a_worker_that_was_killed_while_it_chose_is_completed(optuna: Any, tmp_path: Path) -> None:
    specification = specification_of(SWEEP, "x")
    search = Search(tmp_path, specification, storage="journal")
    search.study.ask()
    assert search.trials()[0].point == {}
    assert search.complete(0).point == next(grid_points(specification.parameters))
    assert search.complete(0).state == "running"


def test_a_storage_of_another_kind_is_refused(optuna: Any, tmp_path: Path) -> None:
    specification = specification_of(SWEEP, "x")
    Search(tmp_path, specification, storage="journal").ask()
    assert len(Search(tmp_path, specification).trials()) == 1
    with pytest.raises(UserError, match="has a storage of kind journal, got --storage sqlite"):
        Search(tmp_path, specification, storage="sqlite")


def test_a_journal_that_a_full_disk_has_cut_goes_on_behind_its_last_whole_line(optuna: Any, tmp_path: Path) -> None:
    specification = specification_of(SWEEP, "x")
    one = Search(tmp_path, specification, storage="journal")
    one.ask()
    with (tmp_path / FILES["journal"]).open("ab") as file:
        file.write(b'{"op_code": 4, "trial')
    two = Search(tmp_path, specification)
    assert [two.ask().number, one.ask().number] == [1, 2]
    assert [trial.number for trial in Search(tmp_path, specification).trials()] == [0, 1, 2]


@pytest.mark.parametrize(("text", "rest"), [(b"", b""), (b"a", b""), (b"a\n", b"a\n"), (b"a\nb\nc", b"a\nb\n")])
def test_a_line_without_an_end_is_cut_off(tmp_path: Path, text: bytes, rest: bytes) -> None:
    (tmp_path / "x").write_bytes(text)
    cut_to_lines(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == rest


@pytest.mark.parametrize(
    ("storage", "reason"), [("sqlite", "file is not a database"), ("journal", "a line of it is no JSON")]
)
def test_a_damaged_storage_is_named_with_the_cure(optuna: Any, tmp_path: Path, storage: str, reason: str) -> None:
    (tmp_path / FILES[storage]).write_bytes(b"not what was written\n" * 99)
    message = rf"{FILES[storage]}', cannot be used: .*{reason}.*remove it"
    with pytest.raises(UserError, match=message), storage_errors(tmp_path):
        Search(tmp_path, specification_of(SWEEP, "x"))


def test_the_parameter_that_decides_is_the_most_important(optuna: Any, tmp_path: Path) -> None:
    search = Search(tmp_path, specification_of(BAYES, "x"), storage="journal")
    assert search.importances() == {}
    for _ in range(12):
        trial = search.ask()
        search.finish(trial.number, float(trial.point["a.kind"] == "x"))
    assert max(search.importances(), key=search.importances().get) == "a.kind"


def test_a_parameter_that_had_one_value_in_all_trials_has_no_importance(optuna: Any, tmp_path: Path) -> None:
    search = Search(tmp_path, specification_of(SWEEP, "x"), storage="journal")
    for number in range(3):  # the grid begins with all ranks of the first rate
        search.finish(search.ask().number, float(number))
    assert search.importances() == {"model.init_args.rank": 1.0}


@pytest.mark.distributed
def test_workers_that_begin_together_share_the_trials(optuna: Any, tmp_path: Path) -> None:
    """Three processes create the storage at once, and no trial is begun twice or beyond the last."""
    work = (
        "from pathlib import Path\nfrom lit_mm.sweeps.search import Search\n"
        "from lit_mm.sweeps.specification import specification_of\n"
        "from tests.sweeps.test_search import BAYES\n"
        f"search = Search(Path({str(tmp_path)!r}), specification_of(BAYES, 'x'))\n"
        "while (trial := search.ask()) is not None:\n    search.finish(trial.number, 1.0)\n    print(trial.number)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    numbers = [int(word) for process in processes for word in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(numbers) == list(range(14))
