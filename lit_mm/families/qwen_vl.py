"""Qwen-VL: a position-aware resampler makes 256 visual tokens of a view; the resolution grows from stage to stage."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.prompts.qwen_vl import QwenChat
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.tiling.plan import Stretch


class QwenVL(MultimodalModule):
    """Qwen-VL. Parts: vision, connector, projection, position_table, language.

    The image is stretched to a square. The resampler compresses its patches, 256 at 224 pixels and 1024 at 448, to 256
    visual tokens. Every forward resizes both position tables to the size of the stage. The encoder's learnt table has
    the 256 entries of 224 pixels (`any_size`), and a later stage at 448 pixels trains the same entries; the resampler's
    fixed table is that of its queries, and is resized for the keys. A checkpoint therefore fits every stage and size.

    Beyond 2048 tokens the released language model generates, but never trains, with dynamic NTK frequencies and log-n
    scaling of queries, which we do not reproduce; up to 2048 tokens it is a Llama with biases on q, k and v.

    Args:
        vision: vision encoder that takes the views of every stage, see `lit_mm.vision.protocol.VisionEncoder`.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        connector: class or function that builds the connector from (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2308.12966; visual.py, modeling_qwen.py and finetune.py of the release.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 448,
        connector: Callable[[int, int], nn.Module] = NormalisedResampler,
        inputs: Inputs | None = None,
    ) -> None:
        resampler = connector(vision.width, language.width)
        default = Inputs(
            tiling=Stretch(image_size),
            layout=InOrder(),
            prompt=QwenChat(),
            max_length=2048,
            fill=MEAN_COLOUR,
        )
        super().__init__(**compose(vision, resampler, language, tokenizer, inputs, default))
