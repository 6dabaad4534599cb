"""Supervised tokens equal those that generation must produce, for templates x real vocabularies x kinds of answers."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
import tokenizers

from lit_mm.assets import NANO_TOKENIZER
from lit_mm.documents.document import Document, Turn
from lit_mm.nano.world import text_document
from lit_mm.prompts.instructblip import InstructBlipPrompt
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.plain import Plain
from lit_mm.prompts.prompt import PictureRun, Prompt, answers_apart
from lit_mm.prompts.qwen_vl import QwenChat, QwenPlain
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.vicuna import TEMPLATES
from lit_mm.prompts.xcomposer import XComposerPrompt
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from tests.prompts.published import NAMES, vocabulary

ANSWERS = (
    *(
        "yes",
        "No.",
        "A",
        "2",
        "2019",
        "-7",
        "$5.00",
        "3.14 x 10^-7",
        '"q"',
        ")",
        ":)",
        "]",
        "/path",
        "{",
        "<b>bold</b>",
    ),
    *("你好,世界", "日本", "😀", "👩\u200d👩\u200d👧 family", "مرحبا", "नमस्ते", "é", "\u0301", "\u3000wide", "ﬁ"),
    *("\nfoo", "\n\nfoo", "\r\nCRLF", "\ttab", "  two", " one", "", " ", "\n"),
    *("def f(x):\n    return x  # twice", "```python\nx = 1\n```"),
)
PORTABLE = [
    name for name in TEMPLATES if name != "gemma" and "llama_3" not in name
]  # no vocabulary here has their markers
MARKED = {"turn_start": "<|im_start|>", "turn_end": "<|im_end|>"}
PROMPTS: dict[str, Prompt] = {
    **{name: ChatPrompt(name) for name in PORTABLE},
    "XComposer2Prompt": XComposer2Prompt(**MARKED),
    "XComposerPrompt": XComposerPrompt("<|im_start|>", "<|im_end|>"),
    "QwenChat": QwenChat(),
    "QwenPlain": QwenPlain(answer=" {answer}"),
    "TextToText": TextToText(),
    "Plain": Plain(),
    "InstructBlipPrompt": InstructBlipPrompt(first=None),
}
ONE_ANSWER = ("Plain", "InstructBlipPrompt")
NEEDS_BOS = ("XComposer2Prompt", "XComposerPrompt")


def flat(prompt: Prompt, document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids, with -1 - n for picture n, and supervision flags."""
    ids: list[int] = []
    learn: list[bool] = []
    for run in prompt.runs(document, tokenizer):
        ids += [-1 - run.number] if isinstance(run, PictureRun) else run.ids
        learn += [False] if isinstance(run, PictureRun) else run.learn
    return ids, learn


def tokenizer_for(name: str, template: str) -> Tokenizer:
    tokenizer = vocabulary(name)
    if template in NEEDS_BOS and tokenizer.bos_id is None:
        return Tokenizer(tokenizer.vocabulary, bos="<s>", eos=tokenizer.eos)
    return tokenizer


def conversation(picture: Any, first: str, second: str | None) -> Document:
    turns = [Turn("user", (picture, "How many?")), Turn("assistant", (first,))]
    if second is not None:
        turns += [Turn("user", ("And in which year?",)), Turn("assistant", (second,))]
    return Document("d", tuple(turns))


def first_difference(prompt: Prompt, tokenizer: Tokenizer, document: Document) -> str | None:
    """Describe the first difference between supervised ids and ids after the prompt of generation; None if equal."""
    ids, learn = flat(prompt, document, tokenizer)
    asked, _ = flat(prompt, document.without_answer(), tokenizer)
    where = f"{document.turns[1].text!r} ... {document.answer!r}"
    if ids[: len(asked)] != asked:
        return f"{where}: the prompt {asked[-4:]} is no prefix of {ids[len(asked) - 4 :][:8]}"
    behind = learn[len(asked) :]
    ends = [n for n, i in enumerate(ids[len(asked) :]) if i in prompt.stop_ids(tokenizer)]
    until = ends[0] + 1 if ends else len(behind)
    if not all(behind[:until]) or not until:
        return f"{where}: {ids[len(asked) :]} has the label flags {behind}"
    question = asked if not isinstance(prompt, QwenChat) else []  # it learns the markers of all turns, as released
    trained, _ = flat(prompt, replace_last_answer(document), tokenizer)
    if question and trained[: len(asked)] != asked:
        return f"{where}: another answer changes the prompt"
    return None


def replace_last_answer(document: Document) -> Document:
    return Document(document.id, (*document.turns[:-1], Turn("assistant", ("\n other",))))


@pytest.mark.parametrize("name", [*NAMES, "sentencepiece, new"])
@pytest.mark.parametrize("template", PROMPTS)
def test_all_that_follows_the_prompt_of_generation_is_learnt(name: str, template: str, picture: Any) -> None:
    prompt, tokenizer = PROMPTS[template], tokenizer_for(name, template)
    seconds = (None,) if template in ONE_ANSWER else (None, *ANSWERS[::5])
    documents = [conversation(picture, first, second) for first in ANSWERS for second in seconds]
    differences = [d for document in documents if (d := first_difference(prompt, tokenizer, document))]
    assert not differences, f"{len(differences)} of {len(documents)}: {differences[:3]}"


@pytest.mark.parametrize("name", [*NAMES, "sentencepiece, new"])
@pytest.mark.parametrize("template", PORTABLE)
def test_questions_are_not_learnt_and_answers_read_back(name: str, template: str, picture: Any) -> None:
    prompt, tokenizer = PROMPTS[template], tokenizer_for(name, template)
    end = TEMPLATES[template].end.strip()
    for answer in ANSWERS:
        ids, learn = flat(prompt, conversation(picture, answer, "2019"), tokenizer)
        learnt = tokenizer.decode([i for i, flag in zip(ids, learn, strict=True) if flag], skip_special=False)
        first, second, rest = learnt.split(end)
        expected = unicodedata.normalize("NFC", answer) if name == "qwen" else answer
        assert (first.strip(), second.strip(), rest) == (expected.strip(), "2019", "")


@pytest.mark.parametrize(
    ("name", "template", "answer", "count"),
    [
        ("sentencepiece", "vicuna_v1", "2019", 0),
        ("sentencepiece", "chatml_direct", "\nfoo", 0),
        ("qwen", "vicuna_v1", "2019", 0),
        ("qwen", "chatml_direct", "foo", 0),
        ("qwen", "chatml_direct", "\nfoo", 1),
        ("tekken", "mpt", "\n\nfoo", 1),
        ("tekken", "XComposer2Prompt", "\nfoo", 1),
    ],
)
def test_an_answer_that_merges_with_its_prompt_is_counted(name: str, template: str, answer: str, count: int) -> None:
    document = Document("d", (Turn("user", ("q",)), Turn("assistant", (answer,))))
    assert answers_apart(PROMPTS[template].runs(document, tokenizer_for(name, template))) == count


def test_the_space_before_a_number_is_learnt() -> None:
    tokenizer = vocabulary("sentencepiece")
    document = Document("d", (Turn("user", ("How many?",)), Turn("assistant", ("2",))))
    ids, learn = flat(PROMPTS["vicuna_v1"], document, tokenizer)
    pieces = tokenizer.vocabulary.pieces
    learnt = [pieces.id_to_piece(i) for i, flag in zip(ids, learn, strict=True) if flag]
    assert (learnt, pieces.id_to_piece(ids[learn.index(True) - 1])) == (["▁", "2", "</s>"], ":")


@pytest.mark.parametrize("name", ["sentencepiece", "tekken"])
@pytest.mark.parametrize("template", [name for name in PORTABLE if TEMPLATES[name].assistant.endswith(" ")])
def test_the_released_rule_gives_the_same_labels_in_first_rounds(name: str, template: str) -> None:
    tokenizer, prompt = vocabulary(name), PROMPTS[template]
    for answer in ANSWERS:
        if answer != answer.strip() or not answer:
            continue  # the released rule counts the space and white space of an answer as one token
        document = Document("d", (Turn("user", ("How many?",)), Turn("assistant", (answer,))))
        ids, learn = flat(prompt, document, tokenizer)
        text, ((start, _),) = prompt.text(document)
        before = text[:start]
        masked = 1 + len([tokenizer.bos_id, *tokenizer.encode(before)]) - 2
        assert learn == [n >= masked for n in range(len(ids))], answer


@pytest.mark.parametrize("template", PORTABLE)
def test_ids_and_labels_of_the_nano_world_are_those_of_one_text(template: str) -> None:
    """The reference encodes the text at once; a token is supervised if it has a character of an answer or its end."""
    backend, tokenizer = tokenizers.Tokenizer.from_file(str(NANO_TOKENIZER)), load_tokenizer("nano")
    for number in range(30):
        document = text_document(number, split="text", seed=0)
        text, spans = ChatPrompt(template).text(document)
        inside = {at for start, stop in spans for at in range(start, stop)}
        whole = backend.encode(text, add_special_tokens=False)
        learn = [any(at in inside for at in range(*offsets)) for offsets in whole.offsets]
        assert flat(ChatPrompt(template), document, tokenizer) == ([tokenizer.bos_id, *whole.ids], [False, *learn])


def test_the_texts_of_a_template_are_tokenised_once_for_all_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer("nano")
    texts: list[str] = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: texts.append(text) or encode(text))
    prompt = XComposer2Prompt(**MARKED)
    document = Document("d", (Turn("user", ("What?",)), Turn("assistant", ("A cat.",))))
    first = prompt.runs(document, tokenizer)
    count = len(texts)
    assert prompt.runs(document, tokenizer) == first
    repeated = texts[count:]
    assert len(repeated) == 3, "the prompt, the round, and what follows it; neither the bridge nor the end of a round"
