"""The command line: quick help, overrides, and selected stages."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_mm import cli
from lit_mm.cli import COMMANDS, main
from lit_mm.commands.options import RECIPE_OPTIONS, Arguments
from lit_mm.commands.recipe import RecipeCLI, experiment_name
from lit_mm.errors import UserError
from tests.tiny import MODEL

ROOT = Path(__file__).parents[1]
TINY = {
    "model": MODEL,
    "stages": [
        {"name": "pretrain", "train": {"connector": {"lr": "2e-3"}}, "max_steps": 2},
        {"name": "finetune", "train": {"connector": {"lr": 1e-3}}, "max_steps": 3, "data": {"kind": "captions"}},
    ],
    "data": {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": {"documents": 8, "global_batch": 2}},
    "trainer": {"accelerator": "cpu"},
}
HELP = """
import sys
from lit_mm.cli import main
try:
    main({arguments})
except SystemExit as left:
    assert not left.code, left.code
heavy = sorted({{"torch", "lightning", "transformers", "numpy", "jsonargparse"}} & sys.modules.keys())
assert not heavy, heavy
"""

MISTAKES = """
import sys
from lit_mm.cli import main
for arguments in {arguments}:
    try:
        main(arguments)
    except SystemExit as left:
        assert left.code == 2, left.code
heavy = sorted({{"torch", "lightning", "transformers", "numpy", "jsonargparse"}} & sys.modules.keys())
assert not heavy, heavy
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """File of the tiny recipe, in the working folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    return "tiny.yaml"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Output of a command that must succeed."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code
    return capsys.readouterr().out


# --- help ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["fit", "--help"], ["evaluate", "-h"], *([name, "--help"] for name in list(COMMANDS)[2:])],
)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(arguments=arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m lit_mm")


def test_a_missing_config_is_reported_without_torch() -> None:
    commands = [["fit"], ["describe"], ["tiles", "--size", "30x30"], ["data", "check"], ["generate", "--question", "?"]]
    arguments = [[*words, "--config", "absent.yaml"] for words in commands]
    done = subprocess.run(
        [sys.executable, "-c", MISTAKES.format(arguments=arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("there is no config file 'absent.yaml'") == len(commands)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help")
    for command in COMMANDS:
        assert f"\n  {command} " in text
        assert printed(capsys, command, "--help").startswith(f"usage: python -m lit_mm {command} ")


def test_help_of_fit_names_every_top_level_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "fit", "--help")
    for option in RECIPE_OPTIONS:
        assert f"  --{option.name} " in text
    assert max(map(len, text.splitlines())) <= 120


def test_help_about_a_class_lists_its_arguments(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data.init_args.row_tokens" in printed(capsys, "fit", "--data.help", "lit_mm.datamodules.NanoDocuments")
    assert "--model.init_args.rank" in printed(capsys, "fit", "--model.help", "lit_mm.families.XComposer2")
    assert "--stages.NAME.schedule" in printed(capsys, "fit", "--stages.help")
    assert "--trainer.max_time" in printed(capsys, "fit", "--trainer.help")


def test_the_resolved_config_can_be_printed_without_running_it(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(printed(capsys, "fit", "--config", recipe, "--print_config"))
    assert config["data"]["init_args"]["heldout_documents"] == 450
    assert not Path("runs").exists()


def test_a_command_that_only_looks_says_all_before_its_process_ends(recipe: str) -> None:
    words = [sys.executable, "-m", "lit_mm", "describe", "--config", recipe, "--format", "json"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [stage["name"] for stage in json.loads(done.stdout)["stages"]] == ["pretrain", "finetune"]


# --- overrides -------------------------------------------------------------------------------------------------------
def test_any_key_can_be_overridden_in_dotted_form(recipe: str) -> None:
    overrides = ["--data.init_args.global_batch", "4", "--model.init_args.rank=8", "--checkpoint_every", "7"]
    overrides += ["--trainer.max_time", "00:00:00:10", "--model.init_args.vision.init_args.width", "32"]
    cli = RecipeCLI(["--config", recipe, *overrides], "fit")
    assert cli.datamodule.global_batch == 4
    assert cli.model.network.vision.width == 32
    ranks = {name: p.shape[0] for name, p in cli.model.parts()["partial_lora"].items() if "lora_a" in name}
    assert set(ranks.values()) == {8}
    assert cli.config.checkpoint_every == 7
    assert cli.config.trainer.max_time == "00:00:00:10"


def test_a_later_config_overrides_an_earlier_one(recipe: str) -> None:
    Path("overlay.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"global_batch": 6}}}))
    cli = RecipeCLI(["--config", recipe, "--config", "overlay.yaml"], "fit")
    assert (cli.datamodule.global_batch, cli.datamodule.documents) == (6, 8)


def test_numbers_in_exponent_form_are_numbers(recipe: str) -> None:
    assert RecipeCLI(["--config", recipe], "fit").stages[0].train["connector"].lr == 2e-3


def test_options_are_not_abbreviated(recipe: str) -> None:
    parser = Arguments(prog="lit_mm x")
    parser.add_argument("--question")
    with pytest.raises(UserError, match=r"there is no option --quest\. Did you mean --question\?"):
        parser.parse_args(["--quest", "why"])
    with pytest.raises(UserError, match=r"there is no option --checkpoint_eve\. Did you mean --checkpoint_every\?"):
        RecipeCLI(["--config", recipe, "--checkpoint_eve", "3"], "fit")


def test_a_kept_config_makes_the_same_model_again(recipe: str) -> None:
    made = RecipeCLI(["--config", recipe, "--stages", "finetune"], "fit")
    kept = made.resolved()
    again = RecipeCLI(yaml.safe_load(kept), "evaluate")
    assert again.resolved() == kept
    assert again.stages == made.stages


def test_a_mistake_in_a_kept_config_names_where_it_is_kept(recipe: str) -> None:
    kept = yaml.safe_load(RecipeCLI(["--config", recipe], "fit").resolved())
    kept["model"]["init_args"]["rnak"] = 1
    with pytest.raises(UserError, match=r"^the config in 'x.ckpt': model\.init_args\.rnak: .*Did you mean 'rank'"):
        RecipeCLI(kept, "evaluate", "the config in 'x.ckpt'")


# --- stages ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "names"),
    [
        ([], ["pretrain", "finetune"]),
        (["--stages", "finetune"], ["finetune"]),
        (["--stages=pretrain"], ["pretrain"]),
        (["--stages", "finetune,pretrain"], ["pretrain", "finetune"]),  # the recipe's order
        (["--only", "[finetune]"], ["finetune"]),
        (["--stages.replace", "[{name: other, train: {connector: {lr: 1}}}]"], ["other"]),
    ],
)
def test_stages_are_picked_by_name_or_replaced(recipe: str, option: list[str], names: list[str]) -> None:
    assert [stage.name for stage in RecipeCLI(["--config", recipe, *option], "fit").stages] == names


def test_a_stage_changes_only_the_data_arguments_it_names(recipe: str) -> None:
    cli = RecipeCLI(["--config", recipe], "fit")
    pretrain, finetune = (cli.data_of(stage) for stage in cli.stages)
    assert (pretrain.kind, finetune.kind) == ("questions", "captions")
    assert pretrain.documents == finetune.documents == 8


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--config", "experiments/xcomposer2.yaml"], "xcomposer2"),
        (["--config=a/b.yaml", "--config", "c.yaml"], "b"),
        (["-c", "d.yml"], "d"),
        ([], "unnamed"),
    ],
)
def test_an_experiment_is_named_after_its_first_config(arguments: list[str], name: str) -> None:
    assert experiment_name(arguments) == name


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_or_a_read_only_one_ends_in_one_line(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code), "runs/tiny/metrics.csv")

    monkeypatch.setattr("lit_mm.cli._command", lambda arguments: fail)
    with pytest.raises(SystemExit) as left:
        main(["fit"])
    error = capsys.readouterr().err
    start = f"lit_mm: {os.strerror(code)} (runs/tiny/metrics.csv). Free some disk space"
    assert left.value.code == 2 and error.startswith(start)
    assert len(error.strip().splitlines()) == 1


def test_a_package_that_this_python_lacks_is_named_with_the_environment(monkeypatch, capsys):
    def fail(arguments):
        raise ModuleNotFoundError("No module named 'packaging'", name="packaging.version")

    monkeypatch.setattr(cli, "_command", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["describe"])
    assert stop.value.code == 2
    assert f"lit_mm: packaging is not installed for {sys.executable}; " in capsys.readouterr().err


def test_a_module_of_the_program_that_is_missing_is_a_bug(monkeypatch):
    def fail(arguments):
        raise ModuleNotFoundError("No module named 'lit_mm.gone'", name="lit_mm.gone")

    monkeypatch.setattr(cli, "_command", fail)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["describe"])


def test_a_reader_that_has_enough_ends_a_command_without_a_word() -> None:
    command = [sys.executable, "-m", "lit_mm", "recipes"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)
