"""LLaVA-NeXT (LLaVA-1.6): LLaVA-1.5 that sees a view of the whole and tiles, with a newline vector after each row."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import BLACK, Inputs
from lit_mm.samples.layout import BaseThenUnpaddedRows
from lit_mm.tiling.anyres import AnyRes


class LlavaNext(MultimodalModule):
    """LLaVA-NeXT. Parts: vision, connector, newline, language.

    The view of the whole comes first, one visual token per patch; then the map of all tiles row by row, its padding
    left out, a learned newline vector after every row: 1176 tokens for 336 x 336 pixels, 2928 for 672 x 672.

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: the decoder.
        tokenizer: tokenizer of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of a view, pixels; not read if `inputs` names a tiling.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: as described above. The first stage is LLaVA-1.5's, one view and no newline.
            Checkpoints converted to Hugging Face transformers need the rule "hf" in tiling and layout, see
            `plan_anyres` and `unpad`.
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
