"""Qwen-VL: a position-aware resampler makes 256 visual tokens of any view; the resolution grows from stage to stage."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.families.inputs import Inputs, make_processor
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.qwen_vl import QwenChat
from lit_mm.prompts.source import load_tokenizer


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
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels, of the model in use.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        inputs: prompt, aspect, length and size of the model in use, and of every stage that `by_stage` does not name.
        by_stage: stage name -> inputs of its training documents, `image_size` among them.
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
        by_stage: dict[str, Inputs] | None = None,
    ) -> None:
        resampler = connector(vision.width, language.width)
        super().__init__(
            network=MultimodalModel(language, vision, resampler, fusion=scatter_visual),
            processor=lambda: make_processor(
                load_tokenizer(tokenizer),
                inputs or Inputs(prompt=QwenChat(), aspect="stretch"),
                by_stage,
                image_size=image_size,
                token_grid=lambda size: resampler.token_grid(vision.token_grid(size)),
            ),
        )
        self.by_stage = by_stage or {}
