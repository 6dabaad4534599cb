"""The common part of families that read images: their network, and the processor that fits it."""

from __future__ import annotations

from typing import Any

from torch import nn

from lit_mm.connectors.protocol import Gridded
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.protocol import LanguageModel
from lit_mm.layers.protocols import complete
from lit_mm.model import MultimodalModel
from lit_mm.prompts.source import load_tokenizer
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.pixels import Normalise
from lit_mm.samples.processor import Processor
from lit_mm.tiling.grids import TokenGrid
from lit_mm.vision.protocol import Patched, VisionEncoder


def compose(
    vision: nn.Module,
    connector: nn.Module,
    language: LanguageModel,
    tokenizer: str,
    inputs: Inputs | None,
    default: Inputs,
    second_vision: nn.Module | None = None,
    second_connector: nn.Module | None = None,
) -> dict[str, Any]:
    """Build the arguments of `MultimodalModule` for a language model that reads visual tokens among its text.

    Args:
        vision: vision encoder, see `Patched`.
        connector: connector, see `Gridded`.
        language: a decoder, or an encoder-decoder whose encoder reads text and visual tokens.
        tokenizer: reference of the language model's tokenizer, see `load_tokenizer`.
        inputs: changes that the recipe makes to `default`; None for no change.
        default: inputs of the family, with tiling, layout and prompt.
        second_vision, second_connector: see `MultimodalModel`; None for a model with one vision encoder.
    Raises:
        UserError: a part lacks what its protocol demands.
    """
    complete(vision, VisionEncoder, "vision encoder")
    complete(vision, Patched, "vision encoder")
    complete(connector, Gridded, "connector")
    complete(language, LanguageModel, "language model")
    combined = default if inputs is None else inputs.over(default)
    constants = vision.mean is not None and vision.std is not None
    normalise = Normalise(vision.mean, vision.std) if constants else None
    token_grid = TokenGrid(vision.patch_grid, connector.grid_rule)
    return {
        "network": MultimodalModel(
            language,
            vision,
            connector,
            fusion=scatter_visual,
            second_vision=second_vision,
            second_connector=second_connector,
        ),
        "processor": lambda: Processor.of(
            load_tokenizer(tokenizer),
            combined,
            token_grid,
            writes_target=language.writes_target,
            normalise=normalise,
        ),
    }
