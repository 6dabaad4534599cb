"""Families with a Q-Former or grouped patches decode unequal prompts together as they do alone without a cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import decode, prompt_sample
from lit_mm.module import MultimodalModule
from lit_mm.samples.collate import collate
from tests.smoke.test_every_family import without_cache
from tests.tiny_blip2 import blip2
from tests.tiny_instructblip import instructblip, question
from tests.tiny_minigpt4 import minigpt4

FAMILIES: dict[str, tuple[Callable[[], MultimodalModule], tuple[int, ...]]] = {  # and the pictures of each prompt
    "instructblip": (instructblip, (1, 0, 2)),
    "blip2": (blip2, (1, 3, 2)),
    "minigpt4": (minigpt4, (1, 3, 2)),
    "minigpt4, groups": (partial(minigpt4, "groups"), (1, 3, 2)),
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_of_unequal_prompts_is_that_of_single_ones_without_a_cache(family: str) -> None:
    build, pictures = FAMILIES[family]
    module = build().eval()
    for name, parameter in module.network.language.named_parameters():
        if parameter.ndim > 1:  # sharp attention, so that answers depend on the prompt
            torch.nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name else 0.4)
    samples = [prompt_sample(module.processor, question(n, pictures=count)) for n, count in enumerate(pictures)]
    assert len({len(sample) for sample in samples}) == len(samples)
    batch = collate(samples, module.processor.for_questions())
    expected = [without_cache(module, sample, 5) for sample in samples]
    assert len({tuple(row) for row in expected}) > 1
    assert decode(module.network, batch, stop_ids=(), decoding=Decoding(5)) == expected
    beams = decode(module.network, batch, stop_ids=(), decoding=Decoding(5, beams=2))
    assert [len(row) for row in beams] == [5] * len(samples)
