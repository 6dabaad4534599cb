"""How the nano vision encoder is pre-trained: from pixels alone. No text, no label and no question is ever seen.

Each page is printed twice, and the encoder learns what the two prints have in common. First the prints differ in look
and lie a few pixels apart, and it learns to tell which patch of the other print shows the same thing, among all patches
of the batch. Then they are laid out anew, and it learns to tell which region of the other print shows the same thing,
be it elsewhere, larger or bolder: whole elements of the page, and halves of them. All the while it learns to redraw
each patch as the plain print (black on white, no noise) would show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from lit_mm.data.order import MicroBatch
from lit_mm.data.pixels import Normalise, cut_views
from lit_mm.module import MultimodalModule
from lit_mm.nano.elements import Box, Rule, Style
from lit_mm.nano.page import Page, restyle
from lit_mm.nano.world import SKILLS, page
from lit_mm.processor import CLIP_MEAN, CLIP_STD, read
from lit_mm.tiling.plan import plan_square
from lit_mm.vision.vit import ViT

PLAIN = Style(ground=(255, 255, 255), ink=(0, 0, 0), tint=(0, 0, 0), weight=0.0, noise=0, grain=(0, 0), frame=False)


@dataclass(frozen=True)
class PrintBatch:
    """V pages, two prints each: the first prints of all, then the second.

    Attributes:
        prints: [2V, 3, S, S] normalised pixels.
        plain: [2V, 3, S, S] the same pages in the plain print, normalised.
        sample_ids: the V pages.
        step_tokens: pages of the whole optimizer step.
        regions: where the two prints are laid out differently: per kind of region (whole elements, their halves) the
            pages [R] they are on and the shares [2, R, N] of each patch that they cover in the first and second print.
    """

    prints: Tensor
    plain: Tensor
    sample_ids: tuple[str, ...]
    step_tokens: int
    regions: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.sample_ids)

    @property
    def segment_ids(self) -> Tensor:
        """[V, 1] ones: what is counted per step is pages."""
        return torch.ones(len(self.sample_ids), 1, dtype=torch.long, device=self.prints.device)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PrintBatch:
        return replace(
            self,
            prints=self.prints.to(device, non_blocking=non_blocking),
            plain=self.plain.to(device, non_blocking=non_blocking),
            regions=tuple((pages.to(device), cover.to(device)) for pages, cover in self.regions),
        )


class Prints(Dataset):
    """Prints of generated pages at `size` x `size` pixels.

    Args:
        split, seed: index space and world of the pages.
        anew: the second print is laid out anew, else it is the first in another look, moved by a few pixels.
        patch: of the encoder, pixels; regions are told in patches.
    """

    def __init__(self, size: int, *, split: str, seed: int, anew: bool = False, patch: int = 14) -> None:
        self.size, self.split, self.seed = size, split, seed
        self.anew, self.patch = anew, patch
        self.normalise = Normalise(CLIP_MEAN, CLIP_STD)

    def __getitem__(self, micro: MicroBatch) -> PrintBatch:
        numbers = [number for row in micro.rows for number in row]
        first = [self._page(number) for number in numbers]
        if self.anew:
            second = [self._page(number, look=1) for number in numbers]
        else:
            second = [restyle(one, number) for one, number in zip(first, numbers, strict=True)]
        both = [*first, *second]
        return PrintBatch(
            prints=self._pixels(both),
            plain=self._pixels([replace(one, style=PLAIN, height=self.size, width=self.size) for one in both]),
            sample_ids=tuple(str(number) for number in numbers),
            step_tokens=micro.step_tokens,
            regions=(self._regions(first, second, 1), self._regions(first, second, 2)) if self.anew else (),
        )

    def _page(self, number: int, look: int = 0) -> Page:
        index, kind = divmod(number, len(SKILLS))
        return page(index, split=self.split, seed=self.seed, kind=SKILLS[kind], look=look)

    def _regions(self, first: Sequence[Page], second: Sequence[Page], parts: int) -> tuple[Tensor, Tensor]:
        """Pages [R], and the shares [2, R, N] of patches that each element, cut into `parts` side by side, covers."""
        pages, covers = [], []
        for number, prints in enumerate(zip(first, second, strict=True)):
            elements = [[e.box for e in one.elements if not isinstance(e, Rule)] for one in prints]
            for boxes in zip(*elements, strict=True):
                for part in range(parts):
                    pages.append(number)
                    covers.append([self._cover(box, part, parts) for box in boxes])
        return torch.tensor(pages), torch.from_numpy(np.asarray(covers, dtype=np.float32)).transpose(0, 1)

    def _cover(self, box: Box, part: int, parts: int) -> np.ndarray:
        """Share [N] of every patch that one part of a box covers."""
        left, top, right, bottom = box
        width = (right - left) / parts
        edges = np.arange(self.size // self.patch + 1) * self.patch / self.size

        def overlap(start: float, stop: float) -> np.ndarray:
            return np.clip(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start), 0, None) / edges[1]

        return np.outer(overlap(top, bottom), overlap(left + part * width, left + (part + 1) * width)).ravel()

    def _pixels(self, pages: Sequence[Page]) -> Tensor:
        cut = [
            cut_views(read(p, p.kind), plan_square(p.height, p.width, size=self.size).views, self.normalise)
            for p in pages
        ]
        return torch.stack([views[0] for views in cut])


class PrintNetwork(nn.Module):
    """The encoder and two heads that are thrown away afterwards.

    Args:
        vision: the encoder to train.
        code: width of the vectors that are compared.
        temperature: of the contrast.
        blank: a patch whose plain print varies less (standard deviation, normalised pixels) shows nothing to compare.
    """

    def __init__(self, vision: ViT, code: int = 64, temperature: float = 0.1, blank: float = 0.2) -> None:
        super().__init__()
        self.vision = vision
        self.redraw = nn.Linear(vision.width, 3 * vision.patch**2)
        self.code = nn.Sequential(nn.Linear(vision.width, vision.width), nn.GELU(), nn.Linear(vision.width, code))
        self.temperature, self.blank = temperature, blank

    def forward(self, batch: PrintBatch) -> Tensor:
        """Sum over the pages of the mean contrast and redrawing losses."""
        features = self.vision(batch.prints)  # [2V, N, D]
        plain = F.pixel_unshuffle(batch.plain, self.vision.patch).flatten(2).transpose(1, 2)  # [2V, N, 3 * P * P]
        redrawn = F.mse_loss(self.redraw(features).float(), plain)
        codes = self.code(features).float().chunk(2)  # each [V, N, C]
        if batch.regions:
            contrast = sum(self._same_regions(codes, *regions) for regions in batch.regions) / len(batch.regions)
        else:
            first, second = plain.chunk(2)
            shown = (first.std(dim=-1) > self.blank) & (second.std(dim=-1) > self.blank)  # [V, N]
            contrast = self._contrast(*(code[shown] for code in codes))
        return (contrast + redrawn) * len(batch.sample_ids)

    def _same_regions(self, codes: tuple[Tensor, Tensor], pages: Tensor, cover: Tensor) -> Tensor:
        """Which region of the second print is which of the first, by the mean code of the patches they cover."""
        weight = cover / cover.sum(dim=-1, keepdim=True).clamp(min=1e-6)  # [2, R, N]
        means = [torch.einsum("rn,rnc->rc", w, code[pages]) for w, code in zip(weight, codes, strict=True)]
        return self._contrast(*means)

    def _contrast(self, one: Tensor, other: Tensor) -> Tensor:
        """[R, C] each, row i of both the same thing: find it among all rows, in both directions."""
        likeness = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T / self.temperature
        same = torch.arange(len(one), device=one.device)
        mean = "mean" if len(one) else "sum"  # a mean over nothing at all would be 0 / 0
        there = F.cross_entropy(likeness, same, reduction=mean)
        return (there + F.cross_entropy(likeness.T, same, reduction=mean)) / 2


class PrintPretraining(MultimodalModule):
    """Pre-trains the nano vision encoder. Parts: vision, redraw, code.

    Args:
        vision: the encoder.
    """

    def __init__(self, vision: ViT) -> None:
        super().__init__(network=PrintNetwork(vision), processor=lambda: None)

    def modules_by_part(self) -> dict[str, nn.Module]:
        return dict(self.network.named_children())
