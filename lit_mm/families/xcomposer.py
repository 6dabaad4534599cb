"""InternLM-XComposer (1.0): a perceive sampler turns an image into 64 visual tokens; LoRA tunes the language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.qformer_projector import QFormerProjector
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.language.lora import XCOMPOSER_LINEARS, apply_lora, is_lora
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.xcomposer import XComposerPrompt
from lit_mm.samples.layout import between_flags
from lit_mm.samples.processor import Processor
from lit_mm.tiling.plan import plan_square

FLAGS = ("connector.start", "connector.end")


class XComposer(MultimodalModule):
    """XComposer. Parts: vision, connector (norm, perceive sampler, projection), flags, language, lora.

    The image is stretched to `image_size` x `image_size` and read by 64 queries; a vector stands before and after their
    64 visual tokens, so that an image takes 66 positions whatever its size. Any number of images, anywhere in the text.
    The first stage trains the sampler and the language model, the second the sampler and LoRA at all positions. The
    flags stay zero: no published stage trains them.

    Args:
        vision: a `lit_mm.model.VisionEncoder`; EVA ViT-g with its class token, as released.
        language: decoder that gets LoRA. InternLM-7B is a Llama with `attention_bias: true`.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        prompt: chat template and label rule.
        rank, alpha, dropout: of LoRA; the branch is scaled by alpha / rank, alpha defaults to rank.
        linears: of every decoder layer that get LoRA.
        max_length: longest sample, tokens.
    Source: arXiv:2309.15112, section 3; modeling_InternLM_XComposer.py of the release.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 224,
        connector: Callable[[int, int], nn.Module] = QFormerProjector,
        prompt: Prompt | None = None,
        rank: int = 256,
        alpha: float | None = None,
        dropout: float = 0.05,
        linears: Sequence[str] = XCOMPOSER_LINEARS,
        max_length: int = 2048,
    ) -> None:
        sampler = WithFlags(connector(vision.width, language.width), language.width)
        apply_lora(language, rank=rank, alpha=alpha, dropout=dropout, linears=linears)
        super().__init__(
            network=MultimodalModel(language, vision, sampler, fusion=scatter_visual),
            processor=lambda: Processor(
                load_tokenizer(tokenizer),
                prompt or XComposerPrompt(),
                tiling=partial(plan_square, size=image_size),
                token_grid=lambda size: sampler.token_grid(vision.token_grid(size)),
                layout=between_flags,
                max_length=max_length,
            ),
        )

    def part_of(self, parameter: str) -> str:
        if parameter in FLAGS:
            return "flags"
        return "lora" if is_lora(parameter) else super().part_of(parameter)
