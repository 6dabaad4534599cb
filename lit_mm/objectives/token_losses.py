"""The cross-entropy of hidden states, computed without all logits in memory at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_mm.language.protocol import LanguageModel

MIB = 1 << 20
WHOLE = 64 * MIB  # fp32 logits up to this size are computed at once, bytes
CHUNK = 32 * MIB  # fp32 logits of a chunk, bytes
MOST_CHUNKS = 16  # each chunk reads the whole output projection, and adds a gradient of its size
# S supervised tokens, E width, C vocabulary


def token_losses(language: LanguageModel, hidden: Tensor, ids: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy of each token in fp32, as `F.cross_entropy` defines it.

    If the logits of all tokens would take more than 64 MB, they are computed in chunks of tokens, and a second time in
    the backward pass. 2048 tokens with a vocabulary of 49152 and a width of 192 then peak at 140 MB in place of
    1170 MB, forward and backward in fp32.

    torch has `F.linear_cross_entropy` for this. It returns losses in the dtype of the hidden states, which bf16 rounds
    by up to 0.03 at a loss of 10; it takes the bare weight, which a sharded model only has inside of the projection's
    own call; and with label smoothing it keeps all logits. The chunks here go through `logits` like everything else.

    Args:
        language: the model whose output projection makes the logits.
        hidden: [S, E] hidden states.
        ids: [S] token ids that they predict.
        label_smoothing: share of the target's probability that is spread over the vocabulary, in [0, 1].
    Returns:
        [S] losses.
    """

    def losses(hidden: Tensor, ids: Tensor) -> Tensor:
        logits = language.logits(hidden).float()  # [S, C]
        return F.cross_entropy(logits, ids, reduction="none", label_smoothing=label_smoothing)

    rows = chunk_rows(len(ids), language.vocab_size)
    if rows >= len(ids):
        return losses(hidden, ids)
    if not torch.is_grad_enabled():
        return torch.cat([losses(*chunk) for chunk in zip(hidden.split(rows), ids.split(rows), strict=True)])
    return torch.cat(
        [
            checkpoint(losses, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(hidden.split(rows), ids.split(rows), strict=True)
        ]
    )


def chunk_rows(rows: int, vocab_size: int) -> int:
    """Compute the number of tokens in a chunk; it is all tokens if their logits fit.

    Example: 2048 tokens and a vocabulary of 49152 make 384 MB of logits, which are 12 chunks of 171 tokens.
    """
    size = 4 * rows * vocab_size
    if size <= WHOLE:
        return rows
    return math.ceil(rows / min(math.ceil(size / CHUNK), MOST_CHUNKS))
