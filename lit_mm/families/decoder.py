"""A decoder alone: the text-only member of every comparison. The nano language model is pre-trained as one."""

from __future__ import annotations

from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.processor import Processor


class Decoder(MultimodalModule):
    """A decoder that reads text. Part: language.

    Args:
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        prompt: chat template and label rule; None: `XComposer2Prompt`.
        max_length: longest sample, tokens.
        next_token: objective "next_token", with its label smoothing; None: without smoothing.
    """

    def __init__(
        self,
        language: Llama,
        tokenizer: str,
        prompt: Prompt | None = None,
        max_length: int = 4096,
        next_token: NextToken | None = None,
    ) -> None:
        super().__init__(
            network=MultimodalModel(language, fusion=scatter_visual),
            processor=lambda: Processor(load_tokenizer(tokenizer), prompt or XComposer2Prompt(), max_length=max_length),
            objectives={"next_token": next_token or NextToken()},
        )
