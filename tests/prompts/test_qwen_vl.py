"""Qwen-VL's prompts, beyond the golden cases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tokenizers

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Prompt
from lit_mm.prompts.qwen_vl import QwenChat, QwenPlain
from lit_mm.prompts.tokenizer import Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>"]


@pytest.fixture
def qwen(backend_json: str) -> Tokenizer:
    """A byte-level tokenizer with Qwen-VL's markers which, like Qwen's, has neither BOS nor a padding token."""
    backend = tokenizers.Tokenizer.from_str(backend_json)
    backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend, bos=None, eos="<|endoftext|>")


def document(*turns: tuple[str, tuple[Any, ...]]) -> Document:
    return Document("here", tuple(Turn(role, parts) for role, parts in turns))


def written(prompt: Prompt, shown: Document, tokenizer: Tokenizer) -> str:
    """Write the prompt as text, with pictures by number and supervised text in brackets."""
    text = ""
    for run in prompt.runs(shown, tokenizer):
        if isinstance(run, PictureRun):
            text += f"#{run.number}"
            continue
        assert len(set(run.learn)) == 1
        said = tokenizer.decode(run.ids, skip_special=False)
        text += f"[{said}]" if run.learn[0] else said
    return text.replace("][", "")


def test_pictures_are_counted_through_the_conversation(qwen: Tokenizer, picture: Any) -> None:
    shown = document(
        ("user", (picture, picture, "two")),
        ("assistant", ("yes",)),
        ("user", ("and ", picture, "three")),
        ("assistant", ("no",)),
    )
    assert written(QwenChat(system=""), shown, qwen) == (
        "[<|im_start|>]user\nPicture 1: <img>#0</img>\nPicture 2: <img>#1</img>\ntwo"
        "[<|im_end|>\n<|im_start|>]assistant\n"
        "[yes<|im_end|>\n<|im_start|>]user\nand Picture 3: <img>#2</img>\nthree[<|im_end|>\n<|im_start|>]assistant\n"
        "[no<|im_end|>\n]"
    )


def test_a_picture_that_is_named_already_is_not_named_again(qwen: Tokenizer, picture: Any) -> None:
    said = document(("user", ("Picture 1: ", picture, "\nPicture 2:", picture, "\nwhich?")), ("assistant", ("a",)))
    assert "\nPicture 1: <img>#0</img>\nPicture 2:<img>#1</img>\nwhich?[" in written(QwenChat(), said, qwen)


def test_text_in_qwen_vl_s_own_format_is_verbatim(qwen: Tokenizer, picture: Any) -> None:
    parts = (picture, "which ", picture, "?")
    said = replace(document(("user", parts), ("assistant", ("a",))), text_format="qwen_vl")
    assert "user\n<img>#0</img>which <img>#1</img>?[<|im_end|>" in written(QwenChat(), said, qwen)
    said = document(("user", parts), ("assistant", ("a",)))
    assert "user\nPicture 1: <img>#0</img>\nwhich Picture 2: <img>#1</img>\n?[" in written(QwenChat(), said, qwen)


def test_a_picture_has_one_newline_behind_it_though_the_text_begins_with_one(qwen: Tokenizer, picture: Any) -> None:
    said = document(("user", (picture, "\nwhich?")), ("assistant", ("a",)))
    assert "user\nPicture 1: <img>#0</img>\nwhich?[" in written(QwenChat(), said, qwen)


def test_a_picture_alone_ends_in_a_newline(qwen: Tokenizer, picture: Any) -> None:
    assert "Picture 1: <img>#0</img>\n[<|im_end|>" in written(QwenChat(), document(("user", (picture,))), qwen)


def test_a_system_turn_replaces_the_templates(qwen: Tokenizer) -> None:
    said = document(("system", ("be kind",)), ("user", ("q",)))
    assert written(QwenChat(), said, qwen) == (
        "[<|im_start|>]system\nbe kind[<|im_end|>\n<|im_start|>]user\nq[<|im_end|>\n<|im_start|>]assistant\n"
    )


def test_a_question_and_its_answer_stand_bare(qwen: Tokenizer, picture: Any) -> None:
    said = document(("user", (picture, "what?")), ("assistant", ("a dog",)), ("user", ("why?",)), ("assistant", ("x",)))
    plain = "<img>#0</img>what?[a dog<|endoftext|>]why?[x<|endoftext|>]"
    assert written(QwenPlain(), said, qwen) == plain
    monkey = QwenPlain(question=" {question} Answer: ", answer="{answer}")
    assert written(monkey, said, qwen).startswith("<img>#0</img> what? Answer: [a dog<|endoftext|>]")
    assert written(monkey, said.without_answer().without_answer(), qwen).endswith(" why? Answer: ")
    bare = QwenPlain(image_start="", image_end="")
    assert written(bare, said, qwen) == plain.replace("<img>", "").replace("</img>", "")


def test_a_page_is_learnt_but_for_its_pictures(qwen: Tokenizer, picture: Any) -> None:
    page = document(("page", ("before", picture, "after")))
    assert written(QwenPlain(), page, qwen) == "[before]<img>#0</img>[after<|endoftext|>]"
    assert written(QwenPlain(), document(("page", (picture,))), qwen) == "<img>#0</img>"


@pytest.mark.parametrize("prompt", [QwenChat(), QwenPlain(), QwenPlain("{question} Answer:", " {answer}")])
def test_generation_goes_on_where_training_learns(prompt: Prompt, qwen: Tokenizer, picture: Any) -> None:
    asked = document(("user", (picture, "what?")), ("assistant", ("a dog",)))

    def flat(shown: Document) -> list[tuple[int, bool]]:
        runs = prompt.runs(shown, qwen)
        return [
            pair
            for run in runs
            for pair in ([(-1, False)] if isinstance(run, PictureRun) else zip(run.ids, run.learn, strict=True))
        ]

    trained, started = flat(asked), flat(asked.without_answer())
    assert trained[: len(started)] == started
    answer = trained[len(started) :]
    assert all(learn for _, learn in answer)
    assert any(token in prompt.stop_ids(qwen) for token, _ in answer)
    assert qwen.decode(token for token, _ in answer).strip() == "a dog"


def test_a_beginning_of_sequence_is_written_where_the_tokenizer_has_one(tokenizer: Tokenizer) -> None:
    prompt = QwenPlain(image_start="", image_end="")
    assert written(prompt, document(("user", ("hi",))), tokenizer) == "<s>hi"


def test_a_tokenizer_without_the_markers_is_refused(tokenizer: Tokenizer, picture: Any) -> None:
    said = document(("user", (picture, "hi")), ("assistant", ("a",)))
    with pytest.raises(UserError, match="no token '<img>'"):
        QwenPlain().runs(said, tokenizer)
    with pytest.raises(UserError, match=r"no token '<\|im_start\|>'"):
        QwenChat(image_start="", image_end="").runs(said, tokenizer)


@pytest.mark.parametrize("marker", ["<img>", "</img>", "<|endoftext|>"])
@pytest.mark.parametrize("prompt", [QwenChat(), QwenPlain()])
def test_a_marker_inside_a_text_is_refused(prompt: Prompt, marker: str, qwen: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"turn 1 \(assistant\): its text contains the marker"):
        prompt.runs(document(("user", ("q",)), ("assistant", (f"a{marker}",))), qwen)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("user", "user"), "'user' follows 'user'"),
        (("page",), r"has the roles \['user', 'assistant'\], got 'page'"),
        (("user", "assistant", "assistant"), "'assistant' follows 'assistant'"),
        (("assistant",), "has no user turn"),
    ],
)
def test_turns_out_of_order_are_refused(roles: tuple[str, ...], message: str, qwen: Tokenizer) -> None:
    with pytest.raises(UserError, match=message):
        QwenChat().runs(document(*((role, ("a",)) for role in roles)), qwen)


def test_an_answer_with_a_picture_and_a_bare_answer_are_refused(qwen: Tokenizer, picture: Any) -> None:
    with pytest.raises(UserError, match="an answer contains a picture"):
        QwenPlain().runs(document(("user", ("q",)), ("assistant", (picture,))), qwen)
    with pytest.raises(UserError, match="starting with the user; 'assistant' follows None"):
        QwenPlain().runs(document(("assistant", ("a",))), qwen)
    with pytest.raises(UserError, match="got 'system'"):
        QwenPlain().runs(document(("system", ("a",))), qwen)


@pytest.mark.parametrize("options", [{"question": "no place"}, {"answer": "{answer}{answer}"}])
def test_a_template_without_its_place_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(UserError, match="once, got"):
        QwenPlain(**options)
