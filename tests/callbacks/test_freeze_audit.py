from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_mm.callbacks.freeze_audit import FreezeAudit, check_groups
from lit_mm.checkpoints.digests import digest
from lit_mm.errors import UserError
from lit_mm.stages.stage import Stage, Train


class Meddles(L.Callback):
    """This callback runs `act(module)` once, after the first optimizer step of the stage named `stage`."""

    def __init__(self, act: Any, stage: str = "pretrain") -> None:
        self.act, self.stage = act, stage

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.stage.name == self.stage and trainer.global_step == 1 and self.act is not None:
            self.act(pl_module)
            self.act = None


def test_an_honest_recipe_passes_and_each_stage_says_what_it_trains(recipe: Any, capsys: pytest.CaptureFixture[str]):
    recipe.run(recipe.module(), [FreezeAudit()])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    assert said == [
        "stage pretrain: trainable: connector (20 parameters); frozen: language (5 parameters), vision (20 parameters)",
        "stage finetune: trainable: connector (20 parameters), language (5 parameters); frozen: vision (20 parameters)",
    ]


def test_a_frozen_weight_that_changes_by_one_bit_is_found_with_its_name(recipe: Any):
    def flip(module: Any) -> None:
        bias = module.network.vision.bias.data
        bias.view(torch.int32)[2] ^= 1

    with pytest.raises(RuntimeError, match=r"stage 'pretrain'.*frozen part 'vision'.*'bias'"):
        recipe.run(recipe.module(), [FreezeAudit(), Meddles(flip)])


def test_a_frozen_weight_that_changes_in_a_later_stage_is_found(recipe: Any):
    def double(module: Any) -> None:
        module.network.vision.weight.data *= 2

    with pytest.raises(RuntimeError, match=r"stage 'finetune'.*frozen part 'vision'.*'weight'"):
        recipe.run(recipe.module(), [FreezeAudit(), Meddles(double, "finetune")])


def test_a_frozen_parameter_planted_into_the_optimizer_is_found_before_the_first_step(recipe: Any):
    module = recipe.module()
    configure = module.configure_optimizers

    def planted() -> dict[str, Any]:
        made = configure()
        made["optimizer"].param_groups[0]["params"].append(module.network.language.weight)
        return made

    module.configure_optimizers = planted
    with pytest.raises(RuntimeError, match=r"'weight' of part 'language', which is frozen"):
        recipe.run(module, [FreezeAudit()])


def test_a_trainable_parameter_that_the_optimizer_lacks_is_named(recipe: Any):
    module = recipe.module()
    module.begin(recipe.stages[0], total_steps=4)
    weight, bias = module.network.connector.weight, module.network.connector.bias
    check_groups([[weight], [bias]], module.parts(), {"connector"}, "pretrain")
    with pytest.raises(RuntimeError, match=r"lacks.*'bias'.*'connector'"):
        check_groups([[weight]], module.parts(), {"connector"}, "pretrain")
    with pytest.raises(RuntimeError, match=r"'weight' of part 'connector' twice"):
        check_groups([[weight], [bias, weight]], module.parts(), {"connector"}, "pretrain")
    with pytest.raises(RuntimeError, match="belongs to no part"):
        check_groups([[weight, bias, torch.nn.Parameter(torch.zeros(3))]], module.parts(), {"connector"}, "pretrain")
    module.network.vision.bias.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"'bias' of part 'vision' is frozen but wants gradients"):
        check_groups([[weight], [bias]], module.parts(), {"connector"}, "pretrain")


def test_a_trainable_part_that_does_not_move_is_named(recipe: Any):
    module = recipe.module()
    kept = {n: p.detach().clone() for n, p in module.network.connector.named_parameters()}

    class Undo(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            for name, parameter in module.network.connector.named_parameters():
                parameter.data.copy_(kept[name])

    with pytest.raises(RuntimeError, match=r"trains the part 'connector', but none of its 2 parameters"):
        recipe.run(module, [FreezeAudit(), Undo()])


def test_a_part_that_would_thaw_after_the_end_is_refused(recipe: Any):
    module = recipe.module()
    module.begin(Stage("late", train={"connector": Train(lr=0.1, from_step=3)}), total_steps=3)  # of its epochs
    with pytest.raises(UserError, match=r"'connector'.*3 optimizer steps"):
        FreezeAudit().on_train_start(None, module)


def test_a_stage_that_trains_nothing_at_first_says_so(recipe: Any, capsys: pytest.CaptureFixture[str]):
    recipe.stages = [Stage("late", train={"connector": Train(lr=0.1, from_step=2)}, max_steps=3)]
    recipe.run(recipe.module(), [FreezeAudit()])
    assert "stage late: nothing learns in the first 2 optimizer steps" in capsys.readouterr().out


def test_a_resumed_stage_is_judged_over_its_whole_length(
    recipe: Any, killed: type[Exception], save_then_die: Any, tmp_path: Path
):
    checkpoint = tmp_path / "last.ckpt"
    with pytest.raises(killed):
        recipe.run(recipe.module(), [FreezeAudit(), save_then_die(checkpoint, "pretrain", 2, 3)])
    recipe.run(recipe.module(), [FreezeAudit()], checkpoint=checkpoint, steps_done=2)

    file = checkpoint / "weights-00000-00.safetensors"
    content = load_file(file)
    content["network.vision.bias"] += 1.0
    save_file(content, file)
    with pytest.raises(RuntimeError, match=r"the checkpoint that was loaded changed the frozen part 'vision'"):
        recipe.run(recipe.module(), [FreezeAudit()], checkpoint=checkpoint, steps_done=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_digests_see_every_value_of_every_type_and_layout(dtype: torch.dtype):
    values = torch.arange(12).reshape(3, 4).to(dtype)
    same = values.clone()
    assert digest(values) == digest(same) == digest(values.t().contiguous().t())
    same[2, 3] += 1
    assert digest(values) != digest(same)
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))  # a scalar has no last dimension
