"""A recipe of three stages runs under DDP and under the real DeepSpeed engine, on two processes over gloo."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest
from lit_mm.distributed.cpu import deepspeed_on_cpu
from lit_mm.distributed.names import NAMES, check_strategy
from lit_mm.distributed.zero import ZeRO, check_zero_layers
from lit_mm.errors import UserError
from lit_mm.layers.activations import prepare_layers
from tests.kills import launch_all
from tests.three_stages import CUT, RTOL, assert_equal, launch, losses, trained, weights
from tests.tiny import language, trainer, xcomposer2

RTOL_BF16 = 2e-4  # of the loss, over nine steps; measured 4e-5
SPLITS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "zero1": {"strategy": "zero1"},
    "zero2": {"strategy": "zero2"},
    "zero3": {"strategy": CUT},
}
MORE = ("zero1", "zero2")
EACH = [pytest.param(name, marks=pytest.mark.distributed if name in MORE else []) for name in SPLITS]


def base_weights(folder: Path, seed: int = 5) -> Path:
    """File with the weights of a published language model."""
    file = folder / f"base-{seed}.safetensors"
    save_file({name: tensor.clone() for name, tensor in language(seed).lm.state_dict().items()}, file)
    return file


# --- the core -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    base = str(base_weights(folder))
    launch_all(
        [
            launch("one process", ranks=1, base=base, examine=True),
            *(launch(name, base=base, examine=True, **SPLITS[name]) for name in SPLITS if name not in MORE),
        ],
        folder,
    )
    return folder


@pytest.fixture
def run(name: str, request: pytest.FixtureRequest) -> Path:
    """Folder of the run `name`."""
    return request.getfixturevalue("more_runs" if name in MORE else "runs") / name


@pytest.fixture(scope="module")
def more_runs(runs: Path) -> Path:
    base = str(base_weights(runs))
    launch_all(
        [
            *(launch(name, base=base, examine=True, **SPLITS[name]) for name in MORE),
            launch("killed", strategy=CUT, base=base, kill="pretrain step 3"),
            launch("killed", strategy=CUT, base=base),
            launch("on other ranks", strategy=CUT, base=base, kill="align step 3"),
            launch("on other ranks", strategy=CUT, base=base, ranks=1, kill="pretrain step 3"),
            launch("on other ranks", strategy="zero2", base=base, kill="finetune step 3"),
            launch("on other ranks", ranks=1, base=base),
            launch("accumulating", strategy=CUT, base=base, micro_batch=1),
            launch("unread, one process", ranks=1, base=base, recipe="unread"),
            launch("unread", strategy=CUT, base=base, recipe="unread", kill="finetune start"),
            launch("unread", strategy=CUT, base=base, recipe="unread"),
            launch("unread, random", strategy="ddp", recipe="unread", kill="align step 2"),
            launch("unread, random", strategy=CUT, recipe="unread"),
            launch("unread, random, one process", ranks=1, recipe="unread"),
            launch("branches, one process", ranks=1, recipe="branches"),
            launch("branches", strategy=CUT, recipe="branches", kill="deep start"),
            launch("branches", strategy=CUT, recipe="branches"),
            launch("planted", strategy="zero2", recipe="two", meddle="plant", fails="holds parameter"),
            launch("touched", strategy=CUT, recipe="two", meddle="touch", fails="changed the frozen part 'language'"),
        ],
        runs,
    )
    return runs


@pytest.mark.parametrize("name", EACH)
def test_the_loss_curve_is_that_of_one_process(runs: Path, run: Path) -> None:
    expected = losses(runs / "one process")
    assert len(expected) == 9
    assert losses(run) == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("name", EACH)
def test_the_checkpoint_is_that_of_one_process(runs: Path, run: Path) -> None:
    """Tensors, moments and counts, assembled from the pieces of all ranks, equal those of one process."""
    ours, theirs = trained(run), trained(runs / "one process")
    assert ours.manifest["weights"].keys() == theirs.manifest["weights"].keys()
    assert ours.manifest["steps"] == theirs.manifest["steps"]
    assert ours.manifest["moments"].keys() == theirs.manifest["moments"].keys()
    for key in theirs.manifest["moments"]:
        moment, _, parameter = key.partition("/")
        found, expected = ours.moment(moment, parameter), theirs.moment(moment, parameter)
        assert float((found - expected).abs().max()) <= 1e-3 * float(expected.abs().max()), key
    assert ours.state["optimizer"]["groups"] == theirs.state["optimizer"]["groups"]


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("one process", 1), ("ddp", 1), pytest.param("zero1", 2, marks=pytest.mark.distributed), ("zero3", 2)],
)
def test_a_rank_writes_only_what_it_updates(run: Path, name: str, ranks: int) -> None:
    pieces = [entry["pieces"] for entry in trained(run).manifest["moments"].values()]
    assert {piece[0] for piece in chain(*pieces)} == {f"optimizer-{r:05d}-00.safetensors" for r in range(ranks)}
    assert name != "zero3" or all(len(of_one) == 2 for of_one in pieces)


@pytest.mark.distributed
def test_a_run_goes_on_under_other_strategies_on_other_numbers_of_ranks(more_runs: Path) -> None:
    assert losses(more_runs / "on other ranks") == pytest.approx(losses(more_runs / "one process"), rel=RTOL)


@pytest.mark.distributed
def test_micro_batches_add_up_to_the_same_step(more_runs: Path) -> None:
    assert losses(more_runs / "accumulating") == pytest.approx(losses(more_runs / "one process"), rel=RTOL)


@pytest.mark.distributed
def test_on_as_many_ranks_a_killed_run_ends_bit_for_bit_the_same(more_runs: Path) -> None:
    assert losses(more_runs / "killed") == losses(more_runs / "zero3")
    assert_equal(weights(more_runs / "killed"), weights(more_runs / "zero3"))


@pytest.mark.parametrize("name", EACH)
def test_an_examination_over_ranks_gives_the_answers_of_one_process(runs: Path, run: Path) -> None:
    answers = json.loads((run / "answers.json").read_text())
    assert answers == json.loads((runs / "one process" / "answers.json").read_text())
    assert [len(of_stage) for of_stage in answers.values()] == [5, 5, 5]
    assert any(of_stage[0] != of_stage[1] for of_stage in answers.values())  # they answer by what they see


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["unread", "unread, random", "branches"])
def test_branches_and_parts_that_a_stage_does_not_read_give_the_weights_of_one_process(
    more_runs: Path, name: str
) -> None:
    found, expected = weights(more_runs / name), weights(more_runs / f"{name}, one process")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert float((found[key] - tensor).abs().max()) <= 2e-4, key  # a fifth of what one step of Adam may change


@pytest.mark.distributed
def test_a_frozen_parameter_in_the_optimizer_ends_the_run_before_its_first_step(more_runs: Path) -> None:
    assert not (more_runs / "planted" / "ledger-2-0.txt").exists()


@pytest.mark.distributed
def test_a_frozen_parameter_that_changes_ends_the_run_before_the_stage_is_saved(more_runs: Path) -> None:
    assert manifest.newest(more_runs / "touched" / "checkpoints").step < 3


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["zero2", CUT], ids=str)
def test_a_full_disk_of_one_rank_ends_all_and_the_run_goes_on_from_the_checkpoint_before(
    tmp_path: Path, strategy: Any
) -> None:
    options = {"strategy": strategy, "recipe": "two"}
    launch_all([launch("run", meddle="full", fails="(rank 1): [Errno 28] No space left", **options)], tmp_path)
    assert [saved.step for saved in manifest.published(tmp_path / "run" / "checkpoints")] == [2]
    assert not list((tmp_path / "run" / "checkpoints").glob("*.part"))
    launch_all([launch("run", **options), launch("unbroken", **options)], tmp_path)
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")
    assert_equal(weights(tmp_path / "run"), weights(tmp_path / "unbroken"))


# --- frozen parts ---------------------------------------------------------------------------------------------------
def frozen_in(run: Path) -> dict[str, Any]:
    return trained(run).manifest["frozen"]


@pytest.mark.distributed
@pytest.mark.parametrize("options", [{"ranks": 1}, {"strategy": CUT}, {"strategy": "zero2", "precision": "bf16-mixed"}])
def test_a_frozen_base_is_not_stored_until_it_is_trained_and_another_is_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    base, other = base_weights(tmp_path), base_weights(tmp_path, seed=6)
    run = launch("run", base=str(base), kill="finetune start", keep=9, **options)
    launch_all([run], tmp_path)
    assert set(frozen_in(tmp_path / "run")) == {"language"}
    stored = weights(tmp_path / "run")
    assert not [name for name in stored if name.startswith("network.language.lm.lm_head")]
    assert [name for name in stored if "lora_a" in name]
    wrong = launch("run", base=str(other), fails=f"frozen part 'language' of 'llama:{base}'", **options)
    launch_all([wrong, launch("run", base=str(base), **options)], tmp_path)
    assert frozen_in(tmp_path / "run") == {}
    assert weights(tmp_path / "run").keys() >= xcomposer2().state_dict().keys()
    assert len(losses(tmp_path / "run")) == 9


# --- everything else: long ------------------------------------------------------------------------------------------
@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_resuming_on_two_one_and_two_ranks_continues_the_stream(tmp_path: Path, stage: int) -> None:
    strategy = {"stage": stage, "keep_whole": 0}
    launch_all(
        [
            launch("unbroken", strategy=strategy),
            launch("2-1-2", strategy=strategy, kill="align step 3"),
            launch("2-1-2", strategy=strategy, ranks=1, kill="pretrain step 3"),
            launch("2-1-2", strategy=strategy),
        ],
        tmp_path,
    )
    assert losses(tmp_path / "2-1-2") == pytest.approx(losses(tmp_path / "unbroken"), rel=RTOL)
    tokens = [[row["tokens"] for row in read_metrics(tmp_path / n / "metrics.csv")] for n in ("2-1-2", "unbroken")]
    assert tokens[0] == tokens[1]


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_a_part_thaws_in_a_stage_as_it_does_in_one_process(tmp_path: Path, name: str) -> None:
    options = {"recipe": "thaw", "steps": 5}
    launch_all([launch("one", ranks=1, **options), launch("two", **SPLITS[name], **options)], tmp_path)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=RTOL)
    assert trained(tmp_path / "two").manifest["steps"] == trained(tmp_path / "one").manifest["steps"]


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["zero1_offload", "zero2_offload", "zero3_offload"])
def test_offloading_changes_nothing(tmp_path: Path, name: str) -> None:
    options = {"kill": "pretrain step 3"}
    launch_all(
        [launch("plain", strategy=name[:5]), launch("off", strategy=name, **options), launch("off", strategy=name)],
        tmp_path,
    )
    assert losses(tmp_path / "off") == pytest.approx(losses(tmp_path / "plain"), rel=RTOL)


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["zero1", "zero2", CUT], ids=str)
def test_bf16_keeps_fp32_masters_through_stages_and_resumes(tmp_path: Path, strategy: Any) -> None:
    options = {"strategy": strategy, "precision": "bf16-mixed"}
    launch_all(
        [
            launch("unbroken", **options),
            launch("killed", kill="pretrain step 3", **options),
            launch("killed", **options),
        ],
        tmp_path,
    )
    assert losses(tmp_path / "killed") == losses(tmp_path / "unbroken")
    found = weights(tmp_path / "unbroken")
    assert_equal(weights(tmp_path / "killed"), found)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    rounded = [name for name, tensor in found.items() if torch.equal(tensor, tensor.bfloat16().float())]
    assert not [name for name in rounded if "lora_b" not in name and "norm" not in name and "bias" not in name]


@pytest.mark.distributed
def test_in_bf16_the_curve_of_ddp_is_that_of_one_process_and_zeros_agree_with_it_in_four_digits(tmp_path: Path) -> None:
    """Under ZeRO the weights are bf16 between steps, beside fp32 masters; elsewhere autocast rounds them each time."""
    options = {"precision": "bf16-mixed"}
    splits = [launch(name, **split, **options) for name, split in SPLITS.items()]
    launch_all([launch("one process", ranks=1, **options), *splits], tmp_path)
    expected = losses(tmp_path / "one process")
    for name in SPLITS:
        assert losses(tmp_path / name) == pytest.approx(expected, rel=RTOL if name == "ddp" else RTOL_BF16), name
    assert losses(tmp_path / "zero1") == pytest.approx(losses(tmp_path / "zero2"), rel=RTOL)


# --- CPUs -----------------------------------------------------------------------------------------------------------
def test_nothing_is_compiled_to_send_messages_between_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.comm.torch import TorchBackend

    read_by_the_backend = TorchBackend.__init__.__globals__
    monkeypatch.setitem(read_by_the_backend, "build_shm_op", lambda: "compiled")
    monkeypatch.setattr("deepspeed.accelerator.real_accelerator.ds_accelerator", None)
    deepspeed_on_cpu()
    assert read_by_the_backend["build_shm_op"]() is None


# --- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"stage": 0}, "the stages 1, 2 and 3, got 0"), ({"stage": 2, "offload_parameters": True}, "use stage 3")],
)
def test_an_impossible_zero_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ZeRO(**arguments)


@pytest.mark.parametrize(
    ("arguments", "overlap"),
    [
        ({"stage": 2}, False),
        ({"stage": 2, "overlap_comm": True}, True),
        ({"stage": 3}, True),
        ({"stage": 3, "overlap_comm": False}, False),
    ],
)
def test_communication_overlaps_the_backward_pass_under_stage_3_or_where_asked(
    arguments: dict[str, Any], overlap: bool
) -> None:
    assert ZeRO(**arguments).config["zero_optimization"]["overlap_comm"] is overlap


@pytest.mark.parametrize("name", NAMES)
def test_every_name_makes_a_strategy_that_is_accepted(name: str) -> None:
    check_strategy(trainer(strategy=name).strategy)


def test_compiled_layers_are_refused_under_stage_3_alone() -> None:
    module = xcomposer2()
    check_zero_layers(3, module)
    prepare_layers(module.network.vision, "none", compiled=True)
    check_zero_layers(2, module)
    with pytest.raises(UserError, match="compile: false"):
        check_zero_layers(3, module)


def test_a_strategy_whose_pieces_cannot_be_saved_is_refused() -> None:
    with pytest.raises(UserError, match=r"DDPStrategy; expected one of auto, ddp, zero1"):
        check_strategy(trainer(strategy="ddp_spawn").strategy)


@pytest.mark.distributed
def test_muon_moves_whole_matrices_whoever_holds_their_pieces(tmp_path: Path) -> None:
    options = {"recipe": "muon", "steps": 6}
    launch_all(
        [
            launch("one process", ranks=1, **options),
            *(launch(name, **split, **options) for name, split in SPLITS.items()),
            launch("offloaded", strategy="zero2_offload", **options),
            launch("killed", **SPLITS["zero3"], kill="muon step 5", **options),
            launch("killed", **SPLITS["zero3"], **options),
            launch("on other ranks", **SPLITS["zero2"], kill="muon step 3", **options),
            launch("on other ranks", ranks=1, **options),
        ],
        tmp_path,
    )
    for name in (*SPLITS, "offloaded", "on other ranks"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one process"), rel=RTOL)
    for name in SPLITS:
        assert trained(tmp_path / name).manifest["moments"].keys() == (
            trained(tmp_path / "one process").manifest["moments"].keys()
        )
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "zero3"))


def test_the_manifest_is_json_of_names_and_pieces(runs: Path) -> None:
    content = json.loads((manifest.find(runs / "zero3") / "manifest.json").read_text())
    assert (content["strategy"], content["ranks"], content["stage"], content["step"]) == ("ZeRO", 2, "finetune", 9)
