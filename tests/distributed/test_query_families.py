"""InstructBLIP, BLIP-2 and MiniGPT-4 on two ranks with unequal numbers of views equal one process.

The freeze audit passes. InstructBLIP has ranks without pictures; the other two refuse samples without any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_cog import assert_gradients
from tests.test_uneven import trained
from tests.uneven import TRAINED

pytestmark = pytest.mark.distributed

ENGINES = ("ddp", "zero2", "zero3")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("queries")
    return trained(folder, tuple(f"{model}@{engine}" for model in TRAINED for engine in ("alone", *ENGINES)))


@pytest.mark.parametrize("model", TRAINED)
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_those_of_one_process(results: dict[str, Any], model: str, engine: str) -> None:
    assert results[f"{model}@alone"][0]["steps"][0]["gradients"]
    assert_gradients(results[f"{model}@alone"], results[f"{model}@{engine}"])


def test_ranks_of_instructblip_had_none_against_five_and_text_only(results: dict[str, Any]) -> None:
    ranks = [[step["pictures"] for step in rank["steps"]] for rank in results["instructblip@zero3"]]
    assert {(0, 5), (0, 1), (0, 0), (1, 5)} <= {tuple(sorted(step)) for step in zip(*ranks, strict=True)}


@pytest.mark.parametrize("engine", ENGINES)
def test_ranks_with_and_without_pictures_answer_together(results: dict[str, Any], engine: str) -> None:
    longer, shorter = (rank["answers"][0] for rank in results[f"instructblip@{engine}"])
    assert shorter == "" and len(longer) > 0
