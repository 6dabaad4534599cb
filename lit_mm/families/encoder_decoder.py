"""An encoder-decoder alone, text to text. The nano encoder-decoder is pre-trained as one."""

from __future__ import annotations

from lit_mm.language.t5 import T5
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.samples.processor import Processor


class EncoderDecoder(MultimodalModule):
    """An encoder-decoder that reads text and answers. Part: language.

    Args:
        language: encoder-decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        prompt: rule that divides a document into source and target; None: `TextToText`.
        max_length: longest sample, tokens of source and target together.
        next_token: objective next_token with its label smoothing; None: no smoothing.
    """

    def __init__(
        self,
        language: T5,
        tokenizer: str,
        prompt: Prompt | None = None,
        max_length: int = 4096,
        next_token: NextToken | None = None,
    ) -> None:
        super().__init__(
            network=MultimodalModel(language),
            processor=lambda: Processor(
                load_tokenizer(tokenizer), prompt or TextToText(), max_length=max_length, writes_target=True
            ),
            objectives={"next_token": next_token or NextToken()},
        )
