"""Properties of parts: they are measured by running each part on small probe inputs. No part is registered anywhere.

A tiling is run on a few image sizes, a layout on three small plans, a connector's `token_grid` on a few grids. Other
properties are attributes of `VisionEncoder` and `Connector`.
"""

from __future__ import annotations

import numpy as np

from lit_mm.combination.legal import EVERYTHING, Part, Properties, Thumbnail, nearest, objection
from lit_mm.connectors.beside import Beside
from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.samples.layout import Layout
from lit_mm.samples.processor import Processor
from lit_mm.tiling.grids import FixedGrid
from lit_mm.tiling.plan import Size, TilePlan, Tiling, View
from lit_mm.vision.protocol import VisionEncoder

PROBES = ((336, 336), (672, 1008), (1008, 672), (448, 1344), (1344, 448), (61, 97))  # (height, width), pixels
SQUARES, OBLONG = ((12, 12), (24, 24)), (12, 24)  # grids of patches that 2, 3, 4 and 6 divide


def require_parts(
    vision: VisionEncoder, connector: Connector, processor: Processor, free: frozenset[Part], key: str
) -> None:
    """Refuse parts that do not go together, for any source of documents.

    Args:
        vision: vision encoder of the model.
        connector: connector of the model.
        processor: processor of the model in use or of a stage.
        free: parts that the family lets a recipe choose.
        key: key of the recipe that names the inputs, for the error.
    Raises:
        UserError: the parts do not go together, see `require_combination`.
    """
    for tiling in (processor.tiling, *processor.by_source.values()):
        require_combination(vision, connector, tiling, processor.layout, key, free)


def require_second(second_vision: VisionEncoder | None, processor: Processor, key: str) -> None:
    """Refuse views of a second vision encoder that the model does not have, cannot take, or does not get.

    Args:
        second_vision: second vision encoder of the model; None for a model with one.
        processor: processor of the model in use or of a stage.
        key: key of the recipe that names the inputs, for the error.
    Raises:
        UserError: the views of a tiling do not fit the second vision encoder.
    """
    for tiling in (processor.tiling, *processor.by_source.values()):
        sizes = {view.size for size in PROBES for view in tiling(*size).second} if tiling is not None else set()
        if second_vision is None:
            if sizes:
                raise UserError(
                    f"{key}: the tiling {tiling} makes views for a second vision encoder, the model has one. Choose a "
                    "tiling such as {class_path: lit_mm.tiling.Stretch, init_args: {size: 224}}"
                )
            continue
        if len(sizes) != 1:
            raise UserError(
                f"{key}: the model has a second vision encoder, the tiling {tiling} makes views of {len(sizes)} sizes "
                "for it. Choose a tiling such as {class_path: lit_mm.tiling.TwoSizes, init_args: {size: 224, second: "
                "1120}}"
            )
        side = second_vision.image_size
        (size,) = sizes
        if side is not None and not second_vision.any_size and size != (side, side):
            raise UserError(
                f"{key}: the tiling {tiling} makes views of {size[1]} x {size[0]} pixels for the second vision "
                f"encoder, which takes {side} x {side} alone. Set `second` to {side}"
            )


def require_combination(
    vision: VisionEncoder,
    connector: Connector,
    tiling: Tiling,
    layout: Layout,
    key: str,
    free: frozenset[Part] = EVERYTHING,
) -> None:
    """Refuse parts that do not go together.

    Args:
        vision: vision encoder of the model.
        connector: connector of the model.
        tiling: rule that cuts images into views.
        layout: rule that arranges visual tokens.
        key: key of the recipe, for the error.
        free: parts that the recipe may choose; the nearest legal choice changes no other.
    Raises:
        UserError: the parts do not go together, or a part refuses a view of the tiling. The message has the reason and
            the nearest legal choice.
    """
    require_maps(vision, connector, key)
    measured = properties(vision, connector, tiling, layout)
    reason = objection(measured)
    if reason is not None:
        choice = nearest(measured, free)
        raise UserError(f"{key}: {reason}." + (f" The nearest that goes: {' and '.join(choice)}" if choice else ""))
    try:
        for height, width in PROBES:
            for view in tiling(height, width).views:
                connector.token_grid(vision.token_grid(view.size))
    except UserError as error:  # such as a side that the patch or the merge does not divide
        raise UserError(f"{key}: {error}") from error


def require_maps(vision: VisionEncoder, connector: Connector, key: str) -> None:
    """Refuse a connector that reads another number of feature maps than the vision encoder returns.

    Args:
        vision: vision encoder of the model.
        connector: connector of the model.
        key: key of the recipe, for the error.
    Raises:
        UserError: one of the two has features at two resolutions, the other has not.
    """
    bare = unwrapped(connector)
    if vision.two_maps and not bare.reads_two_maps:
        raise UserError(
            f"{key}: the vision encoder returns features at two resolutions, which {type(bare).__name__} does "
            "not read. The nearest legal choice: `mining: "
            "lit_mm.connectors.patch_info_mining.PatchInfoMining` (of Recombined)"
        )
    if bare.reads_two_maps and not vision.two_maps:
        raise UserError(
            f"{key}: {type(bare).__name__} reads features at two resolutions, which {type(vision).__name__} "
            "does not return. The nearest legal choice: `vision: lit_mm.vision.dual.DualEncoder`"
        )


def unwrapped(connector: Connector) -> Connector:
    """Return the connector inside of all wrappers that add learned vectors."""
    while isinstance(connector, Beside):
        connector = connector.projector
    return connector


def properties(vision: VisionEncoder, connector: Connector, tiling: Tiling, layout: Layout) -> Properties:
    """Measure the parts. A connector that learned vectors wrap is measured without the wrapper."""
    bare = unwrapped(connector)
    plans = [tiling(*size) for size in PROBES]
    views = {tuple(view.size) for plan in plans for view in plan.views}
    same = plans[0].thumbnail is not None and all(plan.views == plans[0].views for plan in plans)
    grids, order = of_connector(bare)
    places, lays_out, rows = of_layout(layout)
    size = vision.image_size
    windows = len(plans[0].tiles) if same else 0
    if not any(plan.tiles for plan in plans):
        windows = vision.windows  # views of the whole image use no adapter, so any number goes
    return Properties(
        view=views.pop() if len(views) == 1 else None,
        thumbnail=plans[0].thumbnail,
        takes_view=None if size is None or vision.any_size else (size, size),
        class_token=vision.returns_class_token,
        reads_class_token=bare.reads_class_token,
        grids=grids,
        order=order,
        learned=len(connector.learned()),
        places=places,
        lays_out=lays_out,
        rows=rows,
        adapters=vision.windows,
        windows=windows,
    )


def of_connector(connector: Connector) -> tuple[str, str]:
    """Measure `grids` and `order` of `Properties`."""
    counts = {grid: tokens for grid in (*SQUARES, OBLONG) if (tokens := tokens_of(connector, grid)) is not None}
    squares = set(SQUARES) <= counts.keys()
    grids = "one" if not squares else "any" if OBLONG in counts else "square"
    queries = len(set(counts.values())) == 1  # the same count for every grid: the tokens have no place in the image
    return connector.grids or grids, "queries" if queries else connector.order


def tokens_of(connector: Connector, grid: Size) -> int | None:
    """Return the number of visual tokens of a view of `grid` patches; None if the connector refuses it."""
    try:
        rows, columns = connector.token_grid(grid)
    except UserError:
        return None
    return rows * columns


def of_layout(layout: Layout) -> tuple[int, frozenset[Thumbnail], bool]:
    """Measure `places`, `lays_out` and `rows` of `Properties` on plans of 2 x 2 tiles of 2 x 2 visual tokens each."""
    places, lays_out, rows = 0, set(), False
    for thumbnail in ("first", "last", None):
        count = 4 + (thumbnail is not None)
        plan = TilePlan((56, 56), (2, 2), (View.whole((28, 28)),) * count, thumbnail)
        runs = layout(plan, FixedGrid(2, 2))
        if not runs:  # a layout that places no token has none to lose
            lays_out.add(thumbnail)
            continue
        index = np.concatenate([[np.iinfo(np.int64).min] if isinstance(run, str) else run for run in runs])
        visual = index[index >= 0]
        if sorted(visual) != list(range(4 * count)):
            continue  # the layout loses a token or places it twice
        lays_out.add(thumbnail)
        vectors = -index[(index < 0) & (index > np.iinfo(np.int64).min)]
        places = max(places, vectors.max(initial=0))
        starts = {first: int(np.flatnonzero(index == first)[0]) for first in range(0, 4 * count, 4)}
        rows |= any(list(index[at : at + 4]) != list(range(first, first + 4)) for first, at in starts.items())
    return int(places), frozenset(lays_out), rows
