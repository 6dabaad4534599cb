"""Where pictures stand in the prompt of a document that was read from a file."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.documents.sources import open_source
from lit_mm.prompts.llava import PLACEHOLDER, ChatPrompt
from lit_mm.prompts.prompt import Prompt
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.prompts.xcomposer import XComposerPrompt
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from tests.documents.sources.test_conversations import llava, qwen


def question(prompt: ChatPrompt, path: str) -> str:
    text, _ = prompt.text(open_source({"format": "llava", "path": path})[0])
    return text.partition("USER: ")[2].partition(" ASSISTANT:")[0]


@pytest.mark.parametrize(
    ("value", "always_moved", "kept_in_front"),
    [
        ("<image>\nwhat?", "<image>\nwhat?", "<image>\nwhat?"),
        ("<image>what?", "<image>\nwhat?", "<image>what?"),
        ("<image>\n\nwhat? ", "<image>\nwhat?", "<image>\n\nwhat? "),
        ("what?\n<image>", "<image>\nwhat?", "<image>\nwhat?"),
        ("what <image> is", "<image>\nwhat  is", "<image>\nwhat  is"),
        ("<image>", "<image>", "<image>"),
        ("A: <image> B: <image> which?", None, None),
        ("<image>\n<image>\nwhich?", None, None),
        ("<image> <image> which?", None, None),
        ("<image><image>which?", None, None),
        ("which?\n<image>\n<image>", None, None),
        ("<image> then\n\n<image> ", None, None),
    ],
)
def test_several_pictures_keep_their_places_and_a_single_one_goes_where_the_family_wants_it(
    write: Any, value: str, always_moved: str | None, kept_in_front: str | None
) -> None:
    images = ["wide.png", "tall.jpg"][: value.count(PLACEHOLDER)]
    path = write([llava(images, value, "red")])
    assert question(ChatPrompt(), path) == (value if always_moved is None else always_moved)
    assert question(ChatPrompt(keep_leading=True), path) == (value if kept_in_front is None else kept_in_front)


def test_pictures_of_several_turns_follow_the_rule_turn_by_turn(write: Any) -> None:
    entry = llava(["wide.png"] * 4, "a <image>", "b", "<image> or <image>", "c", "<image>", "d")
    text, _ = ChatPrompt().text(open_source({"format": "llava", "path": write([entry])})[0])
    assert text.partition("USER")[2] == (
        ": <image>\na ASSISTANT: b</s>USER: <image> or <image> ASSISTANT: c</s>USER: <image> ASSISTANT: d</s>"
    )


def test_qwen_vl_s_files_are_marked_as_verbatim_and_llava_s_as_its_own(write: Any) -> None:
    path = write([qwen("<img>wide.png</img>what?", "red")])
    document = open_source({"format": "qwen_vl", "path": path})[0]
    assert (document.text_format, document.without_answer().text_format) == ("qwen_vl", "qwen_vl")
    assert open_source({"format": "llava", "path": write([llava()])})[0].text_format == "llava"


@pytest.mark.parametrize(
    "prompt",
    [
        XComposer2Prompt("<|im_start|>", "<|im_end|>"),
        XComposerPrompt("<|im_start|>", "<|im_end|>"),
        TextToText(),
    ],
    ids=lambda p: type(p).__name__,
)
@pytest.mark.parametrize("value", ["<image>\nwhich?", "which?\n<image>", "<image>which?"])
def test_other_templates_are_trained_on_the_question_that_generate_asks(write: Any, prompt: Prompt, value: str) -> None:
    tokenizer = load_tokenizer("nano")
    document = open_source({"format": "llava", "path": write([llava(["wide.png"], value, "red")])})[0]
    parts = [*document.pictures, "which?"]
    asked = Document("asked", (Turn("user", tuple(parts if value.startswith("<image>") else reversed(parts))),))
    assert prompt.runs(document.without_answer(), tokenizer) == prompt.runs(asked, tokenizer)
