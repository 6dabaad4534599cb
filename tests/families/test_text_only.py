"""Texts have the logits of the base language model after every stage that freezes it, in CogVLM and CogAgent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.text_only import BUILDERS, TextLogits, build, stages
from tests.tiny import run_recipe


@pytest.mark.parametrize("family", BUILDERS)
def test_text_has_the_bits_of_the_language_model_after_every_stage_that_freezes_it(family: str, tmp_path: Path) -> None:
    module, recipe = build(family), stages(family)
    start = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    logits = TextLogits(module)
    run_recipe(module, recipe, tmp_path, callbacks=[logits], every=4)
    assert logits.differences == {stage.name: 0.0 for stage in recipe}
    end = module.network.cpu().state_dict()
    changed = {module.part_of(name) for name in start if not torch.equal(start[name], end[name])}
    assert changed == set().union(*(stage.train for stage in recipe))
