"""What a language model is to the rest of the library: a decoder or an encoder-decoder, on a flat row of samples."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from lit_mm.samples.batch import Batch


class Learnt(NamedTuple):
    """What a training step compares.

    Attributes:
        hidden: [S, E] hidden states at the supervised places, after the last norm.
        ids: [S] the token ids that they predict.
    """

    hidden: Tensor
    ids: Tensor


class State(Protocol):
    """What a language model remembers while it decodes: one entry per sample. `LanguageModel.step` extends it."""

    def reorder(self, samples: Tensor) -> None:
        """Keep these samples [N'] in this order: the hypotheses of a beam search, or those that are not finished."""
        ...


DecodingState = TypeVar("DecodingState", bound=State)


class LanguageModel(Protocol[DecodingState]):
    """Reads a flat row of samples that are blind to each other (see `Batch`). N samples, T positions, E width.

    Attributes:
        width: E, of the hidden states.
        vocab_size: number of token ids.
        writes_target: True for an encoder-decoder: the answers that it learns stand in `Batch.target`.
    """

    width: int
    vocab_size: int
    writes_target: bool

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> text embeddings [..., E]."""
        ...

    def learn(self, embeds: Tensor, batch: Batch) -> Learnt:
        """Embeddings [1, T, E] of the row -> what its supervised places predict."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] -> [..., vocabulary]."""
        ...

    def begin(self, embeds: Tensor, batch: Batch) -> tuple[Tensor, DecodingState]:
        """Read the prompts. Returns the hidden states [N, E] that predict each sample's first new token."""
        ...

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """One more token [N] of every sample -> the hidden states [N, E] that predict the next one."""
        ...
