"""LLaVA-UHD: slices are encoded at their own aspect ratio and compressed to the same number of tokens."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.slice_resampler import SliceResampler
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import SlicesThenOverview
from lit_mm.tiling.uhd import Uhd


class LlavaUHD(MultimodalModule):
    """LLaVA-UHD. Parts: vision, connector, language.

    An image becomes up to 7 slices of about the area on which the encoder was trained, with "," between the slices of a
    row and a newline after each row, and an overview at the end. No view is padded or stretched to a square: CLIP's
    position table is interpolated to each view, and one call encodes all views of a batch. A view has 144 tokens, a
    slice also a separator: 336 x 336 pixels have 144 tokens, 672 x 1088 have 1014. The first stage reads the overview
    alone.

    The arXiv version is `connector: SliceResampler(side: 8, heads: 8, regions: false)` with the tiling `UhdArxiv` and
    the layout `InOrder`: 64 tokens a view, no separators.

    Args:
        vision: vision encoder with `any_size`, see `lit_mm.vision.protocol.VisionEncoder`.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the square whose area each view has, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds a connector with `any_grid` from (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2403.11703 (ECCV 2024); github.com/thunlp/LLaVA-UHD, branch LLaVA-UHD-v1 dd7f6cc, which we follow
        where the arXiv version differs (6 slices, 64 tokens). Of the code of March 2024 we follow tiling and resampler
        alone, because its forward pass is known to be broken. We leave out the random resizing of training images.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: LanguageModel,
        tokenizer: str,
        image_size: int = 336,
        connector: Callable[[int, int], nn.Module] = SliceResampler,
        inputs: Inputs | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        default = Inputs(
            tiling=Uhd(size=image_size, patch=vision.patch),
            layout=SlicesThenOverview(),
            prompt=ChatPrompt(),
            max_length=2048,
            fill=MEAN_COLOUR,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
