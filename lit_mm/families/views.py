"""How documents become samples where tiling and layout are chosen in the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lit_mm.data.pixels import Normalise
from lit_mm.declared import require_combination
from lit_mm.families.inputs import MEAN_COLOUR
from lit_mm.named import Function, resolve
from lit_mm.processor import CLIP_MEAN, CLIP_STD, Processor
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.source import load_tokenizer


@dataclass
class Views:
    """Functions are import paths, or {function: ..., arguments: {...}}.

    Attributes:
        tiling: (height, width) -> `TilePlan`: any of lit_mm/tiling, such as lit_mm.tiling.hd.plan_hd.
        layout: (plan, token grid) -> runs: any of lit_mm/layout.py.
        prompt: template and label rule; left out, chats in the template vicuna_v1.
        fill: colour of padding, RGB.
        max_length: longest sample, tokens.
    """

    tiling: str | Function
    layout: str | Function = "lit_mm.layout.in_order"
    prompt: Prompt | None = None
    fill: tuple[int, int, int] = MEAN_COLOUR
    max_length: int = 4096


class Chosen:
    """Tiling and layout of one `Views`, checked against vision encoder and connector.

    Args:
        views: what was chosen.
        key: where in the recipe, for errors.
        connector, bare: with and without the vectors that were put beside it.
    Raises:
        UserError: no such function, or parts that do not go together.
    """

    def __init__(self, views: Views, key: str, vision: nn.Module, connector: nn.Module, bare: nn.Module) -> None:
        self.views, self.vision, self.connector = views, vision, connector
        self.tiling = resolve(views.tiling, given=2, key=f"{key}.tiling")
        self.layout = resolve(views.layout, given=2, key=f"{key}.layout")
        require_combination(vision, connector, self.tiling, self.layout, key, bare=bare)

    def processor(self, tokenizer: str, by_stage: Mapping[str, Chosen]) -> Processor:
        """What lays out documents, and by stage name what does where a stage differs."""
        return Processor(
            load_tokenizer(tokenizer),
            self.views.prompt or ChatPrompt(),
            tiling=self.tiling,
            layout=self.layout,
            token_grid=lambda size: self.connector.token_grid(self.vision.token_grid(size)),
            normalise=Normalise(CLIP_MEAN, CLIP_STD, fill=self.views.fill),
            max_length=self.views.max_length,
            by_stage={name: chosen.processor(tokenizer, {}) for name, chosen in by_stage.items()},
        )
