"""Learned vectors beside a connector."""

from __future__ import annotations

import pytest
import torch

from lit_mm.connectors.learned import WithLearned
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline
from lit_mm.errors import UserError


def test_vectors_come_in_order_and_before_those_of_the_connector() -> None:
    inner = WithNewline(MLPProjector(6, 10), 10)
    connector = WithLearned(inner, ["newline", "separator"], 10)
    vectors = [connector.vectors["newline"], connector.vectors["separator"], inner.newline]
    assert torch.equal(connector.learned(), torch.stack(vectors))


def test_visual_tokens_are_those_of_the_connector() -> None:
    inner, x = MLPProjector(6, 10), torch.randn(2, 4, 6)
    connector = WithLearned(inner, ["newline"], 10)
    assert torch.equal(connector(x), inner(x))
    assert connector.token_grid((2, 3)) == (2, 3)


def test_every_vector_gets_a_gradient() -> None:
    connector = WithLearned(MLPProjector(6, 10), ["start", "end"], 10)
    connector.learned().square().sum().backward()
    assert all(vector.grad.any() for vector in connector.vectors.values())


@pytest.mark.parametrize("names", [[], ["newline", "newline"], ["new line"]])
def test_names_that_are_no_names_of_parts_are_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"need names that differ"):
        WithLearned(MLPProjector(6, 10), names, 10)
