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

    The image is stretched to `image_size` x `image_size` and becomes one visual token per patch: 256 at 224, 1225 at
    490. Visual tokens pass through the plain weights plus a low-rank branch, text through the plain weights alone, so
    that without an image the model is the base language model, bit for bit.

    Args:
        vision: a `lit_mm.model.VisionEncoder`; the last layer's features before the post layer-norm, no class token.
        language: decoder that gets the partial LoRA.
        tokenizer: tokenizer of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; not read if `inputs` names a tiling.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        rank, alpha, dropout: settings of the partial LoRA; its scale is alpha / rank, and alpha defaults to rank.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: as described above.
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
