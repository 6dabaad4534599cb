"""Square views that keep the aspect ratio: a centre crop, or the whole image on a coloured square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lit_mm.errors import UserError
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.samples.processor import CLIP_MEAN, CLIP_STD
from lit_mm.tiling.square import plan_centre_crop, plan_pad

SIZES = [(30, 45), (45, 30), (30, 30), (31, 200), (333, 17), (1, 9), (48, 49), (28, 28)]  # (height, width)
SIDE = 28
ATOL = 1e-5  # values are normalised in another order of the same float32 operations: measured 5e-7


def noise(height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(height * width).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def by_clip(image: torch.Tensor) -> torch.Tensor:
    """The view of CLIP's image processor, resized by Pillow."""
    theirs = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return theirs(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_centre_crop_has_the_pixels_of_clips_processor(height, width):
    image = noise(height, width)
    (ours,) = cut_views(
        image, plan_centre_crop(height, width, size=SIDE).views, Normalise(CLIP_MEAN, CLIP_STD, backend="pillow")
    )
    torch.testing.assert_close(ours, by_clip(image), rtol=0, atol=ATOL)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_padded_view_has_the_pixels_of_pasting_first_and_clips_processor_then(height, width):
    image, colour = noise(height, width), (122, 116, 104)
    side = max(height, width)
    square = Image.new("RGB", (side, side), colour)
    square.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), ((side - width) // 2, (side - height) // 2))
    (ours,) = cut_views(
        image,
        plan_pad(height, width, size=SIDE).views,
        Normalise(CLIP_MEAN, CLIP_STD, fill=colour, backend="pillow"),
    )
    theirs = by_clip(torch.from_numpy(np.array(square)).permute(2, 0, 1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)


def test_the_worked_example_of_a_centre_crop():
    (view,) = plan_centre_crop(480, 640, size=336).views
    assert view.resize == (336, 448)
    assert view.box == (0, 56, 336, 336)
    (portrait,) = plan_centre_crop(640, 480, size=336).views
    assert portrait.resize == (448, 336)
    assert portrait.box == (56, 0, 336, 336)


def test_odd_padding_goes_to_the_bottom_or_right():
    assert plan_pad(7, 10, size=SIDE).views[0].offset == (1, 0)
    assert plan_pad(10, 7, size=SIDE).views[0].offset == (0, 1)


def test_an_image_that_would_be_enlarged_beyond_memory_is_refused():
    plan_centre_crop(1, 590, size=336)
    with pytest.raises(UserError, match=r"30000 x 1 pixels: .* 10080000 on the longer .* or pad it"):
        plan_centre_crop(1, 30_000, size=336)


@pytest.mark.parametrize("plan", [plan_centre_crop, plan_pad])
@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0)])
def test_an_empty_image_is_refused(plan, height, width):
    with pytest.raises(UserError, match=f"{plan.__name__} needs a non-empty image"):
        plan(height, width, size=SIDE)
