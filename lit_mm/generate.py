"""Greedy decoding with a cache, batched over documents."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_mm.batch import Batch
from lit_mm.data.collate import collate
from lit_mm.data.document import Document
from lit_mm.language.llama import DecodeCache
from lit_mm.lockstep import all_done
from lit_mm.model import MultimodalModel

if TYPE_CHECKING:
    from lit_mm.module import MultimodalModule


def answer(
    module: MultimodalModule, documents: Sequence[Document], *, batch_size: int = 64, max_new_tokens: int = 24
) -> list[str]:
    """What the model says after each document, its own last answer left out.

    Args:
        batch_size: documents decoded together; they are grouped by length and padded on the left.
        max_new_tokens: where an answer is cut if the model does not end its turn.
    """
    processor = module.processor
    samples = [processor.sample(document.without_answer()) for document in documents]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    stop = processor.prompt.stop_ids(processor.tokenizer)
    answers = [""] * len(samples)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([[samples[i]] for i in chosen], processor, left_pad=True).to(module.device)
        with module.inference():
            ids = greedy(module.network, batch, stop_ids=stop, max_new_tokens=max_new_tokens)
        for i, row in zip(chosen, ids.tolist(), strict=True):
            end = next((n for n, token in enumerate(row) if token in stop), len(row))
            answers[i] = processor.tokenizer.decode(row[:end]).strip()
    return answers


def greedy(network: MultimodalModel, batch: Batch, *, stop_ids: Collection[int], max_new_tokens: int) -> Tensor:
    """The most likely token, again and again, until every row has made a stop token.

    Args:
        batch: one sample a row, padded on the left.
    Returns:
        [B, T] new token ids, T <= `max_new_tokens`; what follows a stop token means nothing.
    """
    if hasattr(network, "greedy"):  # an encoder-decoder: what it encodes once, its decoder reads at every token
        return network.greedy(batch, stop_ids=stop_ids, max_new_tokens=max_new_tokens)
    language = network.language
    cache = DecodeCache()
    hidden = network.hidden(batch, cache=cache)
    stops = torch.tensor(sorted(stop_ids), device=hidden.device)
    segments = batch.segment_ids[:, -1:]
    positions = batch.position_ids[:, -1:]
    done = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    made = []
    for _ in range(max_new_tokens):
        token = language.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)  # [B, 1]
        made.append(token)
        done |= torch.isin(token[:, 0], stops)
        if all_done(done, network):
            break
        positions = positions + 1
        hidden = language(language.embed(token), segment_ids=segments, position_ids=positions, cache=cache)
    return torch.cat(made, dim=1)
