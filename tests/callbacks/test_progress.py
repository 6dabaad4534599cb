from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from lit_mm.callbacks.progress import StageProgress, clock, stage_label
from lit_mm.stages.stage import Stage, Train


def test_without_a_terminal_it_prints_plain_lines_that_name_the_stage(recipe: Any):
    out = io.StringIO()
    recipe.run(recipe.module(), [StageProgress(recipe.stages, every_seconds=0, console=Console(file=out))])
    lines = out.getvalue().splitlines()
    assert lines[0] == "pretrain 1/2: 4 optimizer steps"
    assert lines[1].startswith("pretrain 1/2  step 1/4  loss ")
    assert [line.split("  ")[1] for line in lines[1:5]] == ["step 1/4", "step 2/4", "step 3/4", "step 4/4"]
    assert "tokens/s  0:00 left, recipe 0:00" in lines[3]
    assert lines[4].endswith("tokens/s  done")
    assert lines[5] == "finetune 2/2: 3 optimizer steps"
    assert "recipe" not in lines[7]
    assert "\x1b" not in out.getvalue()


def test_between_two_plain_lines_it_is_silent_but_for_a_stages_first_and_last_step(recipe: Any):
    out = io.StringIO()
    recipe.run(recipe.module(), [StageProgress(recipe.stages, every_seconds=1000, console=Console(file=out))])
    said = [line.split("  ")[1] for line in out.getvalue().splitlines() if "  step " in line]
    assert said == ["step 1/4", "step 4/4", "step 1/3", "step 3/3"]


def test_in_a_terminal_it_draws_a_bar_and_prints_above_it(recipe: Any):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=110)
    progress = StageProgress(recipe.stages, console=console)
    recipe.run(recipe.module(), [progress])
    text = out.getvalue()
    for part in ("pretrain 1/2", "4/4", "finetune 2/2", "3/3", "loss", "tokens/s", "done"):
        assert part in text
    assert progress.bar is None  # closed: the cursor is back


def test_an_error_closes_the_bar(recipe: Any, killed: type[Exception], save_then_die: Any):
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    progress = StageProgress(recipe.stages, console=console)
    with pytest.raises(killed):
        recipe.run(recipe.module(), [progress, save_then_die(recipe.folder / "c.ckpt", "pretrain", 1, 2)])
    assert progress.bar is None


def test_a_resumed_stage_counts_on_and_measures_its_own_steps_only(
    recipe: Any, killed: type[Exception], save_then_die: Any
):
    checkpoint = recipe.folder / "c.ckpt"
    with pytest.raises(killed):
        recipe.run(recipe.module(), [save_then_die(checkpoint, "pretrain", 2, 2)])
    out = io.StringIO()
    progress = StageProgress(recipe.stages, every_seconds=0, console=Console(file=out))
    recipe.run(recipe.module(), [progress], checkpoint=checkpoint, steps_done=2)
    lines = out.getvalue().splitlines()
    assert lines[0] == "pretrain 1/2: 4 optimizer steps, resumed after step 2"
    assert lines[1].startswith("pretrain 1/2  step 3/4")


def test_the_time_left_of_a_recipe_with_a_stage_of_unknown_length_is_a_lower_bound(recipe: Any):
    out = io.StringIO()
    unknown = Stage("later", train={"connector": Train(lr=0.1)})
    recipe.run(recipe.module(), [StageProgress([*recipe.stages, unknown], every_seconds=0, console=Console(file=out))])
    assert "finetune 2/3  step 2/3" in out.getvalue()
    assert "left, recipe >0:00" in out.getvalue()


def test_the_shown_loss_is_smoothed(recipe: Any):
    progress = StageProgress(recipe.stages, console=Console(file=io.StringIO()))
    losses: list[float] = []
    original = progress.on_step_end

    def noted(trainer: Any, module: Any, step: Any) -> None:
        losses.append(step.loss)
        original(trainer, module, step)

    progress.on_step_end = noted
    recipe.run(recipe.module(), [progress])
    a, b, c = losses[4:]
    assert progress.loss == pytest.approx(0.9 * (0.9 * a + 0.1 * b) + 0.1 * c)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00"), (7, "0:07"), (59.6, "1:00"), (750, "12:30"), (11100, "3:05:00")]
)
def test_times_are_read_like_a_clock(seconds: float, said: str):
    assert clock(seconds) == said


def test_a_stage_is_numbered_within_its_recipe():
    assert stage_label("b", ["a", "b"]) == "b 2/2"
    assert stage_label("c", ["a", "b"]) == "c"
