"""Adapters through the command line: `describe`, `fit`, another run from a checkpoint, `consolidate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_mm.checkpoints import manifest, reading
from lit_mm.cli import main
from lit_mm.stages.adapter import Adapter, fates
from tests.test_cli import TINY

ADAPTER = {"type": "lora", "rank": 3, "targets": "all-linear"}


def recipe(adapter: dict[str, Any] = ADAPTER) -> dict[str, Any]:
    config = deepcopy(TINY) | {"track": False, "examine_documents": 2, "checkpoint_every": 1}
    config["stages"][1] = {
        "name": "finetune",
        "train": {"language": {"lr": 1e-2, "adapter": adapter}},
        "max_steps": 2,
    }
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of two stages, the second with an adapter that stays."""
    place = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit_mm"])
        patch.chdir(place)
        Path("tiny.yaml").write_text(yaml.safe_dump(recipe(), sort_keys=False))
        main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/tiny"])
        yield place
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


@pytest.fixture
def command(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in the folder of the run and return what it prints."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(place)

    def typed(*arguments: str) -> str:
        capsys.readouterr()
        main(arguments)
        return capsys.readouterr().out

    return typed


def test_describe_counts_the_adapter_as_what_the_stage_trains(command: Callable[..., str]) -> None:
    plan = json.loads(command("describe", "--config", "tiny.yaml", "--format", "json"))
    pretrain, finetune = plan["stages"]
    saved = reading.read(manifest.find("runs/tiny"))
    names = saved.manifest["parts"]["language_adapter"]
    count = sum(saved.weight(name).numel() for name in names)
    assert finetune["trainable"] == {"language_adapter": count} and pretrain["trainable"].keys() == {"connector"}
    assert len(names) == 2 * 7  # one layer


def test_the_run_logs_the_rate_of_the_adapter_under_its_part(place: Path) -> None:
    rows = (place / "runs/tiny/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("lr_language")
    assert [float(row.split(",")[column]) > 0 for row in rows[1:]] == [False, False, True, True]


def test_a_new_recipe_merges_the_adapter_of_the_checkpoint_that_it_starts_from(
    place: Path, command: Callable[..., str]
) -> None:
    later = recipe()
    later["stages"] = [{"name": "more", "train": {"connector": {"lr": 1e-3}}, "max_steps": 1}]
    (place / "later.yaml").write_text(yaml.safe_dump(later, sort_keys=False))
    for _ in range(2):  # the second launch finds the run finished
        command("fit", "--config", "later.yaml", "--run_dir", "runs/later", "--init_from", "runs/tiny")
    first, second = (reading.read(manifest.find(f"runs/{name}")) for name in ("tiny", "later"))
    assert second.manifest["adapters"] == {} and "language_adapter" not in second.manifest["parts"]
    layer = "network.language.lm.model.layers.0.mlp.up_proj.base"
    down, up = (first.weight(f"{layer}.lora_{piece}.default.weight") for piece in "AB")
    merged = first.weight(f"{layer}.base_layer.weight") + up @ down
    torch.testing.assert_close(second.weight(f"{layer}.weight"), merged, rtol=0, atol=1e-6)


def test_consolidate_writes_the_adapter_beside_its_base(place: Path, command: Callable[..., str]) -> None:
    command("checkpoint", "consolidate", "runs/tiny", "whole.safetensors")
    state = load_file(place / "whole.safetensors")
    layer = "network.language.lm.model.layers.0.mlp.up_proj.base"
    assert {f"{layer}.base_layer.weight", f"{layer}.lora_A.default.weight"} <= state.keys()


def test_the_trained_model_answers(command: Callable[..., str]) -> None:
    assert command("generate", "runs/tiny", "--question", "what?", "--max_new_tokens", "4")


@pytest.mark.parametrize(
    ("present", "first", "fate"),
    [
        (Adapter(rank=2), None, "merge"),
        (Adapter(rank=2), Adapter(rank=4), "merge"),
        (Adapter(rank=2), Adapter(rank=2, after="drop"), "keep"),
        (Adapter(rank=2, after="drop"), Adapter(rank=2), "drop"),
    ],
)
def test_an_adapter_goes_on_in_another_recipe_that_has_its_settings(
    present: Adapter, first: Adapter | None, fate: str
) -> None:
    assert fates({"language": present}, {} if first is None else {"language": first}) == {"language": fate}
