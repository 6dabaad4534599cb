"""A training step makes nothing of the size of row x row, neither a mask nor a bias nor scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_mm.language.llama import Llama
from lit_mm.language.t5 import T5
from tests.rows import flat

SIZES = {"width": 16, "layers": 2, "heads": 2, "ffn_width": 16, "vocab_size": 20}
LENGTHS = (40, 25, 60)  # the row is longer than any width, so that its square is known by its shape
ROW = sum(LENGTHS)


class Shapes(TorchDispatchMode):
    """Collects the shapes of all tensors that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **kwargs or {})
        self.shapes |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_a_training_step_makes_no_tensor_of_row_times_row(kind: str, dtype: torch.dtype) -> None:
    language = Llama(kv_heads=1, **SIZES) if kind == "decoder" else T5(**SIZES)
    samples = [torch.randint(2, 20, (length,)) for length in LENGTHS]
    batch = flat(samples, answers=None if kind == "decoder" else samples)
    with Shapes() as trace, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden, ids = language.train().learn(language.embed(batch.ids), batch)
        torch.nn.functional.cross_entropy(language.logits(hidden).float(), ids).backward()
    assert (1, ROW, 16) in trace.shapes
    assert not [shape for shape in trace.shapes if sum(length >= ROW for length in shape) > 1]
