"""InternLM-XComposer2: an MLP projector, and partial LoRA that treats image positions differently in every layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora, is_partial_lora
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.processor import Processor
from lit_mm.tiling.plan import plan_square


class XComposer2(MultimodalModule):
    """XComposer2. Parts: vision, connector, language, partial_lora.

    The image is stretched to `image_size` x `image_size` and becomes one visual token per patch: 256 at 224, 1225 at
    490. Visual tokens pass through the plain weights plus a low-rank branch, text through the plain weights alone, so
    that without an image the model is the base language model, bit for bit.

    Args:
        vision: a `lit_mm.model.VisionEncoder`; the last layer's features before the post layer-norm, no class token.
        language: decoder that gets the partial LoRA.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        prompt: chat template and label rule.
        rank, alpha, dropout: of the partial LoRA; the branch is scaled by alpha / rank, alpha defaults to rank.
        max_length: longest sample, tokens.
    Source: arXiv:2401.16420, section 3.1 and equation 1; build_mlp.py and modeling_internlm2.py of the release.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 490,
        connector: Callable[[int, int], nn.Module] = MLPProjector,
        prompt: Prompt | None = None,
        rank: int = 256,
        alpha: float | None = None,
        dropout: float = 0.05,
        max_length: int = 4096,
    ) -> None:
        projector = connector(vision.width, language.width)
        apply_partial_lora(language, rank=rank, alpha=alpha, dropout=dropout)
        super().__init__(
            network=MultimodalModel(language, vision, projector, fusion=scatter_visual),
            processor=lambda: Processor(
                load_tokenizer(tokenizer),
                prompt or XComposer2Prompt(),
                tiling=partial(plan_square, size=image_size),
                token_grid=lambda size: projector.token_grid(vision.token_grid(size)),
                max_length=max_length,
            ),
        )

    def part_of(self, parameter: str) -> str:
        return "partial_lora" if is_partial_lora(parameter) else super().part_of(parameter)
