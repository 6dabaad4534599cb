"""Experts are copies of the loaded weights where no checkpoint fills them, whatever way a model starts.

| way | experts start as |
|---|---|
| fresh, with published weights of the language model | copies of these |
| the whole checkpoint of the release, by its key map | the experts of the checkpoint |
| `--init_from` a run | the experts of the run |
| resuming a run | the experts of its checkpoint |
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lit_mm.cli import main
from lit_mm.commands import examinations
from lit_mm.commands.trained import open_model
from lit_mm.documents.document import Document
from lit_mm.documents.examination import Examination
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.weights.cogvlm import cogvlm_to_llama, llama_to_cogvlm
from lit_mm.weights.convert import load_strict
from tests.commands.test_trained import conversations
from tests.families.test_cogvlm import SIZES, build

ALIGNED = "01-align-step=000002.ckpt"
MODEL: dict[str, Any] = {
    "class_path": "lit_mm.families.CogVLM",
    "init_args": {
        "vision": {
            "class_path": "lit_mm.vision.vit.ViT",
            "init_args": {"image_size": 28, "patch": 14, "width": 16, "layers": 1, "heads": 2},
        },
        "language": {"class_path": "lit_mm.language.llama.Llama", "init_args": SIZES | {"weights": "llama:base.pt"}},
        "connector": {"class_path": "lit_mm.connectors.glu.GLUProjector", "init_args": {"ffn_width": 24}},
        "tokenizer": "nano",
        "image_size": 28,
    },
}
STAGES: list[dict[str, Any]] = [
    {"name": "align", "train": {"connector": {"lr": 1e-2, "average": 0.5}}, "max_steps": 2},
    {
        "name": "tune",
        "starts_from": {"stage": "align", "averaged": True},
        "train": {"visual_expert": {"lr": 1e-2}},
        "max_steps": 1,
    },
]
DATA = {
    "class_path": "lit_mm.datamodules.conversations.Conversations",
    "init_args": {"path": "train.json", "format": "llava", "global_batch": 2, "num_workers": 0},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two runs: runs/fresh of both stages, and runs/later, whose first stage starts from runs/fresh."""
    place = tmp_path_factory.mktemp("experts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit_mm"])
        patch.chdir(place)
        conversations(place / "train.json", 4)
        published = {name.removeprefix("lm."): tensor for name, tensor in Llama(**SIZES).state_dict().items()}
        torch.save(published, "base.pt")
        recipe = {"model": MODEL, "stages": STAGES, "data": DATA, "trainer": {"accelerator": "cpu"}}
        recipe |= {"track": False, "checkpoint_every": 1, "keep_checkpoints": 8}
        Path("cogvlm.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        fit("runs/fresh")
        fit("runs/later", "--init_from", "runs/fresh", "--stages", "align")
        yield place
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


def fit(run: str, *options: str) -> None:
    assert main(["fit", "--config", "cogvlm.yaml", "--run_dir", run, *options]) in (0, None)


def language_of(checkpoint: Path) -> dict[str, Tensor]:
    """Name in the language model -> tensor, of a model that is opened from a checkpoint."""
    return open_model(str(checkpoint)).network.language.state_dict()


def experts(language: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in language.items() if ".expert." in name}


def assert_same(experts: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert len(experts) == 14 and all(torch.equal(tensor, expected[name]) for name, tensor in experts.items())


def test_experts_of_a_fresh_model_are_copies_of_the_published_weights(place: Path) -> None:
    language, base = language_of(place / "runs/fresh/checkpoints" / ALIGNED), torch.load(place / "base.pt")
    copies = {name: base[name.removeprefix("lm.").replace(".expert.", ".")] for name in experts(language)}
    assert_same(experts(language), copies)


def test_init_from_takes_the_trained_experts_and_the_published_base(place: Path) -> None:
    trained, later = (language_of(place / "runs" / run) for run in ("fresh", "later"))
    assert_same(experts(later), experts(trained))  # the stage that started from the run froze them
    assert any(not torch.equal(tensor, later[n.replace(".expert.", ".base.")]) for n, tensor in experts(later).items())
    base = torch.load(place / "base.pt")
    names = {name: name.removeprefix("lm.").replace(".base.", ".") for name in later if ".expert." not in name}
    assert all(torch.equal(later[name], base[published_name]) for name, published_name in names.items())


def test_a_resumed_run_takes_the_experts_of_its_checkpoint(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    run = place / "runs/later"
    before = language_of(run)
    shutil.rmtree(run / "checkpoints" / ALIGNED)
    monkeypatch.chdir(place)
    fit("runs/later", "--init_from", "runs/fresh", "--stages", "align")
    after = language_of(run)
    assert after.keys() == before.keys() and all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_checkpoint_of_the_release_fills_the_experts() -> None:
    language, other = (build().network.language for _ in range(2))
    load_strict(other, cogvlm_to_llama(llama_to_cogvlm(language.state_dict())))
    assert_same(experts(other.state_dict()), experts(language.state_dict()))


def test_evaluate_asks_the_averages_that_the_next_stage_starts_from(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connectors: list[dict[str, Tensor]] = []
    examine = examinations.examine_stored

    def watched(module: MultimodalModule, documents: Sequence[Document], *rest: Any, **options: Any) -> Examination:
        connectors.append({name: tensor.clone() for name, tensor in module.parts()["connector"].items()})
        return examine(module, documents, *rest, **options)

    monkeypatch.setattr(examinations, "examine_stored", watched)
    monkeypatch.chdir(place)
    checkpoint = str(place / "runs/fresh/checkpoints" / ALIGNED)
    asked = ("--averaged", "--data", "{format: llava, path: train.json}", "--documents", "1")
    assert main(["evaluate", checkpoint, *asked]) in (0, None)
    averages, weights = connectors[0], open_model(checkpoint).parts()["connector"]
    start = open_model("runs/fresh").parts()["connector"]  # the second stage froze it
    assert all(torch.equal(averages[name], start[name]) for name in start)
    assert not any(torch.equal(averages[name], weights[name]) for name in start)
