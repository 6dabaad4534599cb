"""Decoding with a cache, batched over documents: greedy, sampling, beam search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lit_mm.distributed.lockstep import all_done
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.inference.decoding import Chooser, Decoding
from lit_mm.language.llama import DecodeCache
from lit_mm.model import MultimodalModel
from lit_mm.samples.batch import IGNORE, Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import Processor, Sample

if TYPE_CHECKING:
    from lit_mm.module import MultimodalModule


def answer(
    module: MultimodalModule,
    documents: Sequence[Document],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 24,
    decoding: Decoding | None = None,
    continued: bool = False,
) -> list[str]:
    """What the model says after each document, its own last answer left out.

    Args:
        batch_size: documents decoded together; they are grouped by length and padded on the left.
        max_new_tokens: where an answer is cut if the model does not end its turn.
        decoding: how to decode, `max_new_tokens` included; greedily when left out.
        continued: the last answer of a document is how the model's answer begins; what follows it is returned.
    """
    processor = module.processor
    decoding = decoding or Decoding(max_new_tokens)
    samples = [asked(processor, document, continued=continued) for document in documents]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    stop = processor.prompt.stop_ids(processor.tokenizer)
    answers = [""] * len(samples)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([[samples[i]] for i in chosen], processor, left_pad=True).to(module.device)
        with module.inference():
            ids = decode(module.network, batch, stop_ids=stop, decoding=decoding)
        for i, row in zip(chosen, ids.tolist(), strict=True):
            end = next((n for n, token in enumerate(row) if token in stop), len(row))
            answers[i] = processor.tokenizer.decode(row[:end]).strip()
    return answers


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


def decode(network: MultimodalModel, batch: Batch, *, stop_ids: Collection[int], decoding: Decoding) -> Tensor:
    """New tokens, until every row has made a stop token.

    Args:
        batch: one sample a row, padded on the left.
    Returns:
        [B, T] new token ids, T <= `max_new_tokens`; what follows a stop token means nothing.
    Raises:
        UserError: an encoder-decoder is asked for anything but greedy decoding.
    """
    if hasattr(network, "greedy"):  # an encoder-decoder: what it encodes once, its decoder reads at every token
        if decoding != Decoding(decoding.max_new_tokens, seed=decoding.seed):
            raise UserError(f"encoder-decoders decode greedily only, got {decoding}")
        return network.greedy(batch, stop_ids=stop_ids, max_new_tokens=decoding.max_new_tokens)
    if decoding.beams > 1:
        return beam_search(network, batch, stop_ids=stop_ids, decoding=decoding)
    language = network.language
    cache = DecodeCache()
    hidden = network.hidden(batch, cache=cache)
    stops = torch.tensor(sorted(stop_ids), device=hidden.device)
    choose = Chooser(decoding, stop_ids, hidden.device)
    segments = batch.segment_ids[:, -1:]
    positions = batch.position_ids[:, -1:]
    done = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    made = batch.input_ids.new_zeros(len(hidden), 0)  # [B, T]
    for _ in range(decoding.max_new_tokens):
        token = choose(made, language.logits(hidden[:, -1]))  # [B, 1]
        made = torch.cat([made, token], dim=1)
        done |= torch.isin(token[:, 0], stops)
        if all_done(done, network):
            break
        positions = positions + 1
        hidden = language(language.embed(token), segment_ids=segments, position_ids=positions, cache=cache)
    return made


def beam_search(network: MultimodalModel, batch: Batch, *, stop_ids: Collection[int], decoding: Decoding) -> Tensor:
    """The answer with the best mean log-probability that `decoding.beams` hypotheses a row come upon; see `decode`.

    As transformers' beam search with a length penalty of 1: a row ends when it has as many finished answers as beams
    and its best open hypothesis, were it to end now, would not beat the worst of them.
    """
    language, beams = network.language, decoding.beams
    cache = DecodeCache()
    last = network.hidden(batch, cache=cache)[:, -1]
    device, rows = last.device, len(last)
    each = torch.arange(rows, device=device).repeat_interleave(beams)  # row of every hypothesis [R], R = rows x beams
    cache.reorder(each)
    last, segments, positions = last[each], batch.segment_ids[each, -1:], batch.position_ids[each, -1:]
    process = decoding.processors(stop_ids, device)
    made = batch.input_ids.new_zeros(rows * beams, 0)
    totals = last.new_full((rows, beams), -torch.inf, dtype=torch.float)
    totals[:, 0] = 0  # all hypotheses of a row start alike: only one of them may branch
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(rows)]  # (mean log-probability, ids)
    closed = [False] * rows
    for length in range(1, decoding.max_new_tokens + 1):
        scores = process(made, language.logits(last).float().log_softmax(dim=-1))
        vocabulary = scores.shape[-1]
        best, flat = (totals.view(-1, 1) + scores).view(rows, -1).topk(2 * beams, dim=1)
        origins, tokens, sums = (flat // vocabulary).tolist(), (flat % vocabulary).tolist(), best.tolist()
        keep: list[tuple[int, int, float]] = []  # hypothesis, token, log-probability
        for row in range(rows):
            open_now: list[tuple[int, int, float]] = []
            for rank, (origin, token, total) in enumerate(zip(origins[row], tokens[row], sums[row], strict=True)):
                hypothesis = row * beams + origin
                if token not in stop_ids:
                    open_now.append((hypothesis, token, total))
                elif rank < beams and not closed[row]:
                    finished[row].append((total / length, [*made[hypothesis].tolist(), token]))
            finished[row] = sorted(finished[row], key=lambda one: -one[0])[:beams]
            keep += open_now[:beams]
            if len(finished[row]) == beams and finished[row][-1][0] >= sums[row][0] / length:
                closed[row] = True
        order = torch.tensor([hypothesis for hypothesis, _, _ in keep], device=device)
        token = torch.tensor([[token] for _, token, _ in keep], device=device)
        made = torch.cat([made[order], token], dim=1)
        totals = torch.tensor([total for _, _, total in keep], device=device).view(rows, beams)
        if all(closed) or length == decoding.max_new_tokens:
            break
        cache.reorder(order)
        positions = positions + 1
        hidden = language(language.embed(token), segment_ids=segments, position_ids=positions, cache=cache)
        last = hidden[:, -1]
    for row in range(rows):
        if not closed[row]:
            for at in range(beams):
                finished[row].append((totals[row, at].item() / made.shape[1], made[row * beams + at].tolist()))
    chosen = [max(answers, key=lambda one: one[0])[1] for answers in finished]
    width = max(map(len, chosen))
    return torch.tensor([ids + [min(stop_ids)] * (width - len(ids)) for ids in chosen], device=device)


def greedy(network: MultimodalModel, batch: Batch, *, stop_ids: Collection[int], max_new_tokens: int) -> Tensor:
    """The most likely token, again and again; see `decode`."""
    return decode(network, batch, stop_ids=stop_ids, decoding=Decoding(max_new_tokens))
