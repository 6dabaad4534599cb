"""VILA: LLaVA-1.5's parts, with pre-training of the language model on interleaved pages."""

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


class Vila(MultimodalModule):
    """VILA. Parts: vision, connector, language.

    A document may have any number of images; each becomes 576 visual tokens at its place in the text, without a
    separator. The first stage warms the projector up on captions. The second trains projector and language model on
    interleaved pages and pairs (`Interleaved`), the third on chats, some of which have no image. A document's own
    system turn replaces that of the template.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.VisionEncoder`.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds the connector from (vision width, language width). The released 1.0
            has `MLPProjector`, the paper `linear_projector`, version 1.5 `DownsampleMLP`.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2312.07533; github.com/NVlabs/VILA eaadb1e. The paper's projector is linear, the release's an MLP.
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
            max_length=4096,
            fill=MEAN_COLOUR,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
