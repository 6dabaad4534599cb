"""A newline vector beside a connector."""

from __future__ import annotations

import torch

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline


def test_it_is_the_projector_and_one_vector() -> None:
    projector = MLPProjector(6, 10)
    connector, x = WithNewline(projector, 10), torch.randn(2, 4, 6)
    assert torch.equal(connector(x), projector(x))
    assert torch.equal(connector.learned(), connector.newline[None])
    assert connector.token_grid((3, 5)) == (3, 5)


def test_the_newline_gets_a_gradient_where_it_is_placed() -> None:
    connector = WithNewline(MLPProjector(6, 10), 10)
    connector.learned()[0].square().sum().backward()
    assert connector.newline.grad.any()


def test_a_fresh_newline_is_of_the_size_of_one() -> None:
    norms = torch.stack([WithNewline(MLPProjector(1, 4096), 4096).newline.norm() for _ in range(3)])
    torch.testing.assert_close(norms, torch.ones(3), rtol=0, atol=0.1)
