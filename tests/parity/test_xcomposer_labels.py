"""The label rules of XComposer2 and XComposer 1.0 equal the released functions on id sequences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lit_mm.prompts.xcomposer import label_mask_v1
from lit_mm.prompts.xcomposer2 import label_mask

IGNORE = -100
BRIDGE = 6  # in both released functions: the closing marker of the question and the five tokens after it
FILE = "xcomposer_labels.json"

Cases = Mapping[str, Mapping[str, list[int]]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, system in (("case_v2", "xcomposer2"), ("case_v1", "xcomposer1")):
        if fixture in metafunc.fixturenames:
            cases = read_golden(metafunc.config)[system]
            metafunc.parametrize(fixture, list(cases.values()), ids=list(cases))


def read_golden(config: pytest.Config) -> dict[str, Any]:
    return json.loads((Path(config.getoption("--golden-dir")) / FILE).read_text(encoding="utf-8"))


def eos_of(cases: Cases) -> int:
    """The id of eos, with which most sequences end; padding has the same id."""
    return Counter(case["input_ids"][-1] for case in cases.values()).most_common(1)[0][0]


def answer_end_of(cases: Cases) -> int:
    """The marker at the end of an answer. After the last answer, a newline and eos follow it."""
    eos = eos_of(cases)
    sequences = (case["input_ids"] for case in cases.values())
    return Counter(ids[ids.index(eos) - 2] for ids in sequences if eos in ids).most_common(1)[0][0]


def question_end_of(cases: Cases) -> int:
    """The marker at the end of a question. The same `BRIDGE` ids precede every answer."""
    firsts = ((case["input_ids"], first_learnt(case["labels"])) for case in cases.values())
    return Counter(ids[first - BRIDGE] for ids, first in firsts if first >= BRIDGE).most_common(1)[0][0]


def first_learnt(labels: list[int]) -> int:
    return next((position for position, label in enumerate(labels) if label != IGNORE), -1)


def labels_of(ids: list[int], learn: list[bool]) -> list[int]:
    return [token if learnt else IGNORE for token, learnt in zip(ids, learn, strict=True)]


def test_the_xcomposer2_rule_gives_the_released_labels(
    case_v2: dict[str, list[int]], pytestconfig: pytest.Config
) -> None:
    golden = read_golden(pytestconfig)
    cases = golden["xcomposer2"]
    special = golden.get("special_ids", {})
    ids = case_v2["input_ids"]
    learn = label_mask(
        ids,
        turn_end_id=special.get("turn_end", answer_end_of(cases)),
        eos_id=special.get("eos", eos_of(cases)),
        bridge=BRIDGE,
    )
    assert labels_of(ids, learn) == case_v2["labels"]


def test_the_xcomposer1_rule_gives_the_released_labels(
    case_v1: dict[str, list[int]], pytestconfig: pytest.Config
) -> None:
    golden = read_golden(pytestconfig)
    cases = golden["xcomposer1"]
    special = golden.get("special_ids", {})
    ids = case_v1["input_ids"]
    learn = label_mask_v1(
        ids,
        end_of_human_id=special.get("end_of_human", question_end_of(cases)),
        end_of_assistant_id=special.get("end_of_assistant", answer_end_of(cases)),
        eos_id=special.get("eos", eos_of(cases)),
        bridge=BRIDGE,
    )
    assert labels_of(ids, learn) == case_v1["labels"]


def test_both_systems_have_cases(pytestconfig: pytest.Config) -> None:
    golden = read_golden(pytestconfig)
    assert golden["xcomposer1"] and golden["xcomposer2"]
