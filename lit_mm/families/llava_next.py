"""LLaVA-NeXT (LLaVA-1.6): LLaVA-1.5 with a global view, tiles, and a newline vector after each row."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import BLACK, Inputs
from lit_mm.samples.layout import BaseThenUnpaddedRows
from lit_mm.tiling.anyres import AnyRes


class LlavaNext(MultimodalModule):
    """LLaVA-NeXT. Parts: vision, connector, newline, language.

    The global view comes first, with one visual token per patch. The map of all tiles follows row by row, without its
    padding and with a learned newline vector after every row: 1176 tokens for 336 x 336 pixels, 2928 for 672 x 672.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.VisionEncoder`.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of a view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds the connector from (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes. The first stage is LLaVA-1.5's, with one view and
            no newline. Checkpoints converted to Hugging Face transformers need the rule "hf" in tiling and layout, see
            `plan_anyres` and `unpad`.
    Source: the authors' article of 30 January 2024; inference code github.com/haotian-liu/LLaVA c121f04, training code
        github.com/LLaVA-VL/LLaVA-NeXT df17966. The article's 1 x 4 and 4 x 1 grids are in no released config.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: LanguageModel,
        tokenizer: str,
        image_size: int = 336,
        connector: Callable[[int, int], nn.Module] = MLPProjector,
        inputs: Inputs | None = None,
    ) -> None:
        projector = WithNewline(connector(vision.width, language.width), language.width)
        default = Inputs(
            tiling=AnyRes(image_size),
            layout=BaseThenUnpaddedRows(),
            prompt=ChatPrompt(keep_leading=True),
            max_length=4096,
            fill=BLACK,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
