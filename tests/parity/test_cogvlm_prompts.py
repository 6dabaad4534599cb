"""CogVLM's prompts equal the release's in text, ids, labels and places of pictures."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.cogvlm import PLACEHOLDER, CogVLMPrompt
from lit_mm.prompts.prompt import PictureRun
from tests.tiny import Noise

FILE = "cogvlm_masks"
IGNORE = -100


class WordTokenizer:
    """The tokenizer of the golden file: one id per word."""

    bos_id, eos_id, eos = 1, 2, "</s>"

    def encode(self, text: str) -> list[int]:
        return [100 + sum(map(ord, word)) % 800 for word in text.split()]


def chat(case: dict[str, Any], *, with_answer: bool) -> Document:
    question, pictures = case["prompt"], max(1, case["prompt"].count(PLACEHOLDER))
    parts = (*(Noise(number) for number in range(pictures)), question.replace(PLACEHOLDER, ""))
    answer = (Turn("assistant", (case["caption"],)),) if with_answer else ()
    return Document("case", (Turn("user", parts), *answer))


def test_ids_and_labels_agree_with_the_release(golden: Any) -> None:
    for case in golden.json(FILE)["sat_processor"]:
        prompt, slots = CogVLMPrompt(case["signal_type"]), case["image_length"] + 2
        for kind in ("train", "inference"):
            if kind not in case:
                continue
            document = chat(case, with_answer=kind == "train")
            ids: list[int] = []
            labels: list[int] = []
            for run in prompt.runs(document, WordTokenizer()):
                if isinstance(run, PictureRun):
                    ids += [0] * slots
                    labels += [IGNORE] * slots
                else:
                    ids += run.ids
                    labels += [i if learn else IGNORE for i, learn in zip(run.ids, run.learn, strict=True)]
            assert ids == case[kind]["input_ids"][: len(ids)]
            if kind == "train":
                assert labels == case[kind]["labels"][: len(ids)]
                assert ids[-1] == WordTokenizer.eos_id and set(case[kind]["labels"][len(ids) :]) <= {IGNORE}
            else:
                assert len(ids) == len(case[kind]["input_ids"])


def test_histories_of_a_chat_are_rendered_as_in_the_release(golden: Any) -> None:
    for name, texts in golden.json(FILE)["sat_prompt_templates"].items():
        prompt = CogVLMPrompt(name)
        picture = Noise(0)
        alone = Document("d", (Turn("user", (picture, "Q2")),))
        assert prompt.text(alone) == texts["empty_history"]
        history = (Turn("user", (picture, "Q1")), Turn("assistant", ("A1",)), Turn("user", ("Q2",)))
        document = Document("d", history)
        if texts["one_turn_history"] != texts["empty_history"]:  # otherwise the release ignores the history
            assert prompt.text(document) == texts["one_turn_history"]
        else:
            with pytest.raises(UserError, match="has one round"):
                prompt.runs(document, WordTokenizer())
