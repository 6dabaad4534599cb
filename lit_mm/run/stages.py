"""Running the stages of a recipe one after the other in one run folder; a branch starts from an earlier stage's end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L

from lit_mm.checkpoints import manifest, reading
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule, family_of
from lit_mm.run.agreement import agree
from lit_mm.run.data import check_data, digests
from lit_mm.run.folder import RunFolder
from lit_mm.run.interruption import say
from lit_mm.stages.stage import Stage, adapters_of, branches
from lit_mm.stream.order import stable_hash
from lit_mm.weights.convert import shorten


def run_stages(
    module: MultimodalModule,
    stages: list[Stage],
    folder: RunFolder,
    *,
    data_of: Callable[[Stage], L.LightningDataModule],
    trainer_of: Callable[..., L.Trainer],
    seed: int,
    pretrained: bool = True,
    other_data: bool = False,
) -> L.LightningDataModule:
    """Run a recipe, from the newest checkpoint of the folder if it has one. Returns the last stage's data module.

    Args:
        module: model to train.
        stages: stages of the recipe, in order.
        folder: run folder.
        data_of: function that builds the data module of a stage.
        trainer_of: function that builds a Trainer with a fresh strategy from Trainer arguments.
        seed: seed of the stream's order and of dropout.
        pretrained: True loads published weights before the first stage.
        other_data: True allows a stage to resume on data that differ from those of its checkpoint.
    """
    module.check_recipe(stages)
    module.check_vocabulary()
    adapters = adapters_of(stages)
    origin_of = branches(stages)
    ends: dict[str, Path] = {}  # stage -> the checkpoint of its end
    launch = trainer_of(max_steps=1)
    saved = resume_point(folder, stages, launch)
    if saved is None and pretrained:
        module.load_pretrained(module.parts_read(stages[0]))
        if launch.global_rank == 0:
            say_fresh(module.origins.fresh)
    first_step = 0
    if saved is not None:
        module.ends = dict(reading.read(saved.path).manifest.get("ends", {}))
    for number, stage in enumerate(stages, start=1):
        data = data_of(stage)
        trainer = trainer_of(max_steps=stage.max_steps or 1)
        processor = module.processor_of(stage)
        steps = data.begin(processor, stage, seed=seed, rank=trainer.global_rank, world=trainer.world_size)
        trainer = trainer_of(max_steps=steps, accumulate_grad_batches=data.stream.accumulation)
        resumed = saved is not None and number == saved.number
        finished = saved is not None and (number, final_step(module, stage, steps)) <= (saved.number, saved.step)
        if resumed:
            reading.load_weights(module, reading.read(saved.path), family_of(module), module.parts_read(stage))
        elif not finished and (stage.name in origin_of or stage.from_averages):
            load_end(module, stage, ends[stage.origin])
        if not finished:
            module.origins.load_missing(module.parts_read(stage))
        if not finished and not resumed:
            module.end_adapters({part: adapter.after for part, adapter in module.adapters.items()})
            module.set_adapters(adapters[stage.name], seed=stable_hash(seed, stage.name, "adapters"))
        module.begin(stage, number=number, total_steps=steps, first_step=first_step, seed=seed)
        if not finished:
            if trainer.global_rank == 0:
                earlier = reading.read(saved.path).manifest.get("data", {}) if resumed else {}
                module.data_changes = check_data(earlier, data, stage.name, other_data=other_data)
                module.data_digests = digests(data)
            with module.reading_only(stage):
                trainer.fit(module, data, ckpt_path=str(saved.path) if resumed else None, weights_only=True)
        last = final_step(module, stage, steps)
        first_step += last
        ends[stage.name] = folder.checkpoints / manifest.checkpoint_name(number, stage.name, last)
    module.origins.load_missing()
    module._trainer = trainer  # evaluation reads its precision; a stage that was finished before has attached none
    module.to(trainer.strategy.root_device)  # a Trainer leaves the model on the CPU
    return data


def say_fresh(fresh: Mapping[str, list[str]]) -> None:
    """Name the tensors that published weights do not have.

    Args:
        fresh: part -> names of its random tensors.
    """
    for part, names in fresh.items():
        say(f"lit_mm: part {part!r}: {len(names)} tensors are not in its weights and start fresh: {shorten(names)}")


def final_step(module: MultimodalModule, stage: Stage, steps: int) -> int:
    """Return the optimizer steps of a stage at its end: the planned number, or fewer if a callback has ended it."""
    return module.ends[stage.name]["step"] if stage.name in module.ends else steps


def load_end(module: MultimodalModule, stage: Stage, path: Path) -> None:
    """Load the weights that a stage starts from, the end of an earlier stage or the averages there.

    Args:
        module: model to load the weights into.
        stage: stage that starts.
        path: checkpoint of the earlier stage's end.
    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    if not path.is_dir():
        raise UserError(
            f"stage {stage.name!r} starts from the end of {stage.origin!r}, but its checkpoint {str(path)!r} "
            "does not exist. Restore it, or start a new run with another --run_dir"
        )
    try:
        checkpoint = reading.read(path)
        checkpoint.verify()
    except manifest.Damaged as error:
        raise UserError(
            f"stage {stage.name!r} starts from the end of {stage.origin!r}, but {error}. Restore a complete "
            "copy, or start a new run with another --run_dir"
        ) from error
    parts = module.parts_read(stage)
    reading.load_weights(module, checkpoint, family_of(module), parts, averaged=stage.from_averages)


def resume_point(folder: RunFolder, stages: list[Stage], trainer: L.Trainer) -> manifest.Saved | None:
    """Return the newest checkpoint of a run after verifying it; None for a new run. All ranks get the same.

    Raises:
        UserError: the checkpoint is damaged, or its stage does not stand at its number in the recipe.
    """

    def newest() -> str:
        saved = manifest.newest(folder.checkpoints)
        if saved is None:
            return ""
        if saved.stage != dict(enumerate((stage.name for stage in stages), 1)).get(saved.number):
            raise UserError(
                f"{str(saved.path)!r} is of stage {saved.stage!r}, which is not stage {saved.number} of this "
                "recipe or of --stages. To start another run from its weights, use another --run_dir and "
                f"--init_from {saved.path}"
            )
        try:
            reading.read(saved.path).verify()
        except manifest.Damaged as error:
            raise UserError(f"{error}. {reading.way_out(saved.path)}") from error
        return saved.path.name

    name = agree(trainer, "resume", newest)
    return manifest.saved_as(folder.checkpoints / name) if name else None
