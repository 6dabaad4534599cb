"""LLaVA's chats, beyond the golden prompts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.prompt import PictureRun, TextRun
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.vicuna import TEMPLATES


def chat(*turns: tuple[str, tuple[Any, ...]]) -> Document:
    return Document("chat", tuple(Turn(role, parts) for role, parts in turns))


def test_bos_comes_first_and_is_not_learnt(tokenizer: Tokenizer, picture: Any) -> None:
    first, *_, last = ChatPrompt().runs(chat(("user", (picture, "hi")), ("assistant", ("yes",))), tokenizer)
    assert first == TextRun([tokenizer.bos_id], [False])
    assert last.ids[-1] == tokenizer.eos_id and last.learn[-1]


@pytest.mark.parametrize(
    ("question", "rendered"),
    [
        ("Image A: # Image B: # Which is red?", "Image A: <image> Image B: <image> Which is red?"),
        ("# and # differ", "<image> and <image> differ"),
        ("which?\n#\n#", "which?\n<image>\n<image>"),
        ("##which?", "<image>\n<image>\nwhich?"),  # parts alone have no text between them
        ("##\nwhich?", "<image>\n<image>\nwhich?"),
        ("##", "<image>\n<image>"),
        ("#which?", "<image>\nwhich?"),
        ("which?\n#", "<image>\nwhich?"),
        ("which # is it", "<image>\nwhich  is it"),
        ("#", "<image>"),
    ],
)
def test_several_pictures_keep_their_places_and_a_single_one_goes_to_the_front(
    picture: Any, question: str, rendered: str
) -> None:
    parts = tuple(picture if part == "#" else part for part in re.split("(#)", question) if part)
    text, _ = ChatPrompt("mistral_instruct").text(chat(("user", parts), ("assistant", ("a",))))
    assert text == f"[INST] {rendered} [/INST] a </s>"


@pytest.mark.parametrize(
    ("question", "always_moved", "kept_in_front"),
    [
        ("#which?", "<image>\nwhich?", "<image>which?"),
        ("#\n\nwhich? ", "<image>\nwhich?", "<image>\n\nwhich? "),
        ("which?\n#", "<image>\nwhich?", "<image>\nwhich?"),
        ("##which?", "<image><image>which?", "<image><image>which?"),
    ],
)
def test_llava_next_leaves_a_picture_in_front_as_its_own_format_has_it(
    picture: Any, question: str, always_moved: str, kept_in_front: str
) -> None:
    parts = tuple(picture if part == "#" else part for part in re.split("(#)", question) if part)
    document = replace(chat(("user", parts), ("assistant", ("a",))), text_format="llava")
    for keep_leading, rendered in ((False, always_moved), (True, kept_in_front)):
        text, _ = ChatPrompt("mistral_instruct", keep_leading).text(document)
        assert text == f"[INST] {rendered} [/INST] a </s>"


def test_pictures_of_later_turns_keep_their_numbers(tokenizer: Tokenizer, picture: Any) -> None:
    turns = (("user", (picture, "a")), ("assistant", ("b",)), ("user", (picture, picture, "c")), ("assistant", ("d",)))
    runs = ChatPrompt().runs(chat(*turns), tokenizer)
    assert [run.number for run in runs if isinstance(run, PictureRun)] == [0, 1, 2]


def test_a_picture_alone_has_no_newline_behind_it(picture: Any) -> None:
    assert ChatPrompt("mistral_instruct").text(chat(("user", (picture,)))) == ("[INST] <image> [/INST]", [])


def test_a_system_turn_replaces_the_templates() -> None:
    assert ChatPrompt().text(chat(("system", ()), ("user", ("q",)))) == (" USER: q ASSISTANT:", [])
    assert ChatPrompt("chatml_direct").text(chat(("system", ("be {kind}",)), ("user", ("q",))))[0] == (
        "<|im_start|>system\nbe {kind}<|im_end|><|im_start|>user\nq<|im_end|><|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "gemma" and "llama_" not in name])
def test_generation_goes_on_where_training_learns(template: str, picture: Any) -> None:
    tokenizer, prompt = load_tokenizer("nano"), ChatPrompt(template)
    document = chat(("user", (picture, "what colour?")), ("assistant", ("red",)))
    spoken = prompt.runs(document, tokenizer)[-1]  # behind the picture
    trained = list(zip(spoken.ids, spoken.learn, strict=True))
    asked = prompt.runs(document.without_answer(), tokenizer)[-1].ids
    assert [token for token, learn in trained if not learn] == asked == [token for token, _ in trained[: len(asked)]]
    ended = [token in prompt.stop_ids(tokenizer) for token, learn in trained if learn]
    assert ended[-1] and not any(ended[:-1])


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((("assistant", ("a",)),), "turn 0 should be the user's, got 'assistant'"),
        ((("user", ("a",)), ("user", ("b",))), "turn 1 should be the assistant's, got 'user'"),
        ((("page", ("a",)),), r"got 'page'. Use `Interleaved` for pages"),
        ((("user", ("say </s>",)),), r"turn 0: its text contains the marker '</s>'"),
        ((("system", ("a",)),), "has no user turn"),
    ],
)
def test_what_the_template_cannot_say_is_refused(turns: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatPrompt().parts(chat(*turns))


def test_an_answer_with_a_picture_is_refused(picture: Any) -> None:
    with pytest.raises(UserError, match="turn 1: an answer contains a picture"):
        ChatPrompt().parts(chat(("user", ("a",)), ("assistant", (picture,))))


def test_an_unknown_template_and_a_tokenizer_without_its_marker_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"`template` is one of .* got 'vicuna'"):
        ChatPrompt("vicuna")
    with pytest.raises(UserError, match=r"no token '<\|im_end\|>'"):
        ChatPrompt("mpt").runs(chat(("user", ("a",))), tokenizer)
