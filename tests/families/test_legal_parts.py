"""Every family refuses parts that do not fit together when it is built, with reason and nearest legal choice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn

from lit_mm.connectors.downsample import DownsampleMLP
from lit_mm.connectors.merge import MergeMLP
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.errors import UserError
from lit_mm.families import (
    Llava,
    Llava15,
    LlavaNext,
    LlavaUHD,
    MiniGPT4,
    Monkey,
    QwenVL,
    Vila,
    XComposer,
    XComposer2,
    XComposer2HD,
)
from lit_mm.module import MultimodalModule
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import BaseThenUnpaddedRows, InOrder
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling import AnyRes, Pad
from lit_mm.vision.vit import ViT
from tests.tiny import language

SIDE = 28
PLACE = {Monkey: {"size": (28, 56), "window": SIDE}, XComposer2HD: {"tile": SIDE}}  # others have `image_size`
CONNECTOR = {XComposer2HD: MergeMLP}
BESIDE = {XComposer: {"rank": 2}, XComposer2: {"rank": 2}, XComposer2HD: {"rank": 2}}
FAMILIES = (Llava, Llava15, LlavaNext, LlavaUHD, MiniGPT4, Monkey, QwenVL, Vila, XComposer, XComposer2, XComposer2HD)
RESAMPLER = partial(NormalisedResampler, grid_size=2, heads=2)


def build(family: Callable[..., MultimodalModule], vision: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    sizes = {"image_size": SIDE, "patch": 14, "width": 16, "layers": 1, "heads": 2} | (vision or {})
    own = PLACE.get(family, {"image_size": SIDE}) | BESIDE.get(family, {})
    options = own | {"connector": CONNECTOR.get(family, MLPProjector)} | options
    if family is LlavaUHD:
        sizes |= {"any_size": True} if not vision else {}
    return family(ViT(**sizes), language(), "nano", **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class_token_that_the_connector_cannot_read_is_refused(family: Callable) -> None:
    build(family)
    token = {"drop_cls": False} | ({"any_size": True} if family is LlavaUHD else {})
    with pytest.raises(UserError, match=r"^model\.init_args: .* class token.* `vision\.init_args\.drop_cls: true`$"):
        build(family, token)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one is not LlavaUHD])
def test_views_of_another_size_than_the_encoder_takes_are_refused(family: Callable) -> None:
    with pytest.raises(UserError, match=r"views of 28 x 28 .* takes 56 x 56 .* tiling with views of 56 x 56 pixels$"):
        build(family, {"image_size": 56})
    build(family, {"image_size": 56, "any_size": True})


@pytest.mark.parametrize(
    ("family", "connector", "said"),
    [
        (LlavaNext, DownsampleMLP, r"leave column by column\. The nearest that goes: `connector: .*MLPProjector`$"),
        (LlavaNext, RESAMPLER, r"queries that lie nowhere\. The nearest that goes: `connector: .*MLPProjector`$"),
        (XComposer2HD, MLPProjector, r"places 2 learned vectors, .* has none\. .* goes: `connector: .*MergeMLP`$"),
        (XComposer2HD, RESAMPLER, r"places 2 learned vectors, .* has none\. .* goes: `connector: .*MergeMLP`$"),
        (LlavaUHD, RESAMPLER, r"square grids .* not square\. The nearest that goes: `connector: .*MLPProjector`$"),
        (LlavaNext, partial(MergeMLP, merge=3), r"needs a grid of patches that 3 divides, got 2 x 2"),
        (Monkey, partial(MergeMLP, merge=3), r"needs a grid of patches that 3 divides, got 2 x 2"),
    ],
)
def test_a_connector_that_does_not_go_with_the_tiling_or_the_layout_is_refused(
    family: Callable, connector: Callable, said: str
) -> None:
    with pytest.raises(UserError, match=r"^model\.init_args: .*" + said):
        build(family, connector=connector)


def test_a_stage_is_refused_by_its_name() -> None:
    module = build(LlavaNext, connector=RESAMPLER, inputs=Inputs(Pad(SIDE), InOrder()))
    anyres, train = Inputs(AnyRes(SIDE), BaseThenUnpaddedRows()), {"connector": Train(1e-3)}
    with pytest.raises(UserError, match=r"^stages\.finetune\.inputs: the layout arranges rows"):
        module.processor_of(Stage("finetune", train, inputs=anyres))
    later = Stage("finetune", train, max_steps=9, inputs_from={4: anyres})
    with pytest.raises(UserError, match=r"^stages\.finetune\.inputs_from\.4: the layout arranges rows"):
        module.processors_of(later)
