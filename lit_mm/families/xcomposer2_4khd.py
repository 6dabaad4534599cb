"""InternLM-XComposer2-4KHD: XComposer2 that sees a view of the whole and as many tiles as a limit allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from lit_mm.connectors.merge import MergeMLP
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora, is_partial_lora
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.layout import global_then_tiles
from lit_mm.samples.pixels import Normalise
from lit_mm.samples.processor import CLIP_MEAN, CLIP_STD, Processor
from lit_mm.tiling.hd import plan_hd

WHITE = (255, 255, 255)


@dataclass
class Limits:
    """How many tiles an image may become: the H of "HD-H".

    Attributes:
        max_tiles: limit of documents whose source `by_source` does not name.
        by_source: name of a data source -> its own limit. Published: 55 for DocVQA and InfoVQA.
        max_length: longest sample, tokens.
    """

    max_tiles: int = 25
    by_source: dict[str, int] = field(default_factory=dict)
    max_length: int = 16384


class XComposer2HD(MultimodalModule):
    """XComposer2-4KHD. Parts: vision, connector, language, partial_lora.

    The view of the whole comes first, row by row, a newline vector behind every row; then a separator; then the rows of
    the map of all tiles, a newline behind each. 2 x 2 patches make one visual token. All of them, the learned vectors
    too, pass through the projector and count as image for the partial LoRA. A view has 144 tokens; R x C tiles make
    (R C + 1) 144 + 1 + (R + 1) 12, 8737 at most at HD-55.

    Not in the released code, and not here: the paper draws the limit of most SFT data between the image's own size and
    HD-25; both always use the largest grid.

    Args:
        vision: a `lit_mm.model.VisionEncoder`; the last layer's features before the post layer-norm, no class token.
        language: decoder that gets the partial LoRA.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        tile: side of a view, pixels.
        connector: makes a `lit_mm.model.Connector` with two learned vectors, newline and separator; called with
            (vision width, language width).
        prompt: chat template and label rule.
        rank, alpha, dropout: of the partial LoRA; the branch is scaled by alpha / rank, alpha defaults to rank.
        limits: of the model in use, and of every stage that `by_stage` does not name. What was trained at one limit may
            be asked at another: give `evaluate` or `generate` a config with other limits.
        by_stage: stage name -> limits of its training documents.
    Source: arXiv:2404.06512; ixc_utils.py and build_mlp.py of the release.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        tile: int = 336,
        connector: Callable[[int, int], nn.Module] = MergeMLP,
        prompt: Prompt | None = None,
        rank: int = 256,
        alpha: float | None = None,
        dropout: float = 0.05,
        limits: Limits | None = None,
        by_stage: dict[str, Limits] | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        apply_partial_lora(language, rank=rank, alpha=alpha, dropout=dropout)

        def make(chosen: Limits, stages: Mapping[str, Processor]) -> Processor:
            return Processor(
                load_tokenizer(tokenizer),
                prompt or XComposer2Prompt(),
                tiling=partial(plan_hd, max_tiles=chosen.max_tiles, tile=tile),
                by_source={
                    name: partial(plan_hd, max_tiles=most, tile=tile) for name, most in chosen.by_source.items()
                },
                layout=global_then_tiles,
                token_grid=lambda size: projector.token_grid(vision.token_grid(size)),
                normalise=Normalise(CLIP_MEAN, CLIP_STD, fill=WHITE),
                max_length=chosen.max_length,
                by_stage=stages,
            )

        super().__init__(
            network=MultimodalModel(language, vision, projector, fusion=scatter_visual),
            processor=lambda: make(
                limits or Limits(), {name: make(chosen, {}) for name, chosen in (by_stage or {}).items()}
            ),
        )
        self.by_stage = by_stage or {}

    def part_of(self, parameter: str) -> str:
        return "partial_lora" if is_partial_lora(parameter) else super().part_of(parameter)
