"""Learned vectors beside a connector do not change it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch

from lit_mm.connectors.beside import Beside
from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.learned import WithLearned
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline
from lit_mm.connectors.qformer_projector import QFormerProjector
from lit_mm.connectors.slice_resampler import SliceResampler
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.model import MultimodalModel
from lit_mm.samples.batch import Views
from lit_mm.vision.vit import ViT
from tests.tiny import language

GROUPS = (torch.randn(2, 3, 28, 42), torch.randn(1, 3, 42, 14))  # 2 x 3 patches twice, 3 x 1 once
WRAPPERS = [
    (WithNewline, 1),
    (WithFlags, 2),
    (lambda projector, width: WithLearned(projector, ["newline", "separator", "end"], width), 3),
]


@pytest.mark.parametrize(("wrapper", "vectors"), WRAPPERS)
@pytest.mark.parametrize(
    ("connector", "counts"),
    [(MLPProjector, (6, 6, 3)), (partial(SliceResampler, side=2, heads=2), (4, 4, 4))],
)
def test_views_of_several_shapes_still_take_one_call(
    wrapper: Callable[..., Beside], vectors: int, connector: Callable, counts: tuple[int, ...]
) -> None:
    inner, decoder = connector(16, 32), language()
    vision = ViT(image_size=28, patch=14, width=16, layers=1, heads=2, any_size=True)
    plain = MultimodalModel(decoder, vision, inner, fusion=scatter_visual).eval()
    beside = MultimodalModel(decoder, vision, wrapper(inner, 32), fusion=scatter_visual).eval()
    views = Views(GROUPS, torch.zeros(3, dtype=torch.long), torch.full((3,), -1), sum(counts))
    calls: Counter[str] = Counter()
    for name, part in (("vision", vision), ("connector", inner)):
        part.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        bank = beside.bank(views)
        assert calls == {"vision": 1, "connector": 1}
        assert torch.equal(bank[:-vectors], plain.bank(views)) and len(bank) == sum(counts) + vectors
        assert torch.equal(bank[-vectors:], beside.connector.learned())


@pytest.mark.parametrize(("wrapper", "_"), WRAPPERS)
def test_a_connector_that_takes_one_shape_at_a_time_stays_one(wrapper: Callable[..., Beside], _: int) -> None:
    assert not wrapper(QFormerProjector(16, 32, queries=2, width=8, layers=1, heads=1, ffn_width=8), 32).any_grid


@pytest.mark.parametrize(("wrapper", "vectors"), WRAPPERS)
def test_learned_vectors_are_where_the_connector_is(wrapper: Callable[..., Beside], vectors: int) -> None:
    """The wrapped connector has no learned vectors; the empty tensor must still be on its device, for GPUs."""
    with torch.device("meta"):
        connector = wrapper(MLPProjector(6, 8), 8)
    assert connector.learned().is_meta and len(connector.learned()) == vectors
