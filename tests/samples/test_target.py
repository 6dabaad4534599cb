"""Samples and prompts that an encoder-decoder can learn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.families import EncoderDecoder
from lit_mm.language.t5 import T5
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.prompt import Prompt, Run, TextRun
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.samples.processor import Processor
from lit_mm.samples.target import check_target
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.maker import SampleMaker

CHAT = tuple(Turn(role, ("a word",)) for role in ("user", "assistant") * 2)


@dataclass(frozen=True)
class LineEnd:
    """Writes a line end that is not learnt behind the answer, as many chat templates do."""

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        return [*TextToText().runs(document, tokenizer), TextRun(tokenizer.encode("\n"), [False])]

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset()


class Pages:
    """Expresses no document."""

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        raise UserError(f"{document.id!r} is no page of a newspaper")

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset()


def processor(prompt: Prompt) -> Processor:
    return Processor(load_tokenizer("nano"), prompt, writes_target=True)


@pytest.mark.parametrize("prompt", [TextToText(), ChatPrompt(), Pages()])
def test_a_prompt_that_fits_or_is_for_other_documents_passes(prompt: Prompt) -> None:
    assert check_target(processor(prompt)) is None


def test_a_prompt_with_tokens_behind_the_answer_is_refused_before_the_start() -> None:
    stage = Stage("s", {"language": Train(lr=1e-3)}, max_steps=1)
    language = T5(width=16, layers=1, heads=2, ffn_width=32, vocab_size=512)
    EncoderDecoder(language, "nano").check_recipe([stage])
    with pytest.raises(UserError, match=r"stages\.s: the prompt LineEnd does not fit an encoder-decoder"):
        EncoderDecoder(language, "nano", LineEnd()).check_recipe([stage])


def test_a_sample_with_two_answers_is_refused_when_it_is_made() -> None:
    chat = Document("two", CHAT)
    assert SampleMaker(None, processor(TextToText())).make(chat)
    assert SampleMaker(None, replace(processor(ChatPrompt()), writes_target=False)).make(chat)
    with pytest.raises(UserError, match=r"sample 'two': an encoder-decoder needs a source and then one answer"):
        SampleMaker(None, processor(ChatPrompt())).make(chat)
