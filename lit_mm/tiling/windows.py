"""The tiling of Monkey: sliding windows over one fixed size, then a view of the whole."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.tiling.plan import Size, TilePlan, Tiling, View, require_pixels


def plan_windows(
    height: int, width: int, *, size: Size = (896, 896), window: int = 448, stride: int | None = None
) -> TilePlan:
    """Stretch any image to `size` and slide a window over it; a view of the whole comes last.

    Only windows that fit are used: a size of 1344 x 895 pixels has 3 x 1 windows of 448.

    Args:
        height, width: source image, pixels.
        size: (height, width) that every image is stretched to, pixels. The paper's largest is 896 x 1344.
        window: side of a window and of the view of the whole, pixels.
        stride: step from window to window, pixels; None for `window`, without overlap.
    Raises:
        UserError: the image is empty.
    Source: Monkey, `sliding_window` and `VisionTransformer.encode`. The view of the whole is taken from normalised
        values without antialiasing, as the released forward pass does.
    """
    require_pixels("plan_windows", height, width)
    stride = stride or window
    tops = range(0, size[0] - window + 1, stride)
    lefts = range(0, size[1] - window + 1, stride)
    side = (window, window)
    views = [View(size, size, (0, 0), (top, left, *side), side) for top in tops for left in lefts]
    views.extend(plan_whole(height, width, size=size, window=window).views)
    grid = (len(tops), len(lefts)) if tops and lefts else (0, 0)
    return TilePlan((height, width), grid, tuple(views), thumbnail="last")


def plan_whole(height: int, width: int, *, size: Size = (896, 896), window: int = 448) -> TilePlan:
    """Plan only the view of the whole of `plan_windows`.

    Args and errors: see `plan_windows`.
    """
    require_pixels("plan_whole", height, width)
    view = View(size, size, (0, 0), (0, 0, *size), (window, window), antialias=False)
    return TilePlan((height, width), (0, 0), (view,), thumbnail="last")


@dataclass(frozen=True)
class Windows(Tiling):
    """Gives windows over one fixed size, then a view of the whole. See `plan_windows`.

    Args:
        size: (height, width) that every image is stretched to, pixels.
        window: side of a window and of the view of the whole, pixels.
        stride: step from window to window, pixels; None for `window`, without overlap.
    """

    size: tuple[int, int] = (896, 896)
    window: int = 448
    stride: int | None = None

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_windows(height, width, size=self.size, window=self.window, stride=self.stride)


@dataclass(frozen=True)
class Whole(Tiling):
    """Gives only the view of the whole of `Windows`. See `plan_whole`.

    Args:
        size: (height, width) that every image is stretched to, pixels.
        window: side of the view, pixels.
    """

    size: tuple[int, int] = (896, 896)
    window: int = 448

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_whole(height, width, size=self.size, window=self.window)
