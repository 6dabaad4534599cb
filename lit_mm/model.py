"""The multimodal model: vision encoder, connector, fusion and language model in one forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.distributed.lockstep import as_call
from lit_mm.errors import UserError
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.protocol import LanguageModel, Learnt, Memory, State
from lit_mm.layers.protocols import complete
from lit_mm.samples.batch import Batch, Texts, Views
from lit_mm.vision.protocol import VisionEncoder

Fusion = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class MultimodalModel(nn.Module):
    """Composes the parts into one network.

    Letters: N samples, T positions of a flat row, V views, M visual tokens per view, K vectors in the bank, E width.

    Args:
        language: decoder or encoder-decoder.
        vision: vision encoder; None for a language model alone.
        connector: connector; None for a language model alone.
        fusion: function that puts vectors of the bank into the text embeddings.
        second_vision: vision encoder of `Batch.second_views`, whose features the language model reads by
            cross-attention; None if there is none.
        second_connector: module [V, N, D] -> [V, N', D'] behind the second vision encoder; None leaves its features
            unchanged.
    Raises:
        UserError: the vision encoder or the connector lacks an attribute or method of its protocol.
    """

    def __init__(
        self,
        language: LanguageModel,
        vision: VisionEncoder | None = None,
        connector: Connector | None = None,
        *,
        fusion: Fusion = scatter_visual,
        second_vision: nn.Module | None = None,
        second_connector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if vision is not None:
            complete(vision, VisionEncoder, "vision encoder")
        if connector is not None:
            complete(connector, Connector, "connector")
        if second_vision is not None:
            complete(second_vision, VisionEncoder, "second vision encoder")
        self.vision, self.connector, self.language = vision, connector, language
        self.second_vision, self.second_connector = second_vision, second_connector
        self.fusion = fusion
        # parts that take any shape get all views in one call, since under ZeRO-3 all ranks must make the same calls
        self.together = vision is not None and vision.any_size and connector is not None and connector.any_grid

    def bank(self, views: Views, texts: Texts | None = None) -> Tensor:
        """Return [K, E]: the visual tokens of all views, group after group, then the connector's learned vectors.

        Args:
            views: views of the batch.
            texts: second texts of the samples, for a connector that reads them.
        Raises:
            UserError: encoder and connector make another number of visual tokens than the processor has counted, or a
                connector that reads texts gets none.
        """
        vision, connector = self.vision, self.connector
        assert vision is not None and connector is not None
        groups, tiles = views.normalised(), views.tiles
        if self.together:
            grids = [vision.token_grid(tuple(view.shape[-2:])) for group in groups for view in group]
            features = vision(groups, tiles) if vision.reads_tiles else vision(groups)
            padded = connector(features, grids)  # [V, M, E]
            counts = [rows * columns for rows, columns in map(connector.token_grid, grids)]
            tokens = [of_view[:count] for of_view, count in zip(padded, counts, strict=True)]
        elif connector.reads_text:
            if texts is None:
                raise UserError("the connector reads second texts, but the batch has none. Set `inputs.reading`")
            owners = views.owners.split([len(group) for group in groups])
            pairs = zip(groups, owners, strict=True)
            tokens = [connector(vision(group), texts.of(numbers)).flatten(0, 1) for group, numbers in pairs]
        elif vision.reads_tiles:
            numbers = tiles.split([len(group) for group in groups])
            tokens = [connector(vision(*pair)).flatten(0, 1) for pair in zip(groups, numbers, strict=True)]
        else:
            tokens = [connector(vision(group)).flatten(0, 1) for group in groups]
        if (count := sum(map(len, tokens))) != views.tokens:
            raise UserError(
                f"the processor counted {views.tokens} visual tokens, but the vision encoder and connector made "
                f"{count} from {len(views)} views. Is the processor of another family in use?"
            )
        return torch.cat([*tokens, as_call(connector, connector.learned).to(tokens[0])])

    def embed(self, batch: Batch) -> Tensor:
        """Return [1, T, E]: text embeddings, with vectors of the bank at visual positions.

        Raises:
            UserError: see `bank`.
        """
        text = self.language.embed(batch.ids)
        if self.vision is None or batch.views is None:
            return text
        try:
            bank = self.bank(batch.views, batch.texts)
        except UserError as error:
            raise UserError(f"samples {list(batch.sample_ids)}: {error}") from error
        return self.fusion(text, bank, batch.bank, batch.visual)

    def memory(self, batch: Batch) -> Memory | None:
        """Return the features of the second vision encoder; None for a model without one.

        Raises:
            UserError: the second views have several shapes.
        """
        views = batch.second_views
        if self.second_vision is None or views is None:
            return None
        if len(views.groups) > 1:
            shapes = [tuple(group.shape[-2:]) for group in views.groups]
            raise UserError(
                f"samples {list(batch.sample_ids)}: the second vision encoder needs views of one shape, got "
                f"{shapes}. Choose a tiling with one size for `second`"
            )
        features = self.second_vision(views.normalised()[0])  # [V, N, D]
        if self.second_connector is not None:
            features = self.second_connector(features)
        return Memory(features.flatten(0, 1)[None], tuple(count * features.shape[1] for count in views.counts))

    def forward(self, batch: Batch) -> Learnt:
        """Return the hidden states at the supervised places and the token ids that they predict."""
        return self.language.learn(self.embed(batch), batch, *self._memories(batch))

    def _memories(self, batch: Batch) -> list[Memory]:
        """Return the memory as further arguments of a language model that reads one; [] without a second encoder."""
        memory = self.memory(batch)
        return [] if memory is None else [memory]

    def begin(self, batch: Batch) -> tuple[Tensor, State]:
        """Read prompts; return the hidden states [N, E] that predict each first new token, and the decoding state."""
        return self.language.begin(self.embed(batch), batch, *self._memories(batch))
