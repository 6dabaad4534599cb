"""XComposer2's prompts equal the released code's in text, ids, labels and image mask.

The tests have no InternLM2 tokenizer, so they build one from the golden file: the text of each case is cut at the
markers of the template and aligned with its ids. It can encode only the pieces of text in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_mm.documents.document import Document
from lit_mm.documents.turns import conversation_to_document
from lit_mm.prompts.prompt import PictureRun, Run
from lit_mm.prompts.xcomposer2 import PLACEHOLDER, XComposer2Prompt

IGNORE = -100


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        golden = read_golden(metafunc.config)
        metafunc.parametrize("case", golden["cases"], ids=[case["name"] for case in golden["cases"]])


def read_golden(config: pytest.Config) -> dict[str, Any]:
    return json.loads((Path(config.getoption("--golden-dir")) / "xcomposer2_prompts.json").read_text(encoding="utf-8"))


def expand(run_lengths: list[list[int]]) -> list[int]:
    return [value for value, repeat in run_lengths for _ in range(repeat)]


@dataclass(frozen=True)
class NoPixels:
    """A picture that fails the test if its pixels are read."""

    width: int = 64
    height: int = 48

    def read(self) -> Image.Image:
        raise AssertionError("a prompt read pixels")


class GoldenTokenizer:
    """A tokenizer that reproduces the encodings in a golden file."""

    def __init__(self, golden: Mapping[str, Any]):
        tokens = golden["tokens"]
        self.start, self.end = tokens["turn_start"]["text"], tokens["turn_end"]["text"]
        self.bos, self.bos_id = None, tokens["bos"]
        self.eos = golden["cases"][0]["text"].rsplit(self.end + "\n", 1)[1]
        self.eos_id = self.pad_id = tokens["eos_and_pad"]
        self.newline = tokens["newline"]
        self.markers = {
            self.start: tokens["turn_start"]["id"],
            self.end: tokens["turn_end"]["id"],
            self.eos: self.eos_id,
        }
        self.words = {"assistant": tokens["assistant_word"]}
        slots = {token for case in golden["cases"] for token in expand(case["ids_rle"]) if token < 0}
        assert len(slots) == 1, f"one id marks image slots, got {slots}"
        self.image_slot = slots.pop()
        for case in golden["cases"]:
            self.learn(case)

    def units(self, text: str) -> Iterator[str]:
        """Cut a text at markers, placeholders and lines that hold a role; every piece between them is one unit."""
        start, end, eos = re.escape(self.start), re.escape(self.end), re.escape(self.eos)
        parts = re.split(f"({start})(user|assistant)(\n)|({end})(\n)|({eos})|({PLACEHOLDER})", text)
        return (part for part in parts if part)

    def known(self, unit: str) -> list[int] | None:
        if unit in self.markers:
            return [self.markers[unit]]
        return [self.newline] if unit == "\n" else self.words.get(unit)

    def learn(self, case: Mapping[str, Any]) -> None:
        ids = expand(case["ids_rle"])
        assert (self.image_slot in ids) == (case["images"] > 0), f"{case['name']}: images without slots, or slots alone"
        ids.remove(self.bos_id)
        at = 0
        if PLACEHOLDER not in case["text"]:
            at = case["images"] * case["tokens_per_image"]
        for unit in self.units(case["text"]):
            stop = at
            if unit == PLACEHOLDER:
                stop += case["tokens_per_image"]
                assert all(token < 0 for token in ids[at:stop]), f"{case['name']}: no image at {at}"
            elif (known := self.known(unit)) is not None:
                stop += len(known)
                assert ids[at:stop] == known, f"{case['name']}: {unit!r} is {known} elsewhere, here {ids[at:stop]}"
            else:
                closing = {*self.markers.values()} | ({self.newline} if unit == "user" else set())
                while ids[stop] >= 0 and ids[stop] not in closing:
                    stop += 1
                self.words[unit] = ids[at:stop]
            at = stop
        assert at == len(ids), f"{case['name']}: ids after the text's end: {ids[at:]}"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for unit in self.units(text):
            known = self.known(unit)
            assert known is not None, f"the golden file does not show the tokens of {unit!r}"
            ids += known
        return ids

    def id_of(self, token: str) -> int:
        return self.markers[token]


@pytest.fixture(scope="module")
def tokenizer(pytestconfig: pytest.Config) -> GoldenTokenizer:
    return GoldenTokenizer(read_golden(pytestconfig))


@pytest.fixture(scope="module")
def prompt(tokenizer: GoldenTokenizer) -> XComposer2Prompt:
    return XComposer2Prompt(turn_start=tokenizer.start, turn_end=tokenizer.end)


def document_of(case: Mapping[str, Any]) -> Document:
    return conversation_to_document(case["conversation"], [NoPixels()] * case["images"], id=case["name"])


def flatten(runs: list[Run], image_length: int, image_slot: int) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and image mask; a picture has `image_length` tokens with id `image_slot`."""
    ids, labels, mask = [], [], []
    for run in runs:
        if isinstance(run, PictureRun):
            ids += [image_slot] * image_length
            labels += [IGNORE] * image_length
            mask += [1] * image_length
        else:
            ids += run.ids
            labels += [token if learn else IGNORE for token, learn in zip(run.ids, run.learn, strict=True)]
            mask += [0] * len(run.ids)
    return ids, labels, mask


def test_the_text_is_that_of_the_released_code(
    case: dict[str, Any], prompt: XComposer2Prompt, tokenizer: GoldenTokenizer
) -> None:
    unplaced = case["images"] == 1 and PLACEHOLDER not in case["text"]
    expected = PLACEHOLDER + case["text"] if unplaced else case["text"]
    assert prompt.text(document_of(case), tokenizer) == expected


def test_ids_labels_and_image_mask_are_those_of_the_released_code(
    case: dict[str, Any], prompt: XComposer2Prompt, tokenizer: GoldenTokenizer
) -> None:
    ids, labels, mask = flatten(
        prompt.runs(document_of(case), tokenizer), case["tokens_per_image"], tokenizer.image_slot
    )
    assert ids == expand(case["ids_rle"])
    assert labels == expand(case["labels_rle"])
    assert mask == expand(case["im_mask_rle"])


def test_every_picture_appears_once_and_in_order(
    case: dict[str, Any], prompt: XComposer2Prompt, tokenizer: GoldenTokenizer
) -> None:
    runs = prompt.runs(document_of(case), tokenizer)
    assert [run.number for run in runs if isinstance(run, PictureRun)] == list(range(case["images"]))


def test_generation_starts_where_the_last_answer_would(
    case: dict[str, Any], prompt: XComposer2Prompt, tokenizer: GoldenTokenizer
) -> None:
    document = document_of(case)
    runs = prompt.runs(document.without_answer(), tokenizer)
    started, _, _ = flatten(runs, case["tokens_per_image"], tokenizer.image_slot)
    ids, labels = expand(case["ids_rle"]), expand(case["labels_rle"])
    answer = len(ids)
    while labels[answer - 1] != IGNORE:
        answer -= 1
    assert started == ids[:answer]
