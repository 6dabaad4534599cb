"""Recombined: the recipe chooses vision encoder, connector, tiling, layout and injections."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.combination.legal import EVERYTHING
from lit_mm.connectors.learned import WithLearned
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.errors import UserError
from lit_mm.families.composition import compose
from lit_mm.language.cross_attention import CrossAttentionSettings
from lit_mm.language.protocol import LanguageModel
from lit_mm.layers.injection import Injection
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.vision.dual import DualEncoder


class Recombined(MultimodalModule):
    """Combines parts of several papers. Parts: vision, connector, language, each name in `learned`, and injected ones.

    `PartialLoRA`, for example, adds the part partial_lora.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.VisionEncoder`.
        language: decoder, or encoder-decoder with a prompt such as `TextToText`; see
            `lit_mm.language.protocol.LanguageModel`.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        inputs: tiling, layout, prompt and lengths of the model in use and of all stages; a stage may change them. A
            tiling is required. Defaults: visual tokens in order, chats in the template vicuna_v1, 4096 tokens.
        connector: class or function that builds the connector from (vision width, language width).
        learned: names of learned vectors that are added to the connector, in the order in which a layout numbers them,
            such as [newline, separator]; None: no vectors are added.
        injection: change of the language model, such as `lit_mm.language.partial_lora.PartialLoRA`; None: no change.
        vision_injection: change of the vision encoder, such as `lit_mm.vision.window_adapters.WindowAdapters`; None: no
            change.
        next_token: objective "next_token", with its label smoothing; None: without smoothing.
        second_vision: vision encoder of the tiling's second views, which decoder layers read by `cross_attention`.
            None: there is one encoder.
        cross_attention: cross-attention of every decoder layer to the features of `second_vision`. None: there is none.
        mining: class or function that builds the connector of a vision encoder with features at two resolutions, such
            as `lit_mm.connectors.patch_info_mining.PatchInfoMining`, from (vision width, second width, language width);
            it takes the place of `connector`. None: the vision encoder has one map of features.
    Raises:
        UserError: there is no tiling, only one of second encoder and cross-attention is set, or the parts do not go
            together; the message has the nearest legal choice, see `lit_mm.combination.legal`.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: LanguageModel,
        tokenizer: str,
        inputs: Inputs,
        connector: Callable[[int, int], nn.Module] = MLPProjector,
        learned: list[str] | None = None,
        injection: Injection | None = None,
        vision_injection: Injection | None = None,
        next_token: NextToken | None = None,
        second_vision: nn.Module | None = None,
        cross_attention: CrossAttentionSettings | None = None,
        mining: Callable[[int, int, int], nn.Module] | None = None,
    ) -> None:
        if inputs.tiling is None:
            raise UserError(
                "model.init_args.inputs: Recombined needs a `tiling`, such as {class_path: lit_mm.tiling.Pad, "
                "init_args: {size: 336}}"
            )
        if (second_vision is None) != (cross_attention is None):
            raise UserError(
                "model.init_args: Recombined needs `second_vision` and `cross_attention` together, got only "
                f"`{'second_vision' if cross_attention is None else 'cross_attention'}`. Set both, or none"
            )
        if isinstance(vision, DualEncoder) and mining is not None:
            projector = mining(vision.width, vision.second_width, language.width)
        elif mining is not None:
            raise UserError(
                f"model.init_args.mining: {type(vision).__name__} has no features at two resolutions. Leave `mining` "
                "out, or set `vision: lit_mm.vision.dual.DualEncoder`"
            )
        else:
            projector = connector(vision.width, language.width)
        if learned:
            projector = WithLearned(projector, learned, language.width)
        if injection is not None:
            injection(language)
        if vision_injection is not None:
            vision_injection(vision)
        if second_vision is not None and cross_attention is not None:
            cross_attention(language, second_vision.width)
        default = Inputs(layout=InOrder(), prompt=ChatPrompt(), max_length=4096, fill=MEAN_COLOUR)
        super().__init__(
            **compose(vision, projector, language, tokenizer, inputs, default, second_vision),
            free=EVERYTHING,
            objectives={"next_token": next_token or NextToken()},
        )
