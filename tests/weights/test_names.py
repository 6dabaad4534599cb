"""Tensors are selected and renamed by name prefix."""

from __future__ import annotations

import torch

from lit_mm.weights.names import add_prefix, below, without

STATE = {name: torch.tensor(float(at)) for at, name in enumerate(("vision.a", "vision.vision.b", "text.c", "d"))}


def test_nothing_is_lost_between_what_is_below_and_what_is_not() -> None:
    assert below(STATE, "vision.") == {"a": STATE["vision.a"], "vision.b": STATE["vision.vision.b"]}
    assert without(STATE, "vision.", "text.") == {"d": STATE["d"]}
    assert add_prefix(below(STATE, "vision."), "vision") | without(STATE, "vision.") == STATE


def test_what_does_not_belong_to_a_part_keeps_its_name() -> None:
    assert set(add_prefix(STATE, "network", only="vision.")) == {
        "network.vision.a",
        "network.vision.vision.b",
        "text.c",
        "d",
    }
