"""A recipe whose second stage trains an adapter, under DDP and ZeRO-3, on two processes over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading
from tests.kills import Launch, launch_all
from tests.smoke.test_recipes import tiny
from tests.three_stages import CUT, RTOL, assert_equal, launch, losses, trained, weights

SPLITS: dict[str, dict[str, Any]] = {"ddp": {"strategy": "ddp"}, "zero3": {"strategy": CUT, "keep": 9}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    launch_all(
        [
            launch("one process", ranks=1, recipe="adapters"),
            *(launch(name, recipe="adapters", **options) for name, options in SPLITS.items()),
            launch("DoRA", strategy=CUT, recipe="adapters", adapter="dora"),
            launch("DoRA, one process", ranks=1, recipe="adapters", adapter="dora"),
            launch("killed", strategy=CUT, recipe="adapters", kill="tune step 3"),
            launch("killed", strategy=CUT, recipe="adapters", kill="rest start"),
            launch("killed", strategy=CUT, recipe="adapters"),
        ],
        folder,
    )
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("name", SPLITS)
def test_curves_and_weights_are_those_of_one_process(runs: Path, name: str) -> None:
    expected = losses(runs / "one process")
    assert len(expected) == 9 and losses(runs / name) == pytest.approx(expected, rel=RTOL)
    found, alone = weights(runs / name), weights(runs / "one process")
    assert found.keys() == alone.keys() and not any("lora_A" in key for key in found)
    for key, tensor in alone.items():
        assert float((found[key] - tensor).abs().max()) <= 2e-4, key  # a fifth of what one step of Adam may change


@pytest.mark.distributed
def test_weights_of_dora_are_those_of_one_process(runs: Path) -> None:
    found, alone = weights(runs / "DoRA"), weights(runs / "DoRA, one process")
    assert found.keys() == alone.keys()
    for key, tensor in alone.items():
        assert float((found[key] - tensor).abs().max()) <= 2e-4, key


@pytest.mark.distributed
def test_a_run_that_is_killed_in_two_stages_ends_bit_for_bit_the_same(runs: Path) -> None:
    assert losses(runs / "killed") == losses(runs / "zero3")
    assert_equal(weights(runs / "killed"), weights(runs / "zero3"))


@pytest.mark.distributed
def test_every_rank_writes_its_share_of_the_adapter(runs: Path) -> None:
    checkpoints = (runs / "zero3" / "checkpoints").iterdir()
    tuned = [reading.read(path) for path in checkpoints if "tune" in path.name]
    assert tuned and trained(runs / "zero3").manifest["adapters"] == {}
    (saved, *_) = tuned
    names = saved.manifest["parts"]["language_adapter"]
    assert names and all(len(saved.manifest["weights"][name]["pieces"]) == 2 for name in names)
    assert manifest.newest(runs / "zero3" / "checkpoints").stage == "rest"


@pytest.mark.distributed
def test_the_nano_recipe_of_adapters_has_one_curve_in_one_process_and_under_zero3(tmp_path: Path) -> None:
    config = tiny("adapters")
    for stage in config["stages"]:
        for train in stage["train"].values():
            train.pop("optimizer", None)  # Muon enlarges rounding
            train.get("adapter", {}).pop("dropout", None)
    config["trainer"]["precision"] = "32-true"
    (tmp_path / "adapters.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    options: dict[str, Any] = {"config": "adapters.yaml", "micro_batch": 1}
    launch_all(
        [Launch("one process", **options), Launch("zero3", ranks=2, strategy="zero3", **options)],
        tmp_path,
    )
    alone, shared = (
        [(row["stage"], row["loss"]) for row in read_metrics(tmp_path / name / "metrics.csv")]
        for name in ("one process", "zero3")
    )
    assert [stage for stage, _ in alone] == ["align"] * 2 + ["tune"] * 2 + ["polish"] * 2
    assert [loss for _, loss in shared] == pytest.approx([loss for _, loss in alone], rel=RTOL)
