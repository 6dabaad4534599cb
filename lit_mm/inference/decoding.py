"""How the next token is chosen: greedily, by sampling, or by beam search. Arithmetic on scores; no model."""

from __future__ import annotations

from collections.abc import Collection
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
    """How an answer is decoded.

    Attributes:
        max_new_tokens: where an answer is cut that does not end itself.
        min_new_tokens: no stop token before so many.
        sample: draw from the distribution; otherwise the most likely token is taken.
        temperature: divides the scores of a draw.
        top_k: a draw is among the k most likely tokens; 0: among all.
        top_p: a draw is among the most likely tokens whose probabilities reach this sum; 1: among all.
        repetition_penalty: of tokens that the answer holds already (those of the question do not count); 1: none.
        beams: hypotheses of a beam search, scored by the mean log-probability of their tokens; 1: none.
        seed: of the draws.
    Raises:
        UserError: a value out of its range, or draws together with beams.
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
                "decoding: `max_new_tokens` is at least 1 and `min_new_tokens` between 0 and it, got "
                f"{self.max_new_tokens} and {self.min_new_tokens}"
            )
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise UserError(
                f"decoding: temperature > 0, top_k >= 0, 0 < top_p <= 1 and repetition_penalty > 0, got {self}"
            )
        if self.beams < 1 or (self.beams > 1 and self.sample):
            raise UserError(f"decoding: `beams` is at least 1, and 1 when sampling, got {self.beams}")

    def processors(self, stop_ids: Collection[int], device: torch.device) -> LogitsProcessorList:
        """What changes scores [B, vocabulary], called with the new tokens so far [B, T]."""
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
    """Chooses token after token for a batch of rows.

    Args:
        decoding: how.
        stop_ids: tokens that end an answer.
        device: of the scores.
    """

    def __init__(self, decoding: Decoding, stop_ids: Collection[int], device: torch.device) -> None:
        self.processors = decoding.processors(stop_ids, device)
        self.generator = torch.Generator(device).manual_seed(decoding.seed) if decoding.sample else None

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """New tokens so far [B, T] and scores [B, vocabulary] -> the next token of every row [B, 1]."""
        scores = self.processors(tokens, scores.float())
        if self.generator is None:
            return scores.argmax(dim=-1, keepdim=True)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator)
