"""CogAgent: CogVLM with a second, high-resolution vision encoder that every decoder layer reads by cross-attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.glu import GLUProjector
from lit_mm.connectors.positions import PositionTable
from lit_mm.families.composition import compose
from lit_mm.language.cross_attention import apply_cross_attention
from lit_mm.language.llama import Llama
from lit_mm.language.visual_expert import apply_visual_expert
from lit_mm.module import MultimodalModule
from lit_mm.prompts.cogvlm import CogVLMPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import SharedPosition
from lit_mm.tiling.two_sizes import TwoSizes
from lit_mm.vision.protocol import VisionEncoder


class CogAgent(MultimodalModule):
    """CogAgent. Parts: those of CogVLM, second_vision, second_connector (a table of positions) and cross_attention.

    The image is stretched to `image_size` x `image_size` for CogVLM's path, and to `second_size` x `second_size` for
    the second encoder. Its patches, 6400 at 1120 pixels, make no visual tokens; every position of a sample reads them
    by cross-attention in every layer. A sample without images reads nothing, so the model then is the base language
    model, bit for bit.

    Args:
        vision: vision encoder that returns patch features without class token.
        second_vision: vision encoder of the high resolution, without class token.
        language: decoder that gets the visual expert and the cross-attention.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size, second_size: sides of the views, pixels; a tiling in `inputs` overrides them.
        connector: class or function that builds the connector from (vision width, language width). None: `GLUProjector`
            with a table of positions for the patches of `image_size`.
        cross_width, cross_heads: width of the cross-attention's queries, keys and values, and number of its heads.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2312.08914; modeling_cogagent.py and cross_visual.py of the release.
    """

    def __init__(
        self,
        vision: nn.Module,
        second_vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 224,
        second_size: int = 1120,
        connector: Callable[[int, int], nn.Module] | None = None,
        cross_width: int = 1024,
        cross_heads: int = 32,
        inputs: Inputs | None = None,
    ) -> None:
        build = connector or partial(GLUProjector, positions=patches_of(vision, image_size))
        projector = WithFlags(build(vision.width, language.width), language.width)
        table = PositionTable(patches_of(second_vision, second_size), second_vision.width)
        apply_visual_expert(language)
        apply_cross_attention(language, second_vision.width, cross_width, cross_heads)
        default = Inputs(
            tiling=TwoSizes(image_size, second_size),
            layout=SharedPosition(),
            prompt=CogVLMPrompt("chat"),
            max_length=2048,
            fill=MEAN_COLOUR,
        )
        super().__init__(
            **compose(vision, projector, language, tokenizer, inputs, default, second_vision, table),
        )


def patches_of(vision: VisionEncoder, size: int) -> int:
    """Count the patches of a view of `size` x `size` pixels."""
    rows, columns = vision.token_grid((size, size))
    return rows * columns
