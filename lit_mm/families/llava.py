"""LLaVA: one linear projection of frozen CLIP features in front of the text."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.linear import linear_projector
from lit_mm.families.inputs import Inputs, make_processor
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.source import load_tokenizer


class Llava(MultimodalModule):
    """LLaVA. Parts: vision, connector, language.

    The middle square of the image becomes one visual token per patch: 256 at 224 pixels, 576 at 336. The features are
    those of the last block but one (`select_layer: -2`), without the class token. The first stage trains the connector
    on captions in the plain template, the second the connector and the language model on chats.

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: the decoder.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        inputs: prompt, aspect and length of the model in use, and of every stage that `by_stage` does not name.
        by_stage: stage name -> inputs of its training documents.
    Source: arXiv:2304.08485, section 4.1; github.com/haotian-liu/LLaVA c121f04 with `mm_projector_type: linear`. The
        image stands before the first question, as in that code; the paper draws whether before or after.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 224,
        connector: Callable[[int, int], nn.Module] = linear_projector,
        inputs: Inputs | None = None,
        by_stage: dict[str, Inputs] | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        super().__init__(
            network=MultimodalModel(language, vision, projector, fusion=scatter_visual),
            processor=lambda: make_processor(
                load_tokenizer(tokenizer),
                inputs or Inputs(aspect="crop"),
                by_stage,
                image_size=image_size,
                token_grid=lambda size: projector.token_grid(vision.token_grid(size)),
            ),
        )
        self.by_stage = by_stage or {}
