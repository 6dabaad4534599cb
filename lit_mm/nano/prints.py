"""How the nano vision encoder is pre-trained: from pixels alone. No text, no label and no question is ever seen.

Each page is printed twice in different looks and a few pixels apart. The encoder learns (1) to tell which patch of the
other print shows the same thing, among all patches of the batch, and (2) to redraw each patch as the plain print (black
on white, no noise) would show it. What a patch shows is what survives both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from lit_mm.data.order import MicroBatch
from lit_mm.data.pixels import Normalise, cut_views
from lit_mm.module import MultimodalModule
from lit_mm.nano.elements import Style
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
    """

    prints: Tensor
    plain: Tensor
    sample_ids: tuple[str, ...]
    step_tokens: int

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
        )


class Prints(Dataset):
    """Prints of generated pages at `size` x `size` pixels.

    Args:
        split, seed: index space and world of the pages.
    """

    def __init__(self, size: int, *, split: str, seed: int) -> None:
        self.size, self.split, self.seed = size, split, seed
        self.normalise = Normalise(CLIP_MEAN, CLIP_STD)

    def __getitem__(self, micro: MicroBatch) -> PrintBatch:
        numbers = [number for row in micro.rows for number in row]
        first = [
            page(n // len(SKILLS), split=self.split, seed=self.seed, kind=SKILLS[n % len(SKILLS)]) for n in numbers
        ]
        both = [*first, *(restyle(one, number) for one, number in zip(first, numbers, strict=True))]
        return PrintBatch(
            prints=self._pixels(both),
            plain=self._pixels([replace(one, style=PLAIN, height=self.size, width=self.size) for one in both]),
            sample_ids=tuple(str(number) for number in numbers),
            step_tokens=micro.step_tokens,
        )

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
        first, second = plain.chunk(2)
        shown = (first.std(dim=-1) > self.blank) & (second.std(dim=-1) > self.blank)  # [V, N]
        one, other = (F.normalize(code[shown].float(), dim=-1) for code in self.code(features).chunk(2))
        likeness = one @ other.T / self.temperature
        same = torch.arange(len(one), device=one.device)
        mean = "mean" if len(one) else "sum"  # a mean over no patch at all would be 0 / 0
        contrast = F.cross_entropy(likeness, same, reduction=mean) + F.cross_entropy(likeness.T, same, reduction=mean)
        return (contrast / 2 + redrawn) * len(batch.sample_ids)


class PrintPretraining(MultimodalModule):
    """Pre-trains the nano vision encoder. Parts: vision, redraw, code.

    Args:
        vision: the encoder.
    """

    def __init__(self, vision: ViT) -> None:
        super().__init__(network=PrintNetwork(vision), processor=lambda: None)

    def modules_by_part(self) -> dict[str, nn.Module]:
        return dict(self.network.named_children())
