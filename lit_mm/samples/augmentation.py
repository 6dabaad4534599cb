"""Random changes of pictures in training: a random crop, a flip and RandAugment, with timm's operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_mm.errors import UserError

OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Brightness",
    "Sharpness",
    "Equalize",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)
GREY = (128, 128, 128)  # colour of pixels that a shear, a shift or a rotation uncovers
ATTEMPTS = 10  # draws of a crop before the largest central one is taken


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training picture, as BLIP, BLIP-2 and InstructBLIP have them.

    The picture is cropped before the tiling, so with the tiling `Stretch` the result is torchvision's
    `RandomResizedCrop`. Flip and RandAugment follow on the views. The draws depend on the run's seed, the stage, the
    step and the sample alone: a resumed run, or one on other ranks, changes every picture alike. They are equal to
    the authors' in distribution, not in bits.

    | family | scale | flip | operations |
    |---|---|---|---|
    | BLIP, pre-training | 0.2 to 1 | 0.5 | 2 |
    | BLIP, fine-tuning | 0.5 to 1 | 0.5 | 2 |
    | BLIP-2, InstructBLIP | 0.5 to 1 | 0.5 | 0 |

    Attributes:
        scale: least and largest share of the picture's area in a crop.
        ratio: least and largest width / height of a crop; a crop of the whole picture is not possible where this
            excludes it. Ignored if the scale is (1, 1), which crops nothing.
        flip: probability of a horizontal flip.
        operations: number N of operations of RandAugment, drawn with replacement.
        magnitude: strength M of the operations, from 0 to 10.
        probability: probability of applying each drawn operation.
        shift: shift of a translation at magnitude 10, pixels.
    Raises:
        UserError: a value is out of its range.
    Source: github.com/salesforce/BLIP, data/__init__.py and transform/randaugment.py; arXiv:1909.13719 (RandAugment).
    """

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    operations: int = 0
    magnitude: float = 5.0
    probability: float = 0.5
    shift: float = 10.0

    def __post_init__(self) -> None:
        shares = 0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]
        chances = 0 <= self.flip <= 1 and 0 <= self.probability <= 1
        if not shares or not chances or self.operations < 0 or not 0 <= self.magnitude <= 10 or self.shift < 0:
            raise UserError(
                "augmentation: 0 < scale <= 1 and 0 < ratio (least, largest), probabilities in [0, 1], operations and "
                f"shift >= 0, magnitude in [0, 10]; got {self}"
            )

    @property
    def enlargement(self) -> float:
        """Factor by which a view enlarges the smallest crop, in each direction."""
        return math.sqrt(1 / self.scale[0])

    def crop(self, image: Tensor, draws: Random) -> Tensor:
        """Crop a picture [3, H, W] at random; returns a view of it."""
        if self.scale == (1.0, 1.0):
            return image
        top, left, height, width = self.box(image.shape[1], image.shape[2], draws)
        return image[:, top : top + height, left : left + width]

    def box(self, height: int, width: int, draws: Random) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) of a crop by torchvision's rule: area and log ratio are uniform."""
        for _ in range(ATTEMPTS):
            area = height * width * draws.uniform(*self.scale)
            ratio = math.exp(draws.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                return draws.randint(0, height - rows), draws.randint(0, width - columns), rows, columns
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        rows, columns = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def change(self, view: Tensor, draws: Random) -> Tensor:
        """Flip a view [3, h, w] uint8 and apply RandAugment; returns [3, h, w] uint8."""
        if draws.random() < self.flip:
            view = view.flip(2)
        names = [draws.choice(OPERATIONS) for _ in range(self.operations)]
        applied = [name for name in names if draws.random() < self.probability]
        if not applied:
            return view
        picture = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
        for name in applied:
            picture = self.apply(name, picture, draws)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def apply(self, name: str, picture: Image.Image, draws: Random) -> Image.Image:
        """Apply one of `OPERATIONS` to a picture."""
        from timm.data.auto_augment import NAME_TO_OP  # imported late: torchvision comes with it

        level = self.magnitude / 10
        sign = draws.choice((-1, 1))
        if name == "Identity":
            return picture
        if name in ("AutoContrast", "Equalize"):
            return NAME_TO_OP[name](picture)
        if name in ("Brightness", "Sharpness"):
            return NAME_TO_OP[name](picture, 0.1 + 1.8 * level)  # 1, no change, at magnitude 5
        strength = {"Shear": 0.3, "Trans": self.shift, "Rotat": 30.0}[name[:5]] * level * sign
        return NAME_TO_OP[name](picture, strength, fillcolor=GREY, resample=Image.Resampling.BILINEAR)
