"""VILA: LLaVA-1.5's parts, and pre-training of the language model on interleaved pages in between."""

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


class Vila(MultimodalModule):
    """VILA. Parts: vision, connector, language.

    Every image becomes 576 visual tokens where it stands in the text, any number of images a document, no separator.
    The projector is warmed up on captions; then projector and language model learn on interleaved pages and pairs
    (`Interleaved`), then on chats with text alone among them. A document's own system turn replaces the template's.

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: the decoder.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width). `MLPProjector` is that
            of the released 1.0, `linear_projector` the paper's, `DownsampleMLP` 1.5's.
        inputs: prompt, aspect and length of the model in use, and of every stage that `by_stage` does not name.
        by_stage: stage name -> inputs of its training documents.
    Source: arXiv:2312.07533; github.com/NVlabs/VILA eaadb1e. The paper's projector is linear, the release's an MLP.
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
                inputs or Inputs(max_length=4096),
                by_stage,
                image_size=image_size,
                token_grid=lambda size: projector.token_grid(vision.token_grid(size)),
            ),
        )
        self.by_stage = by_stage or {}
