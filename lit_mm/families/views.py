"""How documents become samples where tiling and layout are chosen in the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lit_mm.families.inputs import MEAN_COLOUR
from lit_mm.families.named import Function, resolve
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.samples.layout import TokenGrid
from lit_mm.samples.pixels import Normalise
from lit_mm.samples.processor import CLIP_MEAN, CLIP_STD, Processor


@dataclass
class Views:
    """Functions are import paths, or {function: ..., arguments: {...}}.

    Attributes:
        tiling: (height, width) -> `TilePlan`: any of lit_mm/tiling, such as lit_mm.tiling.hd.plan_hd.
        layout: (plan, token grid) -> runs: any of lit_mm/samples/layout.py.
        prompt: template and label rule; left out, chats in the template vicuna_v1.
        fill: colour of padding, RGB.
        max_length: longest sample, tokens.
    """

    tiling: str | Function
    layout: str | Function = "lit_mm.samples.layout.in_order"
    prompt: Prompt | None = None
    fill: tuple[int, int, int] = MEAN_COLOUR
    max_length: int = 4096


def make_processor(
    tokenizer: Tokenizer, inputs: Views, by_stage: Mapping[str, Views] | None, *, token_grid: TokenGrid
) -> Processor:
    """What lays out documents, and in it one for each stage that lays out its training documents differently.

    Raises:
        UserError: there is no such function, or it does not take these arguments.
    """

    def make(views: Views, key: str, stages: Mapping[str, Processor]) -> Processor:
        return Processor(
            tokenizer,
            views.prompt or ChatPrompt(),
            tiling=resolve(views.tiling, given=2, key=f"{key}.tiling"),
            layout=resolve(views.layout, given=2, key=f"{key}.layout"),
            token_grid=token_grid,
            normalise=Normalise(CLIP_MEAN, CLIP_STD, fill=views.fill),
            max_length=views.max_length,
            by_stage=stages,
        )

    stages = {name: make(views, f"model.init_args.by_stage.{name}", {}) for name, views in (by_stage or {}).items()}
    return make(inputs, "model.init_args.inputs", stages)
