"""What the families that read images have in common: their network, and the processor that fits it."""

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
from lit_mm.samples.processor import Processor
from lit_mm.tiling.grids import TokenGrid
from lit_mm.vision.protocol import Patched


def compose(
    vision: nn.Module,
    connector: nn.Module,
    language: LanguageModel,
    tokenizer: str,
    inputs: Inputs | None,
    default: Inputs,
) -> dict[str, Any]:
    """The arguments of `MultimodalModule` for a language model that reads visual tokens among its text.

    Args:
        vision: a `lit_mm.model.VisionEncoder` with a `patch_grid`.
        connector: a `lit_mm.model.Connector` with a `grid_rule`.
        language: a decoder, or an encoder-decoder whose encoder reads text and visual tokens.
        tokenizer: reference of its tokenizer, see `load_tokenizer`.
        inputs: changes of the recipe; None: none.
        default: inputs of the family, with tiling, layout and prompt.
    Raises:
        UserError: a part lacks what its protocol demands.
    """
    complete(vision, Patched, "vision encoder")
    complete(connector, Gridded, "connector")
    complete(language, LanguageModel, "language model")
    combined = default if inputs is None else inputs.over(default)
    token_grid = TokenGrid(vision.patch_grid, connector.grid_rule)
    return {
        "network": MultimodalModel(language, vision, connector, fusion=scatter_visual),
        "processor": lambda: Processor.of(
            load_tokenizer(tokenizer), combined, token_grid, writes_target=language.writes_target
        ),
    }
