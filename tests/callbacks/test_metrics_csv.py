from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_mm.callbacks.metrics_csv import MetricsCSV, read_metrics
from lit_mm.callbacks.steps import Step, StepObserver, digest_of_id, digest_of_limbs, limbs_of


def losses(path: Path) -> list[str]:
    """The loss column as text, so that equal means equal in every bit."""
    return [line.split(",")[2] for line in path.read_text().splitlines()[1:]]


def test_there_is_one_row_per_optimizer_step_through_all_stages(recipe: Any):
    path = recipe.folder / "metrics.csv"
    recipe.run(recipe.module(), [MetricsCSV(path)])
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["stage"] for row in rows] == ["pretrain"] * 4 + ["finetune"] * 3
    assert {row["tokens"] for row in rows} == {14}  # two micro-batches of 7 useful tokens
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(rows))


def test_each_row_has_the_rates_its_step_was_made_with_and_0_for_frozen_parts(recipe: Any):
    path = recipe.folder / "metrics.csv"
    recipe.run(recipe.module(), [MetricsCSV(path)])
    rows = read_metrics(path)
    first, second = (stage.schedule for stage in recipe.stages)
    assert [row["lr_connector"] for row in rows[:4]] == pytest.approx([1e-2 * first.factor(i, 4) for i in range(4)])
    assert [row["lr_language"] for row in rows[4:]] == pytest.approx([1e-3 * second.factor(i, 3) for i in range(3)])
    assert [row["lr_language"] for row in rows[:4]] == [0.0] * 4
    assert {row["lr_vision"] for row in rows} == {0.0}


def test_the_loss_of_a_step_is_the_sum_over_its_micro_batches(recipe: Any):
    module, micro = recipe.module(), []
    step = module.training_step

    def recorded(batch: Any, batch_idx: int) -> torch.Tensor:
        loss = step(batch, batch_idx)
        micro.append(module.micro_loss.double())
        return loss

    module.training_step = recorded
    recipe.run(module, [MetricsCSV(recipe.folder / "metrics.csv")])
    sums = [float(a + b) for a, b in zip(micro[::2], micro[1::2], strict=True)]
    assert [row["loss"] for row in read_metrics(recipe.folder / "metrics.csv")] == sums


def test_two_runs_with_one_seed_have_bit_identical_losses(recipe: Any):
    for name in ("a.csv", "b.csv"):
        recipe.run(recipe.module(), [MetricsCSV(recipe.folder / name)])
    assert losses(recipe.folder / "a.csv") == losses(recipe.folder / "b.csv")
    assert len(set(losses(recipe.folder / "a.csv"))) == 7


@pytest.mark.parametrize(("stage", "save_at", "die_at"), [("pretrain", 2, 3), ("finetune", 1, 2), ("pretrain", 2, 2)])
def test_a_killed_run_that_resumes_ends_with_the_same_losses(
    recipe: Any, killed: type[Exception], save_then_die: Any, stage: str, save_at: int, die_at: int
):
    unbroken, broken = recipe.folder / "unbroken.csv", recipe.folder / "broken.csv"
    recipe.run(recipe.module(), [MetricsCSV(unbroken)])
    checkpoint = recipe.folder / "last.ckpt"
    with pytest.raises(killed):
        recipe.run(recipe.module(), [MetricsCSV(broken), save_then_die(checkpoint, stage, save_at, die_at)])
    with broken.open("a") as file:
        file.write("99,finetune,0.12")  # the line the kill cut short
    number = [s.name for s in recipe.stages].index(stage)
    recipe.run(recipe.module(), [MetricsCSV(broken)], first=number, checkpoint=checkpoint, steps_done=save_at)
    assert losses(broken) == losses(unbroken)
    assert [row["step"] for row in read_metrics(broken)] == list(range(1, 8))


def test_the_seconds_of_a_resumed_run_go_on_from_the_last_kept_row(recipe: Any):
    path = recipe.folder / "metrics.csv"
    path.write_text(
        "step,stage,loss,tokens,seconds,lr_connector,lr_language,lr_vision\n"
        + "".join(f"{step},pretrain,1.0,14,{step * 100.0},0.01,0.0,0.0\n" for step in range(1, 5))
    )
    recipe.run(recipe.module(), [MetricsCSV(path)], first=1)
    seconds = [row["seconds"] for row in read_metrics(path)]
    assert seconds[:4] == [100.0, 200.0, 300.0, 400.0]
    assert all(400 <= s < 430 for s in seconds[4:])


def test_the_time_of_a_run_counts_all_launches_that_train(tmp_path: Path) -> None:
    table = MetricsCSV(tmp_path / "metrics.csv", launched=time.monotonic() - 7)
    assert table.run_seconds() is None  # a finished run that is launched again
    table.earlier = 100.0
    assert table.run_seconds() == pytest.approx(107, abs=1)


def test_rows_missing_before_a_resumed_step_are_said_to_be_missing(recipe: Any, capsys: pytest.CaptureFixture[str]):
    recipe.run(recipe.module(), [MetricsCSV(recipe.folder / "metrics.csv")], first=1)
    assert "lacks rows of the 4 steps before" in capsys.readouterr().out


def test_other_ranks_take_part_in_the_sum_but_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def all_reduce(tensor: torch.Tensor) -> None:
        calls.append(tensor.tolist())
        tensor *= 2  # as if the other rank had the same

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    writer, seen = MetricsCSV(tmp_path / "metrics.csv"), []

    class Watcher(StepObserver):
        def wants_to_stop(self) -> bool:
            return True

        def on_step_end(self, trainer: Any, module: Any, step: Step) -> None:
            seen.append(step)

    trainer = SimpleNamespace(
        callbacks=[writer, Watcher()],
        global_step=0,
        is_global_zero=False,
        world_size=2,
        logged_metrics={},
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        print=print,
        should_stop=True,  # a callback has said so behind the first micro-batch
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()),
    )
    module = SimpleNamespace(
        base_parts=lambda: ["vision"],
        step=0,
        current_stage=SimpleNamespace(name="s"),
        learning_rates={"vision": 0.5},
        micro_loss=torch.tensor(1.5),
        micro_losses={"next_token": torch.tensor(1.5)},
        objectives={"next_token": None},
    )
    batch = SimpleNamespace(num_tokens=2, sample_ids=("a",))
    for callback in trainer.callbacks:
        callback.on_train_start(trainer, module)
    for step in (0, 1):  # two micro-batches, one optimizer step
        for callback in trainer.callbacks:
            callback.on_train_batch_start(trainer, module, batch, step)
        trainer.global_step = module.step = step
        for callback in trainer.callbacks:
            callback.on_train_batch_end(trainer, module, None, batch, step)
        assert trainer.should_stop == (step == 1), "the optimizer step is finished before a stage ends"
    assert calls == [[3.0, 4.0, 1.0, 1.0, *limbs_of(2 * digest_of_id("a")), 3.0]]
    assert [(s.number, s.loss, s.tokens, s.learning_rates) for s in seen] == [(1, 6.0, 8, {"vision": 0.5})]
    assert seen[0].stop and seen[0].samples == digest_of_limbs(limbs_of(4 * digest_of_id("a")))
    assert not (tmp_path / "metrics.csv").exists()


def test_the_digest_of_samples_depends_on_no_split_and_no_order():
    ids = [f"set/{number}" for number in range(2000)]
    whole = digest_of_limbs(limbs_of(sum(map(digest_of_id, ids))))
    assert len(whole) == 12
    for ranks in (2, 3, 7):
        shares = [limbs_of(sum(map(digest_of_id, ids[rank::ranks]))) for rank in range(ranks)]
        assert digest_of_limbs(torch.tensor(shares, dtype=torch.float32).sum(dim=0).tolist()) == whole
    assert digest_of_limbs(limbs_of(sum(map(digest_of_id, ids[1:])))) != whole
    assert digest_of_limbs(limbs_of(sum(map(digest_of_id, [*ids[1:], "other"])))) != whole


def test_a_file_of_before_goes_on_without_digests_of_its_first_rows(recipe: Any):
    path = recipe.folder / "metrics.csv"
    path.write_text(
        "step,stage,loss,tokens,seconds,lr_connector,lr_language,lr_vision\n"
        + "".join(f"{step},pretrain,1.0,14,{step * 100.0},0.01,0.0,0.0\n" for step in range(1, 5))
    )
    recipe.run(recipe.module(), [MetricsCSV(path)], first=1)
    assert [row["samples"] for row in read_metrics(path)] == [""] * 4 + ["0" * 12] * 3  # its batches name no samples


def test_a_clock_that_goes_back_does_not_count(recipe: Any, monkeypatch: pytest.MonkeyPatch):
    path = recipe.folder / "metrics.csv"
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    recipe.run(recipe.module(), [MetricsCSV(path)])
    seconds = [row["seconds"] for row in read_metrics(path)]
    assert all(0 <= a <= b < 100 for a, b in pairwise(seconds))
