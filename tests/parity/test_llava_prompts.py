"""LLaVA's prompts equal the released code's in text and supervised characters, and the tokens in supervision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_mm.documents.document import Document, Turn
from lit_mm.documents.sources import LlavaConversations
from lit_mm.prompts.llava import PLACEHOLDER, ChatPrompt
from lit_mm.prompts.plain import Plain
from lit_mm.prompts.prompt import PictureRun, Run
from lit_mm.prompts.rendered import to_text
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.vicuna import TEMPLATES

Reader = Callable[[dict[str, Any]], Document]
OTHER = "two_turn_prompt_strings_other_templates"


@dataclass(frozen=True)
class NoPixels:
    """A picture that fails the test if its pixels are read."""

    width: int = 64
    height: int = 48

    def read(self) -> Image.Image:
        raise AssertionError("a prompt read pixels")


@pytest.fixture
def document_of(tmp_path: Path) -> Callable[[dict[str, Any]], Document]:
    """Write a golden case in the released data format and read it back."""
    Image.new("RGB", (8, 6)).save(tmp_path / "image.png")

    def read(case: dict[str, Any]) -> Document:
        slots = sum(turn["value"].count(PLACEHOLDER) for turn in case["conversations"])
        entry = {"id": case["name"], "conversations": case["conversations"], "image": ["image.png"] * slots}
        (tmp_path / "data.json").write_text(json.dumps([entry]))
        return LlavaConversations(str(tmp_path / "data.json"))[0]

    return read


def read_runs(runs: list[Run]) -> tuple[str, list[str]]:
    """Decode the tokens without BOS. Returns the text and its supervised spans."""
    tokenizer = load_tokenizer("nano")
    text, learnt = "", []
    for run in runs:
        if isinstance(run, PictureRun):
            text += PLACEHOLDER
        else:
            ids = [token for token in run.ids if token != tokenizer.bos_id]
            text += tokenizer.decode(ids, skip_special=False)
            for learn, stretch in groupby(zip(run.ids, run.learn, strict=True), key=lambda pair: pair[1]):
                if learn:
                    learnt.append(tokenizer.decode([token for token, _ in stretch], skip_special=False))
    return text, learnt


def test_chats_have_the_released_text_and_learnt_spans(golden: Any, document_of: Reader) -> None:
    expected = golden.json("llava_prompts")
    assert expected["vicuna_v1"]
    for case in expected["vicuna_v1"]:
        text, spans = ChatPrompt("vicuna_v1").text(document_of(case))
        assert text == case["prompt"], case["name"]
        assert [list(span) for span in spans] == case["loss_char_spans"], case["name"]
        assert [text[slice(*span)] for span in spans] == case["loss_text"], case["name"]


def test_captions_have_the_released_text_and_learnt_spans(golden: Any, document_of: Reader) -> None:
    expected = golden.json("llava_prompts")
    assert expected["plain"]
    for case in expected["plain"]:
        text, spans = to_text(Plain().parts(document_of(case)), PLACEHOLDER)
        assert text == case["prompt"], case["name"]
        assert [list(span) for span in spans] == case["loss_char_spans"], case["name"]
        assert [text[slice(*span)] for span in spans] == case["loss_text"], case["name"]


@pytest.mark.parametrize("template", ["vicuna_v1", "plain"])
def test_the_tokens_say_the_released_text_and_learn_the_released_answers(
    golden: Any, document_of: Reader, template: str
) -> None:
    prompt = Plain() if template == "plain" else ChatPrompt(template)
    for case in golden.json("llava_prompts")[template]:
        text, learnt = read_runs(prompt.runs(document_of(case), load_tokenizer("nano")))
        assert text == case["prompt"], case["name"]
        # Generation starts at `ASSISTANT:`, so the space before an answer is learnt with it
        lead = "" if template == "plain" else " "
        assert learnt == [lead + answer for answer in case["loss_text"]], case["name"]


def test_generation_starts_where_the_released_code_lets_the_assistant_speak(golden: Any) -> None:
    expected = golden.json("llava_prompts")
    question = expected["vicuna_v1_inference_prompt"].partition(f"{PLACEHOLDER}\n")[2].rpartition(" ASSISTANT:")[0]
    asked = Document("asked", (Turn("user", (NoPixels(), question)),))
    assert ChatPrompt("vicuna_v1").text(asked) == (expected["vicuna_v1_inference_prompt"], [])


def test_the_other_templates_have_the_released_text(golden: Any) -> None:
    expected = golden.json("llava_prompts")[OTHER]
    turns = tuple(
        Turn(role, (*([NoPixels()] if text == "Q1" else []), text))
        for role, text in (("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2"))
    )
    offered = TEMPLATES.keys() & expected.keys()
    elsewhere = {"llava_llama_3", "qwen_1_5", "gemma", "llama_3", "mixtral_instruct"}  # of later code
    elsewhere |= {"vila_1_5_llama_3", "vila_llama_3"}
    assert offered == TEMPLATES.keys() - {"vicuna_v1"} - elsewhere
    for name in offered:
        text, spans = ChatPrompt(name).text(Document("two rounds", turns))
        assert text == expected[name], name
        assert [text[start : start + 2] for start, _ in spans] == ["A1", "A2"], name
