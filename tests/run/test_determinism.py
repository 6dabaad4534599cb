"""Deterministic algorithms without the filling of fresh memory: the same bits for less time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lit_mm.run.determinism import use_deterministic_algorithms
from lit_mm.samples.collate import collate
from tests.rows import loss_sum
from tests.tiny import document, xcomposer2


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    filling = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filling


def gradients() -> list[torch.Tensor]:
    module = xcomposer2(dropout=0.3, trained=True).train()
    batch = collate([module.processor.sample(document(number)) for number in range(4)], module.processor)
    loss_sum(module, batch).backward()
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def test_fresh_memory_is_not_filled_and_a_step_has_the_bits_that_it_has_with_the_filling() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    filled = gradients()
    assert torch.empty(3).isnan().all()
    use_deterministic_algorithms()
    torch.full((3,), 1.0)  # freed at once: memory that the next tensor may take
    assert torch.are_deterministic_algorithms_enabled() and not torch.empty(3).isnan().any()
    assert all(torch.equal(*pair) for pair in zip(gradients(), filled, strict=True))
