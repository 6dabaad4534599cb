"""Features of views that a vision encoder has read before, for chats in which an image returns in every turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

MOST_VIEWS = 128  # views whose features are stored: two images of LLaVA-NeXT's kind need ten


class FeatureCache:
    """Stores the features of views by their pixels, so that the vision encoder runs once per image.

    Features of a view must not depend on the other views of a call, which holds for every encoder in evaluation mode.

    Args:
        limit: largest number of views whose features are stored; the view that was unused for longest goes first.
    """

    def __init__(self, limit: int = MOST_VIEWS) -> None:
        self.limit = limit
        self.features: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def encode(
        self,
        name: str,
        encode: Callable[..., Any],
        grid: Callable[[tuple[int, int]], tuple[int, int]],
        views: Tensor | Sequence[Tensor],
        tiles: Tensor | None = None,
    ) -> Any:
        """Return what `encode(views, tiles)` returns, reading only views that are not stored.

        Args:
            name: name of the encoder.
            encode: the encoder: [V, 3, H, W], or groups of views by shape, and tiles [V] if it reads them.
            grid: rule (height, width) of a view -> (rows, columns) of its patches, for groups: see `padded`.
            views: normalised pixels, [V, 3, H, W] or a group [V_g, 3, H_g, W_g] per shape.
            tiles: [V] numbers of the tiles; None if the encoder does not read them.
        """
        groups = [views] if isinstance(views, Tensor) else list(views)
        numbers = [None] * sum(map(len, groups)) if tiles is None else tiles.tolist()
        flat = [view for group in groups for view in group]
        keys = [(name, number, *fingerprint(view)) for view, number in zip(flat, numbers, strict=True)]
        missing = {key: place for place, key in enumerate(keys) if key not in self.features}
        places = sorted(missing.values())
        if places:
            ends = [0, *torch.tensor([len(group) for group in groups]).cumsum(0).tolist()]
            rows = [[place - first for place in places if first <= place < last] for first, last in pairwise(ends)]
            new = [group[of_group] for group, of_group in zip(groups, rows, strict=True) if of_group]
            inputs = (new[0] if isinstance(views, Tensor) else tuple(new), *(() if tiles is None else (tiles[places],)))
            encoded = encode(*inputs)
            for number, place in enumerate(places):
                features = pytree.tree_map(lambda tensor, number=number: tensor[number], encoded)
                if not isinstance(views, Tensor):
                    features = features[: count_of(grid, flat[place])]
                self.features[keys[place]] = features
        for key in keys:
            self.features.move_to_end(key)
        stored = [self.features[key] for key in keys]
        while len(self.features) > self.limit:
            self.features.popitem(last=False)
        if isinstance(views, Tensor):
            return pytree.tree_map(lambda *rows: torch.stack(rows), *stored)
        return padded(stored)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Let the vision encoders of a network read a view only once inside a `with` block, without gradients."""
        encoders = {name: module for name, module in network.named_children() if name in ("vision", "second_vision")}
        for name, encoder in encoders.items():
            self._replace(name, encoder)
        try:
            yield
        finally:
            for encoder in encoders.values():
                del encoder.forward

    def _replace(self, name: str, encoder: Any) -> None:
        forward = encoder.forward  # bound method of the class

        def cached(views: Tensor | Sequence[Tensor], tiles: Tensor | None = None) -> Any:
            return self.encode(name, forward, encoder.token_grid, views, tiles)

        encoder.forward = cached


def fingerprint(view: Tensor) -> tuple[tuple[int, ...], bytes]:
    """Return the shape and a digest of the pixels of a view."""
    pixels = view.detach().float().contiguous().cpu().numpy()
    return tuple(view.shape), blake2b(pixels, digest_size=16).digest()


def count_of(grid: Callable[[tuple[int, int]], tuple[int, int]], view: Tensor) -> int:
    """Return the number of patches of a view [3, H, W]."""
    rows, columns = grid((view.shape[-2], view.shape[-1]))
    return rows * columns


def padded(features: Sequence[Tensor]) -> Tensor:
    """Stack features [N_v, D] of views to [V, N, D], padded with zeros behind the patches of a view."""
    longest = max(map(len, features))
    return torch.stack([F.pad(of_view, (0, 0, 0, longest - len(of_view))) for of_view in features])
