"""Which parts go together: vision encoder x connector x tiling x layout, decided from what each declares. No torch.

Language injection (partial LoRA and the like) reads the visual mask alone and goes with everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

Size = tuple[int, int]  # (height, width), pixels
Thumbnail = Literal["first", "last"] | None


@dataclass(frozen=True)
class Properties:
    """What the parts of one model declare. `lit_mm.declared` reads it off them.

    Attributes:
        view: tiling: size of every view, pixels; None: sizes follow the image.
        thumbnail: tiling: which view is the whole image shrunk.
        takes_view: vision encoder: the one size it takes, pixels; None: any.
        class_token: vision encoder: hands its class token over.
        reads_class_token: connector: can do with one.
        grids: connector: the grids of patches it takes: any, square ones, or one only.
        order: connector: its visual tokens lie as the patches do, row by row or column by column, or are queries that
            lie nowhere.
        learned: connector: vectors that a layout may place.
        places: layout: learned vectors it places.
        lays_out: layout: the thumbnails of plans whose visual tokens it places, all and once.
        rows: layout: takes the tokens of a view apart into rows.
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


def objection(p: Properties) -> str | None:
    """Why these parts do not go together; None if they do."""
    if p.takes_view is not None and p.view != p.takes_view:
        made = "of sizes that follow the image" if p.view is None else f"of {_pixels(p.view)}"
        return f"the tiling makes views {made}, the vision encoder takes {_pixels(p.takes_view)} alone"
    if p.class_token and not p.reads_class_token:
        return "the vision encoder hands over its class token, which the connector would take for a patch"
    if p.grids == "square" and (p.view is None or p.view[0] != p.view[1]):
        return "the connector takes square grids of patches alone, the tiling makes views that are not square"
    if p.grids == "one" and p.view is None:
        return "the connector takes one grid of patches alone, the tiling makes views whose sizes follow the image"
    if p.places > p.learned:
        return f"the layout places {_vectors(p.places)}, the connector has {p.learned or 'none'}"
    if p.thumbnail not in p.lays_out:
        needed = " or ".join(sorted(_whole(one) for one in p.lays_out)) or "no tiling at all"
        return f"the layout is for plans with {needed}, the tiling makes {_whole(p.thumbnail)}"
    if p.rows and p.order != "rows":
        lie = "are queries that lie nowhere" if p.order == "queries" else "leave column by column"
        return f"the layout arranges rows of visual tokens, those of the connector {lie}"
    return None


@cache
def nearest(p: Properties) -> tuple[str, ...]:
    """The fewest changes after which the parts go together, as keys of the recipe; of as many, the smallest first."""
    depth = 0
    while (found := _within(p, depth)) is None:  # four mend anything: size, class token, connector, layout
        depth += 1
    return found


def _within(p: Properties, depth: int) -> tuple[str, ...] | None:
    """As `nearest`, with exactly `depth` changes; None: so many do not do."""
    if not depth:
        return () if objection(p) is None else None
    for said, changed in changes(p):
        rest = _within(changed, depth - 1)
        if rest is not None:
            return said, *rest
    return None


def changes(p: Properties) -> Iterator[tuple[str, Properties]]:
    """Every change of one part to one that is there, the smallest first: what to write, and what it makes."""
    side = p.takes_view or p.view
    if p.places > p.learned:
        names = ", ".join([*("newline", "separator")[: p.places], *(f"vector{n}" for n in range(3, p.places + 1))])
        yield f"`learned: [{names}]`", replace(p, learned=p.places)
    if p.class_token:
        yield "`vision.init_args.drop_cls: true`", replace(p, class_token=False)
    if p.takes_view is not None and p.view is not None and p.view != p.takes_view:
        yield f"the same tiling with views of {_pixels(p.takes_view)}", replace(p, view=p.takes_view)
        if p.view[0] == p.view[1]:
            yield f"`vision.init_args.image_size: {p.view[0]}`", replace(p, takes_view=p.view)
    if p.takes_view is not None:
        yield "`vision.init_args.any_size: true` (of ViT)", replace(p, takes_view=None)
    for name, places, whole, rows in (
        ("base_then_unpadded_rows", 1, "first", True),
        ("global_then_tiles", 2, "first", True),
        ("slices_then_overview", 0, "last", False),
    ):
        yield (
            f"`layout: lit_mm.layout.{name}`",
            replace(p, places=places, lays_out=frozenset({whole}), rows=rows),
        )
    everything = frozenset({"first", "last", None})
    yield "`layout: lit_mm.layout.in_order`", replace(p, places=0, lays_out=everything, rows=False)
    yield (
        "`connector: lit_mm.connectors.mlp.MLPProjector`",
        replace(p, grids="any", order="rows", reads_class_token=False),
    )
    square = side if side is not None and side[0] == side[1] else (336, 336)
    for name, option, whole in (
        ("anyres.plan_anyres", "tile", "first"),
        ("windows.plan_windows", "window", "last"),
        ("square.plan_pad", "size", None),
    ):
        yield (
            f"`tiling: {{function: lit_mm.tiling.{name}, arguments: {{{option}: {square[0]}}}}}`",
            replace(p, view=square, thumbnail=whole),
        )


def _pixels(size: Size) -> str:
    return f"{size[1]} x {size[0]} pixels"


def _vectors(count: int) -> str:
    return f"{count} learned vector" + ("s" if count > 1 else "")


def _whole(thumbnail: Thumbnail) -> str:
    return (
        "no view of the whole beside the tiles" if thumbnail is None else f"a view of the whole that comes {thumbnail}"
    )
