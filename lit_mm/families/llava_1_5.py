"""LLaVA-1.5: LLaVA with an MLP projector, 336 pixels, and images padded to squares."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.tiling.square import Pad


class Llava15(MultimodalModule):
    """LLaVA-1.5. Parts: vision, connector, language.

    The image is padded to a square with CLIP's mean colour, and each patch becomes one visual token: 576 at 336 pixels.
    The features are those of LLaVA. The released first stage crops instead of padding and uses the plain template; both
    are `inputs` of that stage.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.VisionEncoder`.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds the connector from (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2310.03744; github.com/haotian-liu/LLaVA c121f04, scripts/v1_5.
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
        projector = connector(vision.width, language.width)
        default = Inputs(
            tiling=Pad(image_size),
            layout=InOrder(),
            prompt=ChatPrompt(),
            max_length=2048,
            fill=MEAN_COLOUR,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
