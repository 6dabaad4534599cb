"""Stages as data: the parts they name are trained at their rates, and nothing else moves."""

import math
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from torch import nn

from lit_mm.errors import UserError
from lit_mm.stages import Constant, Cosine, EpochCosine, GlobalCosine, Linear
from lit_mm.stages.groups import multiplies, parameter_groups
from lit_mm.stages.stage import Stage, Train, apply_stage, check_recipe, of_model
from tests.tiny import PARTS, Documents, trainer, xcomposer2


def snapshot(module):
    return {part: {n: p.detach().clone() for n, p in named.items()} for part, named in module.parts().items()}


def train(stage, module=None, callbacks=()):
    """The module after the stage."""
    module = module or xcomposer2(trained=True)
    data = Documents()
    steps = data.begin(module.processor, stage, seed=0)
    module.begin(stage, total_steps=steps)
    trainer(callbacks, max_steps=steps, accumulate_grad_batches=data.stream.accumulation).fit(module, data)
    return module


def stage_of(*parts, steps=3, **options):
    named = {part: Train(lr=1e-2, **options) for part in parts}
    return Stage("stage", named, max_steps=steps, schedule=Constant(0.0))


@pytest.mark.parametrize("trained", [("connector",), ("vision", "partial_lora"), ("language",), PARTS])
def test_frozen_parts_stay_bit_identical_and_all_of_a_trainable_part_moves(trained):
    module = xcomposer2(trained=True)
    before = snapshot(module)
    assert set(before) == set(PARTS)
    train(stage_of(*trained), module)
    for part, parameters in module.parts().items():
        for name, parameter in parameters.items():
            assert parameter.requires_grad is (part in trained)
            moved = not torch.equal(parameter, before[part][name])
            assert moved is (part in trained), f"{part}: {name}"


def test_a_stage_thaws_and_freezes_again():
    module = xcomposer2()
    parts = module.parts()
    for trained in (("language",), ("vision",)):
        apply_stage(parts, stage_of(*trained))
        thawed = {part for part, named in parts.items() if all(p.requires_grad for p in named.values())}
        frozen = {part for part, named in parts.items() if not any(p.requires_grad for p in named.values())}
        assert thawed == set(trained)
        assert frozen == set(PARTS) - set(trained)


class Watch(L.Callback):
    """This callback records the first parameter of a part after every step."""

    def __init__(self, part):
        self.part, self.seen = part, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(next(iter(pl_module.parts()[self.part].values())).detach().clone())


class Rates(L.Callback):
    """This callback records the learning rates of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.seen.append(dict(pl_module.learning_rates))


class Norms(L.Callback):
    """This callback records the gradient norm over all parameters before every step but the last."""

    def __init__(self):
        self.seen = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if grads:
            self.seen.append(float(torch.stack([g.norm() for g in grads]).norm()))


def test_a_part_thaws_when_it_says_and_is_unchanged_until_then():
    module, watch = xcomposer2(), Watch("vision")
    start = next(iter(module.parts()["vision"].values())).detach().clone()
    stage = stage_of("connector", steps=5)
    stage.train["vision"] = Train(lr=1e-2, from_step=2)
    rates = Rates()
    train(stage, module, [watch, rates])
    assert [seen["vision"] for seen in rates.seen] == pytest.approx([0, 0, 1e-2, 1e-2, 1e-2])
    assert [seen["connector"] for seen in rates.seen] == pytest.approx([1e-2] * 5)
    assert [torch.equal(seen, start) for seen in watch.seen] == [True, True, False, False, False]
    assert all(not torch.equal(a, b) for a, b in zip(watch.seen[1:], watch.seen[2:], strict=False))


def test_a_part_that_has_not_thawed_has_no_influence_on_the_others():
    alone = train(Stage("s", {"connector": Train(lr=1e-2)}, max_steps=3, clip=1e-3))
    waiting = {"connector": Train(lr=1e-2), "language": Train(lr=1e-2, from_step=3)}
    beside = train(Stage("s", waiting, max_steps=3, clip=1e-3))
    expected = alone.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in beside.state_dict().items())


def test_a_part_that_has_not_thawed_is_given_no_gradient_on_a_single_device():
    class Given(L.Callback):
        def __init__(self):
            self.seen = []

        def on_after_backward(self, trainer, pl_module):
            self.seen.append({p.grad is not None for p in pl_module.parts()["vision"].values()})

    stage, given = stage_of("connector", steps=4), Given()
    stage.train["vision"] = Train(lr=1e-2, from_step=2)
    train(stage, xcomposer2(), [given])
    assert given.seen == [{False}, {False}, {True}, {True}]


def test_layers_nearer_the_input_learn_slower():
    module = xcomposer2()
    stage = Stage("s", {"vision": Train(lr=1.0, layer_decay=0.5)})
    groups = parameter_groups(module.parts(), stage, {"vision": module.network.vision})
    assert {group["name"]: group["lr"] for group in groups} == {"vision.0": 0.25, "vision.1": 0.5, "vision.2": 1.0}
    top = {id(p) for p in module.network.vision.blocks[1].parameters()}
    assert {id(p) for g in groups if g["lr"] == 1.0 for p in g["params"]} == top


def test_groups_are_disjoint_complete_and_decay_no_vector():
    module = xcomposer2()
    stage = Stage("s", {p: Train(lr=1.0, weight_decay=0.3) for p in ("vision", "language", "partial_lora")})
    stage.train["vision"] = Train(lr=2.0, weight_decay=0.3, layer_decay=0.9)
    groups = parameter_groups(module.parts(), stage, {"vision": module.network.vision})
    grouped = [id(p) for group in groups for p in group["params"]]
    named = [id(p) for part in stage.train for p in module.parts()[part].values()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(named)
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.3) for p in group["params"])
        assert group["weight_decay"] in (0.0, 0.3)


def test_layer_decay_of_a_part_without_layers_is_refused():
    module = xcomposer2()
    stage = Stage("align", {"connector": Train(lr=1.0, layer_decay=0.5)})
    with pytest.raises(UserError, match="'align': part 'connector' has no layers, so `layer_decay` has no effect"):
        parameter_groups(module.parts(), stage, {})


@pytest.mark.parametrize(
    ("schedule", "warmup", "total", "expected"),
    [
        (Constant, 0.0, 4, [1, 1, 1, 1, 1]),
        (Linear, 0.0, 4, [1, 0.75, 0.5, 0.25, 0]),
        (Cosine, 0.0, 4, [1, 0.853553, 0.5, 0.146447, 0]),
        (Linear, 0.5, 4, [0.5, 1, 1, 0.5, 0]),
        (Cosine, 0.2, 10, [0.5, 1, 1]),
        (Cosine, 0.01, 4, [1, 1]),  # a warm-up of one step begins at the peak
        (Constant, 0.99, 1, [1, 1]),
    ],
)
def test_the_schedule_rises_to_the_peak_and_ends_at_zero(schedule, warmup, total, expected):
    assert [schedule(warmup).factor(step, total) for step in range(len(expected))] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("hundredths", range(1, 100))
def test_the_warm_up_has_as_many_steps_as_its_share_of_a_hundred(hundredths):
    schedule = Constant(hundredths / 100)
    assert [schedule.factor(step, 100) < 1 for step in range(100)].count(True) == hundredths - 1
    assert schedule.factor(hundredths - 1, 100) == 1


def test_the_learning_rates_of_a_run_follow_the_schedule():
    rates = Rates()
    parts = {"connector": Train(lr=1e-2), "vision": Train(lr=1e-3, layer_decay=0.5)}
    stage = Stage("s", parts, max_steps=4, schedule=Linear(0.5))
    train(stage, callbacks=[rates])
    factors = [0.5, 1, 1, 0.5]
    assert [seen["connector"] for seen in rates.seen] == pytest.approx([f * 1e-2 for f in factors])
    assert [seen["vision"] for seen in rates.seen] == pytest.approx([f * 1e-3 for f in factors])  # its highest


def test_an_unknown_part_is_named_with_those_there_are():
    parts = {"vision": {"w": nn.Parameter(torch.zeros(1))}, "language": {}}
    with pytest.raises(
        UserError, match=r"trains unknown parts \['conector'\]; this model has \['language', 'vision'\]"
    ):
        check_recipe([Stage("align", {"conector": Train(lr=1.0)})], parts)


def test_a_recipe_needs_stages_with_names_of_their_own():
    with pytest.raises(UserError, match="the recipe has no stages"):
        check_recipe([], {})
    twice = [Stage("a", {"p": Train(lr=1.0)})] * 2
    with pytest.raises(UserError, match=r"stage names must differ, got \['a', 'a'\]"):
        check_recipe(twice, {"p": {}})


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"lr": -1.0}, {"layer_decay": 0.0}, {"layer_decay": 1.1}, {"weight_decay": -0.1}, {"from_step": -1}],
)
def test_a_part_with_impossible_numbers_is_refused(options):
    with pytest.raises(UserError, match="a part learns with lr > 0"):
        Train(**{"lr": 1.0} | options)


@pytest.mark.parametrize("schedule", [Cosine, Linear])
def test_a_schedule_may_end_above_zero(schedule):
    factors = [schedule(0.1, floor=0.2).factor(step, 100) for step in range(101)]
    assert factors[9] == 1 and factors[100] == pytest.approx(0.2) and factors[55] == pytest.approx(0.6)


@pytest.mark.parametrize(
    "options",
    [
        {"train": {}},
        {"max_steps": 0},
        {"epochs": 0},
    ],
)
def test_a_stage_with_impossible_numbers_is_refused(options):
    with pytest.raises(UserError, match=r"^stages\.s: "):
        Stage(**{"name": "s", "train": {"p": Train(lr=1.0)}} | options)


def test_the_gradient_norm_is_limited_over_all_trainable_parts():
    norms = Norms()
    stage = stage_of("connector", "language")
    stage.clip = 1e-2
    train(stage, callbacks=[norms])
    assert len(norms.seen) == 2
    assert max(norms.seen) <= 1e-2 * (1 + 1e-4)


@pytest.mark.parametrize(
    "name", ["blocks.3.fc1.weight", "q.weight", "resampler.kv_proj.weight", "proj.weight", "layers.0.q.lora_A"]
)
def test_matrices_that_multiply_are_muons(name):
    assert multiplies(name)


@pytest.mark.parametrize(
    "name",
    [
        "query",
        "positions",
        "lm.model.embed_tokens.weight",
        "lm.lm_head.weight",
        "lm.shared.weight",
        "head.weight",
        "block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "embeddings.word_embeddings.weight",
    ],
)
def test_tables_and_heads_are_not(name):
    assert not multiplies(name)


@pytest.mark.parametrize(
    "options", [{"warmup": 1.5}, {"warmup": -0.1}, {"floor": 1.0}, {"floor": -0.1}, {"start": 1.0}]
)
def test_a_schedule_with_impossible_numbers_is_refused(options):
    with pytest.raises(UserError, match=f"Cosine: {next(iter(options))} is a share"):
        Cosine(**options)


def test_a_warm_up_may_be_counted_in_steps_and_start_above_zero():
    assert [Linear(warmup=4, start=0.2).factor(step, 8) for step in range(4)] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert GlobalCosine(warmup=2).factor(2, 8) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_vectors_are_decayed_where_a_stage_says_so():
    part = {"weight": nn.Parameter(torch.zeros(2, 2)), "bias": nn.Parameter(torch.zeros(2))}
    for decays in (False, True):
        stage = Stage("s", {"p": Train(lr=1.0, weight_decay=0.3, decay_vectors=decays)})
        groups = parameter_groups({"p": part}, stage, {})
        decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        assert decay == {id(part["weight"]): 0.3, id(part["bias"]): 0.3 if decays else 0.0}


def test_a_schedule_by_epochs_without_a_warm_up_begins_at_the_peak():
    assert [EpochCosine(warmup=0, epochs=2).factor(step, 4) for step in range(4)] == pytest.approx([1, 1, 0.5, 0.5])


def test_a_floor_that_a_constant_rate_never_reaches_is_refused():
    with pytest.raises(UserError, match=r"Constant: .* got 0\.5"):
        Constant(floor=0.5)


def test_a_warm_up_longer_than_its_stage_is_refused_with_both_numbers():
    stage = Stage("s", {"p": Train(lr=1.0)}, max_steps=100, schedule=Cosine(500))
    with pytest.raises(
        UserError, match=r"stages\.s\.schedule: Cosine: the warm-up has 500 steps, but the stage has 100"
    ):
        check_recipe([stage], {"p": {}})


@pytest.mark.parametrize(("epochs", "max_steps", "refused"), [(3, None, False), (2, None, True), (2, 10, False)])
def test_a_schedule_by_epochs_counts_those_of_its_stage(epochs: int, max_steps: int | None, refused: bool) -> None:
    stage = Stage("s", {"p": Train(lr=1.0)}, max_steps=max_steps, epochs=3, schedule=EpochCosine(epochs=epochs))
    with pytest.raises(UserError, match="has 2 epochs, but the stage has 3") if refused else nullcontext():
        check_recipe([stage], {"p": {}})


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"connector": False, "newline": True, "partial_lora": True}, ["connector", "newline"]),
        ({"connector": True, "newline": False}, ["connector", "newline"]),
        ({"connector": False}, ["connector"]),  # nothing is left out: the newline may be frozen
        ({"connector": False, "newlines": False}, ["connector", "newlines"]),  # `check_recipe` refuses it
        ({"connector": False, "newlines": True}, None),
    ],
)
def test_optional_settings_of_a_missing_part_are_left_out(train: dict[str, bool], expected: list[str] | None) -> None:
    stage = Stage("s", {part: Train(1e-3, optional=optional) for part, optional in train.items()})
    parts = ["connector", "language", "newline", "vision"]
    if expected is None:
        with pytest.raises(UserError, match=r"no parts \['newlines'\].*added parts \['newline'\]"):
            of_model(stage, parts, ["newline"])
    else:
        assert list(of_model(stage, parts, ["newline"]).train) == expected
