"""BLIP-2's templates give the language model the released ids, labels and order."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.prompts.blip2 import Blip2Caption, PrefixSplit
from lit_mm.prompts.prompt import PictureRun, Prompt, Run
from lit_mm.samples.batch import IGNORE
from tests.tiny import Noise

FILE = "blip_family_llm_layouts"


class WordTokenizer:
    """Encodes words of a golden vocabulary, and a newline."""

    def __init__(self, vocabulary: dict[str, int], special: dict[str, int]) -> None:
        self.vocabulary, self.newline = vocabulary, special.get("newline")
        self.bos_id = special.get("bos </s>")
        self.eos_id = special.get("eos", self.bos_id)

    def encode(self, text: str) -> list[int | None]:
        return [self.newline] if text == "\n" else [self.vocabulary[word] for word in text.split()]


def captioned(text: str, number: int = 0) -> Document:
    return Document(f"d{number}", (Turn("user", (Noise(0),)), Turn("assistant", (text,))))


def flatten(runs: list[Run], queries: list[str]) -> tuple[list[Any], list[int]]:
    """Ids, with the queries in the place of pictures, and labels."""
    ids: list[Any] = []
    labels: list[int] = []
    for run in runs:
        if isinstance(run, PictureRun):
            ids, labels = [*ids, *queries], [*labels, *[IGNORE] * len(queries)]
        else:
            ids += run.ids
            labels += [number if learn else IGNORE for number, learn in zip(run.ids, run.learn, strict=True)]
    return ids, labels


def rows(case: dict[str, Any], values: str, mask: str) -> list[list[Any]]:
    """Rows of a padded table without padding."""
    pairs = zip(case[values], case[mask], strict=True)
    return [[value for value, real in zip(row, flags, strict=True) if real] for row, flags in pairs]


def queries_of(case: dict[str, Any]) -> list[str]:
    return [slot for slot in case["sequence"][0] if isinstance(slot, str)]


@pytest.mark.parametrize("name", ["blip2_opt_stage2_no_prompt", "blip2_opt_caption_finetune_prompt"])
def test_decoder_reads_and_learns_the_released_tokens(golden: Any, name: str) -> None:
    content = golden.json(FILE)
    case = content["cases"][name]
    tokenizer, lead = WordTokenizer(case["vocab"], content["stub_special_ids"]["opt"]), case["prompt"]
    prompt = Blip2Caption(lead=lead.strip())
    expected = zip(rows(case, "sequence", "attention_mask"), rows(case, "labels", "attention_mask"), strict=True)
    for text, (ids, labels) in zip(case["text_input"], expected, strict=True):
        document = captioned(text.removeprefix(lead).strip())
        assert flatten(prompt.runs(document, tokenizer), queries_of(case)) == (ids, labels)
        start, _ = flatten(prompt.runs(document.without_answer(), tokenizer), queries_of(case))
        assert start == ids[: len(start)]
        assert ids[-1] in prompt.stop_ids(tokenizer)


def test_encoder_reads_the_prefix_and_decoder_learns_the_suffix(golden: Any) -> None:
    content = golden.json(FILE)
    case = content["cases"]["blip2_t5_stage2_prefix_suffix"]
    tokenizer = WordTokenizer(case["vocab"], content["stub_special_ids"]["t5"])
    sources = rows(case, "sequence", "attention_mask")
    targets = rows(case, "labels", "decoder_attention_mask")
    for prefix, suffix, source, target in zip(case["text_input"], case["text_output"], sources, targets, strict=True):
        text, prompt = f"{prefix} {suffix}", PrefixSplit()
        document = next(
            document
            for document in (captioned(text, number) for number in count())
            if prompt.split(document, text) == (prefix, suffix)
        )
        ids, labels = flatten(prompt.runs(document, tokenizer), queries_of(case))
        assert ids == [*source, *target]
        assert labels == [*[IGNORE] * len(source), *target]


def test_prefixes_end_equally_often_at_every_place_up_to_the_middle() -> None:
    text, prompt = "one two three four five six seven", PrefixSplit()
    lengths = [len(prompt.split(captioned(text, number), text)[0].split()) for number in range(900)]
    assert set(lengths) == {1, 2, 3}
    assert all(abs(lengths.count(length) - 300) < 60 for length in (1, 2, 3))  # four standard errors are 57
    assert prompt.split(captioned("word"), "word") == ("", "word")


@pytest.mark.parametrize("prompt", [Blip2Caption(), PrefixSplit("photo")])
def test_captions_are_written_in_lower_case_and_without_punctuation(prompt: Prompt) -> None:
    tokenizer = WordTokenizer({"photo": 9, "red": 10, "cat": 11}, {"bos </s>": 2, "newline": 3})
    _, labels = flatten(prompt.runs(captioned('"Red" cat.'), tokenizer), [])
    assert [label for label in labels if label > 3] == [10, 11]


@pytest.mark.parametrize("lead", ["", "a photo of"])
def test_long_captions_lose_their_end(lead: str) -> None:
    words = {word: number for number, word in enumerate(["a", "photo", "of", *(f"w{n}" for n in range(9))], 10)}
    document = captioned(" ".join(f"w{n}" for n in range(9)))
    tokenizer = WordTokenizer(words, {"bos </s>": 2, "newline": 3})
    ids, _ = flatten(Blip2Caption(lead, max_tokens=6).runs(document, tokenizer), [])
    assert len(ids) == 6 and ids[0] == 2 and 3 not in ids
    ids, labels = flatten(PrefixSplit(lead or "a", max_tokens=4).runs(document, tokenizer), [])
    assert [label for label in labels if label != IGNORE] == [13, 14, 15, 2]
