"""CogVLM and CogAgent on two ranks with unequal numbers of views, and ranks without any, equal one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_uneven import trained

MODELS = ("cogvlm", "cogagent")
ENGINES = ("ddp", "zero1", "zero2", "zero3")
RTOL = 1e-5  # fp32; of the loss, and of the largest gradient of each tensor


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    labels = tuple(f"{model}@{engine}" for model in MODELS for engine in ("alone", *ENGINES))
    folder: Path = tmp_path_factory.mktemp("cog")
    return trained(folder, labels)


def assert_gradients(
    alone: list[dict[str, Any]], ranks: list[dict[str, Any]], rtol: float = RTOL, smallest: float = 1e-11
) -> None:
    """Compare losses and gradients of two ranks with those of one process.

    Args:
        alone, ranks: results of one process and of two.
        rtol: tolerance of the loss, and share of the largest gradient of a tensor.
        smallest: difference of gradients that counts as rounding.
    """
    (single,) = alone
    for stage, accumulation in (("steps", 1), ("accumulating", 2)):
        for number, expected in enumerate(single[stage]):
            steps = [rank[stage][number * accumulation : (number + 1) * accumulation] for rank in ranks]
            loss = sum(step["loss"] for of_rank in steps for step in of_rank)
            torch.testing.assert_close(loss, expected["loss"], rtol=rtol, atol=0)
            for name, gradient in expected["gradients"].items():
                bound = max(rtol * float(gradient.abs().max()), smallest)
                for *_, last in steps:
                    worst = float((last["gradients"][name] - gradient).abs().max())
                    assert worst <= bound, f"{stage} {number}, {name}: {worst}"


@pytest.mark.distributed
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_those_of_one_process(results: dict[str, Any], model: str, engine: str) -> None:
    assert_gradients(results[f"{model}@alone"], results[f"{model}@{engine}"])


@pytest.mark.distributed
@pytest.mark.parametrize("model", MODELS)
def test_ranks_with_and_without_pictures_answer_together(results: dict[str, Any], model: str) -> None:
    for engine in ENGINES:
        longer, shorter = (rank["answers"][0] for rank in results[f"{model}@{engine}"])
        assert shorter == "" and len(longer) > 0
