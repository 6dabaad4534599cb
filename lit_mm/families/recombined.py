"""Any vision encoder, connector, tiling, layout and injection, chosen in the recipe."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.combination.legal import EVERYTHING
from lit_mm.connectors.learned import WithLearned
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.errors import UserError
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.layers.injection import Injection
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import InOrder


class Recombined(MultimodalModule):
    """Parts of several papers in one model. Parts: vision, connector, language; one for each name in `learned`; and the
    parts that the injections add (`PartialLoRA` adds partial_lora).

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: a `lit_mm.language.protocol.LanguageModel`: a decoder, or an encoder-decoder (with a prompt such as
            `TextToText`).
        tokenizer: tokenizer of the language model: "nano", a tokenizer.json, a folder, or a published name.
        inputs: tiling, layout, prompt and lengths of the model in use and of all stages; a stage may change them. The
            tiling is needed. Without the others: visual tokens in order, chats in the template vicuna_v1, 4096 tokens.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        learned: names of vectors beside the connector, which a layout places in this order: [newline, separator].
        injection: change of the language model, such as `lit_mm.language.partial_lora.PartialLoRA`; None: no change.
        vision_injection: change of the vision encoder, such as `lit_mm.vision.window_adapters.WindowAdapters`; None: no
            change.
        next_token: objective "next_token", with its label smoothing; None: without smoothing.
    Raises:
        UserError: no tiling, or parts that do not go together, with the nearest that do; see
            `lit_mm.combination.legal`.
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
    ) -> None:
        if inputs.tiling is None:
            raise UserError(
                "model.init_args.inputs: Recombined needs a `tiling`, such as {class_path: lit_mm.tiling.Pad, "
                "init_args: {size: 336}}"
            )
        projector = connector(vision.width, language.width)
        if learned:
            projector = WithLearned(projector, learned, language.width)
        if injection is not None:
            injection(language)
        if vision_injection is not None:
            vision_injection(vision)
        default = Inputs(layout=InOrder(), prompt=ChatPrompt(), max_length=4096, fill=MEAN_COLOUR)
        super().__init__(
            **compose(vision, projector, language, tokenizer, inputs, default),
            free=EVERYTHING,
            objectives={"next_token": next_token or NextToken()},
        )
