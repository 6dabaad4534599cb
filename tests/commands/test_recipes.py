"""Recipes by name, and the product as it is installed from a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lit_mm.cli import main
from lit_mm.commands.config_text import read_config
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.commands.recipe_files import RECIPES, recipe_file, recipe_names
from lit_mm.commands.recipes import headline
from lit_mm.errors import UserError

ROOT = Path(__file__).parents[2]
TRAP = "raise SystemExit('a file of the user ran')\n"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_every_recipe_has_a_name_and_a_headline() -> None:
    files = {file.relative_to(ROOT / "experiments") for file in (ROOT / "experiments").rglob("*.yaml")}
    files = {file for file in files if file.parts[0] != "sweeps"}
    assert {Path(f"{name}.yaml") for name in recipe_names()} == files
    assert all(10 < len(headline(RECIPES / f"{name}.yaml")) < 200 for name in recipe_names())


def test_a_config_is_a_file_or_the_name_of_a_recipe() -> None:
    assert recipe_file("paper/llava") == RECIPES / "paper/llava.yaml"
    assert read_config("xcomposer2").keys["model"].keys["class_path"].value == "lit_mm.families.XComposer2"
    Path("xcomposer2").write_text("model: {class_path: mine.Model}")
    assert read_config("xcomposer2").keys["model"].keys["class_path"].value == "mine.Model"


def test_a_misspelt_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no config file .xcomposr2.\. Did you mean .xcomposer2.\?"):
        read_config("xcomposr2")


def test_a_recipe_is_copied_out_and_never_over_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    assert "\npaper/llava " in capsys.readouterr().out
    main(["recipes", "paper/llava"])
    assert Path("llava.yaml").read_text() == (ROOT / "experiments/paper/llava.yaml").read_text()
    assert "fit --config llava.yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["recipes", "llava", "--to", "llava.yaml"])
    assert end.value.code == 2
    assert "'llava.yaml' exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recipes", "llawa"])
    assert "there is no recipe 'llawa'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tops = ("lit_mm", "callbacks", "datamodules", "experiments", "pyproject.toml", "LICENSE", "README.md")
    for name in filter(None, tracked.split("\0")):
        if name.split("/")[0] in tops and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (source / name).symlink_to(os.readlink(ROOT / name))
            else:
                (source / name).write_bytes((ROOT / name).read_bytes())
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "."]
    subprocess.run([*words, str(source)], cwd=folder, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_all_modules_recipes_and_data_once(installed: Path) -> None:
    assert sorted(file.name for file in installed.iterdir() if not file.name.endswith(".dist-info")) == ["lit_mm"]
    for top in ("callbacks", "datamodules", "experiments"):
        files = {str(f.relative_to(ROOT / top)) for f in (ROOT / top).rglob("*") if f.suffix in (".py", ".yaml")}
        assert files <= {
            str(f.relative_to(installed / "lit_mm" / top)) for f in (installed / "lit_mm" / top).rglob("*")
        }
    for file in (ROOT / "lit_mm").rglob("*"):
        if file.suffix in (".json", ".safetensors", ".yaml", ".py"):
            assert (installed / file.relative_to(ROOT)).is_file(), file


@pytest.mark.parametrize(
    "program",
    [["-m", "lit_mm"], pytest.param(["-P", "-c", "from lit_mm.cli import run; run()"], marks=pytest.mark.slow)],
)
def test_from_a_wheel_a_recipe_trains_beside_files_of_the_user_with_the_same_names(
    installed: Path, program: list[str]
) -> None:
    for name in ("callbacks.py", "timm.py", "wandb.py", "difflib.py"):
        Path(name).write_text(TRAP)
    Path("datamodules").mkdir()
    Path("datamodules/__init__.py").write_text(TRAP)
    words = ["fit", "--config", "xcomposer2", "--trainer.fast_dev_run", "true", "--track", "false"]
    done = subprocess.run(
        [sys.executable, *program, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rehears" in done.stdout + done.stderr


def test_missing_data_are_named_before_the_model_is_made() -> None:
    words = ["--config", "own_data", "--data.path", "nowhere.json", "--data.format", "llava"]
    words += ["--model.init_args.language.init_args.heads", "7"]
    with pytest.raises(UserError, match=r"nowhere\.json"):
        RecipeCLI(words, "fit", data_first=True)
    with pytest.raises(UserError, match="`heads` must divide"):
        RecipeCLI(words, "fit")
