"""`describe` prints the plan of a recipe, before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lit_mm.commands.cost_tables import aligned, cost_lines, side_by_side
from lit_mm.commands.costs import Assumptions, costs_of
from lit_mm.commands.options import Arguments
from lit_mm.commands.sizes import read_sizes
from lit_mm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lit_mm.commands.recipe import RecipeCLI
    from lit_mm.distributed.memory import Holding
    from lit_mm.module import MultimodalModule
    from lit_mm.samples.processor import Processor
    from lit_mm.stages.stage import Stage

EPILOG = """\
Any key of the recipe may follow, spelt as in the YAML: --model.init_args.image_size 448
Sizes are WIDTHxHEIGHT in pixels; @FILE is a JSON list of [width, height].

The JSON has `family`, `parameters` (`total`, `parts`), `stages` (`name`, `trainable` by part, `trainable_total`,
`frozen_total`, `unread` parts, `from_step` of parts that thaw later, `idle_steps` before the first part learns,
`starts_from` of a branch, `steps` or `epochs`, `rows_per_step`, `samples_per_step`, `depends_on`, `memory`) and, with
--images, `images` (`width`, `height`, `views`, `grid` as [columns, rows] of tiles, `visual_tokens`) as the finished
model sees them. A stage that sees them in another way has its own `images`; `images_by_source` has those of sources
with a tiling of their own. A size that the tiling refuses has `refused`, the reason, in place of views, grid and
tokens.

`depends_on` maps each objective that compares samples to the samples that the loss of a pair depends on.

`memory` is the memory of the fullest rank in bytes, without activations:
  device, host (through offloading)  weights, masters, gradients, moments, gathered, buckets, total
  largest_layer     smallest amount that ZeRO-3 gathers at once
  between_stages    whole model in host memory: each of the `ranks_per_node` builds it before a strategy shards it, and
                    keeps it between stages
  strategy, zero (its stage, 0 for none), ranks, precision
  ranks_from        recipe, option, or assumed (`trainer.devices: auto` counts as one)
  accumulation      micro-batches of a step; null, and planned as 1, if the batch does not split over the ranks

`costs` of a stage is null for a model that reads pixels only. Else it has:
  samples           operations of a sample of one image and `text` tokens, half of them learnt, for each size of
                    --images (default: 336x336): forward, backward, recompute (layers that activation checkpointing
                    computes again), causal (part of both in causal attention, which is counted in full), total
                    (forward and backward, as in MFU), parts
  activations       bytes that a micro-batch of `micro_batch` rows keeps for the backward pass: parts, total, per_row,
                    checkpointing by part, and largest_micro_batch for the memory of --device or --memory. The
                    micro-batch has such samples; with --data it is the largest of the stage's first ones. Compiled
                    layers without checkpointing may keep less
  data              with --data: steps, samples, tokens, supervised, views of the stage. They are counted in
                    `counted_rows` of its rows: all of them if there is an index of lengths (`indexed`), else the first
                    ones. `estimated` lists figures that are estimates. With an index also tokens_in_data,
                    views_in_data, supervised_in_data
  whole             operations_per_step, operations; with --device also seconds, price. They are computed from the first
                    micro-batches, and null if the number of steps is unknown

With --against OTHER, the JSON has `this` and `against`."""

GIB, MIB = 1 << 30, 1 << 20


def describe(arguments: Sequence[str]) -> None:
    """Print the plan of a recipe: parameters by part, trainable parts and memory of each stage, visual tokens.

    No weight is loaded. Data are read only with --data.
    """
    parser = Arguments(
        prog="python -m lit_mm describe",
        usage="python -m lit_mm describe --config FILE [--images SIZES] [--text N] [--ranks N] [--data]\n"
        "       [--device NAME|TFLOPS [--utilisation SHARE] [--price PER_HOUR]] [--memory GIB] [--against OTHER]\n"
        "       [--format text|json] [--KEY VALUE ...]",
        description=describe.__doc__,
        epilog=EPILOG,
    )
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="recipe; later ones override earlier ones"
    )
    parser.add_argument("--images", metavar="SIZES", help="image sizes: 336x336,1008x672 or @FILE")
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="number of processes (default: devices x num_nodes of the recipe)"
    )
    parser.add_argument(
        "--text", type=int, default=64, metavar="N", help="number of text tokens in a sample (default: 64)"
    )
    parser.add_argument(
        "--data", action="store_true", help="also read the data, for the numbers of steps, samples and tokens"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="device for the time: a name such as H100, or its peak in TFLOP/s"
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="assumed share of the device's peak (default: 0.4)",
    )
    parser.add_argument("--price", type=float, metavar="PRICE", help="price of one device per hour")
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory of a device, for the largest micro-batch (default: that of --device)",
    )
    parser.add_argument("--against", metavar="OTHER", help="second recipe, printed beside the first")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="format of the output (default: text)"
    )
    choices, overrides = parser.parse_known_args(arguments)
    sizes = None if choices.images is None else read_sizes(choices.images)
    if choices.ranks is not None and choices.ranks < 1:
        raise UserError(f"--ranks counts processes from 1, got {choices.ranks}")
    assumptions = Assumptions(
        choices.text, choices.data, choices.device, choices.utilisation, choices.price, choices.memory
    )
    plan = plan_of(open_recipe(parser, choices.config, overrides), sizes, choices.ranks, assumptions)
    if choices.against is None:
        print(json.dumps(plan) if choices.format == "json" else tables(plan))
        return
    other = plan_of(open_recipe(parser, [choices.against], overrides), sizes, choices.ranks, assumptions)
    if choices.format == "json":
        print(json.dumps({"this": plan, "against": other}))
    else:
        print(side_by_side(choices.config[-1], plan, choices.against, other))


def open_recipe(parser: Arguments, configs: Sequence[str], overrides: Sequence[str]) -> RecipeCLI:
    """Parse a recipe and build its model on the meta device, which has sizes and no memory.

    Args:
        parser: parser of the command, whose options are candidates for a misspelt one.
        overrides: words that this parser left over.
    """
    import torch  # seconds of import, which --help and a misspelt option need not wait for

    from lit_mm.commands.recipe import RecipeCLI, quiet

    quiet()
    with torch.device("meta"):
        words = [word for path in configs for word in ("--config", path)]
        return RecipeCLI([*words, *overrides], parser.prog.split()[-1], options=parser.options)


def plan_of(
    cli: RecipeCLI,
    sizes: Sequence[tuple[int, int]] | None = None,
    ranks: int | None = None,
    assumptions: Assumptions | None = None,
) -> dict[str, Any]:
    """Return the facts of a recipe, ready for JSON.

    Args:
        sizes: (width, height) of images to lay out, pixels.
        ranks: number of processes; None for the recipe's.
        assumptions: see `Assumptions`; None: the defaults.
    Raises:
        UserError: the stages do not fit the model, the strategy cannot train it on so many ranks, or there are `sizes`
            and the model reads no images.
    """
    from lit_mm.module import family_of
    from lit_mm.stages.stage import branches

    model, stages = cli.model, cli.stages
    model.check_recipe(stages)
    parts = {part: sum(p.numel() for p in tensors.values()) for part, tensors in model.parts().items()}
    plan: dict[str, Any] = {
        "family": family_of(model),
        "parameters": {"total": sum(parts.values()), "parts": parts},
        "stages": [stage_plan(cli, stage, sizes, ranks, assumptions or Assumptions()) for stage in stages],
    }
    for planned in plan["stages"]:
        planned["starts_from"] = branches(stages).get(planned["name"])
    if sizes is not None:
        processor = model.processor
        if processor is None or processor.token_grid is None:
            raise UserError(f"--images: {plan['family']} reads no images. Leave --images out")
        final = laid_out_images(processor, sizes)
        plan |= final
        for stage, planned in zip(stages, plan["stages"], strict=True):
            first, *later = model.processors_of(stage).items()
            before = laid_out_images(first[1], sizes)
            planned |= differing(before, final)
            planned["images_from"] = {}
            for step, processor in later:
                after = laid_out_images(processor, sizes)
                if differing(after, before):
                    planned["images_from"][str(step)] = differing(after, before)
                before = after
    return plan


def stage_plan(
    cli: RecipeCLI,
    stage: Stage,
    sizes: Sequence[tuple[int, int]] | None,
    ranks: int | None,
    assumptions: Assumptions,
) -> dict[str, Any]:
    """Return the trainable parts of a stage, its length, its memory and its costs."""
    from lit_mm.stages.stage import adapters_of
    from lit_mm.stages.thaw import idle_steps

    model, data = cli.model, cli.data_of(stage)
    ended = [part for part, adapter in model.adapters.items() if adapter.after != "keep"]
    model.end_adapters(dict.fromkeys(ended, "drop"))  # to merge one would change no size
    model.set_adapters(adapters_of(cli.stages)[stage.name])
    model.begin(stage, total_steps=stage.max_steps or 0)  # `fit` freezes the same parts
    parts = model.parts()
    trainable = {part: sum(p.numel() for p in parts[part].values() if p.requires_grad) for part in stage.train_parts}
    total = sum(trainable.values())
    unread = sorted(parts.keys() - model.parts_read(stage))
    with model.reading_only(stage):
        memory = memory_plan(cli, data, ranks)
        costs = costs_of(cli, stage, memory, sizes, assumptions)
    return {
        "name": stage.name,
        "trainable": trainable,
        "trainable_total": total,
        "frozen_total": sum(p.numel() for tensors in parts.values() for p in tensors.values()) - total,
        "unread": unread,
        "from_step": {part: train.from_step for part, train in stage.train_parts.items() if train.from_step},
        "idle_steps": idle_steps(stage),
        "steps": stage.max_steps,
        "epochs": stage.epochs if stage.max_steps is None else None,
        "depends_on": comparisons_of(cli, stage, data, ranks),
        "rows_per_step": data.global_batch,
        "samples_per_step": data.global_batch if data.row_tokens is None else None,  # a packed row has several
        "memory": memory,
        "costs": costs,
    }


def memory_plan(cli: RecipeCLI, data: Any, ranks: int | None = None) -> dict[str, Any] | None:
    """Return the memory of the fullest rank in the current stage; None if there is no plan for its precision.

    Args:
        data: data module of the stage, which splits its batch.
        ranks: number of processes; None for the recipe's.
    """
    from lit_mm.distributed.memory import plan_memory, weights_of
    from lit_mm.distributed.names import spread_of
    from lit_mm.distributed.precision import resolved

    trainer = cli.config.trainer.as_dict()
    count, ranks_from = ranks_of(trainer) if ranks is None else (ranks, "option")
    precision = resolved(trainer["precision"], trainer["accelerator"])
    accumulation, rest = divmod(data.global_batch, data.micro_batch_on(count) * count)
    if rest:
        accumulation = None
    spread = spread_of(trainer["strategy"], ranks=count, precision=precision, accumulation=accumulation or 1)
    if spread is None:
        return None
    planned = plan_memory(weights_of(cli.model), spread)
    strategy = trainer["strategy"]
    return {
        "strategy": strategy if isinstance(strategy, str) else strategy["class_path"],
        "zero": spread.zero,
        "ranks": count,
        "ranks_from": ranks_from,
        "precision": precision,
        "accumulation": accumulation,
        "device": _bytes(planned.device),
        "host": _bytes(planned.host),
        "largest_layer": planned.largest_layer,
        "between_stages": sum(tensor.nbytes for tensor in model_tensors(cli.model)),
        "ranks_per_node": -(-count // trainer["num_nodes"]),
    }


def model_tensors(model: MultimodalModule) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a model once each."""
    yield from {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()


def _bytes(holding: Holding) -> dict[str, int]:
    return asdict(holding) | {"total": holding.total}


def ranks_of(trainer: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of processes in a recipe's `trainer`, and its origin, "recipe" or "assumed".

    "auto" and -1 mean all devices of a machine and count as one per node.

    Raises:
        UserError: `devices` is not a number of devices, or `num_nodes` not one of nodes.
    """
    devices = trainer["devices"]
    if trainer["num_nodes"] < 1:
        raise UserError(f"trainer.num_nodes counts nodes from 1, got {trainer['num_nodes']}")
    if str(devices) in ("auto", "-1"):
        return trainer["num_nodes"], "assumed"
    listed = devices.strip(",").split(",") if isinstance(devices, str) and "," in devices else devices
    try:
        count = len(listed) if isinstance(listed, list) else int(listed)
    except ValueError:
        count = 0
    if count < 1:
        raise UserError(f"trainer.devices takes a number of devices, a list of them, or auto; got {devices!r}")
    return count * trainer["num_nodes"], "recipe"


def comparisons_of(cli: RecipeCLI, stage: Stage, data: Any, ranks: int | None = None) -> dict[str, str]:
    """Describe, by objective of a stage that compares samples, what the loss of a pair depends on.

    Args:
        data: data module of the stage, which splits its batch.
        ranks: number of processes; None for the recipe's.
    """
    from lit_mm.objectives.objective import Comparing

    count = ranks_of(cli.config.trainer.as_dict())[0] if ranks is None else ranks
    pairs = data.micro_batch_on(count)
    weights = cli.model.weights_of_objectives(stage)
    comparing = {name: of for name, of in cli.model.objectives.items() if name in weights and isinstance(of, Comparing)}
    if data.global_batch != pairs * count:
        text = f"needs all {data.global_batch:,} pairs of a step in one forward, got {pairs:,} x {count:,}"
        return dict.fromkeys(comparing, text)
    return {name: objective.depends_on(cli.model.network, pairs, count) for name, objective in comparing.items()}


def laid_out_images(processor: Processor, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return `images`, and `images_by_source` if sources have other tilings."""
    by_source = {source: images(processor, sizes, source) for source in processor.by_source}
    return {"images": images(processor, sizes)} | ({"images_by_source": by_source} if by_source else {})


def differing(images: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of `laid_out_images` that differ from `others`; {} for sources without a tiling any more."""
    return {key: images.get(key, {}) for key in others | images if images.get(key) != others.get(key)}


def images(processor: Processor, sizes: Sequence[tuple[int, int]], source: str = "") -> list[dict[str, Any]]:
    """Return views, grid and visual tokens of images, or the reason of a refusal, ready for JSON.

    Args:
        sizes: (width, height) of each image, pixels.
        source: name of the documents' source, which may have another tiling.
    """
    laid_out = []
    for width, height in sizes:
        try:
            plan = processor.tiling_of(source)(height, width)
        except UserError as error:
            laid_out.append({"width": width, "height": height, "refused": str(error)})
            continue
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
    """Format the plan as tables for people."""
    from lit_mm.stages.thaw import idle_line

    stages = plan["stages"]
    rows = [["part", "parameters", *(stage["name"] for stage in stages)]]
    for part, count in plan["parameters"]["parts"].items():
        rows.append([part, f"{count:,}", *(_learns(stage, part) for stage in stages)])
    rows.append(["total", f"{plan['parameters']['total']:,}", *[""] * len(stages)])
    rows.append(["trainable", "", *(f"{stage['trainable_total']:,}" for stage in stages)])
    rows.append(["frozen", "", *(f"{stage['frozen_total']:,}" for stage in stages)])
    if any(stage["starts_from"] for stage in stages):
        rows.append(["starts from", "", *(stage["starts_from"] or "" for stage in stages)])
    rows.append(["length", "", *(_length(stage) for stage in stages)])
    rows.append(["batch", "", *(_batch(stage) for stage in stages)])
    idle = [idle_line(stage["name"], stage["idle_steps"]) for stage in stages if stage["idle_steps"]]
    text = [plan["family"], "", aligned(rows), *idle, "", memory_table(stages), *cost_lines(stages)]
    for who, listed in _seen_by(plan):
        sizes = [["image", "views", "grid", "visual tokens"]]
        reasons = []
        for image in listed:
            size = f"{image['width']}x{image['height']}"
            if "refused" in image:
                sizes.append([size, "-", "-", "refused"])
                reasons.append(f"{size}: {image['refused']}")
                continue
            grid = "{} x {}".format(*image["grid"])
            sizes.append([size, str(image["views"]), grid, f"{image['visual_tokens']:,}"])
        text += ["", f"images in {who} (grids are columns x rows of tiles)", aligned(sizes), *reasons]
    return "\n".join([*text, *comparison_lines(stages)])


def _seen_by(plan: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Return (owner, images) of the finished model and of the stages that differ, each followed by its sources."""
    views = [("the finished model", plan)]
    for stage in plan["stages"]:
        views.append((f"stage {stage['name']}", stage))
        views += [(f"stage {stage['name']} from step {step}", of) for step, of in stage.get("images_from", {}).items()]
    for who, of in views:
        if "images" in of:
            yield who, of["images"]
        for source, listed in of.get("images_by_source", {}).items():
            yield f"{who}, source {source}", listed


def comparison_lines(stages: Sequence[dict[str, Any]]) -> list[str]:
    """Describe what objectives that compare samples depend on; no line if there are none."""
    lines = [f"{stage['name']}, {name}: {text}" for stage in stages for name, text in stage["depends_on"].items()]
    return ["", "objectives that depend on the batch and its split", *lines] if lines else []


def memory_table(stages: Sequence[dict[str, Any]]) -> str:
    """Format the memory of a rank in each stage. Rows that are zero in all stages are left out."""
    planned = [stage["memory"] for stage in stages]
    if None in planned:
        return "memory: not known beforehand in this precision"
    largest = max(memory[place]["total"] for memory in planned for place in ("device", "host"))
    unit, size = ("GiB", GIB) if largest >= GIB else ("MiB", MIB)
    rows = [[f"{unit} per rank", *(stage["name"] for stage in stages)]]
    for place, where in (("device", ""), ("host", "host: ")):
        for name in planned[0][place]:
            amounts = [memory[place][name] for memory in planned]
            if any(amounts):
                rows.append([where + name, *(f"{amount / size:,.2f}" for amount in amounts)])
    turns = [
        "batch does not split" if memory["accumulation"] is None else f"{memory['accumulation']:,}"
        for memory in planned
    ]
    first = planned[0]
    rows.append(
        ["host: whole model between stages", *(f"{memory['between_stages'] / size:,.2f}" for memory in planned)]
    )
    rows.append(["micro-batches a step", *turns])
    ranks = f"{first['ranks']:,} rank" + "s" * (first["ranks"] > 1)
    assumed = " (trainer.devices counts as one: --ranks N plans for N)" if first["ranks_from"] == "assumed" else ""
    head = f"memory under {first['strategy']} on {ranks}{assumed}, {first['precision']}. Activations come on top"
    lines = [head, aligned(rows)]
    if first["ranks_per_node"] > 1:
        node = first["ranks_per_node"] * max(memory["between_stages"] for memory in planned)
        lines.append(
            f"between stages each of the {first['ranks_per_node']:,} ranks of a node holds the model whole: "
            f"{node / size:,.2f} {unit} of host memory a node"
        )
    return "\n".join(lines)


def _learns(stage: dict[str, Any], part: str) -> str:
    if part in stage["unread"]:
        return "not read"
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
