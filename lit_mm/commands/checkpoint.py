"""`checkpoint`: list the contents of a checkpoint, or write its weights to one file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mm.checkpoints import manifest
from lit_mm.checkpoints.consolidate import Elements, consolidate
from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError
from lit_mm.weights.stream import Stored

if TYPE_CHECKING:  # an import of seconds, which only frozen parts need
    from torch import Tensor

    from lit_mm.module import MultimodalModule

PROG = "python -m lit_mm checkpoint"
EPILOG = """examples:
  python -m lit_mm checkpoint inspect runs/latest
  python -m lit_mm checkpoint inspect runs/latest/checkpoints/02-finetune-step=000450.ckpt --verify --format json
  python -m lit_mm checkpoint consolidate runs/latest model.safetensors

A run folder stands for its newest checkpoint."""
DAMAGED = 2  # exit code of `inspect` for a damaged checkpoint


def checkpoint(arguments: Sequence[str]) -> None:
    """List the contents of a checkpoint of any strategy, or write its weights to one safetensors file."""
    parser = Arguments(prog=PROG, description=checkpoint.__doc__, epilog=EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="inspect | consolidate")

    looks = actions.add_parser("inspect", description=inspect.__doc__, help="list the contents and check the files")
    looks.add_argument("path", help="run folder or checkpoint")
    looks.add_argument("--verify", action="store_true", help="read every file and compare its digest")
    looks.add_argument(
        "--format", choices=("table", "json"), default="table", help="format of the output (default: table)"
    )

    joins = actions.add_parser("consolidate", description=join.__doc__, help="write the weights to one file")
    joins.add_argument("path", help="run folder or checkpoint")
    joins.add_argument("output", metavar="OUT.safetensors", help="new file")
    joins.add_argument(
        "--stored_only", action="store_true", help="leave out frozen parts that can be loaded from their origin"
    )
    joins.add_argument("--overwrite", action="store_true", help="replace an existing file")

    choices = parser.parse_args(arguments)
    {"inspect": inspect, "consolidate": join}[choices.action](choices)


# --- inspect ---------------------------------------------------------------------------------------------------------
def inspect(choices: argparse.Namespace) -> None:
    """List the contents of a checkpoint: family, stage, step, ranks, sizes, and the tensors and dtypes of each part.

    Frozen parts may be stored by digest only; the list has their origin. The exit code is 2 if the checkpoint is
    damaged. --verify detects accidental damage, but not deliberate changes (see SECURITY.md).
    """
    opened = manifest.read(manifest.find(choices.path))
    problems = manifest.damage(opened, verify=choices.verify)
    print(
        as_json(opened, problems, choices.verify)
        if choices.format == "json"
        else as_table(opened, problems, choices.verify)
    )
    if problems:
        print(f"lit_mm: {str(opened.path)!r} is damaged: {'; '.join(problems)}", file=sys.stderr)
        sys.exit(DAMAGED)


def as_json(opened: manifest.Manifest, problems: Sequence[str], verified: bool) -> str:
    content = opened.content
    head = {key: content[key] for key in ("family", "stage", "stage_number", "stage_step", "step", "strategy", "ranks")}
    return json.dumps(
        {
            "path": str(opened.path),
            **head,
            "bytes": opened.bytes,
            "files": {name: entry["bytes"] for name, entry in content["files"].items()},
            "parts": {part: asdict(described) for part, described in manifest.parts(opened).items()},
            "damage": list(problems),
            "verified": verified,
            "unchecked": [] if opened.sealed else ["manifest.json"],
        },
        indent=1,
    )


def as_table(opened: manifest.Manifest, problems: Sequence[str], verified: bool) -> str:
    content = opened.content
    sizes = {kind: sum(entry["bytes"] for entry in opened.files(kind).values()) for kind in ("weights", "optimizer")}
    sound = "every byte is as written" if verified else "all files have their length (--verify compares digests)"
    if not opened.sealed:
        sound += "; manifest.json itself cannot be checked: format 1 has no digest of it"
    lines = [
        str(opened.path),
        f"  family   {content['family']}",
        f"  stage    {content['stage_number']}, {content['stage']!r}, step {content['stage_step']}; "
        f"step {content['step']} of the run",
        f"  written  by {content['strategy']} on {content['ranks']} rank{'s' * (content['ranks'] > 1)}",
        f"  size     {megabytes(opened.bytes)} in {len(content['files'])} files: "
        f"weights {megabytes(sizes['weights'])}, optimizer {megabytes(sizes['optimizer'])}",
        f"  state    {'DAMAGED: ' + '; '.join(problems) if problems else sound}",
        "",
    ]
    rows = [("part", "tensors", "parameters", "dtype", "kept as")]
    for part, described in manifest.parts(opened).items():
        moments = f", optimizer moments of {described.moments}" if described.moments else ""
        rows.append(
            (
                part,
                str(described.tensors),
                f"{described.parameters:,}" if described.parameters else "-",
                ", ".join(described.dtypes) or "-",
                f"digest; origin {described.origin}" if described.origin else f"weights{moments}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            f"{cell:>{width}}" if column in (1, 2) else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


# --- consolidate -----------------------------------------------------------------------------------------------------
def join(choices: argparse.Namespace) -> None:
    """Write the weights of a checkpoint to one safetensors file, under their names in `state_dict`.

    The metadata of the file hold the config. Tensors are copied one at a time, so the memory of the largest is enough.
    Frozen parts that are stored by digest only are loaded from their origin, checked, and written as well.
    """
    output = Path(choices.output)
    if output.suffix != ".safetensors":
        raise UserError(f"the output {choices.output!r} should end in .safetensors")
    if output.exists() and not choices.overwrite:
        raise UserError(f"{choices.output!r} exists; --overwrite replaces it")
    if not output.parent.is_dir():
        raise UserError(f"the folder {str(output.parent)!r} of the output does not exist")
    opened = manifest.read(manifest.find(choices.path))
    fetched: tuple[dict[str, Stored], Elements] | tuple[None, None] = (None, None)
    if opened.content["frozen"] and not choices.stored_only:
        fetched = fetch_frozen(opened)
    result = consolidate(opened, output, *fetched)
    print(f"{result['path']}: {result['tensors']} tensors, {megabytes(result['bytes'])}, from {opened.path}")
    for part, origin in result["left_out"].items():
        print(f"not in it: {part}, which is {origin}")


def fetch_frozen(opened: manifest.Manifest) -> tuple[dict[str, Stored], Elements]:
    """Open the tensors that a checkpoint stores by digest only: name -> (dtype, shape), and a function name -> bytes.

    The model is built without memory and maps the published files, so tensors stay on the disk until they are read.
    Each tensor is compared with its digest when it is read.

    Raises:
        UserError: an origin cannot be loaded, or differs from the one that the run was trained on.
    """
    from lit_mm.environment import check_torch_pair

    check_torch_pair()
    import torch
    import yaml

    from lit_mm.checkpoints.before import translate_config
    from lit_mm.checkpoints.digests import digest
    from lit_mm.checkpoints.reading import adapters_in
    from lit_mm.commands.recipe import RecipeCLI, quiet

    quiet()
    label = f"the config in {str(opened.path)!r}"
    with torch.device("meta"):
        config = translate_config(yaml.safe_load((opened.path / "config.yaml").read_text()))
        module: MultimodalModule = RecipeCLI(config, "checkpoint consolidate", label, with_data=False).model
        module.set_adapters(adapters_in(opened.content))
    digests = {name: d for entry in opened.content["frozen"].values() for name, d in entry["digests"].items()}
    origins = {name: entry["origin"] for entry in opened.content["frozen"].values() for name in entry["digests"]}
    kinds = {name: parameter.dtype for name, parameter in module.named_parameters()}
    if unknown := sorted(digests.keys() - kinds.keys()):
        raise UserError(
            f"{label} describes a model without {unknown[0]!r}, which the checkpoint contains. The checkpoint "
            "is damaged"
        )
    _stand_in(module, set(opened.content["weights"]))
    load_frozen(module, set(digests))
    parameters = dict(module.named_parameters())

    def whole(name: str) -> Tensor:
        return parameters[name].detach().to(kinds[name]).contiguous()

    def elements(name: str) -> Iterable[memoryview]:
        tensor = whole(name)
        if digest(tensor) != digests[name]:
            raise UserError(
                f"{str(opened.path)!r} was trained on the frozen {origins[name]!r}, which has changed: {name!r} "
                "differs. Restore the original, or leave frozen parts out with --stored_only"
            )
        yield memoryview(tensor.view(-1).view(torch.uint8).numpy())

    types = {name: str(kinds[name]).removeprefix("torch.") for name in digests}
    return {name: Stored(types[name], tuple(parameters[name].shape)) for name in digests}, elements


def load_frozen(module: MultimodalModule, names: set[str]) -> None:
    """Load the published weights of the parts with the parameters `names`."""
    from lit_mm.weights.source import load_part

    parameters = {id(parameter) for name, parameter in module.named_parameters() if name in names}
    for name, part in module.modules_by_part().items():
        if any(id(parameter) in parameters for parameter in part.parameters()):
            load_part(part, part.weights, name)


def _stand_in(module: MultimodalModule, names: set[str]) -> None:
    """Replace the tensors `names` of a model on the meta device by values without memory, which nothing reads."""
    import torch

    for prefix, part in module.named_modules():
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and f"{prefix}.{key}" in names:
                    value = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    parameter = isinstance(tensor, torch.nn.Parameter)
                    tensors[key] = torch.nn.Parameter(value, requires_grad=False) if parameter else value
