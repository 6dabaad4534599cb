"""Fuyu: no vision encoder; linear patches of an image at its own size enter the decoder row by row."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.pass_through import PassThrough
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.fuyu import FuyuPrompt
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import RowsThenNewlines
from lit_mm.tiling.canvas import Canvas
from lit_mm.vision.linear_patches import LinearPatches

ALMOST_BLACK = (1, 1, 1)  # the release pads with 1.0 on the scale from 0 to 255


class Fuyu(MultimodalModule):
    """Fuyu. Parts: vision (the linear patches), language.

    An image keeps its size up to the canvas and is padded to whole patches. Each patch makes one visual token, and the
    text token of a newline ends each row: 1080 x 1920 pixels have 36 x 64 patches and 2340 tokens. BOS stands behind
    the image. There are no image positions beside those of the row.

    Args:
        vision: linear patches, as wide as the language model.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        canvas: (height, width) of the largest view, pixels. A tiling in `inputs` overrides it; the `canvas` of the
            prompt must then agree with it, for the coordinates of boxes and points.
        newline: token at the end of a row of patches.
        connector: class or function that builds the connector from (vision width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: Adept's article of 17 October 2023, the model card of adept/fuyu-8b, and transformers' FuyuForCausalLM. No
        training is published.
    """

    def __init__(
        self,
        vision: LinearPatches,
        language: LanguageModel,
        tokenizer: str,
        canvas: tuple[int, int] = (1080, 1920),
        newline: str = "|NEWLINE|",
        connector: Callable[[int, int], nn.Module] = PassThrough,
        inputs: Inputs | None = None,
    ) -> None:
        height, width = canvas
        default = Inputs(
            tiling=Canvas(height, width, vision.patch),
            layout=RowsThenNewlines(newline),
            prompt=FuyuPrompt((height, width)),
            max_length=16384,
            fill=ALMOST_BLACK,
        )
        tokens = connector(vision.width, language.width)
        super().__init__(**compose(vision, tokens, language, tokenizer, inputs, default))
