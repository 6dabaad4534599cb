"""InternLM-XComposer (1.0): a perceive sampler turns an image into 64 visual tokens; LoRA tunes the language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.qformer_projector import QFormerProjector
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.layers.adapters import LoRA
from lit_mm.module import MultimodalModule
from lit_mm.prompts.xcomposer import XComposerPrompt
from lit_mm.samples.inputs import WHITE, Inputs
from lit_mm.samples.layout import BetweenFlags
from lit_mm.tiling.plan import Stretch

LINEARS = ("q_proj", "v_proj", "up_proj", "down_proj")  # of a decoder layer, in the release


class XComposer(MultimodalModule):
    """XComposer. Parts: vision, connector (norm, perceive sampler, projection), flags, language, lora.

    The image is stretched to `image_size` x `image_size`, and 64 queries read it. A flag vector stands before and after
    their 64 visual tokens, so an image takes 66 positions whatever its size. Any number of images may stand anywhere in
    the text. The first stage trains the sampler and the language model, the second the sampler and LoRA at all
    positions. The flags stay zero, because no published stage trains them.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.VisionEncoder`. The release has EVA ViT-g with its class
            token.
        language: decoder that gets LoRA. InternLM-7B is a Llama with `attention_bias: true`.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds the connector from (vision width, language width).
        rank: rank of LoRA. Published: 256, with 381.7M parameters at 7B size.
        alpha: scale of LoRA x rank; None: rank, a scale of 1.
        dropout: dropout probability of LoRA's inputs.
        linears: names of the linears of a decoder layer that get LoRA.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2309.15112, section 3; modeling_InternLM_XComposer.py of the release.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 224,
        connector: Callable[[int, int], nn.Module] = QFormerProjector,
        rank: int = 256,
        alpha: float | None = None,
        dropout: float = 0.05,
        linears: Sequence[str] = LINEARS,
        inputs: Inputs | None = None,
    ) -> None:
        sampler = WithFlags(connector(vision.width, language.width), language.width)
        LoRA(rank, alpha, dropout, tuple(linears))(language)
        default = Inputs(
            tiling=Stretch(image_size),
            layout=BetweenFlags(),
            prompt=XComposerPrompt(),
            max_length=2048,
            fill=WHITE,
        )
        super().__init__(**compose(vision, sampler, language, tokenizer, inputs, default))
