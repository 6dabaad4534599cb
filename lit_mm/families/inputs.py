"""What a stage changes in how documents become samples, for the families whose recipes do: LLaVA's, VILA, Qwen-VL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.samples.layout import Layout, TokenGrid, base_then_unpadded_rows, in_order, slices_then_overview
from lit_mm.samples.pixels import Normalise
from lit_mm.samples.processor import CLIP_MEAN, CLIP_STD, Processor
from lit_mm.tiling.anyres import Rule, plan_anyres
from lit_mm.tiling.plan import TilePlan, plan_square
from lit_mm.tiling.square import plan_centre_crop, plan_pad
from lit_mm.tiling.uhd import plan_uhd, plan_uhd_arxiv

Aspect = Literal["stretch", "crop", "pad", "anyres", "overview", "slices", "slices_arxiv"]
SHAPED = ("overview", "slices", "slices_arxiv")  # views that keep the image's shape, for a vision encoder of any size
MEAN_COLOUR = tuple(int(255 * value) for value in CLIP_MEAN)  # (122, 116, 104)
BLACK = (0, 0, 0)


@dataclass
class Inputs:
    """How documents become samples.

    Attributes:
        prompt: template and label rule; left out, chats in the template vicuna_v1.
        aspect: what happens to an image that is not square: "stretch" it; "crop" its middle; "pad" it with CLIP's mean
            colour; "anyres", a view of the whole and tiles. Of LLaVA-UHD, whose views keep the image's shape:
            "overview", one of the whole; "slices" before it; "slices_arxiv", those of its first version, nothing
            between them.
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
    patch: int = 14,
    max_slices: int | None = None,
) -> Processor:
    """The family's processor, and in it one for each stage that lays out its training documents differently.

    Args:
        image_size: side of a view, pixels, of inputs that do not say.
        rule: of AnyRes, see `plan_anyres`.
        patch, max_slices: of LLaVA-UHD's views, see `plan_uhd`; None: the published limit.
    """

    def make(chosen: Inputs, stages: Mapping[str, Processor]) -> Processor:
        size = chosen.image_size or image_size
        if chosen.aspect in SHAPED:
            tiling, layout = _shaped(chosen.aspect, size, patch, max_slices)
        else:
            tiling, layout = _views(chosen.aspect, size, rule)
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


def _shaped(
    aspect: Aspect, size: int, patch: int, max_slices: int | None
) -> tuple[Callable[[int, int], TilePlan], Layout]:
    if aspect == "overview":
        return partial(plan_uhd, size=size, patch=patch, max_slices=1), in_order
    limit = {} if max_slices is None else {"max_slices": max_slices}
    if aspect == "slices":
        return partial(plan_uhd, size=size, patch=patch, **limit), slices_then_overview
    return partial(plan_uhd_arxiv, size=size, patch=patch, **limit), in_order
