"""Decoding states: samples leave, and their padding with them."""

from __future__ import annotations

import torch

from lit_mm.language.llama import Llama
from lit_mm.language.t5 import T5
from tests.rows import flat

SIZES = {"width": 16, "layers": 2, "heads": 2, "ffn_width": 16, "vocab_size": 20}


@torch.inference_mode()
def test_the_padding_of_the_longest_sample_leaves_with_it() -> None:
    language = Llama(kv_heads=1, **SIZES).eval()
    batch = flat([torch.randint(20, (length,)) for length in (9, 4, 6)])
    _, state = language.begin(language.embed(batch.ids), batch)
    language.step(torch.tensor([1, 2, 3]), state)
    assert state.cache.layers[0].keys.shape == (3, 1, 10, 8)
    keys, values = state.cache.layers[1].keys[:, :, 3:].clone(), state.cache.layers[1].values[:, :, 3:].clone()
    state.reorder(torch.tensor([2, 1, 1]))
    assert torch.equal(state.cache.layers[1].keys, keys[[2, 1, 1]])
    assert torch.equal(state.cache.layers[1].values, values[[2, 1, 1]])
    assert state.visible.tolist() == [[True] * 7, [False] * 2 + [True] * 5, [False] * 2 + [True] * 5]
    assert state.positions.tolist() == [7, 5, 5]


@torch.inference_mode()
def test_equally_long_samples_need_no_mask() -> None:
    language = Llama(kv_heads=1, **SIZES).eval()
    batch = flat([torch.randint(20, (length,)) for length in (5, 7, 5)])
    _, state = language.begin(language.embed(batch.ids), batch)
    assert state.visible is not None
    state.reorder(torch.tensor([0, 2]))
    assert state.extend()[0] is None


@torch.inference_mode()
def test_encoded_padding_leaves_with_the_longest_source() -> None:
    language = T5(**SIZES).eval()
    batch = flat([torch.randint(20, (length,)) for length in (9, 4, 6)])
    _, state = language.begin(language.embed(batch.ids), batch)
    language.step(torch.tensor([1, 2, 3]), state)
    tokens, encoded = (
        cache.layers[1].keys.clone() for cache in (state.cache.self_attention_cache, state.cache.cross_attention_cache)
    )
    assert (tokens.shape, encoded.shape) == ((3, 2, 2, 8), (3, 2, 9, 8))
    state.reorder(torch.tensor([2, 1]))
    assert torch.equal(state.cache.self_attention_cache.layers[1].keys, tokens[[2, 1]])
    assert torch.equal(state.cache.cross_attention_cache.layers[1].keys, encoded[[2, 1], :, 3:])
    assert state.visible.tolist() == [[True] * 6, [False] * 2 + [True] * 4]
