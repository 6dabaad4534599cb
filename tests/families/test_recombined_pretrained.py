"""Every kind of decoder reads pictures in `Recombined`: two steps, a resumed run, and answers with a cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.families import Recombined
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.language.pretrained import Pretrained
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling import Stretch
from lit_mm.vision.vit import ViT
from tests.language.test_pretrained import KINDS, config_of
from tests.tiny import PROMPT, document, run_recipe


def build(kind: str) -> Recombined:
    torch.manual_seed(0)
    vision = ViT(image_size=28, patch=14, width=16, layers=1, heads=2)
    language = Pretrained(config_of(kind) | {"vocab_size": 512, "max_position_embeddings": 512})
    return Recombined(vision, language, "nano", Inputs(Stretch(28), prompt=PROMPT))


def documents_of(**options: object) -> Mixture:
    return Mixture([Member([document(n) for n in range(8)], "a")], row_tokens=128, global_batch=2, num_workers=0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_resumes_and_answers(kind: str, tmp_path: Path) -> None:
    whole, resumed = build(kind), build(kind)
    stages = [Stage("all", {part: Train(lr=1e-3) for part in whole.parts()}, max_steps=2)]
    run_recipe(whole, stages, tmp_path, every=1, data_class=documents_of)
    last = max((tmp_path / "checkpoints").iterdir(), key=lambda path: path.name)
    assert "step=000002" in last.name
    shutil.rmtree(last)  # the run resumes after its first step
    run_recipe(resumed, stages, tmp_path, every=1, data_class=documents_of)
    states = whole.state_dict()
    assert all(torch.equal(value, states[name]) for name, value in resumed.state_dict().items())
    documents = [document(number, pictures=1) for number in range(2)]
    together = answer(resumed, documents, decoding=Decoding(3))
    assert together == [answer(resumed, [single], decoding=Decoding(3))[0] for single in documents]
