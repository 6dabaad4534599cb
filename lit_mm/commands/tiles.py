"""`tiles` prints the views that a recipe's tiling cuts an image into."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lit_mm.commands.describe import aligned, images, open_recipe
from lit_mm.commands.options import Arguments
from lit_mm.commands.sizes import read_sizes
from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.commands.recipe import RecipeCLI
    from lit_mm.documents.files import FilePicture
    from lit_mm.samples.processor import Processor
    from lit_mm.tiling.plan import TilePlan

EPILOG = """\
Any key of the recipe may follow, spelt as in the YAML: --model.init_args.image_size 448

The JSON has `width`, `height`, `views`, `grid` as [columns, rows] of tiles, `visual_tokens`, `thumbnail` (position of
the global view: "first", "last" or null), and `cuts`, one for each view in the order of the vision encoder:
  number, kind   number from 1; "tile" or "whole"
  size, tokens   [width, height] in pixels; [columns, rows] of visual tokens
  shows          [left, top, right, bottom] in pixels of the image; padding lies outside of the image
  resize         [width, height] to which the image is resized first
  canvas, offset [width, height] of the canvas; [left, top] of the resized image on it
  box            [left, top, width, height] on the canvas that is cut out and brought to `size`

Several sizes make a list. A size that the tiling refuses has `width`, `height` and `refused`, the reason."""


def tiles(arguments: Sequence[str]) -> None:
    """Print or draw the views into which a recipe's tiling cuts an image. No weight is loaded."""
    parser = Arguments(
        prog="python -m lit_mm tiles",
        usage="python -m lit_mm tiles --config FILE (--image FILE | --size WIDTHxHEIGHT) [--stage NAME]\n"
        "       [--format text|json] [--picture FILE] [--KEY VALUE ...]",
        description=tiles.__doc__,
        epilog=EPILOG,
    )
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="recipe; later ones override earlier ones"
    )
    parser.add_argument("--image", metavar="FILE", help="image")
    parser.add_argument(
        "--size", metavar="SIZES", help="image sizes instead of an image, pixels: 1008x672 or 1008x672,336x336 or @FILE"
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="use the tiling of this stage (default: that of the finished model)"
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="format of the output (default: text)"
    )
    parser.add_argument("--picture", metavar="FILE", help="draw the numbered tiles into this .png")
    choices, overrides = parser.parse_known_args(arguments)
    if (choices.image is None) == (choices.size is None):
        raise UserError("tiles needs either --image FILE or --size WIDTHxHEIGHT (python -m lit_mm tiles --help)")
    sizes = [] if choices.size is None else read_sizes(choices.size, "--size")

    from lit_mm.documents.files import FilePicture

    picture = None if choices.image is None else FilePicture.open(choices.image)
    processor = processor_of(open_recipe(parser, choices.config, overrides), choices.stage)
    if len(sizes) > 1:
        if choices.picture is not None:
            raise UserError(f"--picture draws one image, --size names {len(sizes)} sizes. Leave out one of the two")
        layouts = [cut_or_refusal(processor, *size) for size in sizes]
        texts = [summary(layout) for layout in layouts]
        print(json.dumps(layouts) if choices.format == "json" else "\n\n".join(texts))
        return
    width, height = sizes[0] if sizes else (picture.width, picture.height)
    layout = cut(processor, width, height)
    print(json.dumps(layout) if choices.format == "json" else summary(layout))
    if picture is not None and choices.format == "text" and (line := decoded_at(processor, picture)):
        print(line)
    if choices.picture is not None:
        from lit_mm.tiling.picture import draw_plan

        pixels = None if picture is None else picture.read()
        drawing = draw_plan(processor.tiling(height, width), pixels, summary(layout, brief=True))
        try:
            drawing.save(choices.picture)
        except (OSError, ValueError) as error:
            raise UserError(f"the picture cannot be written to {choices.picture!r} ({error}). Choose a .png") from error


def decoded_at(processor: Processor, picture: FilePicture) -> str:
    """Say at which fraction of its size a JPEG is decoded; "" for a picture that is decoded whole."""
    least = processor.normalise.least(processor.tiling(picture.height, picture.width).views)
    height, _ = picture.pixels(least).shape[1:]
    divisor = round(picture.height / height)
    if divisor == 1:
        return ""
    return (
        f"this JPEG is decoded at 1/{divisor} of its size, which changes pixels by less than 1 of 255 on average; "
        "`inputs.whole_jpegs: true` decodes it whole"
    )


def processor_of(cli: RecipeCLI, stage: str | None) -> Processor:
    """Return the processor of the finished model, or of a stage.

    Raises:
        UserError: the stage does not exist, or the model reads no images.
    """
    processor, stages = cli.model.processor, {item.name: item for item in cli.stages}
    if processor is None or processor.token_grid is None:
        raise UserError("tiles: the model of this recipe reads no images")
    if stage is None:
        return processor
    if stage not in stages:
        raise UserError(f"--stage names {stage!r}; the recipe has {list(stages)}")
    return cli.model.processor_of(stages[stage])


def cut_or_refusal(processor: Processor, width: int, height: int) -> dict[str, Any]:
    """Return `cut` of a size; if the tiling refuses the size, its `width`, `height` and the reason, `refused`."""
    try:
        return cut(processor, width, height)
    except UserError as error:
        return {"width": width, "height": height, "refused": str(error)}


def cut(processor: Processor, width: int, height: int) -> dict[str, Any]:
    """Return the views of an image, ready for JSON; see the command's help.

    Raises:
        UserError: the tiling refuses the size.
    """
    from lit_mm.tiling.picture import region

    plan: TilePlan = processor.tiling(height, width)
    cuts = []
    for number, view in enumerate(plan.views):
        rows, columns = processor.token_grid(view.size)
        top, left, high, wide = view.box
        cuts.append(
            {
                "number": number + 1,
                "kind": "tile" if number in plan.tiles else "whole",
                "size": [view.size[1], view.size[0]],
                "tokens": [columns, rows],
                "shows": [round(edge, 2) for edge in region(view, plan.image)],
                "resize": [view.resize[1], view.resize[0]],
                "canvas": [view.canvas[1], view.canvas[0]],
                "offset": [view.offset[1], view.offset[0]],
                "box": [left, top, wide, high],
            }
        )
    return images(processor, [(width, height)])[0] | {"thumbnail": plan.thumbnail, "cuts": cuts}


def summary(layout: dict[str, Any], *, brief: bool = False) -> str:
    """Format a result of `cut` as text.

    Args:
        brief: True puts views of one kind and size on one line, without their places in the image.
    """
    if "refused" in layout:
        return f"{layout['width']} x {layout['height']} pixels: refused. {layout['refused']}"
    columns, rows = layout["grid"]
    views = f"{layout['views']} view" + ("s" if layout["views"] > 1 else "")
    head = (
        f"{layout['width']} x {layout['height']} pixels: {columns} x {rows} tiles, {views}, "
        f"{layout['visual_tokens']:,} visual tokens"
    )
    if brief:
        lines = [head]
        for (kind, size), same in groupby(layout["cuts"], key=lambda view: (view["kind"], tuple(view["size"]))):
            numbers = [view["number"] for view in same]
            which = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
            lines.append(f"{which}: {kind}, {size[0]} x {size[1]} pixels")
        return "\n".join(lines)
    table = [["view", "kind", "size", "tokens", "shows (left, top, right, bottom)"]]
    for view in layout["cuts"]:
        shows = ", ".join(f"{edge:g}" for edge in view["shows"])
        sizes = ["{} x {}".format(*view[key]) for key in ("size", "tokens")]
        table.append([str(view["number"]), view["kind"], *sizes, shows])
    return f"{head}\n{aligned(table)}"
