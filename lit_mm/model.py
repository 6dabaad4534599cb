"""A multimodal model: vision encoder, connector, fusion and language model, one forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.samples.batch import IGNORE, Batch


class VisionEncoder(Protocol):
    """[V, 3, H, W] normalised pixels -> [V, N, D] patch features.

    One of `any_size` also takes groups of views of other shapes together and pads N to the largest, a view's own
    patches first. One that `reads_tiles` is also given `tiles` [V], see `Batch`.
    """

    width: int

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows, columns) of patches."""
        ...


class Connector(Protocol):
    """[V, N, D] patch features -> [V, M, E] visual tokens.

    One of `any_grid` also takes the `grids` of the views, where these differ, and pads M in the same way.
    """

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> (rows, columns) of visual tokens."""
        ...

    def learned(self) -> Tensor:
        """[K, E] vectors that a layout may place between visual tokens (newline, separator); [0, E] for none."""
        ...


Fusion = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class MultimodalModel(nn.Module):
    """Composes the parts. `vision` and `connector` are None for a language model alone.

    Letters: B rows, L positions, V views, M visual tokens per view, K vectors in the bank, E language width.
    """

    def __init__(
        self,
        language: nn.Module,
        vision: nn.Module | None = None,
        connector: nn.Module | None = None,
        *,
        fusion: Fusion,
    ) -> None:
        super().__init__()
        self.vision, self.connector, self.language = vision, connector, language
        self.fusion = fusion
        # views of any shape: all in one call of each part, since under ZeRO-3 all ranks must make the same calls
        self.together = getattr(vision, "any_size", False) and getattr(connector, "any_grid", False)
        self.reads_tiles = getattr(vision, "reads_tiles", False)
        self.loss_by_source: Tensor | None = None  # of the last training batch, for whoever keeps account

    def bank(self, views: tuple[Tensor, ...], tiles: Tensor | None = None) -> Tensor:
        """Views grouped by shape -> [K, E]: the visual tokens of all views, then the connector's learned vectors.

        Args:
            tiles: see `Batch`; for a vision encoder that `reads_tiles`.
        """
        if self.together:
            grids = [self.vision.token_grid(tuple(view.shape[-2:])) for group in views for view in group]
            features = self.vision(views, tiles) if self.reads_tiles else self.vision(views)
            padded = self.connector(features, grids)  # [V, M, E]
            counts = [rows * columns for rows, columns in map(self.connector.token_grid, grids)]
            tokens = [of_view[:count] for of_view, count in zip(padded, counts, strict=True)]
        elif self.reads_tiles:
            by_group = zip(views, tiles.split([len(group) for group in views]), strict=True)
            tokens = [self.connector(self.vision(group, its_tiles)).flatten(0, 1) for group, its_tiles in by_group]
        else:
            tokens = [self.connector(self.vision(group)).flatten(0, 1) for group in views]
        return torch.cat([*tokens, self.connector.learned().to(tokens[0])])

    def embed(self, batch: Batch) -> Tensor:
        """[B, L, E]: text embeddings with the vectors of the bank in their places.

        Raises:
            UserError: the encoder and connector made another number of visual tokens than the processor counted.
        """
        text = self.language.embed(batch.input_ids)
        if self.vision is None:
            return text
        bank = self.bank(batch.views, batch.tiles)
        learned = len(self.connector.learned())
        if len(bank) - learned != batch.num_visual:
            raise UserError(
                f"samples {list(batch.sample_ids)}: the processor counted {batch.num_visual} visual tokens, vision "
                f"encoder and connector made {len(bank) - learned} from {batch.num_views} views. Is the processor of "
                "another family in use?"
            )
        return self.fusion(text, bank, batch.index, batch.visual_mask)

    def hidden(self, batch: Batch, cache: Any = None) -> Tensor:
        """[B, L, E] after the language model's last norm. `cache` keeps keys and values for decoding."""
        return self.language(
            self.embed(batch),
            segment_ids=batch.segment_ids,
            position_ids=batch.position_ids,
            visual_mask=None if self.vision is None else batch.visual_mask,
            cache=cache,
        )

    def loss_sum(self, batch: Batch) -> Tensor:
        """Sum of the cross-entropy over supervised tokens, fp32. Only their positions are projected.

        Of a batch from several sources, `loss_by_source` then tells the share of each.
        """
        hidden = self.hidden(batch)
        learnt = batch.labels[:, 1:] != IGNORE  # position i predicts what i + 1 holds
        logits = self.language.logits(hidden[:, :-1][learnt])
        losses = F.cross_entropy(logits.float(), batch.labels[:, 1:][learnt], reduction="none")
        if batch.source_ids is not None:
            self.loss_by_source = _by_source(losses.detach(), batch.source_ids[:, 1:][learnt], len(batch.held))
        return losses.sum()

    forward = loss_sum


def _by_source(losses: Tensor, source_ids: Tensor, num_sources: int) -> Tensor:
    """[T] losses and their sources -> [2, S]: for each source the sum of its losses, and its tokens."""
    of_each = [source_ids == source for source in range(num_sources)]  # no scatter: that is not deterministic on GPUs
    return torch.stack([torch.stack([losses[own].sum(), own.sum().to(losses)]) for own in of_each], dim=1)
