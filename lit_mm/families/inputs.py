"""What a stage changes in how documents become samples, for the families whose recipes do: LLaVA's, VILA, Qwen-VL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lit_mm.data.pixels import Normalise
from lit_mm.layout import Layout, TokenGrid, base_then_unpadded_rows, in_order
from lit_mm.processor import CLIP_MEAN, CLIP_STD, Processor
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.tiling.anyres import Rule, plan_anyres
from lit_mm.tiling.plan import TilePlan, plan_square
from lit_mm.tiling.square import plan_centre_crop, plan_pad

Aspect = Literal["stretch", "crop", "pad", "anyres"]
MEAN_COLOUR = tuple(int(255 * value) for value in CLIP_MEAN)  # (122, 116, 104)
BLACK = (0, 0, 0)


@dataclass
class Inputs:
    """How documents become samples.

    Attributes:
        prompt: template and label rule; left out, chats in the template vicuna_v1.
        aspect: what happens to an image that is not square: "stretch" it; "crop" its middle; "pad" it with CLIP's mean
            colour; "anyres", a view of the whole and tiles.
        max_length: longest sample, tokens.
        image_size: side of a view, pixels; left out, the family's. The vision encoder must take both (`any_size`).
    """

    prompt: Prompt | None = None
    aspect: Aspect = "pad"
    max_length: int = 2048
    image_size: int | None = None


def make_processor(
    tokenizer: Tokenizer,
    inputs: Inputs,
    by_stage: Mapping[str, Inputs] | None,
    *,
    image_size: int,
    token_grid: TokenGrid,
    rule: Rule = "official",
) -> Processor:
    """The family's processor, and in it one for each stage that lays out its training documents differently.

    Args:
        image_size: side of a view, pixels, of inputs that do not say.
        rule: of AnyRes, see `plan_anyres`.
    """

    def make(chosen: Inputs, stages: Mapping[str, Processor]) -> Processor:
        tiling, layout = _views(chosen.aspect, chosen.image_size or image_size, rule)
        return Processor(
            tokenizer,
            chosen.prompt or ChatPrompt(),
            tiling=tiling,
            layout=layout,
            token_grid=token_grid,
            normalise=Normalise(CLIP_MEAN, CLIP_STD, fill=BLACK if chosen.aspect == "anyres" else MEAN_COLOUR),
            max_length=chosen.max_length,
            by_stage=stages,
        )

    return make(inputs, {name: make(chosen, {}) for name, chosen in (by_stage or {}).items()})


def _views(aspect: Aspect, size: int, rule: Rule) -> tuple[Callable[[int, int], TilePlan], Layout]:
    if aspect == "anyres":
        return partial(plan_anyres, tile=size, rule=rule), partial(base_then_unpadded_rows, rule=rule)
    fixed = {"stretch": plan_square, "crop": plan_centre_crop, "pad": plan_pad}
    return partial(fixed[aspect], size=size), in_order
