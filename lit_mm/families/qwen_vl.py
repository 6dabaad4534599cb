"""Qwen-VL: a position-aware resampler makes 256 visual tokens of any view; the resolution grows from stage to stage."""

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

    The image is stretched to a square; the resampler reads its patches, 256 at 224 pixels, 1024 at 448, into 256 visual
    tokens. Both position tables follow the size of a stage by themselves, in every forward: the encoder's learnt one
    stays that of 224 pixels (`any_size`) and is resized to the view's grid, so what a later stage learns at 448 goes
    into the same 256 entries; the resampler's fixed one is that of its queries, and is resized for the keys. A
    checkpoint of one stage is therefore a checkpoint of any other, and of any size.

    Not reproduced: what the released language model does beyond 2048 tokens in generation, and never in training
    (dynamic NTK frequencies, log-n scaling of queries); up to there it is a Llama with biases on q, k and v.

    Args:
        vision: a `lit_mm.model.VisionEncoder` that takes views of every stage's size.
        language: the decoder.
        tokenizer: tokenizer of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; not read if `inputs` names a tiling.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: as described above.
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
