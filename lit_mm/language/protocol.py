"""The protocol of language models: decoders and encoder-decoders that read a flat row of samples."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from lit_mm.samples.batch import Batch


class Learnt(NamedTuple):
    """Hidden states and the token ids that they should predict.

    Attributes:
        hidden: [S, E] hidden states at the supervised places, after the last norm.
        ids: [S] token id that each hidden state should predict.
    """

    hidden: Tensor
    ids: Tensor


class Memory(NamedTuple):
    """Features of a second vision encoder, which cross-attention reads.

    Attributes:
        vectors: [1, S, D] features of all samples, one sample after the other; those of an unused blank view come last.
        lengths: number of vectors of each sample, 0 for a sample without pictures; their sum is at most S.
    """

    vectors: Tensor
    lengths: tuple[int, ...]


class State(Protocol):
    """The memory of a language model during decoding, with one entry per sample. `LanguageModel.step` extends it."""

    def reorder(self, samples: Tensor) -> None:
        """Select samples [N'] in this order, such as hypotheses of a beam search or unfinished samples."""
        ...


DecodingState = TypeVar("DecodingState", bound=State)


class LanguageModel(Protocol[DecodingState]):
    """Reads a flat row of samples that do not see each other (see `Batch`). N samples, T positions, E width.

    Attributes:
        width: E, width of the hidden states.
        vocab_size: number of token ids.
        writes_target: True for an encoder-decoder, whose answers are in `Batch.target`.
    """

    width: int
    vocab_size: int
    writes_target: bool

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids [...] as text embeddings [..., E]."""
        ...

    def learn(self, embeds: Tensor, batch: Batch) -> Learnt:
        """Run embeddings [1, T, E] of the row; return the hidden states at supervised places and the predicted ids."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., E] to [..., vocabulary]."""
        ...

    def begin(self, embeds: Tensor, batch: Batch) -> tuple[Tensor, DecodingState]:
        """Read the prompts; return the hidden states [N, E] that predict each first new token, and the state."""
        ...

    def step(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Read one more token [N] of every sample; return the hidden states [N, E] that predict the next token."""
        ...
