"""On two ranks CogVLM and CogAgent treat texts as the base language model after every stage that freezes it.

The freeze audit passes in each of these stages, in which all parts but the visual ones are frozen.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kills import Launch, launch_all
from tests.text_only import BUILDERS, stages
from tests.three_stages import CUT

pytestmark = pytest.mark.distributed

ENGINES = {"ddp": "ddp", "zero2": "zero2", "zero3": CUT}
ATOL = 1e-6  # of the logits, fp32


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    launches = [
        Launch(f"{family} {engine}", recipe=family, steps=2, ranks=2, strategy=strategy)
        for family in BUILDERS
        for engine, strategy in ENGINES.items()
    ]
    launch_all(launches, folder)
    return folder


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", BUILDERS)
def test_texts_have_the_logits_of_the_language_model(runs: Path, family: str, engine: str) -> None:
    for rank in (0, 1):
        differences = json.loads((runs / f"{family} {engine}" / f"text-{rank}.json").read_text())
        assert differences.keys() == {stage.name for stage in stages(family)}
        assert max(differences.values()) <= ATOL
