"""A part declares what it can do; a plain module gets the defaults, and an error that names what it lacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline
from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.families.recombined import Recombined
from lit_mm.inference.generate import answer
from lit_mm.language.llama import Llama
from lit_mm.language.protocol import Learnt
from lit_mm.language.state import DecoderState
from lit_mm.layers.protocols import complete, parts_within
from lit_mm.model import MultimodalModel
from lit_mm.samples.batch import Batch
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.groups import layered
from lit_mm.tiling.grids import PatchGrid, SameGrid
from lit_mm.tiling.plan import Stretch
from lit_mm.vision.protocol import VisionEncoder
from lit_mm.vision.vit import ViT
from tests.tiny import document
from tests.tiny import language as tiny_language


class PlainEncoder(nn.Module):
    """A user's encoder, which knows of no protocol."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.patch_grid = 8, PatchGrid(14, "PlainEncoder")
        self.patches = nn.Conv2d(3, 8, kernel_size=14, stride=14)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.patch_grid(size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.patches(pixels).flatten(2).transpose(1, 2)


class PlainConnector(nn.Module):
    """A user's connector, which knows of no protocol."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.grid_rule = SameGrid()
        self.linear = nn.Linear(vision_width, language_width)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        return torch.zeros(0, self.linear.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Wrapped(nn.Module):
    """A user's language model: no `Llama`, but it meets the protocol."""

    writes_target = False

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.width, self.vocab_size = width, vocab_size
        self.inner = Llama(width, layers=1, heads=2, kv_heads=1, ffn_width=width, vocab_size=vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        return self.inner.embed(ids)

    def learn(self, embeds: Tensor, batch: Batch) -> Learnt:
        return self.inner.learn(embeds, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.inner.logits(hidden)

    def begin(self, embeds: Tensor, batch: Batch) -> tuple[Tensor, DecoderState]:
        return self.inner.begin(embeds, batch)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        return self.inner.step(tokens, state)


def recombined(vision: nn.Module, connector: Any = PlainConnector, language: Any = None) -> Recombined:
    return Recombined(vision, language or tiny_language(), "nano", Inputs(tiling=Stretch(28)), connector=connector)


@pytest.mark.parametrize("connector", [PlainConnector, lambda *widths: WithNewline(PlainConnector(*widths), widths[1])])
def test_parts_that_know_of_no_protocol_get_its_defaults(connector: Any) -> None:
    network = recombined(PlainEncoder(), connector).network
    vision, outer = network.vision, network.connector
    assert (vision.image_size, vision.any_size, vision.reads_tiles, vision.windows) == (None, False, False, 0)
    assert not vision.returns_class_token
    assert (outer.any_grid, outer.grids, outer.order, outer.reads_class_token) == (False, None, "rows", False)
    assert not network.together


def test_attributes_that_a_part_has_stay() -> None:
    part = PlainEncoder()
    part.any_size = True
    complete(part, VisionEncoder, "vision encoder")
    assert part.any_size
    assert MLPProjector(8, 8).any_grid and not Connector.any_grid


@pytest.mark.parametrize(
    ("role", "attribute", "protocol"),
    [
        ("vision encoder", "patch_grid", "lit_mm.vision.protocol.Patched"),
        ("connector", "grid_rule", "lit_mm.connectors.protocol.Gridded"),
        ("language model", "writes_target", "lit_mm.language.protocol.LanguageModel"),
    ],
)
def test_a_part_that_lacks_what_its_protocol_demands_is_refused_by_name(
    role: str, attribute: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision, language = PlainEncoder(), tiny_language()
    connector = PlainConnector(8, language.width)
    part = {"vision encoder": vision, "connector": connector, "language model": language}[role]
    monkeypatch.delattr(part if attribute in vars(part) else type(part), attribute)
    message = rf"^the {role} {type(part).__name__} lacks `{attribute}`, see {protocol}\. Add it to the class$"
    with pytest.raises(UserError, match=message):
        recombined(vision, lambda *_: connector, language)


def test_a_recipe_may_name_any_language_model_that_meets_the_protocol() -> None:
    place = f"{Wrapped.__module__}.Wrapped"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Recombined, "model")
    arguments = {
        "vision": {
            "class_path": "lit_mm.vision.vit.ViT",
            "init_args": {"image_size": 28, "patch": 14, "width": 8, "layers": 1, "heads": 2},
        },
        "language": {"class_path": place, "init_args": {"width": 16, "vocab_size": 512}},
        "tokenizer": "nano",
        "inputs": {"tiling": {"class_path": "lit_mm.tiling.Stretch", "init_args": {"size": 28}}},
    }
    config = {"model": {"class_path": "lit_mm.families.Recombined", "init_args": arguments}}
    module = parser.instantiate(parser.parse_object(config)).model
    assert type(module.network.language).__name__ == "Wrapped"
    answers = answer(module, [document(1), document(2)], max_new_tokens=2)
    assert len(answers) == 2


def test_methods_are_demanded_as_well() -> None:
    with pytest.raises(UserError, match=r"^the connector Linear lacks `learned`, `token_grid`, see "):
        MultimodalModel(tiny_language(), PlainEncoder(), nn.Linear(8, 8))


def test_a_class_that_extends_a_protocol_must_define_its_methods() -> None:
    class Unfinished(nn.Module, VisionEncoder):
        width = 8

    with pytest.raises(TypeError, match="abstract method token_grid"):
        Unfinished()


def test_parts_within_and_layers_are_read_where_they_are_declared() -> None:
    vit = ViT(28, 14, 8, layers=1, heads=2)
    assert parts_within(WithNewline(MLPProjector(8, 8), 8)) == {"newline": "newline"}
    assert parts_within(vit) == {}
    assert layered({"vision": vit, "connector": MLPProjector(8, 8)}) == {"vision": vit}
