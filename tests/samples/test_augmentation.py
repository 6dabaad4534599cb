"""Pictures are cropped, flipped and changed in training, alike in every repetition of a run."""

from __future__ import annotations

import math
import random
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from lit_mm.errors import UserError
from lit_mm.samples.augmentation import OPERATIONS, Augmentation
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from tests.tiny import Documents, xcomposer2

BLIP = Augmentation(scale=(0.2, 1.0), flip=0.5, operations=2, magnitude=5)


def picture(height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


def test_crops_are_distributed_as_those_of_timm() -> None:
    draws = Random(0)
    boxes = [BLIP.box(400, 400, draws) for _ in range(2000)]
    random.seed(0)
    released = [
        RandomResizedCropAndInterpolation.get_params(Image.new("RGB", (400, 400)), BLIP.scale, BLIP.ratio)
        for _ in range(2000)
    ]
    areas = [height * width / 400**2 for _, _, height, width in boxes]
    ratios = [math.log(width / height) for _, _, height, width in boxes]
    assert min(areas) > 0.19 and max(areas) <= 1
    expected = sum(height * width / 400**2 for _, _, height, width in released) / len(released)
    assert sum(areas) / len(areas) == pytest.approx(expected, abs=0.02)
    assert max(map(abs, ratios)) <= math.log(4 / 3) + 0.02
    assert abs(sum(ratios) / len(ratios)) < 0.02
    assert all(0 <= top <= 400 - height and 0 <= left <= 400 - width for top, left, height, width in boxes)


def test_crop_that_never_fits_is_the_largest_central_one() -> None:
    assert Augmentation(scale=(0.9, 1.0)).box(10, 100, Random(0)) == (0, 43, 10, 13)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_shape_and_change_what_they_should(name: str) -> None:
    view = picture(32, 32)
    view[:, :16] //= 2
    change = Augmentation(operations=1, magnitude=5, probability=1.0)
    before = Image.fromarray(view.permute(1, 2, 0).numpy())
    after = change.apply(name, before, Random(0))
    assert after.size == before.size
    unchanged = name in ("Identity", "Brightness", "Sharpness", "AutoContrast")  # magnitude 5 is the middle
    if name != "AutoContrast":  # which depends on the picture
        assert (after.tobytes() == before.tobytes()) is unchanged


def test_flip_and_operations_come_with_their_probabilities() -> None:
    view = picture(8, 8)
    flips = sum(torch.equal(Augmentation(flip=0.5).change(view, Random(n)), view.flip(2)) for n in range(400))
    assert 160 < flips < 240
    assert torch.equal(Augmentation().change(view, Random(0)), view)
    assert torch.equal(Augmentation().crop(view, Random(0)), view)


@pytest.mark.parametrize(
    "options",
    [{"scale": (0.0, 1.0)}, {"scale": (0.5, 1.5)}, {"flip": 2.0}, {"operations": -1}, {"magnitude": 11}],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="augmentation"):
        Augmentation(**options)


def views(steps: range, first_step: int = 0, rank: int = 0, world: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Views of the first sample by "step sample"."""
    module = xcomposer2()
    data = Documents(count=8, row_tokens=None, micro_batch=1)
    stage = Stage("s", {"vision": Train(lr=1e-3)}, max_steps=6, inputs=Inputs(augmentation=BLIP))
    data.begin(module.processor_of(stage), stage, seed=seed, rank=rank, world=world)
    pixels = {}
    for micro in data.stream:
        if micro.step in steps and micro.step >= first_step:
            batch = data.rows[micro]
            if batch.views is not None and int(batch.views.owners[0]) >= 0:
                pixels[f"{micro.step} {batch.sample_ids[0]}"] = torch.cat([g.flatten() for g in batch.views.groups])
    return pixels


def test_draws_depend_on_seed_step_and_sample_and_not_on_the_ranks() -> None:
    once = views(range(6))
    later = views(range(3, 6))
    assert later and all(torch.equal(once[key], value) for key, value in later.items())
    ranks = views(range(6), rank=0, world=2) | views(range(6), rank=1, world=2)
    assert ranks.keys() == once.keys()
    assert all(torch.equal(once[key], value) for key, value in ranks.items())
    by_sample: dict[str, list[torch.Tensor]] = {}
    for key, value in once.items():
        by_sample.setdefault(key.split()[1], []).append(value)
    repeated = [values for values in by_sample.values() if len(values) > 1]
    assert repeated and any(not torch.equal(values[0], values[1]) for values in repeated)
    other = views(range(6), seed=1)
    assert all(not torch.equal(once[key], other[key]) for key in once.keys() & other.keys())


def test_answers_and_examinations_see_pictures_as_they_are() -> None:
    module = xcomposer2()
    stage = Stage("s", {"vision": Train(lr=1e-3)}, max_steps=6, inputs=Inputs(augmentation=BLIP))
    changed = module.processor_of(stage)
    document = Documents().heldout(1)[0]
    plain = module.processor.views(module.processor.sample(document))
    again = changed.views(changed.sample(document))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    moved = changed.crops(changed.sample(document), 3)
    assert any(not torch.equal(a, b) for a, b in zip(moved, changed.crops(changed.sample(document)), strict=True))
