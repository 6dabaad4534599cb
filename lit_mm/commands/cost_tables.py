"""Tables of costs for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GIB, MIB = 1 << 30, 1 << 20
PREFIXES = ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (1, ""))
PARTS = ("forward", "backward", "recompute")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells in columns, the first column left and the others right, with a rule under the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "   ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def amount(number: float | None) -> str:
    """Format a number of operations: 15.5 T. None is "unknown"."""
    if number is None:
        return "unknown"
    size, prefix = next((pair for pair in PREFIXES if number >= pair[0]), PREFIXES[-1])
    return f"{number / size:.4g} {prefix}".rstrip()


def duration(seconds: float | None) -> str:
    """Format a planned time: 45 s, 12 min, 3.5 h, 2.1 days. None is "unknown"."""
    if seconds is None:
        return "unknown"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def cost_lines(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format the costs of all stages that have a plan of them."""
    planned = [stage for stage in stages if stage["costs"] is not None]
    if not planned:
        return []
    text = planned[0]["costs"]["samples"][0]["text"]
    rows = [["operations of a sample", *(stage["name"] for stage in planned)]]
    for label, samples in _by_sample(planned):
        rows.append([f"a sample of {label}", *(amount(sample["total"]) for sample in samples)])
        for kind in PARTS:
            if any(sample[kind] for sample in samples):
                rows.append([f"  {kind}", *(amount(sample[kind]) for sample in samples)])
        rows.append(["  causal attention halved", *(amount(s["total"] - s["causal"] / 2) for s in samples)])
    head = f"operations: one image and {text} text tokens, half of them learnt; MFU counts forward and backward"
    activations = [["MiB kept for the backward pass", *(stage["name"] for stage in planned)]]
    activations += list(_activation_rows([stage["costs"]["activations"] for stage in planned]))
    return ["", head, aligned(rows), "", aligned(activations), *_whole_lines(planned)]


def _by_sample(stages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield (image size, its sample in every stage) for sizes that no stage refuses."""
    by_stage = [{sample_label(sample): sample for sample in stage["costs"]["samples"]} for stage in stages]
    for label in by_stage[0]:
        if all(label in samples for samples in by_stage):
            yield label, [samples[label] for samples in by_stage]


def sample_label(sample: Mapping[str, Any]) -> str:
    """Return the size of a sample's image, or "text"."""
    return f"{sample['width']}x{sample['height']}" if "width" in sample else "text"


def _activation_rows(activations: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    parts = {part: None for each in activations for part in each["parts"]}
    for part in parts:
        kinds = {each["checkpointing"].get(part) for each in activations} - {None, "none"}
        label = f"{part} ({', '.join(sorted(kinds))} checkpointing)" if kinds else part
        yield [label, *(f"{each['parts'].get(part, 0) / MIB:,.1f}" for each in activations)]
    yield ["all parts", *(f"{each['total'] / MIB:,.1f}" for each in activations)]
    yield ["rows of a micro-batch", *(f"{each['micro_batch']:,}" for each in activations)]
    if all("largest_micro_batch" in each for each in activations):
        yield ["most rows that fit", *(f"{each['largest_micro_batch']:,}" for each in activations)]


def _whole_lines(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    costs = [stage["costs"] for stage in stages]
    rows = [["whole stage", *(stage["name"] for stage in stages)]]
    if any(each["data"] for each in costs):
        for name in ("steps", "samples", "tokens", "supervised", "views", "tokens_in_data", "views_in_data"):
            data = [each["data"] or {} for each in costs]
            if any(name in of for of in data):
                rows.append([name.replace("_", " "), *(_count(of, name) for of in data)])
    rows.append(["operations", *(amount(each["whole"]["operations"]) for each in costs)])
    first = costs[0]["whole"]
    if "seconds" in first:
        label = f"time at {first['utilisation']:.0%} of {first['device']}"
        rows.append([label, *(duration(each["whole"]["seconds"]) for each in costs)])
    if "price" in first:
        prices = [each["whole"]["price"] for each in costs]
        rows.append(["price", *("unknown" if price is None else f"{price:,.2f}" for price in prices)])
    return ["", aligned(rows), *estimate_lines(stages)]


def _count(data: Mapping[str, Any], name: str) -> str:
    """Format a count of a stage; "~" marks an estimate."""
    if name not in data:
        return "unknown"
    return f"{'~' if name in data['estimated'] else ''}{data[name]:,}"


def estimate_lines(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each stage whose counts are estimates."""
    for stage in stages:
        data = stage["costs"]["data"]
        if data and data["estimated"]:
            line = f"{stage['name']}: figures with ~ are estimated from {data['counted_rows']:,} rows"
            if data["can_be_indexed"] and not data["indexed"]:
                line += "; `python -m lit_mm data index --config RECIPE` stores the lengths that make them exact"
            yield line


def side_by_side(name: str, plan: Mapping[str, Any], other_name: str, other: Mapping[str, Any]) -> str:
    """Format two plans in one table; the ratio of two numbers stands in the last column."""
    rows = [["", name, other_name, "ratio"], ["family", plan["family"], other["family"], ""]]
    these, others = dict(_figures(plan)), dict(_figures(other))
    for label in [*these, *(label for label in others if label not in these)]:
        pair = these.get(label), others.get(label)
        both = all(isinstance(value, int | float) for value in pair) and pair[0]
        rows.append([label, *map(_cell, pair), f"{pair[1] / pair[0]:.2f}" if both else ""])
    return aligned(rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _figures(plan: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield (label, number) of the facts that two recipes are compared by."""
    yield "parameters", plan["parameters"]["total"]
    for image in plan.get("images", ()):
        yield f"visual tokens of {image['width']}x{image['height']}", image.get("visual_tokens")
    for stage in plan["stages"]:
        name = stage["name"]
        yield f"{name}: trainable", stage["trainable_total"]
        yield f"{name}: steps", stage["steps"]
        if stage["memory"] is not None:
            yield f"{name}: GiB per rank", stage["memory"]["device"]["total"] / GIB
        costs = stage["costs"]
        if costs is None:
            continue
        for sample in costs["samples"]:
            yield f"{name}: TFLOP of {sample_label(sample)}", sample["total"] / 10**12
        yield f"{name}: GiB of activations", costs["activations"]["total"] / GIB
        yield f"{name}: most rows that fit", costs["activations"].get("largest_micro_batch")
        whole = costs["whole"]
        yield f"{name}: EFLOP", None if whole["operations"] is None else whole["operations"] / 10**18
        yield f"{name}: hours", None if whole.get("seconds") is None else whole["seconds"] / 3600
        yield f"{name}: price", whole.get("price")
