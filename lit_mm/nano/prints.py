"""Pre-training of the nano vision encoder on pixels alone, without text, labels or questions.

Pages vary in font weight, size, colours, ground and noise. The encoder learns four things:

1. Signs of a patch: which signs have their middle in the patch, and in which order. The encoder picks the picture of
   each sign, drawn in one plain style, out of a sheet with the pictures of all signs of the batch. The names and
   meanings of signs are left to the language model.
2. Signs of a block of 2 x 2 patches, because some families merge such blocks.
3. The four sides of each shape and bar.
4. The row and the column of each patch.

Some pages are shown as close-ups, because some families cut pages into tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from lit_mm.connectors.merge import merge_patches
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.nano.cells import WHOLE, Sign, cells
from lit_mm.nano.elements import Bar, Box, Element, Shape, Style, Text
from lit_mm.nano.page import Page
from lit_mm.nano.reading import write
from lit_mm.nano.render import render
from lit_mm.nano.world import SKILLS, page
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.samples.processor import CLIP_MEAN, CLIP_STD, read
from lit_mm.stream.order import MicroBatch, stable_hash
from lit_mm.tiling.plan import View
from lit_mm.vision.vit import ViT

PLAIN = Style(ground=(255, 255, 255), ink=(0, 0, 0), tint=(0, 0, 0), weight=0.0, noise=0, grain=(0, 0), frame=False)
SIGN = 16  # side of the picture of a sign, pixels
MERGE = 2  # side of the blocks of patches that a family may merge
PLACES = 3  # most signs predicted per patch; only fine print has more
TENTHS = 11  # lines across a page, edges included, to which the sides of a shape are rounded
CLOSEST = 3.0  # largest enlargement of a close-up; families cut a page into 3 x 3 tiles at most
CHART = "a chart's bar"
PAGES = "pages"  # unit of the loss


@dataclass(frozen=True)
class PrintBatch:
    """A batch of V pages with N patches each.

    Attributes:
        prints: [V, 3, S, S] normalised pixels.
        sheet: [U, 3, SIGN, SIGN] distinct pictures of signs, values in [0, 1]; the first picture is blank.
        signs: [V, N, PLACES] index into `sheet` for each sign of each patch; 0 where there is no sign.
        merged: [V, N / 4, PLACES] index into `sheet` for each sign of each block of 2 x 2 patches; 0 for no sign.
        sides: [V, N, 4] left, top, right and bottom of the shape or bar of a patch, as numbers of the nearest of the
            TENTHS lines.
        shaped: [V, N] True where a patch has a shape or bar.
        sample_ids: names of the V pages.
        units: "pages" -> number of pages in the whole optimizer step.
    """

    prints: Tensor
    sheet: Tensor
    signs: Tensor
    merged: Tensor
    sides: Tensor
    shaped: Tensor
    sample_ids: tuple[str, ...]
    units: dict[str, int]

    @property
    def num_tokens(self) -> int:
        return len(self.sample_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PrintBatch:
        move = partial(Tensor.to, device=device, non_blocking=non_blocking)
        return replace(
            self,
            prints=move(self.prints),
            sheet=move(self.sheet),
            signs=move(self.signs),
            merged=move(self.merged),
            sides=move(self.sides),
            shaped=move(self.shaped),
        )


class Prints(Dataset):
    """A dataset of generated pages, each drawn at `size` x `size` pixels.

    Args:
        size: side of a page image, pixels.
        split: split of the nano world, one of `lit_mm.nano.world.SPLITS`.
        seed: seed of the nano world.
        patch: side of a patch of the encoder, pixels.
        close_ups: share of pages that are shown as an enlarged part.
    Raises:
        UserError: the number of patches along a side is odd.
    """

    def __init__(self, size: int, *, split: str, seed: int, patch: int = 14, close_ups: float = 0.0) -> None:
        self.size, self.split, self.seed, self.close_ups = size, split, seed, close_ups
        self.side = size // patch
        if self.side % MERGE:
            raise UserError(
                f"prints have blocks of {MERGE} x {MERGE} patches, got {self.side} patches a side ({size} pixels, "
                f"patches of {patch}). Choose another `size` or `patch`"
            )
        self.normalise = Normalise(CLIP_MEAN, CLIP_STD)

    def __getitem__(self, micro: MicroBatch) -> PrintBatch:
        numbers = [number for row in micro.rows for number in row]
        pages = [self._page(number) for number in numbers]
        windows = [draw_window(self.rng(number), self.close_ups) for number in numbers]
        numbers_by_look: dict[str, int] = {"": 0}
        sheet = [draw_sign(None)]
        signs = np.zeros((len(pages), self.side**2, PLACES), dtype=np.int64)
        merged = np.zeros((len(pages), (self.side // MERGE) ** 2, PLACES), dtype=np.int64)
        sides = np.zeros((len(pages), self.side**2, 4), dtype=np.int64)
        shaped = np.zeros((len(pages), self.side**2), dtype=bool)
        for number, (scene, window) in enumerate(zip(pages, windows, strict=True)):
            used, used_merged = [0] * self.side**2, [0] * (self.side // MERGE) ** 2
            for cell, sign in cells(scene, self.side, self.side, window=window):
                name = _look(sign)
                if name not in numbers_by_look:
                    numbers_by_look[name] = len(sheet)
                    sheet.append(draw_sign(sign))
                block = cell // self.side // MERGE * (self.side // MERGE) + cell % self.side // MERGE
                if used[cell] < PLACES:
                    signs[number, cell, used[cell]] = numbers_by_look[name]
                    used[cell] += 1
                if used_merged[block] < PLACES:
                    merged[number, block, used_merged[block]] = numbers_by_look[name]
                    used_merged[block] += 1
                if isinstance(sign.element, Shape | Bar):
                    sides[number, cell], shaped[number, cell] = sides_of(sign.element, window), True
        return PrintBatch(
            prints=torch.stack([self._pixels(p, window) for p, window in zip(pages, windows, strict=True)]),
            sheet=torch.stack(sheet),
            signs=torch.from_numpy(signs),
            merged=torch.from_numpy(merged),
            sides=torch.from_numpy(sides),
            shaped=torch.from_numpy(shaped),
            sample_ids=tuple(str(number) for number in numbers),
            units={PAGES: micro.step_tokens},
        )

    def rng(self, number: int) -> Random:
        """Return the random numbers for the window of page `number`."""
        return Random(stable_hash(self.seed, "window", number))

    def _page(self, number: int) -> Page:
        index, kind = divmod(number, len(SKILLS))
        return page(index, split=self.split, seed=self.seed, kind=SKILLS[kind])

    def _pixels(self, page: Page, window: Box) -> Tensor:
        """Stretch the window to a square. Returns normalised pixels [3, size, size]."""
        left, top, right, bottom = window
        native, size = (page.height, page.width), (self.size, self.size)
        y, x = round(top * page.height), round(left * page.width)
        box = (y, x, round(bottom * page.height) - y, round(right * page.width) - x)
        view = View.whole(size) if window == WHOLE else View(native, native, (0, 0), box, size)
        return cut_views(read(page, page.kind), [view], self.normalise)[0]


def draw_window(rng: Random, close_ups: float) -> Box:
    """Draw the part of a page that is shown: with probability `close_ups` a close-up, else the whole page.

    A close-up has the aspect ratio of the page and lies anywhere on it. Its enlargement is between 1 and `CLOSEST`,
    uniform on a logarithmic scale.
    """
    if rng.random() >= close_ups:
        return WHOLE
    side = CLOSEST ** -rng.random()
    left, top = rng.random() * (1 - side), rng.random() * (1 - side)
    return left, top, left + side, top + side


def _look(sign: Sign) -> str:
    """Return a key that is equal for two signs exactly when their pictures are equal."""
    element = sign.element
    if isinstance(element, Text):
        return sign.letter
    return f"{element.colour} {element.kind if isinstance(element, Shape) else CHART}"


@lru_cache(maxsize=256)
def _picture(element: Element | None) -> Tensor:
    image = render(SIGN, SIGN, PLAIN, [] if element is None else [element])
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def draw_sign(sign: Sign | None) -> Tensor:
    """Draw one sign in plain style in the middle of a white square. Returns [3, SIGN, SIGN] in [0, 1].

    Args:
        sign: the sign, or None for a blank square.
    """
    if sign is None:
        return _picture(None)
    element = sign.element
    if isinstance(element, Text):
        return _picture(write(sign.letter, 0.5, 0.5, 0.6, 1.0, 0.5))
    if isinstance(element, Shape):
        return _picture(Shape(element.kind, element.colour, (0.1, 0.1, 0.9, 0.9)))
    return _picture(Bar(element.colour, (0.35, 0.0, 0.65, 1.0)))


def sides_of(element: Element, window: Box = WHOLE) -> list[int]:
    """Return left, top, right and bottom of the element's box, each as the nearest of TENTHS lines (0 to 10)."""
    left, top, right, bottom = window
    starts, lengths = (left, top) * 2, (right - left, bottom - top) * 2
    sides = [(side - start) / length for side, start, length in zip(element.box, starts, lengths, strict=True)]
    return [round(min(max(side, 0.0), 1.0) * (TENTHS - 1)) for side in sides]


class PrintNetwork(nn.Module):
    """The encoder with heads that only pre-training needs.

    Args:
        vision: the encoder to train.
        code: width of the vectors by which patches are compared with pictures of signs.
        blank: loss weight of an empty place; a sign has weight 1. Most places are empty.
    """

    def __init__(self, vision: ViT, code: int = 64, blank: float = 0.1) -> None:
        super().__init__()
        self.vision = vision
        self.sizes = (PLACES * code, 4 * TENTHS, *vision.grid)  # signs, sides, row, column
        self.proof = nn.Sequential(nn.LayerNorm(vision.width), nn.Linear(vision.width, sum(self.sizes)))
        self.merged = nn.Linear(MERGE**2 * vision.width, PLACES * code)
        self.sheet = nn.Linear(3 * SIGN**2, code)
        self.code, self.blank = code, blank

    def forward(self, batch: PrintBatch) -> Tensor:
        """Return the mean loss of a page times the number of pages, a scalar."""
        features = self.vision(batch.prints)  # [V, N, D]
        outputs = self.proof(features).float()  # [V, N, sum of sizes]
        places, sides, row, column = outputs.split(self.sizes, dim=-1)
        sheet = self.sheet(1 - batch.sheet.flatten(1)).float()  # [U, C]
        sign_loss = self._sign_loss(places, batch.signs, sheet)
        merged = merge_patches(F.layer_norm(features, features.shape[-1:]), MERGE)  # [V, N / 4, 4 D]
        sign_loss = sign_loss + self._sign_loss(self.merged(merged).float(), batch.merged, sheet)
        lines = sides.unflatten(-1, (4, TENTHS)).flatten(0, 2)  # [V * N * 4, TENTHS]
        side_loss = F.cross_entropy(lines, batch.sides.flatten(), reduction="none")
        shaped = batch.shaped.flatten().repeat_interleave(4)
        side_loss = (side_loss * shaped).sum() / shaped.sum().clamp(min=1)
        rows, columns = self.vision.grid
        patch = torch.arange(rows * columns, device=features.device).expand(len(outputs), -1)  # [V, N]
        position_loss = F.cross_entropy(row.flatten(0, 1), patch.flatten() // columns)
        position_loss = position_loss + F.cross_entropy(column.flatten(0, 1), patch.flatten() % columns)
        return (sign_loss + 0.3 * side_loss + 0.1 * position_loss) * len(batch.sample_ids)

    def _sign_loss(self, places: Tensor, signs: Tensor, sheet: Tensor) -> Tensor:
        """Return the weighted mean cross-entropy of picking the right picture for each place.

        Args:
            places: [V, N, PLACES * C] predicted vectors.
            signs: [V, N, PLACES] indices of the right pictures in the sheet.
            sheet: [U, C] vectors of the pictures.
        """
        likeness = places.unflatten(-1, (PLACES, self.code)) @ sheet.T  # [V, N, PLACES, U]
        signs = signs.flatten()
        weight = torch.where(signs > 0, 1.0, self.blank)
        return (F.cross_entropy(likeness.flatten(0, 2), signs, reduction="none") * weight).sum() / weight.sum()


class PrintsObjective:
    """The loss of `PrintNetwork`, summed over pages."""

    unit = PAGES
    parts: frozenset[str] | None = None

    def __call__(self, model: PrintNetwork, batch: PrintBatch) -> Tensor:
        """Return the loss summed over the pages of the batch, a scalar."""
        return model(batch)


class PrintPretraining(MultimodalModule):
    """Pre-trains the nano vision encoder. Parts: vision, proof, merged, sheet.

    Args:
        vision: the encoder.
    """

    def __init__(self, vision: ViT) -> None:
        super().__init__(network=PrintNetwork(vision), processor=lambda: None, objectives={"prints": PrintsObjective()})
