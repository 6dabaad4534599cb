"""Averages of weights: their values, their start, saving, and a stage that starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lit_mm.checkpoints import reading
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule, family_of
from lit_mm.stages.average import AVERAGE, keep_average
from lit_mm.stages.optimizer import make_optimizer
from lit_mm.stages.stage import Stage, Start, Train, origins
from tests.tiny import PARTS, run_recipe, xcomposer2

DECAY = 0.7


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
def test_an_average_starts_at_the_value_before_the_first_step(muon: bool) -> None:
    averaged, plain, late = (nn.Parameter(torch.randn(4, 3)) for _ in range(3))
    common = {"lr": 0.1, "weight_decay": 0.1, "muon": False, "average": DECAY}
    optimizer = make_optimizer(
        [
            common | {"params": [averaged], "muon": muon},
            common | {"params": [plain], "average": None},
            common | {"params": [late]},
        ],
        (0.9, 0.95),
    )
    keep_average(optimizer)
    expected = {averaged: averaged.detach().clone()}
    for step in range(4):
        for parameter in (averaged, plain, *([late] if step > 1 else ())):
            parameter.grad = torch.randn_like(parameter)
        if step == 2:
            expected[late] = late.detach().clone()
        optimizer.step()
        for parameter, average in expected.items():
            average.lerp_(parameter.detach(), 1 - DECAY)
            torch.testing.assert_close(optimizer.state[parameter][AVERAGE], average, rtol=0, atol=0)
    assert AVERAGE not in optimizer.state[plain]


class Watch(L.Callback):
    """Keeps the weights at the start of every stage and after every step: stage -> list of weights."""

    def __init__(self) -> None:
        self.weights: dict[str, list[dict[str, Tensor]]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.weights.setdefault(pl_module.stage.name, []).append(state)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: MultimodalModule, *_: Any) -> None:
        self.on_train_start(trainer, pl_module)


def recipe() -> list[Stage]:
    averaged = {"connector": Train(1e-2, average=DECAY), "partial_lora": Train(1e-2)}
    everything = {part: Train(1e-2) for part in PARTS}
    return [
        Stage("pretrain", averaged, max_steps=3),
        Stage("finetune", everything, max_steps=1, starts_from=Start("pretrain", averaged=True)),
    ]


def test_the_next_stage_starts_from_averages_that_are_saved_beside_the_weights(tmp_path: Path) -> None:
    watch, module = Watch(), xcomposer2()
    run_recipe(module, recipe(), tmp_path, callbacks=[watch], keep=8)
    before, *after = watch.weights["pretrain"]
    (path,) = (tmp_path / "checkpoints").glob("*pretrain*3*")
    saved = reading.read(path)
    assert watch.weights["finetune"][0].keys() == before.keys()
    for name, start in watch.weights["finetune"][0].items():
        average = before[name].clone()
        for weights in after:
            average.lerp_(weights[name], 1 - DECAY)
        is_averaged = "connector" in name
        assert torch.equal(start, average if is_averaged else after[-1][name]), name
        assert (saved.average(name) is not None) == is_averaged
    again = xcomposer2()
    reading.load_weights(again, saved, family_of(again), averaged=True)
    assert all(torch.equal(t, watch.weights["finetune"][0][n]) for n, t in again.state_dict().items())


def test_weights_without_averages_cannot_be_loaded_averaged(tmp_path: Path) -> None:
    module = xcomposer2()
    run_recipe(module, [Stage("plain", {"connector": Train(1e-2)}, max_steps=1)], tmp_path)
    (path,) = (tmp_path / "checkpoints").glob("*plain*")
    with pytest.raises(UserError, match="has no averages of weights"):
        reading.load_weights(module, reading.read(path), family_of(module), averaged=True)


def test_a_stage_cannot_start_from_averages_that_no_stage_makes() -> None:
    first, second = recipe()
    first.train["connector"] = Train(1e-2)
    with pytest.raises(UserError, match="the stage 'pretrain' averages no part"):
        origins([first, second])


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_is_between_0_and_1(decay: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        Train(1e-3, average=decay)
