"""Inputs that change at a step: earlier steps do not change, later steps continue the order of samples."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.length import Length
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.order import Head, Plan, RowStream
from lit_mm.stream.phases import Phases
from lit_mm.tiling import Stretch
from tests.tiny import Documents, run_recipe, xcomposer2

BATCH = 8  # rows of a step
STEPS = (3, 7)  # the inputs change at


def short(number: int) -> Length | None:
    return None if number % 17 == 5 else Length(5 + number * 37 % 60, number % 3, 1 + number % 7)


def long(number: int) -> Length | None:
    return None if number % 19 == 4 else Length(9 + number * 31 % 55, number % 4, 1 + number % 5)


LENGTHS = (short, long, short)


def plan(phase: int, head: Head | None = None, packed: bool = True) -> Plan:
    options = {} if head is None else {"head": head}
    options |= {"row_tokens": 64, "row_views": 4} if packed else {"row_tokens": None}
    return Plan(100, LENGTHS[phase], seed=3, window=16, **options)


def phases(packed: bool = True) -> Phases:
    return Phases([0, *(BATCH * step for step in STEPS)], lambda phase, head: plan(phase, head, packed))


@pytest.mark.parametrize("packed", [True, False])
def test_steps_before_a_change_are_those_of_the_plan_without_it(packed: bool) -> None:
    stop = BATCH * STEPS[0]
    assert phases(packed).rows(0, stop) == plan(0, packed=packed).rows(0, stop)
    assert phases(packed).left_out(0, stop) == plan(0, packed=packed).left_out(0, stop)
    later = Phases([0, stop, BATCH * 9], lambda phase, head: plan(phase, head, packed))
    assert later.rows(0, BATCH * STEPS[1]) == phases(packed).rows(0, BATCH * STEPS[1])


@pytest.mark.parametrize("packed", [True, False])
def test_every_sample_of_an_epoch_is_in_one_row_or_left_out_whatever_changes(packed: bool) -> None:
    stream = phases(packed)
    rows = stream.rows_of(2)
    drawn = Counter(i for row in stream.rows(0, rows) for i in row)
    left_out = Counter(
        i for step in range(-(-rows // BATCH)) for i in stream.left_out(step * BATCH, (step + 1) * BATCH)
    )
    for epoch_rows in stream.rows(0, rows):
        assert packed or len(epoch_rows) == 1
    beyond = Counter(stream.left_out(rows, -(-rows // BATCH) * BATCH))
    counts = drawn + (left_out - beyond)
    assert set(counts) == set(range(100)) and set(counts.values()) == {2}


@pytest.mark.parametrize("packed", [True, False])
def test_windows_go_on_where_they_were(packed: bool) -> None:
    """The rest of the current window comes first, then the following windows."""
    stream, start = phases(packed), BATCH * STEPS[0]
    before = Counter(i for row in stream.rows(0, start) for i in row)
    whole = plan(0, packed=packed)
    number, rows = whole.mark(start)
    rest = Counter(i for i in whole.samples_of(number) if rows == start or i not in before)
    head = stream.plan(1).head
    assert (head.window, head.rows) == (number, start)
    assert set(stream.plan(1).samples_of(number)) <= set(rest)
    assert stream.plan(1).samples_of(number + 1) == whole.samples_of(number + 1)


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 8), (2, 4), (4, 1), (1, 2)])
def test_any_split_covers_the_same_rows_with_the_lengths_of_their_phase(world: int, micro_batch: int) -> None:
    steps: list[tuple[set, set]] = [(set(), set()) for _ in range(10)]
    for rank in range(world):
        stream = RowStream(phases(), steps=10, global_batch=BATCH, micro_batch=micro_batch, rank=rank, world=world)
        for number, micro in enumerate(stream):
            step = number // stream.accumulation
            assert micro.phase == sum(step >= change for change in STEPS)
            assert micro.lengths == tuple(tuple(map(LENGTHS[micro.phase], row)) for row in micro.rows)
            steps[step][0].update(micro.rows)
            steps[step][1].add(micro.step_tokens)
    whole = phases()
    for step, (rows, tokens) in enumerate(steps):
        expected = whole.rows(step * BATCH, (step + 1) * BATCH)
        assert rows == set(expected)
        length = LENGTHS[whole.phase_of(step * BATCH)]
        assert tokens == {sum(length(i).supervised for row in expected for i in row)}


@pytest.mark.parametrize("row", [0, 5, 23, 24, 30, 55, 56, 90])
def test_a_mark_takes_the_stream_up_in_any_phase(row: int) -> None:
    fresh = phases()
    fresh.go_to(phases().mark(row))
    assert fresh.rows(row, row + 40) == phases().rows(row, row + 40)
    assert fresh.rows(0, 100) == phases().rows(0, 100)  # rows before it are found from the beginning


# --- data module and run ---------------------------------------------------------------------------------------------
STAGE = Stage("a", {"connector": Train(1e-2)}, max_steps=6, inputs_from={3: Inputs(Stretch(56), max_length=120)})


def module():
    model = xcomposer2()
    model.network.vision.any_size = True
    return model


def begun(stage: Stage = STAGE, rank: int = 0, world: int = 1, **options) -> Documents:
    data = Documents(**{"too_long": "truncate", "row_tokens": 160} | options)
    data.begin(module().processor, stage, seed=0, rank=rank, world=world)
    return data


def ids(data: Documents) -> list[tuple[str, ...]]:
    return [batch.sample_ids for batch in data.train_dataloader()]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_after_the_change_have_the_views_of_its_tiling(workers: int) -> None:
    plain = Stage("a", STAGE.train, max_steps=6)
    batches, before = list(begun(num_workers=workers).train_dataloader()), begun(plain).train_dataloader()
    sides = [{view.shape[-1] for group in batch.views.groups for view in group} for batch in batches]
    assert sides[:3] == [{28}] * 3 and sides[3:] == [{56}] * 3
    for changed, unchanged in zip(batches[:3], list(before)[:3], strict=True):
        assert changed.sample_ids == unchanged.sample_ids and torch.equal(changed.ids, unchanged.ids)


@pytest.mark.parametrize("finished", [1, 3, 4, 5])
def test_the_stream_goes_on_from_its_state_before_and_after_the_change(finished: int) -> None:
    data = begun()
    data.trainer = SimpleNamespace(global_step=finished, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    resumed = begun()
    resumed.load_state_dict(data.state_dict())
    assert ids(resumed) == ids(begun())[finished:]


def test_a_change_behind_the_end_of_a_stage_of_epochs_is_refused() -> None:
    stage = Stage("a", STAGE.train, epochs=1, inputs_from={500: Inputs(max_length=9)})
    with pytest.raises(UserError, match=r"stages\.a\.inputs_from: .* step 500, the stage has \d+ steps"):
        begun(stage)


def test_a_run_that_ends_after_the_change_is_resumed_exactly(tmp_path) -> None:
    """Losses and samples of the second launch equal those of a run without interruption."""
    options = {"too_long": "truncate", "row_tokens": 160, "every": 1}
    run_recipe(module(), [STAGE], tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    class Stopper(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                raise Stop

    with pytest.raises(Stop):
        run_recipe(module(), [STAGE], tmp_path / "parts", callbacks=[Stopper()], **options)
    run_recipe(module(), [STAGE], tmp_path / "parts", **options)
    whole, parts = ((tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "parts"))
    columns = whole[0].split(",")
    losses = [[line.split(",")[columns.index("loss")] for line in lines[1:]] for lines in (whole, parts)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert (tmp_path / "whole/ledger.txt").read_text() == (tmp_path / "parts/ledger.txt").read_text()


def test_the_stream_goes_on_on_other_ranks_after_the_change() -> None:
    data = begun()
    data.trainer = SimpleNamespace(global_step=4, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    state, whole = data.state_dict(), ids(begun())
    ranks = [begun(rank=rank, world=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    for expected, *parts in zip(whole[4:], *map(ids, ranks), strict=True):
        assert sorted(expected) == sorted(sample for part in parts for sample in part)
