"""One rule decides the part of a parameter: modules declare `parts_within`."""

from __future__ import annotations

import pytest
from torch import nn

import lit_mm.families
from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.learned import WithLearned
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.partial_lora import PartialLoRA
from lit_mm.layers.adapters import LoRA
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.stages.parts import Parts
from lit_mm.vision.vit import ViT
from lit_mm.vision.window_adapters import WindowAdapters
from tests.tiny import language


def parts_of(vision: nn.Module, connector: nn.Module, decoder: nn.Module) -> dict[str, set[str]]:
    network = MultimodalModel(decoder, vision, connector, fusion=scatter_visual)
    return {part: set(parameters) for part, parameters in Parts(network).parameters().items()}


def vit() -> ViT:
    return ViT(28, 14, 16, layers=1, heads=2)


@pytest.mark.parametrize(
    ("connector", "expected"),
    [
        (MLPProjector(16, 32), {}),
        (WithNewline(MLPProjector(16, 32), 32), {"newline": {"newline"}}),
        (WithFlags(MLPProjector(16, 32), 32), {"flags": {"start", "end"}}),
        (WithLearned(MLPProjector(16, 32), ["a", "b"], 32), {"a": {"vectors.a"}, "b": {"vectors.b"}}),
        (
            WithFlags(WithNewline(MLPProjector(16, 32), 32), 32),
            {"flags": {"start", "end"}, "newline": {"projector.newline"}},
        ),
    ],
)
def test_vectors_beside_a_connector_are_parts(connector: nn.Module, expected: dict[str, set[str]]) -> None:
    parts = parts_of(vit(), connector, language())
    assert {part: names for part, names in parts.items() if part not in ("vision", "connector", "language")} == expected


@pytest.mark.parametrize(
    ("injection", "part"),
    [
        (LoRA(2), "lora"),
        (PartialLoRA(2), "partial_lora"),
    ],
)
def test_what_an_injection_adds_to_a_language_model_is_its_part(injection, part: str) -> None:
    plain = parts_of(vit(), MLPProjector(16, 32), language())
    parts = parts_of(vit(), MLPProjector(16, 32), injection(language()))
    assert parts.keys() == plain.keys() | {part}
    bases = {name.replace(".base.", ".").replace(".base_layer.", ".") for name in parts["language"]}
    assert bases == plain["language"]
    assert all(".lora_" in name for name in parts[part])


def test_what_adapters_add_to_a_vision_encoder_is_their_part() -> None:
    parts = parts_of(WindowAdapters(2, {"qkv": 2})(vit()), MLPProjector(16, 32), language())
    assert all(".adapters." in name for name in parts["window_adapters"])
    assert not any(".adapters." in name for name in parts["vision"])


def test_no_family_has_a_rule_of_its_own() -> None:
    for name in lit_mm.families.__all__:
        family = getattr(lit_mm.families, name)
        assert family.part_of is MultimodalModule.part_of and family.parts is MultimodalModule.parts, name
