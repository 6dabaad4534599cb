"""Adapters that live for some stages of a recipe: training, resuming, merging, starting another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_mm.callbacks.freeze_audit import FreezeAudit
from lit_mm.checkpoints import manifest, reading
from lit_mm.errors import UserError
from lit_mm.families.xcomposer2 import XComposer2
from lit_mm.module import family_of
from lit_mm.stages import Constant
from lit_mm.stages.adapter import Adapter, After
from lit_mm.stages.stage import Stage, Train, adapters_of
from tests.tiny import language, run_recipe, xcomposer2

STEPS = 2
CONNECTOR = {"connector": Train(lr=1e-2)}


def recipe(after: After = "merge", type: str = "lora") -> list[Stage]:
    """Three stages: an adapter starts in the second, and ends or stays in the third."""
    adapter = Adapter(type=type, rank=2, dropout=0.1, after=after)
    tuned = CONNECTOR | {"language": Train(lr=1e-2, adapter=adapter)}
    rest = {"partial_lora": Train(lr=1e-2), "vision": Train(lr=1e-2)}
    kwargs = {"max_steps": STEPS, "schedule": Constant(0.0)}
    return [Stage("align", CONNECTOR, **kwargs), Stage("tune", tuned, **kwargs), Stage("rest", rest, **kwargs)]


def run(folder: Path, stages: list[Stage], weights: str | None = None, **options: object) -> XComposer2:
    module = xcomposer2()
    module.network.language.weights = weights
    run_recipe(module, stages, folder, callbacks=[FreezeAudit()], every=1, keep=10, **options)
    return module


def state(module: XComposer2) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("type", ["lora", "dora"])
@pytest.mark.parametrize("after", ["keep", "merge", "drop"])
def test_a_run_that_is_cut_off_anywhere_ends_as_the_unbroken_one(tmp_path: Path, after: After, type: str) -> None:
    stages = recipe(after, type)
    whole = state(run(tmp_path / "whole", stages))
    saved = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(saved) == 3 * STEPS
    for cut in range(1, len(saved)):
        folder = tmp_path / f"cut {cut}"
        for path in saved[:cut]:
            shutil.copytree(path, folder / "checkpoints" / path.name)
        resumed = state(run(folder, stages))
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items()), saved[cut - 1].name
    assert any("lora_A" in name for name in whole) == (after == "keep")


@pytest.mark.parametrize("after", ["keep", "merge"])
def test_a_published_base_is_stored_by_its_digest_until_an_adapter_is_merged_into_it(
    tmp_path: Path, after: After
) -> None:
    published = {name.removeprefix("lm."): tensor for name, tensor in language(seed=5).state_dict().items()}
    save_file(published, tmp_path / "llama.safetensors")
    weights = f"llama:{tmp_path / 'llama.safetensors'}"
    whole = state(run(tmp_path / "whole", recipe(after, "dora"), weights))
    saved = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    frozen = ["language" in reading.read(path).manifest["frozen"] for path in saved]
    assert frozen == [True] * 4 + [after == "keep"] * 2
    for cut in (STEPS, 2 * STEPS - 1, 2 * STEPS, 3 * STEPS - 1):
        folder = tmp_path / f"cut {cut}"
        for path in saved[:cut]:
            shutil.copytree(path, folder / "checkpoints" / path.name)
        resumed = state(run(folder, recipe(after, "dora"), weights))
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items()), saved[cut - 1].name


def test_the_adapter_is_a_part_of_its_own_and_its_base_stays_frozen(tmp_path: Path) -> None:
    before = state(xcomposer2())
    run(tmp_path, recipe("keep"))
    found = [reading.read(path) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert [bool(saved.manifest["adapters"]) for saved in found] == [False] * 2 + [True] * 4
    parts = found[-1].manifest["parts"]
    assert {"language", "language_adapter"} <= parts.keys()
    assert all("lora_A" in name or "lora_B" in name for name in parts["language_adapter"])
    weights = found[-1].weights()
    for name in parts["language"]:
        assert torch.equal(weights[name], before[name.replace(".base_layer.", ".").replace(".base.base", ".base")])


def test_a_checkpoint_with_an_adapter_opens_in_a_model_without_one(tmp_path: Path) -> None:
    trained = run(tmp_path, recipe("keep"))
    saved = reading.read(manifest.find(tmp_path))
    fresh = xcomposer2()
    reading.load_weights(fresh, saved, family_of(fresh))
    assert fresh.adapters == trained.adapters
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    plain = reading.read(sorted((tmp_path / "checkpoints").iterdir())[0])
    reading.load_weights(fresh, plain, family_of(fresh))
    assert not fresh.adapters and "language_adapter" not in fresh.parts()


def test_adapters_of_a_recipe_follow_the_branches_of_its_stages() -> None:
    tuned = {"language": Train(1e-3, adapter=Adapter(rank=2))}
    merged = {"language": Train(1e-3, adapter=Adapter(rank=2, after="merge"))}
    stages = [
        Stage("a", CONNECTOR),
        Stage("b", tuned),
        Stage("c", merged),
        Stage("d", CONNECTOR),
        Stage("e", CONNECTOR, starts_from="b"),
    ]
    present = adapters_of(stages)
    assert {name: list(adapters) for name, adapters in present.items()} == {
        "a": [],
        "b": ["language"],
        "c": ["language"],
        "d": [],
        "e": ["language"],
    }


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [
                Stage("a", {"language": Train(1e-3, adapter=Adapter(rank=2))}),
                Stage("b", {"language": Train(1e-3, adapter=Adapter(rank=4))}),
            ],
            r"stages\.b\.train\.language\.adapter differs from the adapter that 'a' leaves",
        ),
        (
            [Stage("a", {"language": Train(1e-3, adapter=Adapter(rank=2, after="merge"))})],
            r"stages\.a\.train\.language\.adapter\.after: no stage follows",
        ),
    ],
)
def test_adapters_that_do_not_go_together_are_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(UserError, match=message):
        xcomposer2().check_recipe(stages)


def test_a_part_inside_another_gets_no_adapter(tmp_path: Path) -> None:
    stages = [Stage("a", {"partial_lora": Train(1e-3, adapter=Adapter(rank=2))}, max_steps=1)]
    with pytest.raises(UserError, match="an adapter can be put on"):
        run(tmp_path, stages)
