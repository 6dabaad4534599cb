"""How the nano vision encoder is pre-trained: from pixels alone. No text, no label and no question is ever seen.

A page comes in any look: fonts heavy or light, in any size and colour, on any ground, with noise. The encoder learns to
proof-read it: to tell of every patch which signs have their middle in it, and in which order, by picking the pictures
of these signs in one plain hand out of a sheet that holds the pictures of all signs of the batch. It tells the same of
every block of 2 x 2 patches, as a family that merges them will read it. What a sign is called or means it cannot know;
for that it takes a language model. It also learns how far shapes and bars reach, and where in
the view each patch is. Of some pages it sees a close-up, as a family that tiles will show it.
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
PLACES = 3  # signs of a patch that are told apart; only fine print has more
TENTHS = 11  # lines across a page, from edge to edge, to which the sides of a shape are told
CLOSEST = 3.0  # how much larger a close-up shows things, at most: a family cuts a page into 3 x 3 tiles at most
CHART = "a chart's bar"
PAGES = "pages"  # unit of the loss


@dataclass(frozen=True)
class PrintBatch:
    """V pages, N patches each.

    Attributes:
        prints: [V, 3, S, S] normalised pixels.
        sheet: [U, 3, SIGN, SIGN] the different pictures of signs, in [0, 1]; the first is blank.
        signs: [V, N, PLACES] which picture of the sheet each place of each patch shows.
        merged: [V, N / 4, PLACES] the same of each block of 2 x 2 patches.
        sides: [V, N, 4] left, top, right and bottom of the shape or bar of a patch, each the nearest of TENTHS lines.
        shaped: [V, N] True where a patch has a shape or bar.
        sample_ids: the V pages.
        units: "pages" -> pages of the whole optimizer step.
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
    """Prints of generated pages at `size` x `size` pixels.

    Args:
        split, seed: index space and world of the pages.
        patch: of the encoder, pixels.
        close_ups: share of the pages of which a part is shown, enlarged.
    Raises:
        UserError: the side of a print is an odd number of patches.
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
        """What draws the window of a page."""
        return Random(stable_hash(self.seed, "window", number))

    def _page(self, number: int) -> Page:
        index, kind = divmod(number, len(SKILLS))
        return page(index, split=self.split, seed=self.seed, kind=SKILLS[kind])

    def _pixels(self, page: Page, window: Box) -> Tensor:
        """[3, size, size]: the window, stretched to a square."""
        left, top, right, bottom = window
        native, size = (page.height, page.width), (self.size, self.size)
        y, x = round(top * page.height), round(left * page.width)
        box = (y, x, round(bottom * page.height) - y, round(right * page.width) - x)
        view = View.whole(size) if window == WHOLE else View(native, native, (0, 0), box, size)
        return cut_views(read(page, page.kind), [view], self.normalise)[0]


def draw_window(rng: Random, close_ups: float) -> Box:
    """The whole page, or with probability `close_ups` a part of its shape anywhere on it: up to `CLOSEST` times as
    large, all factors equally likely on a logarithmic scale."""
    if rng.random() >= close_ups:
        return WHOLE
    side = CLOSEST ** -rng.random()
    left, top = rng.random() * (1 - side), rng.random() * (1 - side)
    return left, top, left + side, top + side


def _look(sign: Sign) -> str:
    """Equal for signs whose pictures are equal."""
    element = sign.element
    if isinstance(element, Text):
        return sign.letter
    return f"{element.colour} {element.kind if isinstance(element, Shape) else CHART}"


@lru_cache(maxsize=256)
def _picture(element: Element | None) -> Tensor:
    image = render(SIGN, SIGN, PLAIN, [] if element is None else [element])
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def draw_sign(sign: Sign | None) -> Tensor:
    """[3, SIGN, SIGN] in [0, 1]: a sign in the plain hand, alone in the middle of white paper; None is the paper."""
    if sign is None:
        return _picture(None)
    element = sign.element
    if isinstance(element, Text):
        return _picture(write(sign.letter, 0.5, 0.5, 0.6, 1.0, 0.5))
    if isinstance(element, Shape):
        return _picture(Shape(element.kind, element.colour, (0.1, 0.1, 0.9, 0.9)))
    return _picture(Bar(element.colour, (0.35, 0.0, 0.65, 1.0)))


def sides_of(element: Element, window: Box = WHOLE) -> list[int]:
    """Left, top, right and bottom of an element's box, each the nearest of TENTHS lines across the window."""
    left, top, right, bottom = window
    starts, lengths = (left, top) * 2, (right - left, bottom - top) * 2
    sides = [(side - start) / length for side, start, length in zip(element.box, starts, lengths, strict=True)]
    return [round(min(max(side, 0.0), 1.0) * (TENTHS - 1)) for side in sides]


class PrintNetwork(nn.Module):
    """The encoder, and heads that are thrown away afterwards.

    Args:
        vision: the encoder to train.
        code: width of the vectors that are compared.
        blank: weight of an empty place in the loss; most are empty.
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
        """Sum over the pages of the mean loss of their places."""
        features = self.vision(batch.prints)  # [V, N, D]
        outputs = self.proof(features).float()  # [V, N, sum of sizes]
        places, sides, row, column = outputs.split(self.sizes, dim=-1)
        sheet = self.sheet(1 - batch.sheet.flatten(1)).float()  # [U, C]
        wrong = self._misread(places, batch.signs, sheet)
        merged = merge_patches(F.layer_norm(features, features.shape[-1:]), MERGE)  # [V, N / 4, 4 D]
        wrong = wrong + self._misread(self.merged(merged).float(), batch.merged, sheet)
        lines = sides.unflatten(-1, (4, TENTHS)).flatten(0, 2)  # [V * N * 4, TENTHS]
        reached = F.cross_entropy(lines, batch.sides.flatten(), reduction="none")
        shaped = batch.shaped.flatten().repeat_interleave(4)
        reached = (reached * shaped).sum() / shaped.sum().clamp(min=1)
        rows, columns = self.vision.grid
        patch = torch.arange(rows * columns, device=features.device).expand(len(outputs), -1)  # [V, N]
        misplaced = F.cross_entropy(row.flatten(0, 1), patch.flatten() // columns)
        misplaced = misplaced + F.cross_entropy(column.flatten(0, 1), patch.flatten() % columns)
        return (wrong + 0.3 * reached + 0.1 * misplaced) * len(batch.sample_ids)

    def _misread(self, places: Tensor, signs: Tensor, sheet: Tensor) -> Tensor:
        """Weighted mean loss of picking the picture of each place.

        Args:
            places: [V, N, PLACES * C] what was read.
            signs: [V, N, PLACES] what is there, as numbers of the sheet.
            sheet: [U, C] the pictures.
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
        """The sum over the pages of the batch."""
        return model(batch)


class PrintPretraining(MultimodalModule):
    """Pre-trains the nano vision encoder. Parts: vision, proof, sheet.

    Args:
        vision: the encoder.
    """

    def __init__(self, vision: ViT) -> None:
        super().__init__(network=PrintNetwork(vision), processor=lambda: None, objectives={"prints": PrintsObjective()})
