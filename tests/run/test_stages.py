"""A run is the same however it is split, killed and resumed."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading, writing
from lit_mm.errors import UserError
from lit_mm.run.folder import RunFolder, check_run_dir
from lit_mm.stages.stage import Stage, Train
from tests.kills import FSYNCS, Launch, launch_all
from tests.rows import loss_sum
from tests.tiny import PARTS, Documents, run_recipe, stages, trainer, xcomposer2

STEPS = 10  # of both stages
KILLED = {
    "between checkpoints": "finetune step 3",
    "at the first step": "pretrain step 1",
    "before the last checkpoint of a stage": "pretrain end",
    "between stages": "finetune start",
    "while a checkpoint is written": f"fsync {FSYNCS + 2}",
    "before a checkpoint is published": f"fsync {2 * FSYNCS - 1}",
    "after a checkpoint is published": f"fsync {2 * FSYNCS}",
    "while the last checkpoint of a stage is written": f"fsync {2 * FSYNCS + 1}",
    "at the very end": "finetune end",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of unbroken runs and of killed and resumed ones; the number of workers changes between launches."""
    folder = tmp_path_factory.mktemp("runs")
    launches = [Launch("unbroken"), Launch("unbroken, 1 worker", workers=1)]
    for number, (name, kill) in enumerate(KILLED.items()):
        launches += [Launch(name, number % 2, kill=kill), Launch(name, number // 2 % 2)]
    launches += [
        Launch("killed twice", 1, kill="pretrain step 3"),
        Launch("killed twice", 1, kill="finetune step 4"),
        Launch("killed twice", 1),
        Launch("plain", dropout=0.0),
        Launch("split anew", dropout=0.0, micro_batch=4, kill="pretrain step 3"),
        Launch("split anew", dropout=0.0, micro_batch=1, kill="finetune step 3"),
        Launch("split anew", dropout=0.0, micro_batch=2),
    ]
    launch_all(launches, folder)
    return folder


def table(folder: Path) -> list[dict]:
    """metrics.csv without times."""
    return [
        {key: value for key, value in row.items() if key != "seconds"} for row in read_metrics(folder / "metrics.csv")
    ]


def ledger(folder: Path) -> list[str]:
    """Samples of each micro-batch of the finished run; if a launch repeats a micro-batch, the last launch counts."""
    lines: dict[tuple[str, int], str] = {}
    for line in (folder / "ledger.txt").read_text().splitlines():
        stage, micro, samples = line.split(" ", 2)
        lines[stage, int(micro)] = samples
    return [lines[key] for key in sorted(lines, key=lambda key: (["pretrain", "finetune"].index(key[0]), key[1]))]


def weights(folder: Path) -> dict[str, Tensor]:
    return reading.read(manifest.find(folder)).weights()


@pytest.mark.parametrize("name", ["unbroken, 1 worker", *KILLED, "killed twice"])
def test_a_run_ends_the_same_bit_for_bit_whatever_happened_to_it(runs, name):
    expected, found = table(runs / "unbroken"), table(runs / name)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert found == expected
    assert ledger(runs / name) == ledger(runs / "unbroken")
    theirs = weights(runs / "unbroken")
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in weights(runs / name).items())


def test_dropout_was_at_work_in_those_runs(runs):
    losses = [[row["loss"] for row in table(runs / name)] for name in ("unbroken", "plain")]
    assert losses[0] != losses[1]


def test_no_sample_of_an_epoch_is_trained_twice(runs):
    lines = ledger(runs / "unbroken")[:10]  # the first stage: five steps of two micro-batches, two epochs and a bit
    came = Counter({f"tiny/{number}": 0 for number in range(24)})
    for step in range(5):
        came.update(sample for line in lines[2 * step : 2 * step + 2] for sample in line.split())
        assert max(came.values()) - min(came.values()) <= 1
    assert max(came.values()) >= 2


def test_a_run_that_is_split_otherwise_after_each_kill_goes_on_with_the_same_stream(runs):
    plain, anew = table(runs / "plain"), table(runs / "split anew")
    assert [row["tokens"] for row in anew] == [row["tokens"] for row in plain]
    assert [row["stage"] for row in anew] == [row["stage"] for row in plain]
    for ours, theirs in zip(anew, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)  # AdamW's first steps enlarge rounding


def test_the_unbroken_run_learns_and_only_what_each_stage_names(runs):
    rows = table(runs / "unbroken")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [row["lr_language"] > 0 for row in rows] == [False] * 5 + [True] * 5


# --- one step, several splits ---------------------------------------------------------------------------------------
class Gradients(L.Callback):
    """This callback keeps the loss and the gradients before the optimizer steps."""

    def __init__(self) -> None:
        self.loss, self.kept = 0.0, {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.loss += pl_module.micro_loss

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.kept = {name: p.grad.clone() for name, p in pl_module.network.named_parameters()}


EVERYTHING = Stage("all", {part: Train(lr=1e-3) for part in PARTS}, max_steps=1, clip=0.0)


def through_lightning(micro_batch: int) -> Gradients:
    """Loss and gradients of the first step, which has four rows."""
    module, data, seen = xcomposer2(trained=True), Documents(micro_batch=micro_batch), Gradients()
    steps = data.begin(module.processor, EVERYTHING, seed=0)
    module.begin(EVERYTHING, total_steps=steps)
    trainer([seen], max_steps=1, accumulate_grad_batches=data.stream.accumulation).fit(module, data)
    return seen


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Compare to `rtol` of the largest gradient of each tensor."""
    for name, tensor in expected.items():
        worst = float((found[name] - tensor).abs().max())
        assert worst <= rtol * float(tensor.abs().max()), f"{name}: {worst}"


@pytest.fixture(scope="module")
def whole() -> Gradients:
    return through_lightning(4)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_loss_and_gradients_do_not_depend_on_accumulation(whole, micro_batch):
    split = through_lightning(micro_batch)
    torch.testing.assert_close(split.loss, whole.loss, rtol=1e-6, atol=0)
    assert_same(split.kept, whole.kept, rtol=1e-6)


@pytest.mark.parametrize(("world", "micro_batch"), [(2, 2), (2, 1), (4, 1)])
def test_loss_and_gradients_do_not_depend_on_the_ranks(whole, world, micro_batch):
    module = xcomposer2(trained=True)
    total = 0.0
    for rank in range(world):
        data = Documents(micro_batch=micro_batch)
        data.begin(module.processor, EVERYTHING, seed=0, rank=rank, world=world)
        for micro in data.stream:
            loss = loss_sum(module, data.rows[micro]) / micro.step_tokens
            loss.backward()
            total += loss.detach()
    torch.testing.assert_close(total, whole.loss, rtol=1e-6, atol=0)
    assert_same({name: p.grad for name, p in module.network.named_parameters()}, whole.kept, rtol=1e-6)


def test_the_loss_that_lightning_is_given_undoes_its_division_and_the_average_over_ranks(monkeypatch):
    module = xcomposer2()
    module.begin(EVERYTHING, total_steps=1)
    data = Documents(micro_batch=1)
    data.begin(module.processor, EVERYTHING, seed=0)
    batch = data.rows[next(iter(data.stream))]
    module._trainer = type(
        "Split", (), {"accumulate_grad_batches": 3, "world_size": 5, "precision_plugin": Precision()}
    )()
    monkeypatch.setattr(type(module), "global_rank", 0)
    given = module.training_step(batch, 0)
    torch.testing.assert_close(given, module.micro_loss * 15)
    torch.testing.assert_close(module.micro_loss * batch.units["tokens"], loss_sum(module, batch).detach())


# --- recipes and folders --------------------------------------------------------------------------------------------
def test_stages_may_change_the_data(tmp_path):
    one, two = stages(steps=1)
    two.data = {"global_batch": 2, "micro_batch": 1}
    run_recipe(xcomposer2(), [one, two], tmp_path, micro_batch=4)
    lines = (tmp_path / "ledger.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["pretrain", "finetune", "finetune"]


def test_a_finished_run_trains_nothing_more_and_gets_its_weights_back(tmp_path):
    run_recipe(xcomposer2(), stages(steps=1), tmp_path)
    before = (tmp_path / "ledger.txt").read_text()
    again = xcomposer2()
    run_recipe(again, stages(steps=1), tmp_path)
    assert (tmp_path / "ledger.txt").read_text() == before
    assert all(torch.equal(tensor, weights(tmp_path)[key]) for key, tensor in again.state_dict().items())
    assert again.trainer is not None


def test_a_stage_that_was_renamed_is_not_resumed(tmp_path):
    run_recipe(xcomposer2(), stages(steps=1)[:1], tmp_path)
    renamed = stages(steps=1)
    renamed[0].name = "align"
    with pytest.raises(UserError, match="of stage 'pretrain', which is not stage 1 of this recipe"):
        run_recipe(xcomposer2(), renamed, tmp_path)


def test_a_damaged_newest_checkpoint_is_not_resumed_and_the_newest_whole_one_is_named(tmp_path):
    (stage,) = stages(steps=4)[:1]
    run_recipe(xcomposer2(), [stage], tmp_path)
    older, newest = (saved.path for saved in manifest.published(tmp_path / "checkpoints"))
    file = newest / "manifest.json"
    file.write_text(file.read_text().replace('"stage_step": 4', '"stage_step": 3'))
    with pytest.raises(UserError) as refusal:
        run_recipe(xcomposer2(), [stage], tmp_path)
    assert f"newest whole one is {str(older)!r}; to go on from it: rm -r {newest}" in str(refusal.value)
    shutil.rmtree(newest)
    run_recipe(xcomposer2(), [stage], tmp_path)
    assert manifest.newest(tmp_path / "checkpoints").path == newest


def test_a_checkpoint_of_another_global_batch_is_not_continued(tmp_path):
    (stage,) = stages(steps=4)[:1]
    run_recipe(xcomposer2(), [stage], tmp_path)
    writing.remove(tmp_path / "checkpoints" / "01-pretrain-step=000004.ckpt")
    with pytest.raises(UserError, match="has global_batch 4, but the config has 2"):
        run_recipe(xcomposer2(), [stage], tmp_path, global_batch=2)


def test_epochs_take_as_many_steps_as_their_rows_fill():
    data = Documents()
    stage = Stage("e", {"language": Train(lr=1e-3)}, epochs=2)
    steps = data.begin(xcomposer2().processor, stage, seed=0)
    rows = data.stream.plan.rows_of(2)
    assert (steps - 1) * 4 < rows <= steps * 4
    trained = {i for micro in data.stream for row in micro.rows for i in row}
    assert trained == set(range(24))


def config(**changes) -> str:
    base = {
        "trainer": {"devices": 1, "precision": "bf16-mixed"},
        "data": {"init_args": {"num_workers": 0, "micro_batch": 2, "global_batch": 8}},
        "stages": [{"name": "a", "data": {"num_workers": 1}, "max_steps": 3}],
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = base
        for step in path:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
    return yaml.safe_dump(base)


@pytest.fixture
def begun(tmp_path) -> RunFolder:
    """A run folder with a config and a checkpoint."""
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    folder.keep_config(config())
    (folder.checkpoints / manifest.checkpoint_name(1, "a", 2)).mkdir()
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"trainer__devices": 4},
        {"trainer__strategy": "ddp"},
        {"data__init_args__num_workers": 3},
        {"data__init_args__micro_batch": None},
        {"stages__0__data__num_workers": 0},
        {"trainer__callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]},
        {"trainer__logger": True},
        {"trainer__profiler": "simple"},
        {"trainer__max_time": "00:01:00:00"},
        {"trainer__enable_progress_bar": False},
        {"trainer__log_every_n_steps": 7},
        {"only": ["a"]},
    ],
)
def test_a_run_may_be_resumed_on_other_hardware(begun, change):
    begun.keep_config(config(**change))
    assert yaml.safe_load((begun.path / "config.yaml").read_text()) == yaml.safe_load(config(**change))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"trainer__precision": "32"}, 'trainer.precision ("bf16-mixed" there, "32" here)'),
        ({"data__init_args__global_batch": 4}, "data.init_args.global_batch (8 there, 4 here)"),
        ({"stages__0__max_steps": 5}, "stages.a.max_steps (3 there, 5 here)"),
        ({"stages": []}, "stages ("),
        ({"trainer__max_steps": 7}, "trainer.max_steps (null there, 7 here)"),
    ],
)
def test_a_run_is_not_resumed_with_another_config_and_both_values_are_named(begun, change, difference):
    kept = (begun.path / "config.yaml").read_text()
    with pytest.raises(UserError, match=re.escape(f"differs in {difference}")):
        begun.keep_config(config(**change))
    assert (begun.path / "config.yaml").read_text() == kept


@pytest.mark.parametrize(("digests", "allowed"), [({"data": {}}, True), ({}, False)])
def test_data_may_lie_elsewhere_if_the_checkpoint_can_tell_that_they_are_the_same(tmp_path, digests, allowed):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    folder.keep_config(config(data__init_args__path="a.json"))
    checkpoint = folder.checkpoints / manifest.checkpoint_name(1, "a", 2)
    checkpoint.mkdir()
    files = {name: {"bytes": 0, "blake2b": ""} for name in manifest.REQUIRED}
    content = {"format": 2, "files": files, "weights": {}, "moments": {}, "steps": {}, "frozen": {}} | digests
    (checkpoint / "manifest.json").write_text(manifest.sealed(content))
    if allowed:
        folder.keep_config(config(data__init_args__path="b.json"))
        assert "b.json" in (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"differs in data.init_args.global_batch, data.init_args.path|init_args.path"):
        folder.keep_config(config(data__init_args__path="c.json", data__init_args__global_batch=4))


def test_a_folder_without_a_checkpoint_takes_any_config(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    folder.keep_config(config())
    (tmp_path / "wandb_id").write_text("first")
    folder.keep_config(config(trainer__devices=2))
    assert (tmp_path / "wandb_id").exists()
    folder.keep_config(config(trainer__precision="32"))
    assert "32" in (tmp_path / "config.yaml").read_text()
    assert not (tmp_path / "wandb_id").exists()  # another run


@pytest.mark.parametrize("text", ["a: [", "", "- a", b"\xff\xfe".decode("latin-1")])
def test_a_damaged_config_of_a_run_is_named_with_the_place_of_its_copy(begun, text):
    (begun.path / "config.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config.yaml' is damaged .* Every checkpoint of the run has a copy"):
        begun.keep_config(config())


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/run"])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(UserError, match=r"the run folder .* cannot be made \(.*\)\. Choose one with --run_dir"):
        check_run_dir(name)
    for possible in (None, "", "runs/new", "."):
        check_run_dir(possible)


def test_latest_points_to_the_run_that_began_last_and_not_to_one_that_was_only_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = RunFolder.open(None, "tiny")
    assert first.path.parent == Path("runs/tiny")
    first.point_latest()
    RunFolder.open("elsewhere/second", "tiny").point_latest()
    RunFolder.open(None, "tiny")
    assert Path("runs/latest").resolve() == (tmp_path / "elsewhere" / "second")
    assert os.listdir("elsewhere/second") == ["checkpoints"]


def test_a_run_that_wandb_gave_an_id_has_the_folder_of_that_id_and_finds_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "x7k2m9")
    assert [RunFolder.open(None, "tiny").path for _ in range(2)] == [Path("runs/tiny/x7k2m9")] * 2
    assert RunFolder.open("elsewhere", "tiny").path == Path("elsewhere")
    monkeypatch.setenv("WANDB_RUN_ID", "../up")
    with pytest.raises(UserError, match=r"WANDB_RUN_ID is '\.\./up', which names no folder"):
        RunFolder.open(None, "tiny")


@pytest.mark.parametrize("obstacle", ["runs", "runs/latest/file"])
def test_a_run_elsewhere_needs_no_link_to_it_here(tmp_path, monkeypatch, capsys, obstacle):
    monkeypatch.chdir(tmp_path)
    Path(obstacle).parent.mkdir(parents=True, exist_ok=True)
    Path(obstacle).touch()
    folder = RunFolder.open(str(tmp_path / "elsewhere"), "tiny")
    folder.point_latest()
    assert folder.checkpoints.is_dir()
    assert "runs/latest does not point to this run" in capsys.readouterr().err
    assert not Path("runs").is_dir() or os.listdir("runs") == ["latest"]


def test_a_folder_that_cannot_be_made_is_the_users_to_cure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(UserError, match=r"'file/run' cannot be made .*--run_dir"):
        RunFolder.open("file/run", "tiny")
