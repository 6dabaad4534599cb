"""Monkey: Qwen-VL at a higher resolution, by windows that each have adapters of their own in the vision encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from torch import nn

from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.qwen_vl import QwenPlain
from lit_mm.prompts.source import load_tokenizer
from lit_mm.samples.processor import Processor
from lit_mm.tiling.plan import TilePlan
from lit_mm.tiling.windows import plan_whole, plan_windows
from lit_mm.vision.vit import ViT
from lit_mm.vision.window_adapters import apply_window_adapters


class Monkey(MultimodalModule):
    """Monkey. Parts: vision, window_adapters, connector, projection, position_table, language.

    The image is stretched to `size` and cut into windows of the encoder's size; a view of the whole comes last. Window
    i runs through the encoder with adapter set i, the whole without any, all views in one call. One resampler makes 256
    visual tokens of each: 1280 for 896 x 896 pixels, 1792 for 896 x 1344. There are as many adapter sets as windows.

    Args:
        vision: the encoder; it gets the adapters.
        language: the decoder.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        size: (height, width) that every image is stretched to, pixels.
        window: side of a window and of the view of the whole, pixels.
        stride: step from window to window, pixels; None for `window`, as published.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        prompt: template and label rule; left out, texts as they stand (`QwenPlain`), as released.
        ranks, dropout: of the adapters, see `apply_window_adapters`.
        max_length: longest sample, tokens.
        by_stage: stage name -> "whole": its training documents have the view of the whole alone, as Qwen-VL has it. For
            a run that trains first what the published model starts from; the release loads the finished Qwen-VL.
    Raises:
        UserError: an image smaller than a window, or ranks that are none.
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
        prompt: Prompt | None = None,
        ranks: dict[str, int] | None = None,
        dropout: float = 0.05,
        max_length: int = 2048,
        by_stage: dict[str, Literal["whole"]] | None = None,
    ) -> None:
        resampler = connector(vision.width, language.width)
        tiling = partial(plan_windows, size=tuple(size), window=window, stride=stride)
        apply_window_adapters(vision, len(tiling(*size).tiles), ranks, dropout)
        whole = partial(plan_whole, size=tuple(size), window=window)

        def lay_out(tiling: Callable[[int, int], TilePlan], stages: Mapping[str, Processor]) -> Processor:
            return Processor(
                load_tokenizer(tokenizer),
                prompt or QwenPlain(),
                tiling=tiling,
                token_grid=lambda size: resampler.token_grid(vision.token_grid(size)),
                max_length=max_length,
                by_stage=stages,
            )

        by_stage = by_stage or {}
        super().__init__(
            network=MultimodalModel(language, vision, resampler, fusion=scatter_visual),
            processor=lambda: lay_out(tiling, {name: lay_out(whole, {}) for name in by_stage}),
        )
        self.by_stage = by_stage
