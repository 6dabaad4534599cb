"""W&B's sweep specifications are read, flattened and checked without the network."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from lit_mm.errors import UserError
from lit_mm.sweeps.parameters import (
    Choice,
    Range,
    ServerOnly,
    example_points,
    grid_points,
    grid_size,
    random_point,
    written_point,
)
from lit_mm.sweeps.search import check_offline
from lit_mm.sweeps.specification import flattened, parameter_of, read_specification, specification_of

COMMAND = ["python", "-m", "lit_mm", "fit", "--config", "a.yaml", "${args}"]
LR = "stages.pretrain.train.connector.lr"
SWEEP: dict[str, Any] = {
    "command": COMMAND,
    "method": "grid",
    "metric": {"name": "accuracy", "goal": "maximize"},
    "parameters": {LR: {"values": [0.1, 0.2]}, "model.init_args.rank": {"min": 1, "max": 3}},
}


@pytest.mark.parametrize(
    ("keys", "parameter"),
    [
        ({"value": 0}, Choice((0,))),
        ({"value": None}, Choice((None,))),
        ({"values": [1, True, None, "x", {"a": 1}]}, Choice((1, True, None, "x", {"a": 1}))),
        ({"distribution": "categorical", "values": [2]}, Choice((2,))),
        ({"min": 1, "max": 4}, Range(1, 4, whole=True)),
        ({"min": 1, "max": 4.0}, Range(1.0, 4.0)),
        ({"distribution": "uniform", "min": 1, "max": 4}, Range(1.0, 4.0)),
        ({"distribution": "int_uniform", "min": 1, "max": 4}, Range(1, 4, whole=True)),
        ({"distribution": "q_uniform", "min": 0.5, "max": 2.0, "q": 0.5}, Range(0.5, 2.0, step=0.5)),
        ({"distribution": "q_uniform", "min": 8, "max": 32, "q": 8}, Range(8, 32, whole=True, step=8)),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}, Range(1e-4, 1e-2, log=True)),
        ({"distribution": "inv_log_uniform_values", "min": 1e-4, "max": 1e-2}, Range(1e-4, 1e-2, log=True)),
        ({"distribution": "log_uniform", "min": -2, "max": 0}, Range(math.exp(-2), 1.0, log=True)),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 2}, Range(math.exp(-2), 1.0, log=True)),
        ({"distribution": "normal", "mu": 3, "sigma": 1}, ServerOnly("distribution: normal", (3,))),
        ({"distribution": "log_normal"}, ServerOnly("distribution: log_normal", (1.0,))),
        ({"distribution": "beta", "a": 1, "b": 3}, ServerOnly("distribution: beta", (0.25,))),
        (
            {"distribution": "q_log_uniform_values", "min": 1, "max": 9, "q": 2},
            ServerOnly("distribution: q_log_uniform_values", (1, 9)),
        ),
        ({"values": [1, 2], "probabilities": [0.9, 0.1]}, ServerOnly("probabilities", (1, 2))),
    ],
)
def test_the_keys_of_a_parameter_are_those_of_wandb(keys: dict[str, Any], parameter: object) -> None:
    assert parameter_of("a", keys) == parameter


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "parameters.a: expected `value`, `values`, or `min` and `max`, got nothing"),
        ({"vales": [1]}, "parameters.a: there is no key 'vales'. Did you mean 'values'?"),
        ({"min": "1e-5", "max": 1.0}, "parameters.a.min: expected a number, got '1e-5'. YAML reads 1e-5 as a text"),
        ({"min": 2, "max": 1}, "parameters.a: expected min below max, got 2 and 1"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "a logarithmic range is above 0, got 0"),
        ({"distribution": "gauss", "min": 0, "max": 1}, "parameters.a.distribution: expected one of constant, "),
        ({"distribution": "uniform", "min": 0}, "parameters.a: uniform needs `max`"),
        ({"distribution": "log_uniform", "min": 1, "max": 1000}, "parameters.a.max: the bounds of a distribution"),
        ({"distribution": "log_normal", "mu": 1000}, "parameters.a.mu: the bounds of a distribution"),
        ({"distribution": "normal", "sigma": 0}, "parameters.a.sigma: expected a number above 0, got 0"),
        ({"distribution": "beta", "a": 0, "b": 0}, "parameters.a.a: expected a number above 0, got 0"),
        ({"value": 1, "values": [1, 2]}, "parameters.a: constant reads value, but not `values`. Remove it"),
        ({"values": [1, 2], "min": 0}, "parameters.a: categorical reads values and probabilities, but not `min`"),
        ({"values": [1, 2], "probabilities": [1.0]}, "probabilities: expected a list of 2 numbers, got [1.0]"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "expected numbers from 0 with the sum 1, got [0.5, 0.6]"),
        (
            {"distribution": "q_uniform", "min": 1, "max": 4, "q": 2},
            "q_uniform draws multiples of q = 2, and 1 is none",
        ),
        ({"values": [1, 1]}, "the value 1 is there twice"),
        ({"values": 3}, "expected a list of values, got 3"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parameter_of("a", keys)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gird"}, "method: expected one of grid, random, bayes, got 'gird'"),
        ({"parameters": {"a": {"min": 0, "max": 10**12}}}, "a grid has at most 100,000 points, got 1,000,000,000,001"),
        ({"parameters": {"a": {"parameters": {}}}}, "parameters.a: nested `parameters` stand alone and hold names"),
        ({"early_terminate": {"type": "hyperbnd"}}, "early_terminate.type: expected hyperband, got 'hyperbnd'"),
        ({"early_terminate": {"type": "hyperband"}}, "hyperband needs `min_iter`, or `max_iter` and `s`"),
        ({"early_terminate": {"type": "hyperband", "min_iter": "3"}}, "early_terminate.min_iter: expected a number"),
        ({"early_terminate": {"type": "hyperband", "miniter": 3}}, "Did you mean 'min_iter'"),
        ({"metric": {"name": "loss"}}, "metric.goal: expected one of minimize, maximize, got None"),
        ({"metric": None}, "metric: expected `name` and `goal`"),
        (
            {"metric": {"name": "loss", "goal": "minimize", "target": 1}},
            "metric.target: a sweep cannot stop at a value",
        ),
        ({"parameters": {}}, "parameters: expected addresses of recipe keys"),
        ({"parameters": {"run_dir": {"value": "x"}}}, "parameters.run_dir: every trial has its own launch"),
        ({"parameters": {LR: {"min": 0.1, "max": 1.0}}}, f"parameters.{LR}: a grid needs `values`"),
        ({"run_cap": 0}, "run_cap: expected a whole number of trials from 1, got 0"),
        ({"parametres": {}}, "a sweep: there is no key 'parametres'. Did you mean 'parameters'?"),
        ({"job": "x"}, "job: the key belongs to W&B Launch"),
        ({"command": None}, "command: expected a list of words, such as [python"),
        ({"command": ["python", "train.py", "${args}"]}, "command: expected words that run `lit_mm fit`"),
        ({"command": COMMAND[:-1]}, "`fit` reads one of ${args} and ${args_no_equals}, once and after `fit`; got none"),
        ({"command": [*COMMAND[:-1], "${args_json}"]}, "got ${args_json}"),
        ({"command": [*COMMAND, "--run_dir", "x"]}, "command: --run_dir is chosen for each trial"),
        (
            {"command": [*COMMAND, "--x=3"], "parameters": {"x": {"value": 1}}},
            "command: --x is a parameter of the sweep",
        ),
    ],
)
def test_a_wrong_specification_is_refused_with_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        specification_of(SWEEP | change, "mine")
    assert message in str(refusal.value)


def test_a_file_with_a_key_twice_is_refused_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SWEEP) + "method: random\n")
    with pytest.raises(UserError, match=r"mine\.yaml, line 1 is not YAML: the key 'method' is there twice"):
        read_specification(file)
    file.write_text(yaml.safe_dump(SWEEP | {"method": "all"}))
    with pytest.raises(UserError, match=r"mine\.yaml: method: expected one of"):
        read_specification(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_specification(tmp_path / "none.yaml")


def test_nested_parameters_join_to_addresses() -> None:
    nested = {
        "stages": {
            "parameters": {
                "pretrain": {"parameters": {"max_steps": {"value": 2}}},
                "*": {"parameters": {"clip": {"value": 1}}},
            }
        },
        "seed_everything": {"value": 3},
    }
    assert flattened(nested) == {
        "stages.pretrain.max_steps": {"value": 2},
        "stages.*.clip": {"value": 1},
        "seed_everything": {"value": 3},
    }
    assert specification_of(SWEEP | {"parameters": nested}, "x").content["parameters"] == flattened(nested)
    with pytest.raises(UserError, match="the address is there twice"):
        flattened({"a": {"parameters": {"b": {"value": 1}}}, "a.b": {"value": 2}})
    with pytest.raises(UserError, match=r"parameters\.a\.b\.c: W&B's agent does not split the dots"):
        flattened({"a": {"parameters": {"b.c": {"value": 1}}}})


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (COMMAND, ["--config", "a.yaml", "--x=1"]),
        (["lit-mm", "fit", "${args}", "--config=a"], ["--x=1", "--config=a"]),
        (["/bin/lit-mm", "fit", "${args}"], ["--x=1"]),
        (
            ["torchrun", "--nproc-per-node", "8", "-m", "lit_mm", "fit", "--config", "a", "${args}"],
            ["--config", "a", "--x=1"],
        ),
    ],
)
def test_the_words_of_fit_are_those_behind_it(command: list[str], words: list[str]) -> None:
    assert specification_of(SWEEP | {"command": command}, "x").fit_words(["--x=1"]) == words


# --- points ----------------------------------------------------------------------------------------------------------
PARAMETERS = {"a": Choice(("x", "y")), "b": Range(1, 3, whole=True), "c": Range(0.1, 0.3, step=0.1)}


def test_a_grid_has_every_combination_and_the_last_parameter_changes_fastest() -> None:
    points = list(grid_points(PARAMETERS))
    assert len(points) == grid_size(PARAMETERS) == 18
    assert points[:4] == [
        {"a": "x", "b": 1, "c": 0.1},
        {"a": "x", "b": 1, "c": 0.2},
        {"a": "x", "b": 1, "c": 0.3},
        {"a": "x", "b": 2, "c": 0.1},
    ]
    assert specification_of(SWEEP, "x").trials == 6
    assert specification_of(SWEEP | {"run_cap": 4}, "x").trials == 4
    assert specification_of(SWEEP | {"method": "random"}, "x").trials is None


def test_examples_have_every_listed_value_and_both_bounds() -> None:
    assert list(example_points(PARAMETERS)) == [
        {"a": "x", "b": 1, "c": 0.1},
        {"a": "y", "b": 1, "c": 0.1},
        {"a": "x", "b": 3, "c": 0.1},
        {"a": "x", "b": 1, "c": 0.3},
    ]


def test_a_random_point_depends_on_seed_and_number_alone_and_fills_its_range() -> None:
    assert random_point(PARAMETERS, 0, 5) == random_point(PARAMETERS, 0, 5)
    points = [random_point(PARAMETERS, 0, number) for number in range(600)]
    assert set(Counter(str(point) for point in points).values()) <= set(range(15, 60))  # 18 points, 33 of each expected
    assert points != [random_point(PARAMETERS, 1, number) for number in range(600)]
    draws = [Range(1e-4, 1.0, log=True).draw(Random(number)) for number in range(400)]
    assert all(1e-4 <= draw <= 1 for draw in draws) and 160 < sum(draw < 1e-2 for draw in draws) < 240


def test_a_point_is_written_as_options_are() -> None:
    assert written_point({"a.b": 0.5, "c": "x", "d": None}) == "a.b=0.5 c=x d=null"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"parameters": {"a": {"distribution": "normal"}}, "method": "bayes", "run_cap": 2},
            "distribution: normal has no",
        ),
        (
            {"parameters": {"a": {"values": [1], "probabilities": [1]}}, "method": "random", "run_cap": 2},
            "probabilities",
        ),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2}}, "early_terminate: only W&B's server"),
        ({"method": "bayes"}, "run_cap: a bayes search goes on for ever"),
    ],
)
def test_what_needs_the_server_is_refused_offline_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_offline(specification_of(SWEEP | change, "x"))
    assert message in str(refusal.value)
    check_offline(specification_of(SWEEP, "x"))
