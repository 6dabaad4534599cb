"""Qwen-VL's and Monkey's prompts equal the released code's in ids and labels; boxes equal its pixels.

The tests have no Qwen tokenizer, so they build one from the golden file: texts and ids are cut at the special tokens
and aligned. It can encode only the pieces of text in the file. The released tokenizer fills the slots of an image with
the bytes of its path; here only their number counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_mm.documents.document import Document, Turn
from lit_mm.documents.sources import QwenVLConversations
from lit_mm.prompts.boxes import Region, find_regions, to_pixels
from lit_mm.prompts.prompt import PictureRun, Run
from lit_mm.prompts.qwen_vl import QwenChat, QwenPlain

IGNORE, SLOT = -100, -1
IMAGE = re.compile(r"<img>(.*?)</img>")
FILE = "qwen_vl_prompts"


def expand(run_lengths: list[list[int]]) -> list[int]:
    return [value for value, repeat in run_lengths for _ in range(repeat)]


class GoldenTokenizer:
    """A tokenizer that reproduces the encodings in the golden file."""

    def __init__(self, golden: dict[str, Any]) -> None:
        self.special: dict[str, int] = golden["tokenizer"]["special"]
        assert golden["tokenizer"]["eod_is_pad"]
        self.eos = "<|endoftext|>"
        self.bos, self.bos_id, self.eos_id, self.pad_id = None, None, self.special[self.eos], self.special[self.eos]
        self.cut = re.compile("(" + "|".join(map(re.escape, self.special)) + ")")
        self.words: dict[str, list[int]] = {}
        for case in golden["cases"]:
            turns = case["conversation"]
            turns = turns[1:] if turns[0]["from"] == "assistant" else turns
            said = [("system", golden["system"]), *((turn["from"], turn["value"]) for turn in turns)]
            text = "".join(f"<|im_start|>{role}\n{value}<|im_end|>\n" for role, value in said)
            self.learn(text, expand(case["input_ids_rle"]), roles=True)
        for case in golden["plain_tokenization"].values():
            self.learn(case["text"], expand(case["ids_rle"]))
        for row in golden["monkey_cases"]["rows"]:
            ids = expand(row["input_ids_rle"])
            labels = expand(row["labels_rle"])
            start = next(at for at, label in enumerate(labels) if label != IGNORE)
            self.learn(row["user"], ids[:start])
            self.learn(row["assistant"], ids[start : ids.index(self.eos_id, start)])

    def learn(self, text: str, ids: list[int], roles: bool = False) -> None:
        """Align a text with its ids. If `roles`, the line of the role after <|im_start|> is encoded separately."""
        pieces = self.cut.split(IMAGE.sub("<img></img>", text))
        at = 0
        for number, piece in enumerate(pieces):
            stop = at
            while stop < len(ids) and ids[stop] not in self.special.values():
                stop += 1
            if piece in self.special:
                assert ids[at] == self.special[piece], f"{piece} is not at {at} of {text!r}"
                at += 1
                if piece == "<img>":
                    at = ids.index(self.special["</img>"], at)
                continue
            own = ids[at:stop]
            if roles and number and pieces[number - 1] == "<|im_start|>":
                newline = self.words["\n"] if "\n" in self.words else self._newline(ids)
                role, _, said = piece.partition("\n")
                length = next(n for n in range(len(own)) if own[n : n + len(newline)] == newline)
                self._add(role, own[:length])
                self._add(said, own[length + len(newline) :])
            else:
                self._add(piece, own)
            at = stop
        assert at == len(ids), f"ids after the end of {text!r}: {ids[at:]}"

    def _newline(self, ids: list[int]) -> list[int]:
        """The ids at the end of a conversation, after the last end of turn."""
        end = max(at for at, token in enumerate(ids) if token == self.special["<|im_end|>"])
        self._add("\n", ids[end + 1 :])
        return self.words["\n"]

    def _add(self, text: str, ids: list[int]) -> None:
        assert self.words.setdefault(text, ids) == ids, f"{text!r} is {self.words[text]} and {ids}"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self.cut.split(text):
            assert piece in self.special or piece in self.words, (
                f"the golden file does not show the tokens of {piece!r}"
            )
            ids += [self.special[piece]] if piece in self.special else self.words[piece]
        return ids

    def id_of(self, token: str) -> int:
        return self.special[token]


@pytest.fixture
def tokenizer(golden: Any) -> GoldenTokenizer:
    return GoldenTokenizer(golden.json(FILE))


def documents_of(conversations: Sequence[list[dict[str, str]]], folder: Path) -> Iterator[Document]:
    """Read the conversations as the source of Qwen-VL's format does, with stand-ins for pictures at their paths."""
    for number, conversation in enumerate(conversations):
        for name in IMAGE.findall("".join(turn["value"] for turn in conversation)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 10)).save(folder / name)
        file = folder / f"{number}.json"
        file.write_text(json.dumps([{"id": str(number), "conversations": conversation}]))
        yield QwenVLConversations(str(file), images=str(folder))[0]


def flatten(runs: list[Run], slots: int) -> tuple[list[int], list[bool]]:
    """Ids and supervision flags; a picture becomes as many `SLOT`s as it has tokens."""
    ids: list[int] = []
    learn: list[bool] = []
    for run in runs:
        ids += [SLOT] * slots if isinstance(run, PictureRun) else run.ids
        learn += [False] * slots if isinstance(run, PictureRun) else run.learn
    return ids, learn


def blank_slots(ids: list[int], special: dict[str, int]) -> tuple[list[int], int]:
    """Golden ids with `SLOT` between the tags of an image, and the number of slots of each image."""
    blanked, inside, slots = [], False, 0
    for token in ids:
        inside = inside and token != special["</img>"]
        slots = slots + 1 if inside else slots
        blanked.append(SLOT if inside else token)
        if token == special["<img>"]:
            inside, slots = True, 0
    return blanked, slots


@pytest.mark.golden_cases(FILE)
def test_chatml_ids_and_labels_are_those_of_the_release(
    golden: Any, tokenizer: GoldenTokenizer, tmp_path: Path, case: dict[str, Any]
) -> None:
    (document,) = documents_of([case["conversation"]], tmp_path)
    expected, slots = blank_slots(expand(case["input_ids_rle"]), tokenizer.special)
    ids, learn = flatten(QwenChat(system=golden.json(FILE)["system"]).runs(document, tokenizer), slots)
    assert len(ids) == case["length"] == case["attention_ones"]
    assert ids == expected
    assert [at for at, learnt in enumerate(learn) if learnt] == [
        at for start, stop in case["label_spans"] for at in range(start, stop)
    ]


@pytest.mark.golden_cases(FILE)
def test_generation_starts_where_the_last_answer_would(
    golden: Any, tokenizer: GoldenTokenizer, tmp_path: Path, case: dict[str, Any]
) -> None:
    (document,) = documents_of([case["conversation"]], tmp_path)
    expected, slots = blank_slots(expand(case["input_ids_rle"]), tokenizer.special)
    prompt = QwenChat(system=golden.json(FILE)["system"])
    ids, _ = flatten(prompt.runs(document.without_answer(), tokenizer), slots)
    assert ids == expected[: case["label_spans"][-1][0]]
    assert expected[case["label_spans"][-1][1] - 2] in prompt.stop_ids(tokenizer)


def test_an_image_has_as_many_slots_as_the_release_says(golden: Any, tokenizer: GoldenTokenizer) -> None:
    counts = {
        blank_slots(expand(case["input_ids_rle"]), tokenizer.special)[1] for case in golden.json(FILE)["cases"]
    } - {0}
    (slots,) = counts
    assert re.search(rf"up to {slots} in total", golden.json(FILE)["image_encoding"])


def test_pictures_are_named_and_marked_as_in_the_releases_data(tokenizer: GoldenTokenizer, golden: Any) -> None:
    """Pictures without the text that surrounds them in the data of the release give the same ids."""
    named = re.compile(r"Picture \d+: <img>.*?</img>\n")
    checked = 0
    for case in golden.json(FILE)["cases"]:
        conversation = case["conversation"]
        shown = [len(IMAGE.findall(turn["value"])) for turn in conversation]
        if not any(shown):
            continue
        turns = [
            Turn(turn["from"], (*(NoPixels() for _ in range(count)), named.sub("", turn["value"])))
            for turn, count in zip(conversation, shown, strict=True)
        ]
        expected, slots = blank_slots(expand(case["input_ids_rle"]), tokenizer.special)
        prompt = QwenChat(system=golden.json(FILE)["system"])
        assert flatten(prompt.runs(Document(case["name"], tuple(turns)), tokenizer), slots)[0] == expected
        checked += 1
    assert checked


def test_text_without_labels_and_newlines_is_taken_verbatim(
    golden: Any, tokenizer: GoldenTokenizer, tmp_path: Path
) -> None:
    """The same conversation without `Picture 1: ` has the same ids but for those of the label."""
    label = "Picture 1: "
    (case,) = (case for case in golden.json(FILE)["cases"] if case["name"] == "image_qa")
    question, answer = case["conversation"]
    bare = [{**question, "value": question["value"].replace(label, "")}, answer]
    (document,) = documents_of([bare], tmp_path)
    expected, slots = blank_slots(expand(case["input_ids_rle"]), tokenizer.special)
    start = expected.index(tokenizer.special["<img>"]) - len(tokenizer.encode(label))
    del expected[start : start + len(tokenizer.encode(label))]
    ids, _ = flatten(QwenChat(system=golden.json(FILE)["system"]).runs(document, tokenizer), slots)
    assert ids == expected


class NoPixels:
    """A picture that fails the test if its pixels are read."""

    width, height = 64, 48

    def read(self) -> Image.Image:
        raise AssertionError("a prompt read pixels")


def test_pre_training_text_is_tokenised_as_released(golden: Any, tokenizer: GoldenTokenizer) -> None:
    for name, case in golden.json(FILE)["plain_tokenization"].items():
        ended = case["text"].endswith(tokenizer.eos)
        pieces = IMAGE.split(case["text"].removesuffix(tokenizer.eos))
        parts = tuple(NoPixels() if at % 2 else piece for at, piece in enumerate(pieces) if at % 2 or piece)
        expected, slots = blank_slots(expand(case["ids_rle"]), tokenizer.special)
        runs = QwenPlain().runs(Document(name, (Turn("page", parts),)), tokenizer)
        ids, learn = flatten(runs, slots)
        assert ids[-1] == tokenizer.eos_id and learn[-1]
        assert (ids if ended else ids[:-1]) == expected, name


def test_monkeys_ids_labels_and_mask_are_those_of_the_release(
    golden: Any, tokenizer: GoldenTokenizer, tmp_path: Path
) -> None:
    rows = golden.json(FILE)["monkey_cases"]["rows"]
    said = [[{"from": "user", "value": row["user"]}, {"from": "assistant", "value": row["assistant"]}] for row in rows]
    assert rows
    for row, document in zip(rows, documents_of(said, tmp_path), strict=True):
        expected, slots = blank_slots(expand(row["input_ids_rle"]), tokenizer.special)
        ids, learn = flatten(QwenPlain().runs(document, tokenizer), slots)
        padding = row["max_len"] - len(ids)
        labels = [token if learnt else IGNORE for token, learnt in zip(ids, learn, strict=True)]
        assert ids + [tokenizer.pad_id] * padding == expected, row["name"]
        assert labels + [IGNORE] * padding == expand(row["labels_rle"]), row["name"]
        assert [1] * len(ids) + [0] * padding == expand(row["attention_mask_rle"]), row["name"]


def test_boxes_in_pixels_are_those_of_the_release(golden: Any) -> None:
    rows = golden.json(FILE)["box_to_pixels"]["rows"]
    assert rows
    for row in rows:
        size = row["height"], row["width"]
        assert to_pixels(tuple(row["box"]), *size) == pytest.approx(row["eval_pixels"], abs=1e-4)


def test_regions_are_found_in_what_the_release_writes(golden: Any) -> None:
    text = golden.json(FILE)["from_list_format"]
    marked = text[text.index("<ref>") :]
    written = ""
    for region in find_regions(text):
        corners = [f"<box>({left},{top}),({right},{low})</box>" for left, top, right, low in region.boxes]
        written += "".join([f"<ref>{region.phrase}</ref>", *corners])
    assert written == marked
    (said,) = (element["ref"] for element in golden.json(FILE)["to_list_format"] if "ref" in element)
    (box,) = (element["box"] for element in golden.json(FILE)["to_list_format"] if "box" in element)
    numbers = tuple(map(int, re.findall(r"\d+", box)))
    assert find_regions(f"<ref>{said}</ref><box>{box}</box> text") == [Region(said, (numbers,))]
