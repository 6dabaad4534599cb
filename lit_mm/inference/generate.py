"""Decoding with a cache, batched over documents: greedy, sampling, beam search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from lit_mm.distributed.lockstep import all_done, is_shared
from lit_mm.documents.document import Document
from lit_mm.inference.decoding import Chooser, Decoding
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
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
) -> list[str]:
    """What the model says after each document, its own last answer left out.

    Args:
        batch_size: documents decoded together; they are grouped by length.
        max_new_tokens: where an answer is cut if the model does not end its turn.
        decoding: how to decode, `max_new_tokens` included; greedily when left out.
        continued: the last answer of a document is how the model's answer begins; what follows it is returned.
        spread: share the batches out over the ranks of the job, all of which call this and get all answers. Batches
            are the same on any number of ranks, and so are the answers.
    """
    processor = module.processor
    decoding = decoding or Decoding(max_new_tokens)
    samples = [asked(processor, document, continued=continued) for document in documents]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    stop = processor.prompt.stop_ids(processor.tokenizer)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if spread and dist.is_initialized() else (0, 1)
    answers: dict[int, str] = {}
    for numbers in share(batches, rank, ranks, equal=is_shared(module.network)):
        batch = collate([samples[i] for i in numbers], processor.for_questions()).to(module.device)
        with module.inference():
            ids = decode(module.network, batch, stop_ids=stop, decoding=decoding)
        for i, row in zip(numbers, ids, strict=True):
            answers[i] = processor.tokenizer.decode([token for token in row if token not in stop]).strip()
    if ranks > 1:
        by_rank: list[dict[int, str]] = [{} for _ in range(ranks)]
        dist.all_gather_object(by_rank, answers)
        answers = {i: text for answers_of_rank in by_rank for i, text in answers_of_rank.items()}
    return [answers[i] for i in range(len(samples))]


def share(batches: Sequence[list[int]], rank: int, ranks: int, *, equal: bool) -> list[list[int]]:
    """The batches of one rank, every n-th.

    Args:
        equal: every rank gets the same number, the last batch once more where there are too few: ranks that hold shards
            of one model must make the same number of forwards.
    """
    batches_of_rank = list(batches[rank::ranks])
    missing = -(-len(batches) // ranks) - len(batches_of_rank)
    return batches_of_rank + ([batches[-1]] * missing if equal else [])


def asked(processor: Processor, document: Document, *, continued: bool = False) -> Sample:
    """The sample after whose last position the model speaks.

    Args:
        continued: keep the document's last answer as the beginning of the model's. It is tokenised with what stands
            before it, as a whole answer would be; only the marker that ends it, and what follows, are left out.
    """
    if not (continued and document.answer):
        return processor.sample(document.without_answer())
    sample = processor.sample(document)
    stop = processor.prompt.stop_ids(processor.tokenizer)
    learnt = np.flatnonzero(sample.labels != IGNORE)
    first = learnt[-1]  # to the beginning of the last stretch that is learnt: the answer and what ends it
    while sample.labels[first - 1] != IGNORE:
        first -= 1
    end = next(n for n in range(first, len(sample)) if int(sample.input_ids[n]) in stop)
    return replace(sample, input_ids=sample.input_ids[:end], labels=sample.labels[:end], index=sample.index[:end])


def decode(network: MultimodalModel, batch: Batch, *, stop_ids: Collection[int], decoding: Decoding) -> list[list[int]]:
    """New token ids of every sample, up to and with its stop token, `max_new_tokens` at most."""
    if decoding.beams > 1:
        return beam_search(network, batch, stop_ids=stop_ids, decoding=decoding)
    language, shared = network.language, is_shared(network)
    hidden, state = network.begin(batch)
    device = hidden.device
    stops = torch.tensor(sorted(stop_ids), device=device)
    choose = Chooser(decoding, stop_ids, device)
    answers: list[list[int]] = [[] for _ in range(len(hidden))]
    numbers = torch.arange(len(hidden), device=device)  # samples that are not finished
    tokens = numbers.new_zeros(len(hidden), 0)  # [N, T] what they have so far
    finished = torch.zeros(len(hidden), dtype=torch.bool, device=device)
    for _ in range(decoding.max_new_tokens):
        token = choose(tokens, language.logits(hidden))[:, 0]  # [N]
        tokens = torch.cat([tokens, token[:, None]], dim=1)
        for number, stopped, new in zip(numbers.tolist(), finished.tolist(), token.tolist(), strict=True):
            if not stopped:
                answers[number].append(new)
        finished = finished | torch.isin(token, stops)
        if all_done(finished, network):
            break
        if not shared and finished.any():  # ranks that share one model make the same calls: nobody leaves
            left = (~finished).nonzero()[:, 0]
            state.reorder(left)
            numbers, tokens, token, finished = numbers[left], tokens[left], token[left], finished[left]
        hidden = language.step(token, state)
    return answers


def beam_search(
    network: MultimodalModel, batch: Batch, *, stop_ids: Collection[int], decoding: Decoding
) -> list[list[int]]:
    """The answer with the best mean log-probability that `decoding.beams` hypotheses of a sample come upon.

    As transformers' beam search with a length penalty of 1: a sample ends when it has as many finished answers as beams
    and its best open hypothesis, were it to end now, would not beat the worst of them.
    """
    language, beams = network.language, decoding.beams
    hidden, state = network.begin(batch)
    device, count = hidden.device, len(hidden)
    each = torch.arange(count, device=device).repeat_interleave(beams)  # sample of every hypothesis [R], R = N x beams
    state.reorder(each)
    hidden = hidden[each]
    process = decoding.processors(stop_ids, device)
    tokens = each.new_zeros(count * beams, 0)
    totals = hidden.new_full((count, beams), -torch.inf, dtype=torch.float)
    totals[:, 0] = 0  # all hypotheses of a sample start alike: only one of them may branch
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]  # (mean log-probability, ids)
    closed = [False] * count
    for length in range(1, decoding.max_new_tokens + 1):
        scores = process(tokens, language.logits(hidden).float().log_softmax(dim=-1))
        vocabulary = scores.shape[-1]
        best, flat = (totals.view(-1, 1) + scores).view(count, -1).topk(2 * beams, dim=1)
        origins, choices, sums = (flat // vocabulary).tolist(), (flat % vocabulary).tolist(), best.tolist()
        survivors: list[tuple[int, int, float]] = []  # hypothesis, token, log-probability
        for sample in range(count):
            branches: list[tuple[int, int, float]] = []
            candidates = zip(origins[sample], choices[sample], sums[sample], strict=True)
            for rank, (origin, token, total) in enumerate(candidates):
                hypothesis = sample * beams + origin
                if token not in stop_ids:
                    branches.append((hypothesis, token, total))
                elif rank < beams and not closed[sample]:
                    finished[sample].append((total / length, [*tokens[hypothesis].tolist(), token]))
            finished[sample] = sorted(finished[sample], key=lambda entry: -entry[0])[:beams]
            survivors += branches[:beams]
            if len(finished[sample]) == beams and finished[sample][-1][0] >= sums[sample][0] / length:
                closed[sample] = True
        order = torch.tensor([hypothesis for hypothesis, _, _ in survivors], device=device)
        token = torch.tensor([token for _, token, _ in survivors], device=device)
        tokens = torch.cat([tokens[order], token[:, None]], dim=1)
        totals = torch.tensor([total for _, _, total in survivors], device=device).view(count, beams)
        if all_done(torch.tensor(closed, device=device), network) or length == decoding.max_new_tokens:
            break
        state.reorder(order)
        hidden = language.step(token, state)
    for sample in range(count):
        if not closed[sample]:
            for beam in range(beams):
                ids = tokens[sample * beams + beam].tolist()
                finished[sample].append((totals[sample, beam].item() / len(ids), ids))
    return [max(entries, key=lambda entry: entry[0])[1] for entries in finished]
