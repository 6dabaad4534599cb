"""CogVLM: visual tokens pass through a visual expert in every layer of the language model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.glu import GLUProjector
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.language.visual_expert import apply_visual_expert
from lit_mm.module import MultimodalModule
from lit_mm.prompts.cogvlm import CogVLMPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import SharedPosition
from lit_mm.tiling.plan import Stretch


class CogVLM(MultimodalModule):
    """CogVLM. Parts: vision, connector, flags, language, visual_expert.

    The image is stretched to `image_size` x `image_size`, and each patch becomes one visual token: 256 tokens at 224
    pixels, 1225 at 490, between a start and an end vector. The start vector and the visual tokens pass through the
    visual expert, the end vector and text through the language model's weights; all visual tokens of an image share one
    position. Without an image, the model is therefore the base language model, bit for bit.

    A sample may have several images, as in the release's training code; that on the hub takes one.

    Args:
        vision: vision encoder that returns patch features without class token.
        language: decoder that gets the visual expert.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds the connector from (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2311.03079; github.com/THUDM/CogVLM f7283b2, utils/models/cogvlm_model.py and mixin.py.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 490,
        connector: Callable[[int, int], nn.Module] = GLUProjector,
        inputs: Inputs | None = None,
    ) -> None:
        projector = WithFlags(connector(vision.width, language.width), language.width)
        apply_visual_expert(language)
        default = Inputs(
            tiling=Stretch(image_size),
            layout=SharedPosition(),
            prompt=CogVLMPrompt(),
            max_length=2048,
            fill=MEAN_COLOUR,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
