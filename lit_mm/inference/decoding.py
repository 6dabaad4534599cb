"""Settings of decoding (greedy, sampling, beam search) and the choice of the next token from scores."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_mm.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """Settings for decoding an answer.

    Attributes:
        max_new_tokens: maximum length of an answer, tokens.
        min_new_tokens: minimum number of tokens before a stop token.
        sample: True draws from the distribution; False takes the most likely token.
        temperature: divisor of the scores before a draw.
        top_k: number of most likely tokens that a draw is limited to; 0 means no limit.
        top_p: sum of probabilities of the most likely tokens that a draw is limited to; 1 means no limit.
        repetition_penalty: penalty on tokens that the answer already holds, not counting the question; 1 means none.
        beams: number of hypotheses of a beam search, scored by the mean log-probability of their tokens; 1 means no
            beam search.
        seed: seed of the draws.
    Raises:
        UserError: a value is out of its range, or sampling is combined with beams.
    """

    max_new_tokens: int = 24
    min_new_tokens: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                "decoding: `max_new_tokens` is at least 1, and `min_new_tokens` is from 0 to `max_new_tokens`, "
                f"got {self.max_new_tokens} and {self.min_new_tokens}"
            )
        finite = 0 < self.temperature < math.inf and 0 < self.repetition_penalty < math.inf  # False for nan
        if not finite or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                "decoding: temperature and repetition_penalty are numbers above 0, top_k >= 0 and 0 < top_p <= 1, got "
                f"{self}"
            )
        if self.beams < 1 or (self.beams > 1 and self.sample):
            raise UserError(f"decoding: `beams` is at least 1, and exactly 1 for sampling, got {self.beams}")

    def processors(self, stop_ids: Collection[int], device: torch.device) -> LogitsProcessorList:
        """Build the processors that change scores [B, vocabulary], given the new tokens so far [B, T]."""
        chain = LogitsProcessorList()
        if self.repetition_penalty != 1:
            chain.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.min_new_tokens:
            chain.append(
                MinNewTokensLengthLogitsProcessor(0, self.min_new_tokens, sorted(stop_ids), device=str(device))
            )
        if self.sample:
            chain.append(TemperatureLogitsWarper(self.temperature))
            if self.top_k:
                chain.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                chain.append(TopPLogitsWarper(self.top_p))
        return chain


class Chooser:
    """Chooses the next token for every row of a batch.

    Args:
        decoding: settings.
        stop_ids: ids of the tokens that end an answer.
        device: device of the scores.
        seeds: seed of the draws of each sample, so that they do not depend on the other samples of the batch; None
            draws for all samples with the seed of `decoding`.
    """

    def __init__(
        self,
        decoding: Decoding,
        stop_ids: Collection[int],
        device: torch.device,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.processors = decoding.processors(stop_ids, device)
        self.is_shared = seeds is None
        seeds = [decoding.seed] if seeds is None else seeds
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds] if decoding.sample else []

    def __call__(self, tokens: Tensor, scores: Tensor, samples: Sequence[int]) -> Tensor:
        """Choose the next token of every row [B, 1] from the new tokens so far [B, T] and scores [B, vocabulary].

        Args:
            samples: number of the sample in every row.
        """
        scores = self.processors(tokens, scores.float())
        if not self.generators:
            return scores.argmax(dim=-1, keepdim=True)
        chances = scores.softmax(dim=-1)
        if self.is_shared:
            return torch.multinomial(chances, 1, generator=self.generators[0])
        rows = [
            torch.multinomial(row, 1, generator=self.generators[sample])
            for sample, row in zip(samples, chances, strict=True)
        ]
        return torch.stack(rows)
