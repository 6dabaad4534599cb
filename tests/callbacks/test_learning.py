"""Norms of gradients and sizes of updates are those of the parts that learn, at the interval."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor

from lit_mm.callbacks.learning import TYPES, Learning, sampled
from lit_mm.callbacks.step_table import read_rows
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.stages.stage import Stage, Train
from tests.kills import Launch, launch_all
from tests.tiny import PARTS, run_recipe, stages, xcomposer2


def flat(module: MultimodalModule, *, gradient: bool = False) -> dict[str, Tensor]:
    """Part -> trainable parameters, or their gradients, as one vector."""
    vectors = {}
    for part, parameters in module.parts().items():
        learning = [each for each in parameters.values() if each.requires_grad]
        tensors = [each.grad if gradient else each.detach() for each in learning]
        vectors[part] = torch.cat([torch.zeros(0), *(tensor.flatten() for tensor in tensors)])
    return vectors


class Recorder(L.Callback):
    """Records the gradients before and the weights around every optimizer step, by part."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict, dict, dict]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: MultimodalModule, optimizer: object) -> None:
        self.gradients, self.before = (flat(pl_module, gradient=gradient) for gradient in (True, False))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: MultimodalModule, *_: object) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append((self.gradients, self.before, flat(pl_module)))


def test_rows_have_the_norms_of_each_part_that_learns(tmp_path: Path) -> None:
    recorder, path = Recorder(), tmp_path / "learning.csv"
    recipe = [Stage("finetune", {part: Train(lr=1e-2 if part == "language" else 1e-3) for part in PARTS}, max_steps=4)]
    run_recipe(xcomposer2(), recipe, tmp_path, callbacks=[recorder, Learning(2, path)], micro_batch=2)
    rows = read_rows(path, TYPES)
    assert [(row["step"], row["part"]) for row in rows] == [(step, part) for step in (2, 4) for part in sorted(PARTS)]
    for row in rows:
        gradients, before, after = (values[row["part"]] for values in recorder.steps[row["step"] - 1])
        assert row["gradient_norm"] == pytest.approx(float(gradients.norm()), rel=1e-5)
        assert row["weight_norm"] == pytest.approx(float(before.norm()), rel=1e-5)
        assert row["update_ratio"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
        assert row["update_ratio"] > 0
    factor = recipe[0].schedule.factor(1, 4)
    lr = {row["part"]: row["lr"] for row in rows if row["step"] == 2}
    assert (lr["language"], lr["vision"]) == pytest.approx((1e-2 * factor, 1e-3 * factor))


def test_frozen_parts_and_parts_before_their_thaw_have_no_row(tmp_path: Path) -> None:
    path = tmp_path / "learning.csv"
    train = {"connector": Train(lr=1e-2), "partial_lora": Train(lr=1e-2, from_step=1)}
    run_recipe(xcomposer2(), [Stage("s", train, max_steps=2)], tmp_path, callbacks=[Learning(1, path)])
    assert [(row["step"], row["part"]) for row in read_rows(path, TYPES)] == [
        (1, "connector"),
        (2, "connector"),
        (2, "partial_lora"),
    ]


def test_a_resumed_run_continues_the_file(tmp_path: Path) -> None:
    path = tmp_path / "learning.csv"
    run_recipe(xcomposer2(), stages(steps=2), tmp_path, callbacks=[Learning(1, path)])
    whole = path.read_text()
    path.write_text(whole + "9,finetune,vision,0.1,")  # a line that a kill cut short
    run_recipe(xcomposer2(), stages(steps=2), tmp_path, callbacks=[Learning(1, path)])
    assert [line for line in whole.splitlines() if line.startswith("4,")]
    assert path.read_text().startswith(whole.partition("\n3,")[0])


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["", "zero2", "zero3"])
def test_two_ranks_give_the_norms_of_one(tmp_path: Path, strategy: str) -> None:
    launches = [
        Launch("one", micro_batch=1, steps=2, dropout=0, throughput=True),
        Launch("two", micro_batch=1, ranks=2, steps=2, dropout=0, throughput=True, strategy=strategy),
    ]
    launch_all(launches, tmp_path)
    one, two = (read_rows(tmp_path / name / "learning.csv", TYPES) for name in ("one", "two"))
    assert [(row["step"], row["part"]) for row in one] == [(row["step"], row["part"]) for row in two]
    for a, b in zip(one, two, strict=True):
        for name in ("gradient_norm", "weight_norm", "update_ratio"):
            assert b[name] == pytest.approx(a[name], rel=0.02), (a["part"], name)


def test_few_elements_of_a_large_parameter_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_mm.callbacks.learning.SAMPLE", 10)
    (copy,) = sampled([torch.nn.Parameter(torch.arange(95.0))])
    assert copy.tolist() == list(range(0, 95, 10))


def test_an_interval_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1, got 0"):
        Learning(0, tmp_path / "learning.csv")
