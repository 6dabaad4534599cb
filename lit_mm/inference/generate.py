"""Decoding with a cache for batches of documents: greedy, sampling, beam search."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lit_mm.distributed.lockstep import all_done, is_shared
from lit_mm.documents.document import Document
from lit_mm.inference.decoding import Chooser, Decoding
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.prompt import Stops
from lit_mm.samples.batch import IGNORE, Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import Processor, Sample


def answer(
    module: MultimodalModule,
    documents: Sequence[Document],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 24,
    decoding: Decoding | None = None,
    continued: bool = False,
    spread: bool = False,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """Return the model's answer to each document, whose own last answer is hidden.

    Args:
        module: model that answers.
        documents: documents to answer.
        batch_size: number of documents decoded together; batches are grouped by length.
        max_new_tokens: maximum length of an answer, tokens, if `decoding` is None.
        decoding: settings of decoding, with their own `max_new_tokens`; None decodes greedily.
        continued: True takes the last answer of a document as the beginning of the model's answer and returns the rest.
        spread: True divides the batches among the ranks of the job, which must all call this and all get every answer.
            Batches and answers do not depend on the number of ranks.
        seeds: seed of the draws of each answer, if `decoding` samples; None draws by the seed of `decoding`, batch by
            batch.
    """
    processor = module.processor
    decoding = decoding or Decoding(max_new_tokens)
    samples = [prompt_sample(processor, document, continued=continued) for document in documents]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    stops = Stops.of(processor.prompt, processor.tokenizer)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if spread and dist.is_initialized() else (0, 1)
    answers: dict[int, str] = {}
    for numbers in share(batches, rank, ranks, equal=is_shared(module.network)):
        batch = collate([samples[i] for i in numbers], processor.for_questions()).to(module.device)
        with module.inference():
            batch_seeds = None if seeds is None else [seeds[i] for i in numbers]
            ids = decode(
                module.network,
                batch,
                stop_ids=stops.ids,
                stop_sequences=stops.sequences,
                decoding=decoding,
                seeds=batch_seeds,
            )
        for i, row in zip(numbers, ids, strict=True):
            answers[i] = processor.answer_text(row[: stops.first_end(row)[0]], documents[i])
    if ranks > 1:
        by_rank: list[dict[int, str]] = [{} for _ in range(ranks)]
        dist.all_gather_object(by_rank, answers)
        answers = {i: text for answers_of_rank in by_rank for i, text in answers_of_rank.items()}
    return [answers[i] for i in range(len(samples))]


def share(batches: Sequence[list[int]], rank: int, ranks: int, *, equal: bool) -> list[list[int]]:
    """Select the batches of one rank: every n-th batch.

    Args:
        batches: batches of all ranks.
        rank: number of this rank.
        ranks: number of ranks.
        equal: True gives every rank the same number of batches by repeating the last batch; ranks that hold shards of
            one model must make the same number of forwards.
    """
    batches_of_rank = list(batches[rank::ranks])
    missing = -(-len(batches) // ranks) - len(batches_of_rank)
    return batches_of_rank + ([batches[-1]] * missing if equal else [])


def prompt_sample(processor: Processor, document: Document, *, continued: bool = False) -> Sample:
    """Lay out a document as a prompt, whose last position predicts the first new token.

    Args:
        processor: processor of the model.
        document: document to answer.
        continued: True keeps the document's last answer as the beginning of the model's answer. It is tokenised
            together with the text before it, like a whole answer; its end marker and all later tokens are left out.
    """
    if not (continued and document.answer):
        return processor.sample(document.without_answer())
    sample = processor.sample(document)
    learnt = np.flatnonzero(sample.labels != IGNORE)
    first = learnt[-1]  # goes back to the start of the last supervised stretch, the answer with its end marker
    while sample.labels[first - 1] != IGNORE:
        first -= 1
    end = first + Stops.of(processor.prompt, processor.tokenizer).first_end(sample.input_ids[first:].tolist())[0]
    return replace(sample, input_ids=sample.input_ids[:end], labels=sample.labels[:end], index=sample.index[:end])


def decode(
    network: MultimodalModel,
    batch: Batch,
    *,
    stop_ids: Collection[int],
    stop_sequences: Sequence[tuple[int, ...]] = (),
    decoding: Decoding,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Decode new token ids of every sample, up to its end (included) or `max_new_tokens`.

    Prompts are read as one flat row. A sample that has ended leaves the batch, unless ranks share the model; then all
    ranks make the same calls until every sample of every rank has ended.

    Args:
        network: model that answers.
        batch: prompts.
        stop_ids: ids of the tokens that end an answer.
        stop_sequences: sequences of tokens that end an answer; `min_new_tokens` does not put them off.
        decoding: settings of decoding.
        seeds: seed of the draws of each sample; None draws by the seed of `decoding`.
    """
    stops = Stops(frozenset(stop_ids), tuple(stop_sequences))
    if decoding.beams > 1:
        return beam_search(network, batch, stops=stops, decoding=decoding)
    answers: list[list[int]] = [[] for _ in batch.lengths]
    for tokens in decode_steps(network, batch, stops=stops, decoding=decoding, seeds=seeds):
        for sample, token in tokens:
            answers[sample].append(token)
    return answers


def decode_steps(
    network: MultimodalModel,
    batch: Batch,
    *,
    stops: Stops,
    decoding: Decoding,
    seeds: Sequence[int] | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Decode without a beam search, and yield (number of the sample, new token id) of the open samples at every step.

    Args:
        network, batch, decoding, seeds: see `decode`.
        stops: ends of answers.
    """
    language, shared = network.language, is_shared(network)
    hidden, state = network.begin(batch)
    device = hidden.device
    choose = Chooser(decoding, stops.ids, device, seeds)
    answers: list[list[int]] = [[] for _ in range(len(hidden))]
    samples = list(range(len(hidden)))  # number of the sample in every row
    ended = [False] * len(hidden)
    tokens = torch.zeros(len(hidden), 0, dtype=torch.long, device=device)  # [N, T] new tokens so far
    for length in range(1, decoding.max_new_tokens + 1):
        token = choose(tokens, language.logits(hidden), samples)[:, 0]  # [N]
        tokens = torch.cat([tokens, token[:, None]], dim=1)
        rows = [row for row, is_over in enumerate(ended) if not is_over]
        new = token.tolist()
        for row in rows:
            answers[samples[row]].append(new[row])
            ended[row] = stops.length(answers[samples[row]]) > 0
        yield [(samples[row], new[row]) for row in rows]
        if all_done(torch.tensor(ended, device=device), network) or length == decoding.max_new_tokens:
            break
        if not shared and any(ended):
            rows = [row for row, is_over in enumerate(ended) if not is_over]
            samples, ended = [samples[row] for row in rows], [False] * len(rows)
            left = torch.tensor(rows, device=device)
            state.reorder(left)
            tokens, token = tokens[left], token[left]
        hidden = language.step(token, state)


def beam_search(network: MultimodalModel, batch: Batch, *, stops: Stops, decoding: Decoding) -> list[list[int]]:
    """Decode, for every sample, the answer with the best mean log-probability among the hypotheses.

    The search follows transformers' beam search with a length penalty of 1. A sample ends when it has as many finished
    answers as beams and its best open hypothesis, if it ended now, would not beat the worst of them. It then leaves the
    batch, as in `decode`.
    """
    language, shared, beams = network.language, is_shared(network), decoding.beams
    hidden, state = network.begin(batch)
    device, count = hidden.device, len(hidden)
    first = torch.arange(count, device=device).repeat_interleave(beams)  # a row per hypothesis, sample by sample
    state.reorder(first)
    hidden = hidden[first]
    process = decoding.processors(stops.ids, device)
    tokens = first.new_zeros(count * beams, 0)
    totals = hidden.new_full((count, beams), -torch.inf, dtype=torch.float)
    totals[:, 0] = 0  # all hypotheses of a sample start alike, so only one may branch
    width = beams * max(
        2, 1 + len(stops.ids) + len(stops.sequences)
    )  # number of candidates: enough go on, however many end
    searches = [Search(beams) for _ in range(count)]
    rest = searches  # searches whose hypotheses are rows of the batch
    for length in range(1, decoding.max_new_tokens + 1):
        scores = process(tokens, language.logits(hidden).float().log_softmax(dim=-1))
        vocabulary = scores.shape[-1]
        best, flat = (totals.view(-1, 1) + scores).view(len(rest), -1).topk(width, dim=1)
        origins, choices, sums = (flat // vocabulary).tolist(), (flat % vocabulary).tolist(), best.tolist()
        survivors: list[Branch] = []
        for place, search in enumerate(rest):
            candidates = [
                Branch(place * beams + origin, token, total)
                for origin, token, total in zip(origins[place], choices[place], sums[place], strict=True)
            ]
            branches = search.advance(candidates, tokens, length, stops)
            if shared or not search.closed:
                survivors += branches
        if all_done(torch.tensor([search.closed for search in rest], device=device), network):
            return [search.answer() for search in searches]
        rest = [search for search in rest if shared or not search.closed]
        order = torch.tensor([branch.row for branch in survivors], device=device)
        token = torch.tensor([branch.token for branch in survivors], device=device)
        tokens = torch.cat([tokens[order], token[:, None]], dim=1)
        totals = torch.tensor([branch.total for branch in survivors], device=device).view(-1, beams)
        if length < decoding.max_new_tokens:
            state.reorder(order)
            hidden = language.step(token, state)
    for search, rows, sums in zip(rest, tokens.view(len(rest), beams, -1).tolist(), totals.tolist(), strict=True):
        if not search.closed:
            search.answers += [(total / len(ids), ids) for total, ids in zip(sums, rows, strict=True)]
    return [search.answer() for search in searches]


class Branch(NamedTuple):
    """A hypothesis with one more token.

    Attributes:
        row: row of the hypothesis in the batch.
        token: the new token.
        total: sum of the log-probabilities of all tokens.
    """

    row: int
    token: int
    total: float


def is_end(branch: Branch, tokens: Tensor, stops: Stops) -> bool:
    """Return True if a branch ends its answer; `tokens` are those of every hypothesis, see `Search.advance`."""
    if not any(branch.token == end[-1] for end in stops.sequences):
        return branch.token in stops.ids
    return stops.length([*tokens[branch.row].tolist(), branch.token]) > 0


class Search:
    """The beam search of one sample.

    Args:
        beams: number of hypotheses.
    Attributes:
        answers: (mean log-probability, ids) of finished answers, at most `beams`, the best first.
        closed: True once no open hypothesis can beat the worst finished answer.
    """

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.answers: list[tuple[float, list[int]]] = []
        self.closed = False

    def advance(self, candidates: Sequence[Branch], tokens: Tensor, length: int, stops: Stops) -> list[Branch]:
        """Add finished candidates among the best to `answers` and return the branches that go on.

        Args:
            candidates: continuations of the sample's hypotheses, the best first.
            tokens: [rows, length - 1] tokens of every hypothesis of the batch.
            length: number of new tokens, with the candidates' new token.
            stops: ends of answers.
        """
        ends = {branch for branch in candidates if is_end(branch, tokens, stops)}
        branches = [branch for branch in candidates if branch not in ends][: self.beams]
        if self.closed:
            return branches
        for branch in candidates[: self.beams]:
            if branch in ends:
                self.answers.append((branch.total / length, [*tokens[branch.row].tolist(), branch.token]))
        self.answers = sorted(self.answers, key=lambda entry: -entry[0])[: self.beams]
        full = len(self.answers) == self.beams
        self.closed = full and self.answers[-1][0] >= candidates[0].total / length
        return branches

    def answer(self) -> list[int]:
        """Return the ids of the best answer."""
        return max(self.answers, key=lambda entry: entry[0])[1]
