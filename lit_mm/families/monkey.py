"""Monkey: Qwen-VL at a higher resolution. Each window of the image has its own adapters in the vision encoder."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.prompts.qwen_vl import QwenPlain
from lit_mm.samples.inputs import WHITE, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.tiling.windows import Windows
from lit_mm.vision.vit import ViT
from lit_mm.vision.window_adapters import apply_window_adapters


class Monkey(MultimodalModule):
    """Monkey. Parts: vision, window_adapters, connector, projection, position_table, language.

    The image is stretched to `size` and cut into windows of the encoder's size; the global view comes last. Window i
    passes through the encoder with adapter set i, the global view without adapters, all in one call. One resampler
    makes 256 visual tokens of each view: 1280 for 896 x 896 pixels, 1792 for 896 x 1344. There are as many adapter sets
    as windows.

    Args:
        vision: vision encoder, which gets the adapters.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        size: (height, width) of the stretched image, pixels.
        window: side of a window and of the global view, pixels.
        stride: step from window to window, pixels; None: the side of a window, as published.
        connector: class or function that builds the connector from (vision width, language width).
        ranks: ranks of the adapters, see `apply_window_adapters`.
        dropout: dropout probability of the adapters' inputs.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes, with texts as they stand (`QwenPlain`). A stage
            with the tiling `Whole` trains the model from which the published one starts; the release loads the
            finished Qwen-VL.
    Raises:
        UserError: the image is smaller than a window, or a rank is not positive.
    Source: arXiv:2311.06607; monkey_model/visual.py and modeling_monkey.py of the release. The paper reports adapters
        of 117M parameters, the released code has 51.1M.
    """

    def __init__(
        self,
        vision: ViT,
        language: Llama,
        tokenizer: str,
        size: tuple[int, int] = (896, 896),
        window: int = 448,
        stride: int | None = None,
        connector: Callable[[int, int], nn.Module] = NormalisedResampler,
        ranks: dict[str, int] | None = None,
        dropout: float = 0.05,
        inputs: Inputs | None = None,
    ) -> None:
        resampler = connector(vision.width, language.width)
        default = Inputs(
            tiling=Windows(tuple(size), window, stride),
            layout=InOrder(),
            prompt=QwenPlain(),
            max_length=2048,
            fill=WHITE,
        )
        tiling = default.tiling if inputs is None else inputs.over(default).tiling
        assert tiling is not None  # the default has one
        apply_window_adapters(vision, len(tiling(*size).tiles), ranks, dropout)
        super().__init__(**compose(vision, resampler, language, tokenizer, inputs, default))
