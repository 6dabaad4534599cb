"""The templates of MiniGPT-4 and the ends of its answers."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.minigpt4 import ALIGNMENT, TEMPLATES, MiniGPT4Prompt
from lit_mm.prompts.prompt import PictureRun, Stops
from lit_mm.prompts.tokenizer import Tokenizer
from tests.prompts.published import NAMES, vocabulary
from tests.prompts.test_seam import ANSWERS, conversation, first_difference

LLAMA = {"a###": [263, 2277, 29937], "###": [835], "a": [263], "a\n": [263, 13], "\n": [29871, 13]}


class Pieces:
    """Encodes "a" and "###" as Llama's tokenizer does: one token alone, two behind a word."""

    bos_id, eos_id = 1, 2

    def encode(self, text: str) -> list[int]:
        return LLAMA[text]


def page(picture: Any, answer: str | None, question: str = "", number: int = 0, pictures: int = 1) -> Document:
    turns = [Turn("user", (*[picture] * pictures, *([question] if question else [])))]
    return Document(f"d{number}", (*turns, *([] if answer is None else [Turn("assistant", (answer,))])))


def text_of(prompt: MiniGPT4Prompt, document: Document, tokenizer: Tokenizer) -> tuple[str, str]:
    """The text with "#" in the place of pictures, and the text that is learnt."""
    text, learnt = "", ""
    for run in prompt.runs(document, tokenizer):
        if isinstance(run, PictureRun):
            text += "@"
            continue
        text += tokenizer.decode(run.ids, skip_special=False)
        learnt += tokenizer.decode([i for i, learn in zip(run.ids, run.learn, strict=True) if learn], False)
    return text, learnt


@pytest.mark.parametrize(
    ("template", "expected", "learnt"),
    [
        ("plain", "<s>@a Red dog.\n", "a Red dog.\n"),
        ("vicuna", "<s>###Human: <Img>@</Img> what? ###Assistant: a Red dog.###", "a Red dog.###"),
        ("llama_2", "<s>[INST] <Img>@</Img> what? [/INST] a Red dog.</s>", "a Red dog.</s>"),
        ("vicuna_chat", "my questions.###Human: <Img>@</Img> what?###Assistant: a Red dog.###", "a Red dog.###"),
        ("llama_2_chat", "my questions.<s>[INST] <Img>@</Img> what? [/INST] a Red dog.</s>", "a Red dog.</s>"),
    ],
)
def test_text_and_learnt_text_are_the_released_ones(
    template: str, expected: str, learnt: str, picture: Any, tokenizer: Tokenizer
) -> None:
    text, of_answer = text_of(MiniGPT4Prompt(template), page(picture, "a Red dog.", "what?"), tokenizer)
    assert text.startswith("<s>") and text.endswith(expected) and of_answer == learnt
    asked, _ = text_of(MiniGPT4Prompt(template), page(picture, None, "what?"), tokenizer)
    assert asked == text.removesuffix(learnt)


def test_a_document_without_an_instruction_has_one_of_the_released_drawn_by_its_id(picture: Any) -> None:
    prompt = MiniGPT4Prompt()
    pieces = [prompt.pieces(page(picture, "a", number=number))[-1] for number in range(60)]
    assert set(pieces) == {f"</Img> {text} ###Assistant: " for text in ALIGNMENT}
    assert pieces[7] == prompt.pieces(page(picture, "b", number=7))[-1]


def test_every_picture_has_its_marks(picture: Any, tokenizer: Tokenizer) -> None:
    text, _ = text_of(MiniGPT4Prompt("vicuna"), page(picture, "a", "what?", pictures=2), tokenizer)
    assert text == "<s>###Human: <Img>@</Img><Img>@</Img> what? ###Assistant: a###"


def test_a_long_answer_loses_its_end_and_a_clean_one_its_capitals(picture: Any, tokenizer: Tokenizer) -> None:
    _, learnt = text_of(MiniGPT4Prompt("plain", clean=True), page(picture, '"A" Red.'), tokenizer)
    assert learnt == "a red\n"
    (*_, answer) = MiniGPT4Prompt("plain", max_tokens=3).runs(page(picture, "What is in the picture?"), tokenizer)
    assert answer.ids == tokenizer.encode("What is in the picture?\n")[:3]


def test_both_tokenisations_of_the_separator_end_an_answer() -> None:
    prompt = MiniGPT4Prompt("vicuna")
    stops = Stops.of(prompt, Pieces())
    assert stops == Stops(frozenset({2, 835}), ((2277, 29937),))
    assert [stops.length(ids) for ids in ([5, 835], [5, 2277], [5, 2277, 29937], [29937], [2], [])] == [
        1,
        0,
        2,
        0,
        1,
        0,
    ]
    assert stops.first_end([7, 2277, 8, 2277, 29937, 9]) == (3, 5)
    assert stops.first_end([7, 2277]) == (2, 2)
    assert Stops.of(MiniGPT4Prompt("plain"), Pieces()) == Stops(frozenset({2, 13}))


@pytest.mark.parametrize("name", [*NAMES, "sentencepiece, new"])
@pytest.mark.parametrize("template", ["plain", "vicuna", "llama_2_chat"])
def test_all_that_follows_the_prompt_of_generation_is_learnt(name: str, template: str, picture: Any) -> None:
    prompt, tokenizer = MiniGPT4Prompt(template), vocabulary(name)
    documents = [conversation(picture, answer, None) for answer in ANSWERS]
    assert not [d for document in documents if (d := first_difference(prompt, tokenizer, document))]


def test_a_real_sentencepiece_vocabulary_writes_the_separator_in_two_ways() -> None:
    tokenizer = vocabulary("sentencepiece")
    prompt = MiniGPT4Prompt("vicuna")
    stops, text = Stops.of(prompt, tokenizer), tokenizer.encode("a red dog.###")
    assert stops.length(text) and stops.length(tokenizer.encode("###"))
    assert tokenizer.decode(text[: stops.first_end(text)[0]]).strip() == "a red dog."


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"template": "vicuna_v1"}, r"one of \['plain', 'vicuna'"),
        ({"template": "Q: {} A: {}", "end": "#"}, "a text with one {}"),
        ({"template": "Q: {} A: "}, "and an `end`, got 'Q: {} A: ' with end=None"),
        ({"instructions": ()}, "`instructions` is empty"),
    ],
)
def test_a_template_that_cannot_be_written_is_refused(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        MiniGPT4Prompt(**arguments)
    assert TEMPLATES.keys() == {"plain", "vicuna", "vicuna_chat", "llama_2", "llama_2_chat"}


def test_several_rounds_are_refused(picture: Any, tokenizer: Tokenizer) -> None:
    rounds = page(picture, "a", "what?")
    with pytest.raises(UserError, match="MiniGPT4Prompt takes one caption"):
        MiniGPT4Prompt().runs(Document("d", (*rounds.turns, *rounds.turns)), tokenizer)
