"""A multimodal model: vision encoder, connector, fusion and language model, one forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.protocol import LanguageModel, Learnt, State
from lit_mm.samples.batch import Batch, Views


class VisionEncoder(Protocol):
    """[V, 3, H, W] normalised pixels -> [V, N, D] patch features.

    With `any_size` it also takes groups of views of several shapes in one call; the output is padded to the longest
    view, and valid patches come first. With `reads_tiles` it also takes `tiles` [V], see `Views`.
    """

    width: int

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows, columns) of patches."""
        ...


class Connector(Protocol):
    """[V, N, D] patch features -> [V, M, E] visual tokens.

    With `any_grid` it also takes the `grids` of the views, where these differ; the output is padded in the same way.
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

    Letters: N samples, T positions of a flat row, V views, M visual tokens per view, K vectors in the bank, E width.
    """

    def __init__(
        self,
        language: LanguageModel,
        vision: VisionEncoder | None = None,
        connector: Connector | None = None,
        *,
        fusion: Fusion = scatter_visual,
    ) -> None:
        super().__init__()
        self.vision, self.connector, self.language = vision, connector, language
        self.fusion = fusion
        # views of any shape: all in one call of each part, since under ZeRO-3 all ranks must make the same calls
        self.together = getattr(vision, "any_size", False) and getattr(connector, "any_grid", False)
        self.reads_tiles = getattr(vision, "reads_tiles", False)

    def bank(self, views: Views) -> Tensor:
        """The visual tokens of all views, group after group, then the connector's learned vectors: [K, E].

        Raises:
            UserError: the encoder and connector made another number of visual tokens than the processor counted.
        """
        groups, tiles = views.normalised(), views.tiles
        if self.together:
            grids = [self.vision.token_grid(tuple(view.shape[-2:])) for group in groups for view in group]
            features = self.vision(groups, tiles) if self.reads_tiles else self.vision(groups)
            padded = self.connector(features, grids)  # [V, M, E]
            counts = [rows * columns for rows, columns in map(self.connector.token_grid, grids)]
            tokens = [of_view[:count] for of_view, count in zip(padded, counts, strict=True)]
        elif self.reads_tiles:
            numbers = tiles.split([len(group) for group in groups])
            tokens = [self.connector(self.vision(*pair)).flatten(0, 1) for pair in zip(groups, numbers, strict=True)]
        else:
            tokens = [self.connector(self.vision(group)).flatten(0, 1) for group in groups]
        if (count := sum(map(len, tokens))) != views.tokens:
            raise UserError(
                f"the processor counted {views.tokens} visual tokens, vision encoder and connector made {count} from "
                f"{len(views)} views. Is the processor of another family in use?"
            )
        return torch.cat([*tokens, self.connector.learned().to(tokens[0])])

    def embed(self, batch: Batch) -> Tensor:
        """[1, T, E]: text embeddings with the vectors of the bank in their places.

        Raises:
            UserError: see `bank`.
        """
        text = self.language.embed(batch.ids)
        if self.vision is None or batch.views is None:
            return text
        try:
            bank = self.bank(batch.views)
        except UserError as error:
            raise UserError(f"samples {list(batch.sample_ids)}: {error}") from error
        return self.fusion(text, bank, batch.bank, batch.visual)

    def forward(self, batch: Batch) -> Learnt:
        """Hidden states at the supervised places, and the ids that they predict."""
        return self.language.learn(self.embed(batch), batch)

    def begin(self, batch: Batch) -> tuple[Tensor, State]:
        """Read prompts: the hidden states [N, E] that predict each sample's first new token, and the decoding state."""
        return self.language.begin(self.embed(batch), batch)
