"""`python -m lit_mm.commands.store RUN_FOLDER PART NAME` stores a trained backbone with the package.

Afterwards `weights: nano:NAME` loads it.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_mm.assets import NANO_WEIGHTS
from lit_mm.checkpoints import manifest, reading
from lit_mm.errors import UserError
from lit_mm.weights.convert import load_strict, read_checkpoint

LIMIT = 8_000_000  # bytes of all stored backbones together, which are part of every clone
LAST = 50  # number of last optimizer steps whose mean loss is stored


def plain_state(module: nn.Module, part: str) -> dict[str, Tensor]:
    """Return a part's weights in bf16 under plain names, with tied weights once.

    Raises:
        UserError: a family has added parameters to the part, which are not part of a backbone.
    """
    state: dict[str, Tensor] = {}
    identities: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if ".base." in name or ".lora_" in name:
            raise UserError(f"part {part!r} has wrapped linears ({name!r}): only plain backbones are stored")
        if id(tensor) not in identities:
            identities.add(id(tensor))
            value = tensor.detach().to("cpu")
            state[name] = (value.to(torch.bfloat16) if value.is_floating_point() else value).contiguous()
    return state


def check_finished(saved: manifest.Saved, config: Mapping[str, Any], ends: Collection[str] = ()) -> None:
    """Refuse a run that has not reached the end of its last stage.

    Args:
        saved: newest checkpoint.
        config: config of the run.
        ends: stages that a callback has ended before their planned steps.
    Raises:
        UserError: the run is not finished; the message has its stage and step, and the planned ones.
    """
    only = config.get("only") or []
    stages = [stage for stage in config["stages"] if not only or stage["name"] in only]
    last = stages[-1]
    planned = last["max_steps"] is None or saved.step == last["max_steps"]
    if saved.stage != last["name"] or not (planned or last["name"] in ends):
        raise UserError(
            f"{str(saved.path)!r} is step {saved.step} of stage {saved.stage!r}, but the run ends with step "
            f"{last['max_steps']} of stage {last['name']!r}. Finish it: repeat its `fit` command with "
            "--run_dir"
        )


def describe(folder: Path, saved: manifest.Saved, config: str, recipe: str) -> dict[str, str]:
    """Describe the origin of the weights, for the metadata of the file. Unknown values are left out."""
    metadata = {
        "command": f"python -m lit_mm fit --config {recipe}",
        "seed": str(yaml.safe_load(config)["seed_everything"]),
        "steps": str(saved.step),
        "torch": torch.__version__,
        "config": config,
    }
    if (folder / "metrics.csv").is_file():
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        losses = [float(row["loss"]) for row in rows if row["stage"] == saved.stage][-LAST:]
        if losses:
            metadata["final_loss"] = f"{sum(losses) / len(losses):.4f}"
            metadata["final_loss_is"] = f"mean of the last {len(losses)} optimizer steps"
            metadata["seconds"] = f"{float(rows[-1]['seconds']):.0f}"
    return metadata


def write(module: nn.Module, part: str, name: str, metadata: Mapping[str, str], folder: Path = NANO_WEIGHTS) -> Path:
    """Write `name`.safetensors, after checks that it loads back and that the folder stays within `LIMIT`.

    Raises:
        UserError: the folder would exceed the limit, or the name is no file name.
    """
    if not name.replace("_", "").isalnum():
        raise UserError(f"the name of a backbone is letters, digits and underscores, got {name!r}")
    folder.mkdir(parents=True, exist_ok=True)
    final, part_file = folder / f"{name}.safetensors", folder / f".{name}.part.safetensors"
    others = sum(file.stat().st_size for file in folder.glob("[!.]*.safetensors") if file != final)
    state = plain_state(module, part)
    try:
        save_file(state, part_file, metadata=dict(metadata))
        total = others + part_file.stat().st_size
        if total > LIMIT:
            raise UserError(
                f"{name!r} has {part_file.stat().st_size:,} bytes, and with the other backbones in {str(folder)!r} "
                f"{total:,}; all together are at most {LIMIT:,}. Make a backbone smaller"
            )
        check_loads(module, part_file)
        part_file.chmod(0o644)  # safetensors writes files that only their owner may read
        os.replace(part_file, final)
    finally:
        part_file.unlink(missing_ok=True)
    return final


def check_loads(module: nn.Module, file: Path) -> None:
    """Check that a stored file gives `module` its own weights back, rounded to bf16, in the module's precision.

    Raises:
        RuntimeError: a weight that differs.
    """
    fresh = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.fill_(torch.nan)
    load_strict(fresh, read_checkpoint(file))
    for (name, stored), loaded in zip(module.named_parameters(), fresh.parameters(), strict=True):
        if loaded.dtype != stored.dtype or not torch.equal(loaded, stored.to(torch.bfloat16).to(stored.dtype)):
            raise RuntimeError(f"{str(file)!r} does not give back the parameter {name!r}; nothing was stored")


def store(run: str | Path, part: str, name: str, recipe: str | None = None, folder: Path = NANO_WEIGHTS) -> Path:
    """Take a part out of a finished run's newest checkpoint and store it.

    Args:
        run: the run folder.
        part: part of the run's model.
        name: NAME in `weights: nano:NAME`.
        recipe: config file of the run; None for experiments/backbones/NAME.yaml.
        folder: folder of the stored backbones.
    Returns:
        The stored file.
    Raises:
        UserError: the run is not finished, the part or the recipe does not exist, or the folder would be too large.
    """
    from lit_mm.commands.trained import open_model  # the only command that builds a model

    run = Path(run)
    saved = manifest.newest(run / "checkpoints")
    if saved is None:
        raise UserError(f"{str(run)!r} holds no checkpoint: is it a run folder, and did its run save one?")
    recipe = recipe or f"experiments/backbones/{name}.yaml"
    if not Path(recipe).is_file():
        raise UserError(f"there is no recipe {recipe!r} to name as the origin of {name!r}. Give it with --recipe")
    checkpoint = reading.read(saved.path)
    config = checkpoint.config
    check_finished(saved, yaml.safe_load(config), checkpoint.manifest.get("ends", {}))
    model = open_model(str(run))
    parts = model.modules_by_part()
    if part not in parts:
        raise UserError(f"the model of {str(run)!r} has no part {part!r}; it has {sorted(parts)}")
    return write(parts[part], part, name, describe(run, saved, config, recipe), folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m lit_mm.commands.store", description=__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("part", help="part of its model, such as vision or language")
    parser.add_argument("name", help="name of the backbone: weights: nano:NAME")
    parser.add_argument("--recipe", help="the run's config file (default: experiments/backbones/NAME.yaml)")
    choices = parser.parse_args(arguments)
    try:
        file = store(choices.run, choices.part, choices.name, choices.recipe)
    except UserError as error:
        parser.exit(2, f"lit_mm.commands.store: {error}\n")
    total = sum(stored.stat().st_size for stored in file.parent.glob("*.safetensors"))
    print(f"{file}: {file.stat().st_size:,} bytes; all backbones together {total:,} of {LIMIT:,}")


if __name__ == "__main__":
    main()
