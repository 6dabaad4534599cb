"""Parameters that are trained at a step, and modules that are in training mode then."""

from __future__ import annotations

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.samples.collate import collate
from lit_mm.stages.stage import Stage, Train, check_recipe
from lit_mm.stages.thaw import idle_steps, late_parts, learning_parts
from tests.rows import loss_sum
from tests.tiny import document, trainer, xcomposer2


def stage(*parts: str, noisy: tuple[str, ...] = (), **starts: int) -> Stage:
    train = {part: Train(lr=1e-3, from_step=starts.get(part, 0)) for part in parts}
    return Stage("s", train, max_steps=4, noisy=list(noisy))


def test_a_part_learns_from_its_step_on() -> None:
    late = stage("vision", "connector", vision=2)
    assert late_parts(late) == {"vision": 2}
    assert [sorted(learning_parts(late, step)) for step in range(3)] == [["connector"]] * 2 + [["connector", "vision"]]


@pytest.mark.parametrize(("starts", "expected"), [({}, 0), ({"vision": 2}, 0), ({"vision": 3, "connector": 2}, 2)])
def test_the_steps_before_the_first_part_learns_are_counted(starts: dict[str, int], expected: int) -> None:
    assert idle_steps(stage("vision", "connector", **starts)) == expected


def test_a_part_that_would_thaw_after_the_end_is_refused_before_the_start() -> None:
    with pytest.raises(UserError, match=r"stages\.s\.train: .* after 4 optimizer steps, got `from_step` {'p': 4}"):
        check_recipe([stage("p", p=4)], {"p": {}})


@pytest.mark.parametrize(
    ("trained", "noisy", "expected"),
    [
        (("connector",), (), {"connector"}),
        (("partial_lora",), (), {"partial_lora"}),
        (("connector",), ("vision",), {"connector", "vision"}),
        (("vision", "connector", "language", "partial_lora"), (), {"vision", "connector", "language", "partial_lora"}),
    ],
)
def test_frozen_parts_run_in_evaluation_mode_unless_they_are_noisy(trained, noisy, expected) -> None:
    module = xcomposer2(dropout=0.5)
    module.begin(stage(*trained, noisy=noisy), total_steps=4)
    for _ in range(2):
        network = module.network
        layer = network.language.decoder_layers[0]
        assert network.vision.training == ("vision" in expected)
        assert network.connector.training == ("connector" in expected)
        assert layer.mlp.up_proj.training == (not {"partial_lora", "language"}.isdisjoint(expected))  # wraps its base
        assert layer.input_layernorm.training == ("language" in expected)
        module.eval()
        module.train()  # as whoever examines in between


def test_the_dropout_of_a_frozen_part_is_off() -> None:
    module = xcomposer2(dropout=0.5, trained=True)
    batch = collate([module.processor.sample(document(1))], module.processor)
    module.begin(stage("connector"), total_steps=1)
    assert torch.equal(loss_sum(module, batch), loss_sum(module, batch))
    module.begin(stage("connector", noisy=("partial_lora",)), total_steps=1)
    assert not torch.equal(loss_sum(module, batch), loss_sum(module, batch))


def test_layers_that_recompute_their_activations_stay_in_training_mode() -> None:
    """transformers recomputes only in training mode, and frozen layers after a trained part must recompute."""
    module = xcomposer2()
    module.begin(stage("connector"), total_steps=1)
    layer = module.network.language.decoder_layers[0]
    assert layer.training and not layer.self_attn.training


def test_a_part_that_thaws_is_in_training_mode_from_its_step_on() -> None:
    module = xcomposer2()
    module.begin(stage("vision", "connector", vision=2), total_steps=4)
    module._trainer = trainer()
    modes = []
    for step in range(4):
        module.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = step
        module.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
        module.on_train_batch_start()
        modes.append(module.network.vision.training)
    assert modes == [False, False, True, True]


def test_a_noisy_part_must_be_frozen_and_there() -> None:
    parts = xcomposer2().parts()
    for wrong in ("connector", "visoin"):
        with pytest.raises(
            UserError, match=rf"`noisy` names frozen parts .* got \['{wrong}'\]; frozen are \['language'"
        ):
            check_recipe([stage("connector", noisy=(wrong,))], parts, ["next_token"])
