"""`describe`: the plan of a recipe, before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lit_mm.commands.options import Arguments
from lit_mm.commands.sizes import read_sizes
from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.commands.recipe import RecipeCLI
    from lit_mm.processor import Processor
    from lit_mm.stages import Stage

EPILOG = """\
Any key of the recipe may follow, spelt as in the YAML: --model.init_args.image_size 448
Sizes are WIDTHxHEIGHT in pixels; @FILE is a JSON list of [width, height].

The JSON has `family`, `parameters` (`total`, `parts`), `stages` (`name`, `trainable` by part, `trainable_total`,
`frozen_total`, `from_step` of parts that thaw later, `steps` or `epochs`, `rows_per_step`, `samples_per_step`) and,
with --images, `images` (`width`, `height`, `views`, `grid` as [columns, rows] of tiles, `visual_tokens`) as the
finished model sees them. A stage that sees them otherwise has `images` of its own. Where documents of some sources are
tiled otherwise, `images_by_source` has what the same images become there, by the source's name, of the model and of
every stage that differs. What is not known beforehand is null."""


def describe(arguments: Sequence[str]) -> None:
    """Say what a recipe makes: parameters by part, what learns in each stage, visual tokens of images.

    No weight is loaded and no data is read.
    """
    parser = Arguments(
        prog="python -m lit_mm describe",
        usage="python -m lit_mm describe --config FILE [--images SIZES] [--format text|json] [--KEY VALUE ...]",
        description=describe.__doc__,
        epilog=EPILOG,
    )
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="the recipe; later ones override"
    )
    parser.add_argument("--images", metavar="SIZES", help="image sizes: 336x336,1008x672 or @FILE")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what to print (default: text)")
    chosen, overrides = parser.parse_known_args(arguments)
    sizes = None if chosen.images is None else read_sizes(chosen.images)
    plan = plan_of(open_recipe(parser, chosen.config, overrides), sizes)
    print(json.dumps(plan) if chosen.format == "json" else tables(plan))


def open_recipe(parser: Arguments, configs: Sequence[str], overrides: Sequence[str]) -> RecipeCLI:
    """The recipe and its model on the meta device: sizes without memory.

    Args:
        parser: of the command, whose options a misspelt one may have meant.
        overrides: what that parser left over.
    """
    import torch  # seconds, which --help and a misspelt option need not wait

    from lit_mm.commands.recipe import RecipeCLI, quiet

    quiet()
    with torch.device("meta"):
        words = [word for path in configs for word in ("--config", path)]
        return RecipeCLI([*words, *overrides], parser.prog.split()[-1], options=parser.options)


def plan_of(cli: RecipeCLI, sizes: Sequence[tuple[int, int]] | None = None) -> dict[str, Any]:
    """The facts of a recipe, ready for JSON.

    Args:
        sizes: (width, height) of images to lay out, pixels.
    Raises:
        UserError: the recipe's stages do not fit its model, or it is asked about images and reads none.
    """
    from lit_mm.module import family_of
    from lit_mm.stages import check_recipe

    model, stages = cli.model, cli.stages
    check_recipe(stages, model.parts())
    parts = {part: sum(p.numel() for p in held.values()) for part, held in model.parts().items()}
    plan: dict[str, Any] = {
        "family": family_of(model),
        "parameters": {"total": sum(parts.values()), "parts": parts},
        "stages": [stage_plan(cli, stage) for stage in stages],
    }
    if sizes is not None:
        processor = model.processor
        if getattr(processor, "token_grid", None) is None:
            raise UserError(f"--images: {plan['family']} lays out no images. Leave it out")
        seen = seen_images(processor, sizes)
        plan |= seen
        for stage, planned in zip(stages, plan["stages"], strict=True):
            of_stage = seen_images(processor.of_stage(stage.name), sizes)
            planned |= {key: of_stage.get(key, {}) for key in seen | of_stage if of_stage.get(key) != seen.get(key)}
    return plan


def stage_plan(cli: RecipeCLI, stage: Stage) -> dict[str, Any]:
    """What learns in a stage, and for how long."""
    model, data = cli.model, cli.data_of(stage)
    model.begin(stage, total_steps=stage.max_steps or 0)  # as `fit` does: what it freezes is frozen here
    parts = model.parts()
    trainable = {part: sum(p.numel() for p in parts[part].values() if p.requires_grad) for part in stage.train}
    total = sum(trainable.values())
    return {
        "name": stage.name,
        "trainable": trainable,
        "trainable_total": total,
        "frozen_total": sum(p.numel() for held in parts.values() for p in held.values()) - total,
        "from_step": {part: train.from_step for part, train in stage.train.items() if train.from_step},
        "steps": stage.max_steps,
        "epochs": stage.epochs if stage.max_steps is None else None,
        "rows_per_step": data.global_batch,
        "samples_per_step": data.global_batch if data.row_tokens is None else None,  # a packed row holds several
    }


def seen_images(processor: Processor, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """`images` and, where sources have tilings of their own, `images_by_source`."""
    by_source = {source: images(processor, sizes, source) for source in processor.by_source}
    return {"images": images(processor, sizes)} | ({"images_by_source": by_source} if by_source else {})


def images(processor: Processor, sizes: Sequence[tuple[int, int]], source: str = "") -> list[dict[str, Any]]:
    """What images become.

    Args:
        sizes: (width, height), pixels.
        source: of the documents that they are in.
    """
    laid_out = []
    for width, height in sizes:
        plan = processor.tiling_of(source)(height, width)
        rows, columns = plan.grid
        laid_out.append(
            {
                "width": width,
                "height": height,
                "views": len(plan.views),
                "grid": [columns, rows],
                "visual_tokens": processor.visual_tokens(height, width, source),
            }
        )
    return laid_out


def tables(plan: dict[str, Any]) -> str:
    """The plan for people."""
    stages = plan["stages"]
    rows = [["part", "parameters", *(stage["name"] for stage in stages)]]
    for part, count in plan["parameters"]["parts"].items():
        rows.append([part, f"{count:,}", *(_learns(stage, part) for stage in stages)])
    rows.append(["total", f"{plan['parameters']['total']:,}", *[""] * len(stages)])
    rows.append(["trainable", "", *(f"{stage['trainable_total']:,}" for stage in stages)])
    rows.append(["frozen", "", *(f"{stage['frozen_total']:,}" for stage in stages)])
    rows.append(["length", "", *(_length(stage) for stage in stages)])
    rows.append(["batch", "", *(_batch(stage) for stage in stages)])
    text = [plan["family"], "", aligned(rows)]
    for who, listed in _seen_by(plan):
        sizes = [["image", "views", "grid", "visual tokens"]]
        for one in listed:
            grid = "{} x {}".format(*one["grid"])
            sizes.append([f"{one['width']}x{one['height']}", str(one["views"]), grid, f"{one['visual_tokens']:,}"])
        text += ["", f"images in {who} (grids are columns x rows of tiles)", aligned(sizes)]
    return "\n".join(text)


def _seen_by(plan: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Who sees images how: the model, then the stages that differ, each before its sources."""
    for who, of in (("the finished model", plan), *((f"stage {stage['name']}", stage) for stage in plan["stages"])):
        if "images" in of:
            yield who, of["images"]
        for source, listed in of.get("images_by_source", {}).items():
            yield f"{who}, source {source}", listed


def _learns(stage: dict[str, Any], part: str) -> str:
    if part not in stage["trainable"]:
        return "frozen"
    start = stage["from_step"].get(part)
    return "trained" if start is None else f"from step {start}"


def _length(stage: dict[str, Any]) -> str:
    if stage["steps"] is not None:
        return f"{stage['steps']:,} steps"
    return "1 epoch" if stage["epochs"] == 1 else f"{stage['epochs']} epochs"


def _batch(stage: dict[str, Any]) -> str:
    packed = stage["samples_per_step"] is None
    return f"{stage['rows_per_step']:,} packed rows" if packed else f"{stage['samples_per_step']:,} samples"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns: the first to the left, the others to the right; a rule under the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "   ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
