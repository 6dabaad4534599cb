"""A recipe names classes of the type that a key takes, from packages that are trusted; nothing else is imported."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.commands.signatures import ALLOW, resolve
from lit_mm.errors import UserError
from tests.tiny import MODEL

RECIPE: dict[str, Any] = {
    "model": MODEL,
    "stages": [{"name": "pretrain", "train": {"connector": {"lr": 1e-3}}, "max_steps": 2}],
    "data": {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": {"documents": 8, "global_batch": 2}},
    "trainer": {"accelerator": "cpu"},
}
HOOKS = {"class_path": "lightning.pytorch.callbacks.LambdaCallback"}
RUNS = {"class_path": "tests.commands.test_trusted.Never"}


class Never:
    """A class that no key takes and that must never be made."""

    def __init__(self, *_: object, **__: object) -> None:
        Path("MADE").write_text("")


def never(width: int, language_width: int) -> str:
    """A function that returns no connector."""
    Path("MADE").write_text("")
    return ""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ALLOW, "tests")


def changed_recipe(dotted: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(RECIPE)
    *inner, last = dotted.split(".")
    at: Any = config
    for key in inner:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    at[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.class_path",
            "subprocess.Popen",
            "'subprocess.Popen' cannot be imported: 'subprocess' is not an allowed package",
        ),
        ("model.init_args.vision", RUNS, "expected a subclass of torch.nn.modules.module.Module"),
        (
            "model.init_args.vision.class_path",
            "torch.hub.load",
            "expected a class below torch.nn.modules.module.Module",
        ),
        ("model.init_args.vision.class_path", "torch.utils.data.DataLoader", "expected a subclass of torch.nn.modules"),
        ("model.init_args.vision.class_path", "torch.nn", "expected a class below torch.nn.modules.module.Module"),
        (
            "model.init_args.connector",
            "os.system",
            "'os.system' cannot be imported: 'os' is not an allowed package (lit_mm",
        ),
        ("model.init_args.connector", "torch.hub.load", "expected a function of lit_mm, tests"),
        ("model.init_args.connector", {"class_path": "torch.utils.collect_env.run"}, "expected a function of lit_mm"),
        ("model.init_args.connector", "tests.commands.test_trusted.never", "that returns torch.nn.modules.module.Modu"),
        ("model.init_args.connector", RUNS, "expected a subclass of torch.nn.modules.module.Module"),
        ("data", {"class_path": "tests.commands.test_trusted.Never"}, "expected a subclass of lightning.pytorch.core"),
        ("trainer.callbacks", [RUNS], "expected a subclass of lightning.pytorch.callbacks.callback.Callback"),
        ("trainer.callbacks", [{"class_path": "pdb.Pdb"}], "'pdb.Pdb' cannot be imported"),
        (
            "trainer.callbacks",
            [HOOKS | {"init_args": {"on_fit_start": "torch.hub.load"}}],
            "expected a function of lit_mm",
        ),
        ("trainer.callbacks", [HOOKS | {"init_args": {"on_fit_start": "os.abort"}}], "'os.abort' cannot be imported"),
        ("trainer.strategy", RUNS, "expected a subclass of"),
        ("stages.0.schedule", RUNS, "expected a subclass of lit_mm.stages.schedule.Schedule"),
        ("stages.0.inputs", {"tiling": RUNS}, "expected a subclass of lit_mm.tiling.plan.Tiling"),
    ],
)
@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_what_a_key_does_not_take_is_refused_before_a_constructor_runs(
    key: str, value: Any, message: str, from_checkpoint: bool
) -> None:
    config = changed_recipe(key, value)
    Path("recipe.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError) as refusal:
        RecipeCLI(config if from_checkpoint else ["--config", "recipe.yaml"], "fit")
    assert message in str(refusal.value)
    assert not Path("MADE").exists()


def test_a_function_with_arguments_of_a_recipe_is_not_called() -> None:
    setup = {"setup": "open('MADE', 'w')", "number": 0}
    recipe = Path(__file__).parents[2] / "experiments/recombined.yaml"
    Path("more.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"injection": {"function": "timeit.timeit", "arguments": setup}}}})
    )
    with pytest.raises(UserError):
        RecipeCLI(["--config", str(recipe), "--config", "more.yaml"], "describe")
    Path("more.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"injection": {"class_path": "timeit.timeit", "init_args": setup}}}})
    )
    with pytest.raises(
        UserError, match=r"line \d+: model.init_args.injection.class_path: 'timeit.timeit' cannot be imported"
    ):
        RecipeCLI(["--config", str(recipe), "--config", "more.yaml"], "describe")
    assert not Path("MADE").exists()


def test_a_callable_of_this_framework_is_taken() -> None:
    hook = HOOKS | {"init_args": {"on_fit_start": "lit_mm.run.folder.peak_memory_mb"}}
    Path("recipe.yaml").write_text(yaml.safe_dump(changed_recipe("trainer.callbacks", [hook])))
    (callback,) = RecipeCLI(["--config", "recipe.yaml"], "fit").config_init.trainer.callbacks
    assert callback.on_fit_start() > 0


OWN = """
from lit_mm.datamodules import NanoDocuments

class Own(NanoDocuments):
    pass
"""


def test_a_users_own_class_is_allowed_by_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_corpora.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("recipe.yaml").write_text(yaml.safe_dump(changed_recipe("data.class_path", "my_corpora.Own")))
    with pytest.raises(UserError, match=r"recipe\.yaml, line 2: data\.class_path: .*add --allow my_corpora, or set"):
        RecipeCLI(["--config", "recipe.yaml"], "fit")
    cli = RecipeCLI(["--config", "recipe.yaml", "--allow", "my_corpora"], "fit")
    assert type(cli.datamodule).__name__ == "Own"
    assert os.environ[ALLOW] == "tests,my_corpora"
    with pytest.raises(UserError, match="--allow needs the name of a package"):
        RecipeCLI(["--config", "recipe.yaml", "--allow", "../x"], "fit")
    Path("more.yaml").write_text("allow: my_corpora\n")
    with pytest.raises(UserError, match="a recipe has no key 'allow'"):
        RecipeCLI(["--config", "recipe.yaml", "--config", "more.yaml"], "fit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:", "'broken_parts.one' cannot be imported: SyntaxError: "),
        ("raise RuntimeError('no\\nluck')", "'broken_parts.one' cannot be imported: RuntimeError: no"),
        ("1 / 0", "'broken_parts.one' cannot be imported: ZeroDivisionError: division by zero"),
        (
            "import not_installed_at_all",
            "'broken_parts.one' cannot be imported: No module named 'not_installed_at_all'",
        ),
        ("x = 1", "there is no 'broken_parts.one.Part'"),
    ],
)
def test_a_class_path_that_cannot_be_imported_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv(ALLOW, "broken_parts")
    for name in ("broken_parts", "broken_parts.one"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    Path("broken_parts").mkdir()
    Path("broken_parts/__init__.py").write_text("")
    Path("broken_parts/one.py").write_text(text)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with pytest.raises(UserError) as refusal:
        resolve("broken_parts.one.Part")
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
