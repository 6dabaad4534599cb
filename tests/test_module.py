"""The base module."""

from __future__ import annotations

import pytest
import torch

from lit_mm.families import Decoder
from lit_mm.language.llama import Llama
from lit_mm.prompts.xcomposer2 import XComposer2Prompt


@pytest.fixture
def module() -> Decoder:
    language = Llama(width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, vocab_size=512)
    return Decoder(language, "nano", XComposer2Prompt("<|im_start|>", "<|im_end|>"))


def test_inference_leaves_every_mode_as_it_was_even_after_an_error(module: Decoder) -> None:
    module.network.language.eval()  # a part that its family keeps in evaluation mode
    before = [part.training for part in module.modules()]
    with pytest.raises(RuntimeError, match="decoding"), module.inference():
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("decoding failed")
    assert [part.training for part in module.modules()] == before and any(before) and not all(before)
    assert torch.is_grad_enabled()


def test_parts_are_disjoint_and_together_all_parameters(module: Decoder) -> None:
    listed = [parameter for part in module.parts().values() for parameter in part.values()]
    assert {id(p) for p in listed} == {id(p) for p in module.parameters()} and len(listed) == len(set(map(id, listed)))
