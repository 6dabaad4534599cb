"""Rotary positions with other frequencies for long samples than for short ones (LongRoPE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lit_mm.errors import UserError

KIND = "longrope"


# N samples, T positions of a flat row, D width of a head
class LongRotary(nn.Module):
    """Rotary positions of kind "longrope", with the frequencies of each sample by its length.

    transformers takes the frequencies of all samples by the longest one of a row. Here a sample of a packed row gets
    what it gets alone.

    Args:
        config: config of the decoder.
    Attributes:
        limit: most tokens of a sample with the frequencies of short samples.
    Source: arXiv:2402.13753; `_compute_longrope_parameters` of transformers.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.limit: int = config.rope_parameters["original_max_position_embeddings"]
        short, self.scale = ROPE_INIT_FUNCTIONS[KIND](config)
        long, _ = ROPE_INIT_FUNCTIONS[KIND](config, seq_len=self.limit + 1)
        self.register_buffer("inv_freq", torch.stack([short, long]), persistent=False)  # [2, D / 2]
        self.choice: Tensor | None = None

    def begin_row(self, lengths: Sequence[int]) -> None:
        """Take the frequencies for a flat row of samples of these lengths."""
        counts = torch.tensor(lengths, device=self.inv_freq.device)
        self.choice = (counts > self.limit).long().repeat_interleave(counts, output_size=sum(lengths))[None]  # [1, T]

    def begin_step(self, lengths: Sequence[int]) -> None:
        """Take the frequencies for one more token of samples that have these lengths with it.

        Raises:
            UserError: a sample becomes longer than the limit, so its cached keys have other frequencies.
        """
        if self.limit + 1 in lengths:
            raise UserError(
                f"a sample grows beyond {self.limit} tokens during decoding, where its rotary frequencies change. "
                f"Lower `max_new_tokens`: a prompt of up to {self.limit} tokens and its answer must stay below "
                "the limit"
            )
        self.choice = (torch.tensor(lengths, device=self.inv_freq.device) > self.limit).long()[:, None]  # [N, 1]

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] positions -> cosine and sine, each [B, T, D], in the dtype of `x`.

        Raises:
            UserError: neither `begin_row` nor `begin_step` was called.
        """
        if self.choice is None:
            raise UserError("LongRotary: the lengths of the samples are not known; call `begin_row` first")
        angles = position_ids[..., None].float() * self.inv_freq.float()[self.choice]  # [B, T, D / 2]
        both = torch.cat([angles, angles], dim=-1)
        return (both.cos() * self.scale).to(x.dtype), (both.sin() * self.scale).to(x.dtype)
