"""LLaVA-1.5: LLaVA with an MLP projector, 336 pixels, and images padded to squares."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.families.inputs import Inputs, make_processor
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.source import load_tokenizer


class Llava15(MultimodalModule):
    """LLaVA-1.5. Parts: vision, connector, language.

    The image is padded to a square with CLIP's mean colour and becomes one visual token per patch, 576 at 336 pixels.
    Features as in LLaVA. The released first stage does not pad but crops, and its template is the plain one: both are
    set for that stage alone, in `by_stage`.

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: the decoder.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        inputs: prompt, aspect and length of the model in use, and of every stage that `by_stage` does not name.
        by_stage: stage name -> inputs of its training documents.
    Source: arXiv:2310.03744; github.com/haotian-liu/LLaVA c121f04, scripts/v1_5.
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
    ) -> None:
        projector = connector(vision.width, language.width)
        super().__init__(
            network=MultimodalModel(language, vision, projector, fusion=scatter_visual),
            processor=lambda: make_processor(
                load_tokenizer(tokenizer),
                inputs or Inputs(),
                by_stage,
                image_size=image_size,
                token_grid=lambda size: projector.token_grid(vision.token_grid(size)),
            ),
        )
        self.by_stage = by_stage or {}
