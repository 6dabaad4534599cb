"""MiniGPT-4: one linear layer joins BLIP-2's frozen vision encoder and Q-Former to a frozen chat model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.prompts.minigpt4 import MiniGPT4Prompt
from lit_mm.samples.inputs import BLACK, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.tiling.plan import Stretch


class MiniGPT4(MultimodalModule):
    """MiniGPT-4. Parts: vision, connector (norm of the features and Q-Former), projection, language.

    The image is stretched to a square, which becomes 32 visual tokens, the projected queries. Both stages train the
    projection alone: the first on short captions without a template, the second on detailed descriptions after an
    instruction. All other parts are frozen and run without dropout. The form with LLaMA-2 has no Q-Former: its
    connector, `GroupedProjector`, projects groups of four patches to 64 visual tokens, and has no other parameters.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.Patched`. Published: EVA ViT-g without the last block, with
            the class token for the Q-Former and without it for groups of patches.
        language: decoder. Published: Vicuna version 0, whose separator is ###, or LLaMA-2 chat.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        connector: class or function that builds the connector from (vision width, language width). Published: the
            Q-Former of BLIP-2 with FlanT5-XXL, without its text branch.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the template of the second stage for Vicuna.
    Source: arXiv:2304.10592, section 3; github.com/Vision-CAIR/MiniGPT-4 d94738a. Unlike BLIP-2, the norm of the
        features is frozen.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        connector: Callable[[int, int], nn.Module] = PairedQFormer,
        image_size: int = 224,
        inputs: Inputs | None = None,
    ) -> None:
        default = Inputs(
            tiling=Stretch(image_size),
            layout=InOrder(),
            prompt=MiniGPT4Prompt(),
            max_length=2048,
            fill=BLACK,
        )
        projector = connector(vision.width, language.width)
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
