"""Decoders of transformers, T5 and an encoder of timm on two ranks under ZeRO-3 equal one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_cog import assert_gradients
from tests.test_uneven import trained

MODELS = ("opt", "gemma3", "t5", "timm")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder: Path = tmp_path_factory.mktemp("parts")
    return trained(folder, tuple(f"{model}@{engine}" for model in MODELS for engine in ("alone", "zero3")))


@pytest.mark.distributed
@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_one_process(results: dict[str, Any], model: str) -> None:
    assert_gradients(results[f"{model}@alone"], results[f"{model}@zero3"])


@pytest.mark.distributed
@pytest.mark.parametrize("model", MODELS)
def test_ranks_with_and_without_pictures_answer_together(results: dict[str, Any], model: str) -> None:
    longer, shorter = (rank["answers"][0] for rank in results[f"{model}@zero3"])
    assert shorter == "" and len(longer) > 0
