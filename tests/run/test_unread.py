"""Parts that no objective of a stage reads: not loaded, not in the network, and the same afterwards."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lit_mm.callbacks.freeze_audit import FreezeAudit
from lit_mm.checkpoints import manifest, reading
from lit_mm.checkpoints.digests import digest
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule, family_of
from lit_mm.stages.stage import Stage, Train
from tests.kills import Launch, Sight, launch_all, recipe_of
from tests.tiny import language, run_recipe, xcomposer2

RECIPE = Launch("", recipe="unread", steps=3)


def published(folder: Path, seed: int = 5) -> str:
    """A published language model, as a part's `weights` names it."""
    file = folder / f"base-{seed}.safetensors"
    save_file({name: tensor.clone() for name, tensor in language(seed).lm.state_dict().items()}, file)
    return str(file)


def sighted(base: str = "") -> MultimodalModule:
    """The tiny model with an objective that reads vision encoder and connector alone."""
    module = xcomposer2()
    module.objectives["sight"] = Sight()
    if base:
        module.network.language.weights = f"llama:{base}"
    return module


class Watch(L.Callback):
    """Notes at the start of a stage what is in the network, and what is not loaded."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[set[str], set[str]]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        children = {name for name, _ in pl_module.network.named_children()}
        self.seen[pl_module.stage.name] = children, set(pl_module.origins.unloaded)


def test_a_part_that_is_not_read_is_out_of_the_network_and_not_loaded_until_it_is_read(tmp_path: Path) -> None:
    watch, module = Watch(), sighted(published(tmp_path))
    run_recipe(module, recipe_of(RECIPE), tmp_path / "run", callbacks=[FreezeAudit(), watch])
    assert watch.seen == {
        "align": ({"vision", "connector"}, {"language"}),
        "finetune": ({"vision", "connector", "language"}, set()),
    }
    first = manifest.published(tmp_path / "run" / "checkpoints")
    assert isinstance(module.network.language, nn.Module)
    assert {checkpoint.stage for checkpoint in first} == {"finetune"}


def test_the_checkpoint_of_such_a_stage_opens_as_a_whole_model(tmp_path: Path) -> None:
    base = published(tmp_path)
    recipe = recipe_of(RECIPE)[:1]
    module = sighted(base)
    lora = {name: p.detach().clone() for name, p in module.parts()["partial_lora"].items()}
    run_recipe(module, recipe, tmp_path / "run", callbacks=[FreezeAudit()])
    saved = reading.read(manifest.find(tmp_path / "run"))
    assert set(saved.manifest["frozen"]) == {"language"}
    assert set(saved.manifest["frozen"]["language"]["digests"].values()) == {""}
    again = sighted(base)
    reading.load_weights(again, saved, family_of(again))
    fresh = sighted(base)
    fresh.load_pretrained()
    for loaded in (again, module):  # the trained model is whole at the end of the run
        for name, tensor in fresh.parts()["language"].items():
            assert torch.equal(loaded.parts()["language"][name], tensor)
    for name, tensor in lora.items():  # random weights that nothing has read are stored
        assert torch.equal(again.parts()["partial_lora"][name], tensor)


def test_random_weights_that_a_stage_does_not_read_are_the_same_after_it(tmp_path: Path) -> None:
    module = sighted()
    before = {name: digest(p) for name, p in module.named_parameters() if "language" in name}
    run_recipe(module, recipe_of(RECIPE)[:1], tmp_path, callbacks=[FreezeAudit()])
    assert {name: digest(p) for name, p in module.named_parameters() if "language" in name} == before
    stored = reading.read(manifest.find(tmp_path)).weights()
    assert {name: digest(tensor) for name, tensor in stored.items() if "language" in name} == before


def test_the_audit_finds_a_part_that_changed_though_no_objective_reads_it(tmp_path: Path) -> None:
    class Touch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: MultimodalModule, *_: object) -> None:
            with torch.no_grad():
                next(iter(pl_module.parts()["language"].values())).add_(1)

    with pytest.raises(RuntimeError, match="training changed the frozen part 'language'"):
        run_recipe(sighted(), recipe_of(RECIPE)[:1], tmp_path, callbacks=[FreezeAudit(), Touch()])


def test_a_stage_that_trains_what_its_objectives_do_not_read_is_refused_before_the_first(tmp_path: Path) -> None:
    recipe = recipe_of(RECIPE)
    recipe.append(Stage("blind", {"language": Train(lr=1e-3)}, max_steps=1, objectives={"sight": 1.0}))
    with pytest.raises(UserError, match=r"stages\.blind\.train names \['language'\], but none of the objectives"):
        run_recipe(sighted(), recipe, tmp_path)
    assert not manifest.published(tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unread")
    base = published(folder)
    launches = [Launch("unbroken", recipe="unread", base=base), Launch("random", recipe="unread")]
    for number, kill in enumerate(("align step 3", "align end", "finetune start", "finetune step 2")):
        for start in (base, ""):
            name = f"{kill}, {'published' if start else 'random'}"
            launches += [
                Launch(name, recipe="unread", base=start, kill=kill, workers=number % 2),
                Launch(name, recipe="unread", base=start),
            ]
    launch_all(launches, folder)
    return folder


@pytest.mark.parametrize("kill", ["align step 3", "align end", "finetune start", "finetune step 2"])
@pytest.mark.parametrize(("start", "unbroken"), [("published", "unbroken"), ("random", "random")])
def test_killed_runs_end_the_same_bit_for_bit(runs: Path, kill: str, start: str, unbroken: str) -> None:
    expected = reading.read(manifest.find(runs / unbroken)).weights()
    weights = reading.read(manifest.find(runs / f"{kill}, {start}")).weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
