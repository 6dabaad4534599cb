"""Flat rows for tests of language models."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from lit_mm.language.protocol import LanguageModel
from lit_mm.language.t5 import T5
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.samples.batch import Batch, Target, Views

BLANK = Views((), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 0)


def flat(
    samples: Sequence[Tensor], visual: Collection[int] | None = None, answers: Sequence[Tensor] | None = None
) -> Batch:
    """Build a batch of token ids in which every position is supervised; without answers, labels have no meaning.

    Args:
        samples: ids [L] of each sample.
        visual: positions in the row that routed linears treat as visual; None if the model reads no pictures.
        answers: ids [L] that an encoder-decoder learns for each sample; None for a decoder.
    """
    ids = torch.cat(list(samples))
    target = None
    labels = ids
    if answers is not None:
        labels = torch.cat(list(answers))
        target = Target(labels[None], tuple(map(len, answers)))
    places = torch.tensor(sorted(visual or ()), dtype=torch.long)
    return Batch(
        ids=ids[None],
        lengths=tuple(map(len, samples)),
        positions=torch.cat([torch.arange(len(sample)) for sample in samples])[None],
        visual=places,
        bank=torch.zeros_like(places),
        supervised=torch.arange(len(labels)),
        labels=labels,
        sample_ids=tuple(map(str, range(len(samples)))),
        views=None if visual is None else BLANK,
        target=target,
    )


def transformers_t5(language: T5) -> T5ForConditionalGeneration:
    """transformers' model with the same weights and its eager attention. Only the projection is untied."""
    config = deepcopy(language.lm.config)
    config._attn_implementation = "eager"
    config.scale_decoder_outputs = False  # as in Flan-T5
    config.decoder_start_token_id = config.pad_token_id = 0
    copy = T5ForConditionalGeneration(config).eval()
    copy.lm_head = torch.nn.Linear(language.width, language.vocab_size, bias=False)
    copy.load_state_dict(language.lm.state_dict())
    return copy


def hidden(language: LanguageModel, samples: Sequence[Tensor], visual: Collection[int] | None = None) -> Tensor:
    """[T, E] hidden states of a decoder at every position of a flat row."""
    batch = flat(samples, visual)
    return language.learn(language.embed(batch.ids), batch).hidden


def logits(language: LanguageModel, samples: Sequence[Tensor], visual: Collection[int] | None = None) -> Tensor:
    """[T, vocabulary] logits of a decoder at every position of a flat row."""
    return language.logits(hidden(language, samples, visual))


def states(network: MultimodalModel, batch: Batch) -> Tensor:
    """[T, E] hidden states of a model at every position of a batch."""
    return network(replace(batch, supervised=torch.arange(batch.ids.shape[1]), labels=batch.ids[0])).hidden


def loss_sum(module: MultimodalModule, batch: Batch) -> Tensor:
    """Sum of the next-token loss over the supervised tokens of a batch."""
    return NextToken()(module.network, batch)
