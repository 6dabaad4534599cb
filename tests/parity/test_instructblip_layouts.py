"""InstructBLIP's template gives both kinds of language model and the Q-Former the released ids, labels and order."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.instructblip import InstructBlipPrompt
from lit_mm.samples import reading
from lit_mm.samples.batch import IGNORE
from tests.parity.test_blip2_layouts import FILE, flatten, queries_of, rows
from tests.tiny import Noise

SPECIAL = {"instructblip_vicuna": "vicuna", "instructblip_flant5": "t5"}


class WordTokenizer:
    """Encodes words of a golden vocabulary; its end is the one of a golden entry."""

    def __init__(self, vocabulary: dict[str, int], special: dict[str, int]) -> None:
        self.vocabulary = vocabulary
        self.eos_id = next(number for name, number in special.items() if "eos" in name)
        self.bos_id = None

    def encode(self, text: str) -> list[int]:
        return [self.vocabulary[word] for word in text.split()]

    def id_of(self, token: str) -> int:
        assert token == "</s>"
        return self.eos_id


def asked(instruction: str, response: str) -> Document:
    return Document("d", (Turn("user", (Noise(0), instruction)), Turn("assistant", (response,))))


@pytest.mark.parametrize("name", SPECIAL)
def test_language_model_reads_the_instruction_and_learns_the_response(golden: Any, name: str) -> None:
    content = golden.json(FILE)
    case = content["cases"][name]
    tokenizer = WordTokenizer(case["vocab"], content["stub_special_ids"][SPECIAL[name]])
    writes_target = "decoder_attention_mask" in case
    prompt = InstructBlipPrompt(writes_target=writes_target)
    sources = rows(case, "sequence", "attention_mask")
    targets = rows(case, "labels", "decoder_attention_mask" if writes_target else "attention_mask")
    for instruction, response, source, target in zip(
        case["text_input"], case["text_output"], sources, targets, strict=True
    ):
        document = asked(instruction, response)
        ids, labels = flatten(prompt.runs(document, tokenizer), queries_of(case))
        assert ids == (source + target if writes_target else source)
        assert labels == ([IGNORE] * len(source) + target if writes_target else target)
        start, _ = flatten(prompt.runs(document.without_answer(), tokenizer), queries_of(case))
        assert start == ids[: len(start)] and all(label != IGNORE for label in labels[len(start) :])
        assert ids[-1] in prompt.stop_ids(tokenizer)


@pytest.mark.parametrize("name", SPECIAL)
def test_q_former_reads_the_instruction_alone(golden: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = golden.json(FILE)
    case, bert = content["cases"][name], content["stub_special_ids"]["bert"]
    tokenizer = WordTokenizer(case["qformer_vocab"], {"eos": bert["sep"]})
    monkeypatch.setattr(reading, "_tokenizer", lambda reference: tokenizer)
    read = reading.Reading("bert", "instruction", first_id=bert["cls"], last_id=bert["sep"], max_length=128, cut="left")
    call, queries = case["qformer_text_call"], len(queries_of(case))
    masks = [mask[queries:] for mask in call["attention_mask"]]
    for instruction, response, ids, mask in zip(
        case["text_input"], case["text_output"], call["input_ids"], masks, strict=True
    ):
        expected = [number for number, real in zip(ids, mask, strict=True) if real]
        assert read(asked(instruction, response)).tolist() == expected


@pytest.mark.parametrize(
    ("writes_target", "first", "instruction", "response"),
    [
        (False, "</s>", [2, 17, 18, 19], [10, 11, 12, 13]),  # room for the first token, which the release drops
        (False, "", [16, 17, 18, 19], [10, 11, 12, 13, 14]),
        (True, "</s>", [17, 18, 19, 2], [10, 11, 12, 13, 2]),
    ],
)
def test_a_long_instruction_loses_its_start_and_a_long_response_its_end(
    writes_target: bool, first: str, instruction: list[int], response: list[int]
) -> None:
    tokenizer = WordTokenizer({f"w{number}": 10 + number for number in range(10)}, {"eos": 2})
    prompt = InstructBlipPrompt(first, writes_target, max_instruction=4, max_response=5)
    text = " ".join(tokenizer.vocabulary)
    ids, labels = flatten(prompt.runs(asked(text, text), tokenizer), [])
    assert ids == instruction + response
    assert labels == [IGNORE] * len(instruction) + response


def test_a_document_of_several_questions_and_a_limit_without_room_are_refused() -> None:
    turns = asked("a", "b").turns
    with pytest.raises(UserError, match="one user turn and at most one assistant turn, got the turns"):
        InstructBlipPrompt().runs(Document("d", turns * 2), WordTokenizer({}, {"eos": 2}))
    with pytest.raises(UserError, match="are at least 3 tokens, got 2 and 256"):
        InstructBlipPrompt(max_instruction=2)
    with pytest.raises(UserError, match=r"must contain {question} once, got 'Question:'"):
        InstructBlipPrompt(question="Question:")


def test_a_question_stands_in_its_template_and_a_response_ends_with_another_token() -> None:
    tokenizer = WordTokenizer({"Q": 10, "A": 11, "why": 12, "so": 13, "over": 14}, {"eos": 2})
    prompt = InstructBlipPrompt(first="", question="Q {question} A", end="over")
    assert flatten(prompt.runs(asked("why", "so"), tokenizer), [])[0] == [10, 12, 11, 13, 14]
    assert prompt.stop_ids(tokenizer) == {2, 14}
