"""Every argument of Lightning's Trainer, and every callback, is honoured, means something or is refused."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch import callbacks
from lightning.pytorch.profilers import SimpleProfiler

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.commands.trainer_keys import ARGUMENTS, CALLBACKS, TrainerKey, document
from lit_mm.errors import UserError
from tests.commands.test_stage_keys import RECIPE

BASES = {"Callback", "Checkpoint", "ProgressBar", "BasePredictionWriter"}  # not callbacks that a recipe names
REFUSED = [key for key in ARGUMENTS if key.use == "refused"]
VALUES: dict[str, Any] = {  # argument -> a value that is not its default
    "accelerator": "cpu",
    "strategy": "ddp",
    "devices": 2,
    "num_nodes": 2,
    "precision": "bf16-mixed",
    "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelSummary", "init_args": {"max_depth": 3}}],
    "fast_dev_run": True,
    "max_time": "00:00:01:00",
    "enable_progress_bar": False,
    "enable_model_summary": True,
    "deterministic": "warn",
    "benchmark": True,
    "profiler": "simple",
    "detect_anomaly": True,
    "plugins": [{"class_path": "lightning.pytorch.plugins.environments.LightningEnvironment"}],
    "sync_batchnorm": True,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own; what a Trainer sets for the process is set back."""
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.backends.cudnn.benchmark = False


def cli(**trainer: Any) -> RecipeCLI:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"trainer": {"accelerator": "cpu"} | trainer}))
    return RecipeCLI(["--config", "recipe.yaml"], "fit")


def test_the_table_has_every_argument_and_callback_of_lightning_once() -> None:
    arguments = [name for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"]
    assert [key.name for key in ARGUMENTS] == arguments
    names = sorted(name for name, value in vars(callbacks).items() if inspect.isclass(value) and name not in BASES)
    assert [key.name for key in CALLBACKS] == names


def test_the_documentation_is_the_table() -> None:
    file = Path(__file__).parents[2] / "docs/trainer.md"
    assert file.read_text() == document(), f"write lit_mm.commands.trainer_keys.document() to {file.name}"


def test_what_the_table_refuses_names_a_key_that_exists() -> None:
    text = " ".join(key.text for key in (*ARGUMENTS, *CALLBACKS))
    for key in ("track", "examine_every", "examine_documents", "checkpoint_every", "keep_checkpoints", "run_dir"):
        assert f"`{key}`" in text


@pytest.mark.parametrize("key", REFUSED, ids=lambda key: key.name)
def test_a_refused_argument_names_the_key_that_does_the_job(key: TrainerKey) -> None:
    default = inspect.signature(L.Trainer.__init__).parameters[key.name].default
    values = {str: "x", bool: not default, int: 3, float: 3}
    value = values[type(default)] if default is not None else {"default_root_dir": "x"}.get(key.name, 3)
    value = {"logger": True, "enable_checkpointing": False}.get(key.name, value)
    with pytest.raises(UserError) as refusal:
        cli(**{key.name: value})
    expected = f"trainer.{key.name}: a recipe does not take this key. {key.text}"
    assert str(refusal.value).startswith("recipe.yaml, line ") and str(refusal.value).endswith(expected)
    cli(**{key.name: default})  # a resolved config has the defaults


@pytest.mark.parametrize("key", [key for key in CALLBACKS if key.use == "refused"], ids=lambda key: key.name)
def test_a_refused_callback_names_what_does_the_job(key: TrainerKey) -> None:
    with pytest.raises(UserError) as refusal:
        cli(callbacks=[{"class_path": f"lightning.pytorch.callbacks.{key.name}"}])
    assert str(refusal.value).endswith(f": a recipe does not take {key.name}. {key.text}")
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.raises(UserError, match=f"does not take {key.name}"):
        RecipeCLI(["--config", "recipe.yaml", f"--trainer.callbacks+={key.name}"], "fit")


@pytest.mark.parametrize("name", [key.name for key in ARGUMENTS if key.use != "refused"])
def test_an_argument_that_is_taken_reaches_the_trainer_or_the_run(name: str) -> None:
    recipe = cli(**{name: VALUES[name]}, **({"strategy": "ddp"} if name == "sync_batchnorm" else {}))
    trainer = recipe.trainer_of([], [])
    reached = {
        "accelerator": lambda: type(trainer.accelerator).__name__ == "CPUAccelerator",
        "strategy": lambda: type(trainer.strategy).__name__ == "DDP",
        "devices": lambda: trainer.num_devices == 2,
        "num_nodes": lambda: trainer.num_nodes == 2,
        "precision": lambda: trainer.precision == "bf16-mixed",
        "callbacks": lambda: any(getattr(c, "_max_depth", 0) == 3 for c in trainer.callbacks),
        "enable_model_summary": lambda: any(isinstance(c, callbacks.ModelSummary) for c in trainer.callbacks),
        "enable_progress_bar": lambda: trainer.progress_bar_callback is None,
        "deterministic": torch.is_deterministic_algorithms_warn_only_enabled,
        "benchmark": lambda: torch.backends.cudnn.benchmark,
        "profiler": lambda: isinstance(trainer.profiler, SimpleProfiler),
        "detect_anomaly": lambda: trainer._detect_anomaly,
        "plugins": lambda: type(trainer._accelerator_connector.cluster_environment).__name__ == "LightningEnvironment",
        "sync_batchnorm": lambda: trainer.strategy._layer_sync is not None,
        "max_time": lambda: (
            recipe.time_limit == 60 and not any(isinstance(c, callbacks.Timer) for c in trainer.callbacks)
        ),
        "fast_dev_run": lambda: recipe.rehearsal and not trainer.fast_dev_run,
    }
    assert reached[name]()


def test_each_stage_has_fresh_callbacks() -> None:
    recipe = cli(
        callbacks=[{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "loss"}}]
    )
    first, second = (
        next(c for c in recipe.trainer_of([], []).callbacks if isinstance(c, callbacks.EarlyStopping)) for _ in range(2)
    )
    assert first is not second


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "transformer-engine"])
def test_a_precision_in_which_nothing_trains_is_refused(precision: str) -> None:
    with pytest.raises(UserError, match=r"^trainer(\.precision)?: "):
        cli(precision=precision).trainer_of([], [])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("00:00:01:00", 60),
        ("01:00:00:01", 86401),
        ({"minutes": 2}, 120),
        ({"hours": 1, "seconds": 1}, 3601),
        (None, None),
    ],
)
def test_a_time_limit_is_read_as_lightning_reads_it(value: Any, seconds: float | None) -> None:
    assert cli(max_time=value).time_limit == seconds


@pytest.mark.parametrize("value", ["soon", "1:00", "00:00:00:00", {"minutes": -1}])
def test_a_time_limit_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"^recipe\.yaml, line \d+: trainer\.max_time: "):
        cli(max_time=value)
