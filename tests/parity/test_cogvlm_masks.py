"""CogVLM's routing and positions of whole samples agree with the release."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_mm.samples import SharedPosition
from lit_mm.samples.layout import FLAG_END, FLAG_START
from lit_mm.samples.processor import TEXT


def index_of_types(types: list[int]) -> np.ndarray:
    """`Sample.index` of token types 0 (text) and 1 (flags and visual tokens); each run of 1 is one image."""
    index = np.full(len(types), TEXT)
    image = np.flatnonzero(types)
    for run in np.split(image, np.flatnonzero(np.diff(image) > 1) + 1):
        if len(run) > 1:  # a single vision-typed token is text for the release
            index[run] = [FLAG_START, *range(len(run) - 2), FLAG_END]
    return index


def mask(places: np.ndarray, length: int) -> list[int]:
    return np.isin(np.arange(length), places).astype(int).tolist()


def test_positions_and_routing_agree_with_the_masks_of_the_hub(golden: Any) -> None:
    layout = SharedPosition()
    for case in golden.json("cogvlm_masks")["hf_masks"]:
        rows = case["token_type_ids"]
        valid = case["attention_mask"] or [[1] * len(row) for row in rows]
        for row, types in enumerate(rows):
            keep = np.flatnonzero(valid[row])
            types = np.array(types)[keep].tolist()
            index = index_of_types(types)
            expected = np.array(case["position_ids"][row])[keep]
            assert (layout.positions(index) == expected - expected[0]).all(), case["name"]
            routed = np.array(case["vision_expert_mask"][row])[keep].tolist()
            assert mask(layout.routed(index), len(index)) == routed, case["name"]


def test_positions_and_routing_of_whole_samples_agree_with_the_processor_of_the_release(golden: Any) -> None:
    layout = SharedPosition()
    for case in golden.json("cogvlm_masks")["sat_processor"]:
        train, count = case["train"], case["image_length"]
        index = np.full(len(train["input_ids"]), TEXT)
        index[np.flatnonzero(train["vision_expert_mask"])] = FLAG_START
        patches = np.flatnonzero(train["image_rope_mask"])
        index[patches] = np.arange(len(patches))
        ends = np.flatnonzero(np.array(train["image_embed_mask"]) > train["vision_expert_mask"])
        index[ends] = FLAG_END
        assert len(patches) == count * len(ends)
        if "position_ids" in train:
            assert layout.positions(index).tolist() == train["position_ids"], case["prompt"]
        assert mask(layout.routed(index), len(index)) == train["vision_expert_mask"]
        assert np.flatnonzero(index != TEXT).tolist() == np.flatnonzero(train["image_embed_mask"]).tolist()
