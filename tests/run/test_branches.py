"""Stages that start from the end of another one than the one before them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_mm.callbacks.freeze_audit import FreezeAudit
from lit_mm.checkpoints import manifest, reading
from lit_mm.errors import UserError
from lit_mm.stages.stage import Stage, branches, check_recipe, lasting_ends, origins
from tests.kills import Launch, launch_all
from tests.tiny import run_recipe, stages, xcomposer2

KILLED = {
    "in the branch's first step": "deep step 1",
    "in the branch": "deep step 3",
    "between the branches": "deep start",
    "in the first branch": "wide step 3",
    "before the end of the trunk": "pretrain end",
}


def recipe(steps: int = 4) -> list[Stage]:
    """A trunk and two branches from its end."""
    trunk, branch = stages(steps=steps)
    return [trunk, replace(branch, name="wide"), replace(branch, name="deep", starts_from="pretrain")]


def end(folder: Path, stage: str | None = None) -> dict[str, Tensor]:
    """The weights of the newest checkpoint of a stage."""
    return reading.read(manifest.find(folder, stage)).weights()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branches")
    launches = [Launch("unbroken", recipe="branches")]
    for name, kill in KILLED.items():
        launches += [Launch(name, kill=kill, recipe="branches"), Launch(name, recipe="branches")]
    launch_all(launches, folder)
    return folder


def test_a_branch_trains_as_if_the_other_branch_were_not_there(tmp_path: Path):
    trunk, wide, deep = recipe()
    run_recipe(xcomposer2(), [trunk, wide, deep], tmp_path / "both", callbacks=[FreezeAudit()])
    run_recipe(xcomposer2(), [trunk, replace(deep, starts_from=None)], tmp_path / "alone")
    run_recipe(xcomposer2(), [trunk, wide, replace(deep, starts_from=None)], tmp_path / "in a row")
    assert equal(end(tmp_path / "both"), end(tmp_path / "alone"))
    assert not equal(end(tmp_path / "both"), end(tmp_path / "in a row"))


@pytest.mark.parametrize("name", KILLED)
def test_killed_branches_end_the_same_bit_for_bit(runs: Path, name: str):
    for stage in ("wide", "deep"):
        assert equal(end(runs / name, stage), end(runs / "unbroken", stage))


def test_the_ends_of_trunk_and_branches_are_kept(runs: Path):
    saved = [
        (checkpoint.stage, checkpoint.step) for checkpoint in manifest.published(runs / "unbroken" / "checkpoints")
    ]
    assert saved == [("pretrain", 5), ("wide", 5), ("deep", 4), ("deep", 5)]


def test_a_stage_without_a_checkpoint_is_named_with_those_that_have_one(runs: Path):
    with pytest.raises(UserError, match=r"no checkpoint of stage 'high', only of \['pretrain', 'wide', 'deep'\]"):
        manifest.find(runs / "unbroken", "high")
    last = manifest.find(runs / "unbroken")
    with pytest.raises(UserError, match="is a checkpoint of stage 'deep', not of 'wide'"):
        manifest.find(last, "wide")


def test_a_branch_whose_trunk_is_gone_is_refused(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "unbroken", tmp_path / "run")
    for checkpoint in manifest.published(tmp_path / "run" / "checkpoints"):
        if checkpoint.stage != "wide":
            shutil.rmtree(checkpoint.path)
    with pytest.raises(
        UserError, match=r"stage 'deep' starts from the end of 'pretrain', but its checkpoint .* does not exist"
    ):
        run_recipe(xcomposer2(dropout=0.1), recipe(steps=5), tmp_path / "run")


@pytest.mark.parametrize(
    ("starts", "before", "away", "ends"),
    [
        ([None, None, None], [None, "a", "b"], {}, {"c"}),
        ([None, None, "a"], [None, "a", "a"], {"c": "a"}, {"a", "b", "c"}),
        ([None, "a", "b"], [None, "a", "b"], {}, {"c"}),
        ([None, None, "b", "a"], [None, "a", "b", "a"], {"d": "a"}, {"a", "c", "d"}),
        ([None, "a", "a", "a"], [None, "a", "a", "a"], {"c": "a", "d": "a"}, {"a", "b", "c", "d"}),
    ],
    ids=["a row", "two branches", "a row, spelt out", "a long branch", "three branches"],
)
def test_where_stages_start_and_which_ends_last(starts, before, away, ends):
    made = [replace(stages()[0], name=name, starts_from=start) for name, start in zip("abcd", starts, strict=False)]
    assert list(origins(made).values()) == before
    assert branches(made) == away
    assert lasting_ends(made) == ends


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (["a", None], r"stages\.a\.starts_from: .* this is the first stage; got 'a'"),
        ([None, "b"], r"stages\.b\.starts_from: .* an earlier stage of the recipe, \['a'\]; got 'b'"),
        (["b", None], r"stages\.a\.starts_from: .*got 'b'"),
        ([None, "pretrian"], r"\['a'\]; got 'pretrian'"),
    ],
    ids=["itself, the first", "itself", "a later one", "unknown"],
)
def test_a_stage_that_starts_from_none_before_it_is_refused(starts, message):
    made = [replace(stages()[0], name=name, starts_from=start) for name, start in zip("ab", starts, strict=True)]
    with pytest.raises(UserError, match=message):
        check_recipe(made, xcomposer2().parts(), ["next_token"])
