"""Rules that say which vision encoder, connector, tiling and layout go together. This module imports no torch.

An injection into the language model (such as partial LoRA) reads the visual places alone and goes with everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

Size = tuple[int, int]  # (height, width), pixels
MOST_CHANGES = 4  # changes of size, class token, connector and layout suffice for every choice of `Recombined`
Thumbnail = Literal["first", "last"] | None


@dataclass(frozen=True)
class Properties:
    """Properties of the parts of one model. `lit_mm.combination.declared` measures them.

    Attributes:
        view: size of every view of the tiling, pixels; None: sizes follow the image.
        thumbnail: position of the view of the whole image in the tiling's plans; None: there is none.
        takes_view: the only view size of the vision encoder, pixels; None: it takes any.
        class_token: True if the vision encoder returns its class token.
        reads_class_token: True if the connector accepts a class token.
        grids: grids of patches that the connector takes: any, square ones, or one only.
        order: order of the connector's visual tokens: that of the patches row by row or column by column, or queries,
            which have no place in the image.
        learned: number of vectors of the connector that a layout may place.
        places: number of learned vectors that the layout places.
        lays_out: thumbnails of the plans whose visual tokens the layout places completely and once.
        rows: True if the layout splits the tokens of a view into rows.
        adapters: number of windows with adapters in the vision encoder (Monkey's); 0 if there are none.
        windows: number of windows per image if fixed, else 0. It equals `adapters` for a tiling of views of the whole
            alone, which have no adapters.
    """

    view: Size | None
    thumbnail: Thumbnail
    takes_view: Size | None
    class_token: bool
    reads_class_token: bool
    grids: Literal["any", "square", "one"]
    order: Literal["rows", "columns", "queries"]
    learned: int
    places: int
    lays_out: frozenset[Thumbnail]
    rows: bool
    adapters: int = 0
    windows: int = 0


Part = Literal["vision", "connector", "learned", "layout", "tiling", "view"]
EVERYTHING: frozenset[Part] = frozenset(get_args(Part))  # `Recombined` lets a recipe choose all parts
IN_A_FAMILY: frozenset[Part] = frozenset({"vision", "connector", "view"})  # tiling and layout of a family stay


def objection(p: Properties) -> str | None:
    """Return the reason why these parts do not go together; None if they do."""
    if p.takes_view is not None and p.view != p.takes_view:
        views = "of sizes that follow the image" if p.view is None else f"of {_pixels(p.view)}"
        return f"the tiling makes views {views}, the vision encoder takes {_pixels(p.takes_view)} alone"
    if p.adapters and p.adapters != p.windows:
        cut = f"cuts every image into {p.windows}" if p.windows else "cuts none that are the same for every image"
        return f"the vision encoder has adapters for {_counted(p.adapters, 'window')}, the tiling {cut}"
    if p.class_token and not p.reads_class_token:
        return "the vision encoder hands over its class token, which the connector would take for a patch"
    if p.grids == "square" and (p.view is None or p.view[0] != p.view[1]):
        return "the connector takes square grids of patches alone, the tiling makes views that are not square"
    if p.grids == "one" and p.view is None:
        return "the connector takes one grid of patches alone, the tiling makes views whose sizes follow the image"
    if p.places > p.learned:
        return f"the layout places {_counted(p.places, 'learned vector')}, the connector has {p.learned or 'none'}"
    if p.thumbnail not in p.lays_out:
        needed = " or ".join(sorted(_whole(thumbnail) for thumbnail in p.lays_out)) or "no tiling at all"
        return f"the layout is for plans with {needed}, the tiling makes {_whole(p.thumbnail)}"
    if p.rows and p.order != "rows":
        lie = "are queries that lie nowhere" if p.order == "queries" else "leave column by column"
        return f"the layout arranges rows of visual tokens, those of the connector {lie}"
    return None


@cache
def nearest(p: Properties, free: frozenset[Part] = EVERYTHING) -> tuple[str, ...]:
    """Return the shortest list of changes after which the parts go together, as lines of the recipe.

    Args:
        free: parts that may be changed. With `EVERYTHING` there is always a list of at most `MOST_CHANGES`.
    Returns:
        () if the parts go together already, or if no `MOST_CHANGES` changes of the free parts are enough.
    """
    for depth in range(MOST_CHANGES + 1):
        if (choice := _within(p, depth, free)) is not None:
            return choice
    return ()


def _within(p: Properties, depth: int, free: frozenset[Part]) -> tuple[str, ...] | None:
    """`nearest` with exactly `depth` changes; None if there is no such list."""
    if not depth:
        return () if objection(p) is None else None
    for line, properties in changes(p, free):
        rest = _within(properties, depth - 1, free)
        if rest is not None:
            return line, *rest
    return None


def changes(p: Properties, free: frozenset[Part] = EVERYTHING) -> Iterator[tuple[str, Properties]]:
    """Return all changes of one free part, the smallest first: the line of the recipe, and the properties after it."""
    return ((line, properties) for part, line, properties in _changes(p) if part in free)


def _changes(p: Properties) -> Iterator[tuple[Part, str, Properties]]:
    side = p.takes_view or p.view
    if p.places > p.learned:
        names = ", ".join([*("newline", "separator")[: p.places], *(f"vector{n}" for n in range(3, p.places + 1))])
        yield "learned", f"`learned: [{names}]`", replace(p, learned=p.places)
    if p.adapters and p.windows:
        line = f"`vision_injection.init_args.windows: {p.windows}`"
        yield "vision", line, replace(p, adapters=p.windows)
    if p.class_token:
        yield "vision", "`vision.init_args.drop_cls: true`", replace(p, class_token=False)
    if p.takes_view is not None and p.view is not None and p.view != p.takes_view:
        yield "view", f"the same tiling with views of {_pixels(p.takes_view)}", replace(p, view=p.takes_view)
        if p.view[0] == p.view[1]:
            yield "vision", f"`vision.init_args.image_size: {p.view[0]}`", replace(p, takes_view=p.view)
    if p.takes_view is not None:
        yield "vision", "`vision.init_args.any_size: true` (of ViT)", replace(p, takes_view=None)
    if p.adapters:
        yield "vision", "`vision_injection: null`", replace(p, adapters=0)
    for name, places, whole, rows in (
        ("BaseThenUnpaddedRows", 1, "first", True),
        ("GlobalThenTiles", 2, "first", True),
        ("SlicesThenOverview", 0, "last", False),
    ):
        laid_out = replace(p, places=places, lays_out=frozenset({whole}), rows=rows)
        yield "layout", f"`layout: lit_mm.samples.{name}`", laid_out
    everything = frozenset({"first", "last", None})
    in_order = replace(p, places=0, lays_out=everything, rows=False)
    yield "layout", "`layout: lit_mm.samples.InOrder`", in_order
    projector = replace(p, grids="any", order="rows", reads_class_token=False)
    yield "connector", "`connector: lit_mm.connectors.mlp.MLPProjector`", projector
    if p.places > p.learned:  # MergeMLP brings a newline and a separator
        merge = replace(p, grids="square", order="rows", reads_class_token=False, learned=p.learned + 2)
        yield "connector", "`connector: lit_mm.connectors.merge.MergeMLP`", merge
    square = side[0] if side is not None and side[0] == side[1] else 336
    row = p.adapters or 2
    for name, arguments, whole, windows in (
        ("AnyRes", f"tile: {square}", "first", 0),
        ("Windows", f"size: [{square}, {row * square}], window: {square}", "last", row),
        ("Pad", f"size: {square}", None, 0),
    ):
        line = f"`tiling: {{class_path: lit_mm.tiling.{name}, init_args: {{{arguments}}}}}`"
        yield "tiling", line, replace(p, view=(square, square), thumbnail=whole, windows=windows)


def _pixels(size: Size) -> str:
    return f"{size[1]} x {size[0]} pixels"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count > 1 else "")


def _whole(thumbnail: Thumbnail) -> str:
    return (
        "no view of the whole beside the tiles" if thumbnail is None else f"a view of the whole that comes {thumbnail}"
    )
