"""LLaVA: a linear projection of frozen CLIP features stands in front of the text."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.linear import linear_projector
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.tiling.square import CentreCrop


class Llava(MultimodalModule):
    """LLaVA. Parts: vision, connector, language.

    Each patch of the image's middle square becomes one visual token: 256 tokens at 224 pixels, 576 at 336. The features
    are the output of the last block but one (`select_layer: -2`), without the class token. The first stage trains the
    connector on captions in the plain template; the second trains the connector and the language model on chats.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.VisionEncoder`.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds the connector from (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2304.08485, section 4.1; github.com/haotian-liu/LLaVA c121f04 with `mm_projector_type: linear`. The
        image stands before the first question, as in that code; the paper places it before or after at random.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: LanguageModel,
        tokenizer: str,
        image_size: int = 224,
        connector: Callable[[int, int], nn.Module] = linear_projector,
        inputs: Inputs | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        default = Inputs(
            tiling=CentreCrop(image_size),
            layout=InOrder(),
            prompt=ChatPrompt(),
            max_length=2048,
            fill=MEAN_COLOUR,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
