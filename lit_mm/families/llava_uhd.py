"""LLaVA-UHD: slices of any shape, each encoded at its own aspect ratio and compressed to the same number of tokens."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.slice_resampler import SliceResampler
from lit_mm.families.inputs import Inputs, make_processor
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.source import load_tokenizer


class LlavaUHD(MultimodalModule):
    """LLaVA-UHD. Parts: vision, connector, language.

    An image becomes up to 7 slices of about the area that the encoder was trained on, "," between those of a row and a
    newline after each row, and an overview last. No view is padded or stretched to a square: CLIP's position table is
    interpolated to each, all views of a batch in one call. 144 tokens a view and a separator for each slice: 336 x 336
    pixels are 144 tokens, 672 x 1088 are 1014. The first stage sees the overview alone.

    The arXiv version is `connector: SliceResampler(side: 8, heads: 8, regions: false)` and the aspect "slices_arxiv":
    64 tokens a view, no separators.

    Args:
        vision: a `lit_mm.model.VisionEncoder` of `any_size`.
        language: the decoder.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the square whose area each view keeps, pixels.
        connector: makes a `lit_mm.model.Connector` of `any_grid`; called with (vision width, language width).
        inputs: prompt, aspect and length of the model in use, and of every stage that `by_stage` does not name.
        by_stage: stage name -> inputs of its training documents.
        max_slices: see `plan_uhd` and `plan_uhd_arxiv`; None: 7 and 6, as published.
    Source: arXiv:2403.11703 (ECCV 2024); github.com/thunlp/LLaVA-UHD, branch LLaVA-UHD-v1 dd7f6cc, which is followed
        where the arXiv version differs (6 slices, 64 tokens). Of the code of March 2024 only tiling and resampler are;
        its forward pass is known to be broken. The random resizing of training images is left out.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 336,
        connector: Callable[[int, int], nn.Module] = SliceResampler,
        inputs: Inputs | None = None,
        by_stage: dict[str, Inputs] | None = None,
        max_slices: int | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        super().__init__(
            network=MultimodalModel(language, vision, projector, fusion=scatter_visual),
            processor=lambda: make_processor(
                load_tokenizer(tokenizer),
                inputs or Inputs(aspect="slices"),
                by_stage,
                image_size=image_size,
                token_grid=lambda size: projector.token_grid(vision.token_grid(size)),
                patch=vision.patch,
                max_slices=max_slices,
            ),
        )
        self.by_stage = by_stage or {}
