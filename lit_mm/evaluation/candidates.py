"""Ranking of candidate answers by their likelihood after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist

from lit_mm.distributed.lockstep import is_shared
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.model import MultimodalModel
from lit_mm.prompts.prompt import Stops
from lit_mm.samples.batch import Batch
from lit_mm.samples.processor import Processor

Length = Literal["mean", "sum"]


@dataclass(frozen=True)
class Ranking:
    """How the authors of a family compute the likelihood of a candidate.

    Attributes:
        length: "mean" divides the log-likelihood by the number of tokens, "sum" does not.
        end: True counts the token that ends the answer.
    """

    length: Length = "mean"
    end: bool = False


@runtime_checkable
class DeclaresRanking(Protocol):
    """A family that declares its ranking.

    Attributes:
        ranking: ranking for procedures that set none.
    """

    ranking: Ranking


def candidate_ids(processor: Processor, document: Document, text: str, *, end: bool = False) -> list[int]:
    """Return the token ids of a candidate answer, as they follow the prompt in training.

    Args:
        processor: processor of the model.
        document: question, without an answer.
        text: candidate.
        end: True includes the tokens that end the answer.
    Raises:
        UserError: the candidate has no token.
    """
    prompt = processor.sample(document).input_ids
    whole = processor.sample(Document(document.id, (*document.turns, Turn("assistant", (text,))), document.source))
    assert np.array_equal(whole.input_ids[: len(prompt)], prompt), "a prompt's ids do not depend on its answer"
    behind = whole.input_ids[len(prompt) :].tolist()
    start, stop = Stops.of(processor.prompt, processor.tokenizer).first_end(behind)
    ids = behind[: stop if end else start]
    if not ids:
        raise UserError(f"question {document.id!r}: the candidate {text!r} has no token, so it has no likelihood")
    return ids


@torch.no_grad()
def likelihoods(
    network: MultimodalModel,
    batch: Batch,
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    length: Length = "mean",
) -> list[list[float]]:
    """Compute the log-likelihood of each candidate after its prompt. Prompts are read once for all their candidates.

    Args:
        network: model.
        batch: prompts of N samples.
        candidates: for each sample, the token ids of its candidates, each at least one token.
        length: "mean" divides the log-likelihood by the number of tokens, "sum" does not.
    Returns:
        For each sample, the log-likelihoods of its candidates.
    Source: "mean" is Qwen-VL's eval_mm/evaluate_multiple_choice.py. "sum" is InstructBLIP's T5 model; its Vicuna model
        divides by the padded length of all candidates, which leaves the order of sums. T5 counts eos, Vicuna does not.
    """
    language = network.language
    hidden, state = network.begin(batch)
    device = hidden.device
    samples = [number for number, group in enumerate(candidates) for _ in group]
    order = torch.tensor(samples, device=device)
    state.reorder(order)
    hidden = hidden[order]
    flat = [ids for group in candidates for ids in group]
    longest = torch.tensor(max(map(len, flat)), device=device)
    if is_shared(network):  # every rank makes the same calls
        dist.all_reduce(longest, dist.ReduceOp.MAX)
    totals = torch.zeros(len(flat), dtype=torch.float, device=device)
    for place in range(int(longest)):
        tokens = torch.tensor([ids[min(place, len(ids) - 1)] for ids in flat], device=device)
        counts = torch.tensor([place < len(ids) for ids in flat], device=device)
        scores = language.logits(hidden).float().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        totals += scores.where(counts, 0.0)
        if place + 1 < longest:
            hidden = language.step(tokens, state)
    if length == "mean":
        totals /= torch.tensor([len(ids) for ids in flat], device=device)
    values = iter(totals.tolist())
    return [[next(values) for _ in group] for group in candidates]
