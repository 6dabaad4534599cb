"""InternLM-XComposer2-4KHD: XComposer2 with a global view and as many tiles as a limit allows."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.merge import MergeMLP
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.module import MultimodalModule
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.inputs import WHITE, Inputs
from lit_mm.samples.layout import GlobalThenTiles
from lit_mm.tiling.hd import Hd


class XComposer2HD(MultimodalModule):
    """XComposer2-4KHD. Parts: vision, connector, language, partial_lora.

    The rows of the global view come first, with a newline vector after every row; then a separator; then the rows of
    the map of all tiles, with a newline after every row. 2 x 2 patches make one visual token. Visual tokens and learned
    vectors pass through the projector and count as visual places for the partial LoRA. A view has 144 tokens; R x C
    tiles make (R C + 1) 144 + 1 + (R + 1) 12 tokens, at most 8737 at HD-55.

    The paper draws the limit of most SFT data between the image's own size and HD-25. The released code does not, and
    neither do we: both always use the largest grid.

    Args:
        vision: vision encoder that returns the last layer's features before the post layer-norm, without class token.
        language: decoder that gets the partial LoRA.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        tile: side of a view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds a connector with two learned vectors, newline and separator, from
            (vision width, language width).
        rank: rank of the partial LoRA.
        alpha: scale of the partial LoRA x rank; None: rank, a scale of 1.
        dropout: dropout probability of the partial LoRA's inputs.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: HD-25. A model that was trained at one limit may be used at another: give `evaluate` or
            `generate` a config with another `max_tiles`.
    Source: arXiv:2404.06512; ixc_utils.py and build_mlp.py of the release.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        tile: int = 336,
        connector: Callable[[int, int], nn.Module] = MergeMLP,
        rank: int = 256,
        alpha: float | None = None,
        dropout: float = 0.05,
        inputs: Inputs | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        apply_partial_lora(language, rank=rank, alpha=alpha, dropout=dropout)
        default = Inputs(
            tiling=Hd(tile=tile),
            layout=GlobalThenTiles(),
            prompt=XComposer2Prompt(),
            max_length=16384,
            fill=WHITE,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
