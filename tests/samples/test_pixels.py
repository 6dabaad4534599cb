"""A view follows its recipe: resize, place on the canvas, crop the box, resize, normalise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from lit_mm.samples.pixels import Normalise, cut_views, resize, resize_box
from lit_mm.tiling.plan import View, plan_square
from lit_mm.tiling.square import plan_pad

FILL = (10, 20, 30)
RAW = Normalise((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), fill=FILL)  # pixel values come out as they are


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def painted(image, view):
    """The view before its last resize, cropped from a canvas with room on every side."""
    room = 64
    top, left, height, width = view.box
    canvas = (
        torch.tensor(FILL, dtype=torch.uint8)
        .view(3, 1, 1)
        .repeat(1, view.canvas[0] + 2 * room, view.canvas[1] + 2 * room)
    )
    y, x = view.offset[0] + room, view.offset[1] + room
    canvas[:, y : y + image.shape[1], x : x + image.shape[2]] = image
    return canvas[:, top + room : top + room + height, left + room : left + room + width]


@pytest.mark.parametrize(
    "view",
    [
        View((20, 30), (20, 30), (0, 0), (0, 0, 20, 30), (20, 30)),  # whole
        View((20, 30), (20, 30), (0, 0), (4, 10, 8, 12), (8, 12)),  # a tile
        View((20, 30), (30, 30), (5, 0), (0, 0, 30, 30), (30, 30)),  # padded above and below
        View((20, 30), (30, 30), (5, 0), (20, 15, 10, 15), (10, 15)),  # a tile of the padded canvas
        View((20, 30), (20, 20), (0, -5), (0, 0, 20, 20), (20, 20)),  # cropped in the middle
        View((20, 30), (40, 40), (10, 5), (0, 0, 8, 8), (8, 8)),  # padding alone
        View((20, 30), (40, 40), (10, 5), (30, 35, 10, 5), (10, 5)),  # behind the image
    ],
)
def test_a_view_is_cut_from_its_canvas(view):
    image = noise(20, 30)
    (cut,) = cut_views(image, [view], RAW)
    torch.testing.assert_close(cut, painted(image, view).float(), rtol=0, atol=1e-4)


def test_a_view_is_resized_before_and_after_the_cut():
    image = noise(40, 60)
    view = View((20, 30), (20, 30), (0, 0), (0, 0, 10, 10), (14, 14))
    (cut,) = cut_views(image, [view], RAW)
    expected = resize(resize(image, (20, 30), "torch")[:, :10, :10], (14, 14), "torch")
    torch.testing.assert_close(cut, expected.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(13, 50), (40, 33), (100, 120)])
def test_the_pillow_backend_is_bit_equal_to_pillow_and_torch_is_close(size):
    image = noise(40, 60)
    theirs = np.asarray(
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    )
    np.testing.assert_array_equal(resize(image, size, "pillow").permute(1, 2, 0).numpy(), theirs)
    difference = (resize(image, size, "torch").permute(1, 2, 0).int() - torch.from_numpy(theirs.copy()).int()).abs()
    assert difference.max() <= 8  # measured: 6, on random pixels
    assert difference.float().mean() < 0.3


class LargestArray(TorchDispatchMode):
    """Records the largest number of bytes of an array that torch makes beside the image."""

    def __init__(self, image):
        super().__init__()
        self.image, self.size = image, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        array = func(*args, **(kwargs or {}))
        if isinstance(array, torch.Tensor) and array.untyped_storage().data_ptr() != self.image.data_ptr():
            self.size = max(self.size, array.untyped_storage().nbytes())
        return array


@pytest.mark.parametrize("backend", ["torch", "pillow"])
@pytest.mark.parametrize(
    ("height", "width"),
    [(640, 480), (337, 500), (41, 700), (1, 900), (900, 1), (50, 20), (99, 100), (27, 28), (28, 27)],
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_a_padded_square_has_the_pixels_of_an_image_that_is_padded_and_then_resized(height, width, backend, contiguous):
    image = noise(width, height).permute(0, 2, 1)
    image = image.contiguous() if contiguous else image
    (view,) = plan_pad(height, width, size=28).views
    expected = resize(painted(image, view), view.size, backend)
    assert torch.equal(resize_box(image, view, replace(RAW, backend=backend)), expected)


@pytest.mark.parametrize("backend", ["torch", "pillow"])
def test_any_box_has_the_pixels_of_the_padded_box(backend):
    random = np.random.default_rng(0)
    for number in range(200):
        height, width, rows, columns, *size = (int(side) for side in random.integers(1, 60, 6))
        offset = tuple(int(side) for side in random.integers(-10, 20, 2))
        view = View((height, width), (rows, columns), offset, (0, 0, rows, columns), tuple(size))
        image = noise(height, width, seed=number)
        expected = resize(painted(image, view), view.size, backend)
        assert torch.equal(resize_box(image, view, replace(RAW, backend=backend)), expected), view


@pytest.mark.parametrize(("height", "width"), [(1, 20000), (20000, 1), (12000, 400)])
def test_memory_of_a_long_image_is_bounded_by_its_long_side_times_the_view_side(height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    with LargestArray(image) as largest:
        cut_views(image, plan_pad(height, width, size=28).views, RAW)
    assert largest.size <= 3 * max(height, width) * 28


def test_pixels_are_normalised_channel_by_channel():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 14, 14).contiguous()
    normalise = Normalise((0.5, 0.2, 0.0), (0.25, 0.1, 0.5))
    (cut,) = cut_views(image, plan_square(14, 14, size=14).views, normalise)
    assert cut.dtype == torch.float32
    torch.testing.assert_close(cut[:, 3, 4], torch.tensor([-2.0, 0.0, 2.0]))


def test_views_come_in_the_order_of_the_plan():
    image = noise(20, 30)
    boxes = [(0, 0, 10, 10), (10, 20, 10, 10), (0, 10, 10, 10)]
    cut = cut_views(image, [View((20, 30), (20, 30), (0, 0), box, (10, 10)) for box in boxes], RAW)
    for view, (top, left, _, _) in zip(cut, boxes, strict=True):
        torch.testing.assert_close(view, image[:, top : top + 10, left : left + 10].float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 3)])
def test_a_plan_for_an_empty_image_is_refused(height, width):
    with pytest.raises(ValueError, match="non-empty image"):
        plan_square(height, width, size=14)


def test_a_square_plan_has_one_view_of_the_asked_size():
    plan = plan_square(7, 300, size=28)
    assert [view.size for view in plan.views] == [(28, 28)]
    assert plan.grid == (1, 1)
    assert not plan.thumbnail
