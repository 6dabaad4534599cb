"""LLaVA-NeXT (LLaVA-1.6): LLaVA-1.5 that sees a view of the whole and tiles, with a newline vector after each row."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline
from lit_mm.families.inputs import Inputs, make_processor
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.source import load_tokenizer
from lit_mm.tiling.anyres import Rule


class LlavaNext(MultimodalModule):
    """LLaVA-NeXT. Parts: vision, connector, newline, language.

    The view of the whole comes first, one visual token per patch; then the map of all tiles row by row, its padding
    left out, a learned newline vector after every row: 1176 tokens for 336 x 336 pixels, 2928 for 672 x 672.

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: the decoder.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of a view, pixels.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        inputs: prompt, aspect and length of the model in use, and of every stage that `by_stage` does not name.
        by_stage: stage name -> inputs of its training documents. The first stage is LLaVA-1.5's: one view, no newline.
        rule: "official", or "hf" for checkpoints converted to Hugging Face transformers; see `plan_anyres` and `unpad`.
    Source: the authors' article of 30 January 2024; inference code github.com/haotian-liu/LLaVA c121f04, training code
        github.com/LLaVA-VL/LLaVA-NeXT df17966. The article's 1 x 4 and 4 x 1 grids are in no released config.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 336,
        connector: Callable[[int, int], nn.Module] = MLPProjector,
        inputs: Inputs | None = None,
        by_stage: dict[str, Inputs] | None = None,
        rule: Rule = "official",
    ) -> None:
        projector = WithNewline(connector(vision.width, language.width), language.width)
        super().__init__(
            network=MultimodalModel(language, vision, projector, fusion=scatter_visual),
            processor=lambda: make_processor(
                load_tokenizer(tokenizer),
                inputs or Inputs(aspect="anyres", max_length=4096),
                by_stage,
                image_size=image_size,
                token_grid=lambda size: projector.token_grid(vision.token_grid(size)),
                rule=rule,
            ),
        )
        self.by_stage = by_stage or {}

    def part_of(self, parameter: str) -> str:
        return "newline" if parameter == "connector.newline" else super().part_of(parameter)
