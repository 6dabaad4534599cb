"""InternLM-XComposer2: an MLP projector, and partial LoRA that treats image positions differently in every layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.module import MultimodalModule
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.inputs import WHITE, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.tiling.plan import Stretch


class XComposer2(MultimodalModule):
    """XComposer2. Parts: vision, connector, language, partial_lora.

    The image is stretched to `image_size` x `image_size`, and each patch becomes one visual token: 256 tokens at 224
    pixels, 1225 at 490. Visual tokens pass through the plain weights plus a low-rank branch, text through the plain
    weights alone. Without an image, the model is therefore the base language model, bit for bit.

    Args:
        vision: vision encoder that returns the last layer's features before the post layer-norm, without class token.
        language: decoder that gets the partial LoRA.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds the connector from (vision width, language width).
        rank: rank of the partial LoRA.
        alpha: scale of the partial LoRA x rank; None: rank, a scale of 1.
        dropout: dropout probability of the partial LoRA's inputs.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2401.16420, section 3.1 and equation 1; build_mlp.py and modeling_internlm2.py of the release.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 490,
        connector: Callable[[int, int], nn.Module] = MLPProjector,
        rank: int = 256,
        alpha: float | None = None,
        dropout: float = 0.05,
        inputs: Inputs | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        apply_partial_lora(language, rank=rank, alpha=alpha, dropout=dropout)
        default = Inputs(
            tiling=Stretch(image_size),
            layout=InOrder(),
            prompt=XComposer2Prompt(),
            max_length=4096,
            fill=WHITE,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
