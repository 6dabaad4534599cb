"""Stages are changed by name: on the command line, in a later config, and by the agent of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from lit_mm.cli import main
from lit_mm.commands.config_text import agent_form, config_of, flow, overrides, parsed, read_config
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.commands.stage_keys import merged_recipe
from lit_mm.errors import UserError
from tests.tiny import MODEL

BASE = {
    "stages": [
        {"name": "pretrain", "train": {"connector": {"lr": 1e-3}}, "max_steps": 5, "noisy": ["vision"]},
        {"name": "fine-tune", "train": {"connector": {"lr": 2e-3}}, "schedule": {"class_path": "lit_mm.stages.Linear"}},
    ]
}
RECIPE = {
    "model": MODEL,
    "stages": [
        {"name": "pretrain", "train": {"connector": {"lr": 1e-3}}, "max_steps": 2},
        {"name": "finetune", "train": {"connector": {"lr": 1e-3}}, "max_steps": 2, "data": {"kind": "captions"}},
    ],
    "data": {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": {"documents": 8, "global_batch": 2}},
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The recipe's file, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return "tiny.yaml"


def stages_after(*words: str) -> dict[str, dict[str, Any]]:
    """The stages of BASE by name after options of the command line."""
    entries = config_of(BASE, "base")
    for override in overrides(words):
        entries = merged_recipe(entries, override)
    return {stage["name"]: stage for stage in yaml.safe_load(flow(entries.keys["stages"]))}


@pytest.mark.parametrize(
    ("words", "stage", "key", "value"),
    [
        (["--stages.pretrain.max_steps", "2"], "pretrain", "max_steps", 2),
        (["--stages.fine-tune.max_steps=2"], "fine-tune", "max_steps", 2),
        (["--stages.*.max_steps", "3"], "pretrain", "max_steps", 3),
        (["--stages.*.max_steps", "3"], "fine-tune", "max_steps", 3),
        (["--stages.*.max_steps", "3", "--stages.pretrain.max_steps", "4"], "pretrain", "max_steps", 4),
        (["--stages.pretrain.train.connector.lr", "0.5"], "pretrain", "train", {"connector": {"lr": 0.5}}),
        (
            ["--stages.pretrain.train.vision.lr=1"],
            "pretrain",
            "train",
            {"connector": {"lr": 1e-3}, "vision": {"lr": 1}},
        ),
        (["--stages={'pretrain': {'max_steps': None}}"], "pretrain", "max_steps", None),
        (["--stages={pretrain: {max_steps: 7}}"], "pretrain", "max_steps", 7),
        (["--stages={}"], "pretrain", "max_steps", 5),
        (["--stages=[{name: pretrain, max_steps: 8}]"], "pretrain", "max_steps", 8),
        (["--stages.pretrain={'max_steps': 9}"], "pretrain", "max_steps", 9),
        (["--stages.pretrain.noisy+=language"], "pretrain", "noisy", ["vision", "language"]),
        (["--stages.pretrain.noisy=[language]"], "pretrain", "noisy", ["language"]),
        (
            ["--stages.fine-tune.schedule.warmup=0.5"],
            "fine-tune",
            "schedule",
            {"class_path": "lit_mm.stages.Linear", "init_args": {"warmup": 0.5}},
        ),
        (
            ["--stages.pretrain.schedule.init_args.warmup=0.5"],
            "pretrain",
            "schedule",
            {"class_path": "lit_mm.stages.schedule.Cosine", "init_args": {"warmup": 0.5}},
        ),
        (["--stages+={name: third, max_steps: 1}"], "third", "max_steps", 1),
        (["--stages.replace=[{name: only, max_steps: 1}]"], "only", "max_steps", 1),
    ],
)
def test_a_stage_is_changed_by_its_name(words: list[str], stage: str, key: str, value: Any) -> None:
    assert stages_after(*words)[stage][key] == value


def test_replaced_stages_leave_none_of_those_before() -> None:
    assert list(stages_after("--stages.replace=[{name: only}]")) == ["only"]
    assert list(stages_after("--stages+={name: third}")) == ["pretrain", "fine-tune", "third"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "--stages.max_steps=2",
            "stages.max_steps (on the command line): a key of a stage needs the name of its stage: "
            "`stages.pretrain.max_steps`, `stages.fine-tune.max_steps`, or `stages.*.max_steps` for all stages",
        ),
        ("--stages.train.connector.lr=2", "a key of a stage needs the name of its stage: `stages.pretrain.train`"),
        ("--stages.1.max_steps=2", "the recipe has no stage '1'. It has pretrain, fine-tune."),
        ("--stages.pretran.max_steps=2", "the recipe has no stage 'pretran'. Did you mean 'pretrain'?"),
        ("--stages={'other': {'max_steps': 2}}", "stages.other (on the command line): the recipe has no stage 'other'"),
        ("--stages=[{name: other}]", "`stages.replace` takes another list of stages"),
        ("--stages.pretrain=3", "expected keys of the stage, such as max_steps, got '3'"),
        (
            "--stages.pretrain.name=x",
            "stages.pretrain.name (on the command line): the name of a stage cannot be changed, got 'x'",
        ),
        ("--stages=[{name: pretrain}, {name: pretrain}]", "stage names must differ, got pretrain twice"),
        ("--stages={replace: [], pretrain: {}}", "expected a list of stages and no other key beside it"),
    ],
)
def test_a_key_that_reaches_no_stage_is_refused_with_the_names(word: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        stages_after(word)
    assert message in str(refusal.value)


def test_the_first_config_cannot_change_stages_by_name() -> None:
    with pytest.raises(UserError, match="the first config lists its stages"):
        merged_recipe(config_of({}, "a"), config_of({"stages": {"pretrain": {"max_steps": 1}}}, "b"))


@pytest.mark.parametrize(
    "value",
    [
        {"text": "3", "number": 3, "small": 1e-07, "none": None, "flag": True, "list": [1, "a: b", {"x": "y, z"}]},
        {
            "quotes": 'it\'s "so"',
            "lines": "a\nb",
            "empty": "",
            "date": "2020-01-01",
            "colon": "nano:vision",
            "sep": ":",
        },
        {7: {"lr": ".5"}, "yes": "no", "~": "~"},
    ],
)
def test_an_entry_written_as_yaml_is_read_as_the_same_value(value: dict[Any, Any]) -> None:
    loaded = yaml.safe_load(flow(config_of(value, "c")))
    assert loaded == {(key if isinstance(key, str) else int(key)): inner for key, inner in value.items()}


def test_the_values_of_a_file_are_read_as_its_author_wrote_them(tmp_path: Path) -> None:
    text = "a: &a {lr: 1e-3, name: '1e-3'}\nb: {<<: *a, name: x}\nc: !!str 5\nd: |\n  two\n  lines\n"
    (tmp_path / "c.yaml").write_text(text)
    assert yaml.safe_load(flow(read_config(str(tmp_path / "c.yaml")))) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("word", "form"),
    [
        ("--a.b=1", "--a.b=1"),
        ("--a=None", "--a=null"),
        ("--a={'b': None, 'c': [True, 1e-05, 'x']}", "--a={b: null, c: [true, 1.0e-05, x]}"),
        ("--a=['x', 'y: z']", '--a=[x, "y: z"]'),
        ("--a={b: None}", "--a={b: None}"),  # YAML: a text
        ("--a=Nonesuch", "--a=Nonesuch"),
        ("{'b': None}", "{b: null}"),
    ],
)
def test_python_text_of_a_sweeps_agent_is_read_as_python(word: str, form: str) -> None:
    assert agent_form(word) == form
    option, _, text = word.partition("=")
    if option == "--a":
        assert flow(parsed(text)) == form.partition("=")[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {path: '${HOME}/x'}", "c.yaml, line 1: data.path: a recipe expands no variables, got '${HOME}/x'"),
        ("data:\n  path: ${oc.env:HOME}", "c.yaml, line 2: data.path: a recipe expands no variables"),
        ("a: 1\nb: {c: 1,\n  c: 2}", "c.yaml, line 3: b.c: the key 'c' is also in line 2. Remove one of the two"),
        ("a: !env HOME", "c.yaml, line 1: a: YAML tags such as '!env' are not supported"),
        ("a: !!python/name:os.system ''", "are not supported. Write the value itself"),
        ("? [a]\n: 1", "c.yaml, line 1: : a key is a text or a number, got a sequence"),
    ],
)
def test_a_config_that_means_more_than_its_text_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as refusal:
        read_config(str(tmp_path / "c.yaml"))
    assert message in str(refusal.value)


def test_a_variable_on_the_command_line_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.path \(on the command line\): a recipe expands no variables"):
        list(overrides(["--data.path=${HOME}/x"]))


# --- through the parser ----------------------------------------------------------------------------------------------
def test_stages_merge_through_files_and_options_in_order(recipe: str) -> None:
    Path("second.yaml").write_text(
        "stages:\n  finetune: {clip: 2, train: {connector: {lr: 5e-3}}}\n  '*': {epochs: 3}\n"
    )
    Path("third.yaml").write_text("stages: [{name: finetune, max_steps: 9}]\n")
    words = ["--config", recipe, "--config", "second.yaml", "--config=third.yaml", "--stages.pretrain.clip", "0.5"]
    pretrain, finetune = RecipeCLI(words, "fit").stages
    assert (pretrain.max_steps, pretrain.clip, pretrain.epochs) == (2, 0.5, 3)
    assert (finetune.max_steps, finetune.clip, finetune.epochs) == (9, 2, 3)
    assert finetune.train["connector"].lr == 5e-3
    assert finetune.data == {"kind": "captions"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages:\n  - name: finetune\n    clip: -1", "second.yaml, line 3: stages.finetune.clip: the limit of the"),
        ("stages:\n  finetune:\n    betas: [1.0, 0.9]", "second.yaml, line 3: stages.finetune.betas: decay rates are"),
        ("stages:\n  finetune:\n    max_steps: 0", "second.yaml, line 2: stages.finetune: max_steps and epochs are"),
        (
            "stages:\n  finetune:\n    train: {connector: {lr: .nan}}",
            "second.yaml, line 3: stages.finetune.train.connector: a part learns with lr > 0",
        ),
        (
            "stages:\n  finetune:\n    train: {visoin: {lr: 1}}",
            "second.yaml, line 3: stages.finetune.train: stage 'finetune' trains unknown parts ['visoin']",
        ),
        ("stages:\n  finetune:\n    noisy: [connector]", "second.yaml, line 3: stages.finetune.noisy: `noisy` names"),
        (
            "stages:\n  finetune:\n    data: {skills: [reading]}",
            "second.yaml, line 3: stages.finetune.data: the nano world has no skills ['reading']",
        ),
        ("stages: {finetun: {clip: 1}}", "second.yaml, line 1: stages.finetun: the recipe has no stage 'finetun'"),
        ("stages: {replace: [{name: pre/train}]}", "second.yaml, line 1: stages.pre/train: the name of a stage has 1"),
        ("stages: {replace: [{name: replace}]}", "and is not 'replace', got 'replace'"),
        ("stages: {finetune: {schedule: {class_path: lit_mm.stages.Rising}}}", "stages.finetune.schedule"),
    ],
)
def test_an_error_inside_a_stage_names_file_line_and_stage(recipe: str, text: str, message: str) -> None:
    Path("second.yaml").write_text(text + "\n")
    with pytest.raises(UserError) as refusal:
        RecipeCLI(["--config", recipe, "--config", "second.yaml"], "fit").check_stages()
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: null", "second.yaml, line 1: trainer: expected keys of the Trainer, got null"),
        ("trainer: 3", "second.yaml, line 1: trainer: expected keys of the Trainer, got 3"),
        ("trainer: {devices: -1}", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        ("trainer: {fast_dev_run: -3}", "trainer.fast_dev_run: expected true, or a number of steps, got -3"),
        ("trainer: {callbacks: EarlyStopping}", "trainer.callbacks: EarlyStopping needs `monitor`. Add it"),
        (
            "stages: {pretrain: null}",
            "stages.pretrain: expected keys of the stage, such as max_steps, got None",
        ),
        ("stages: [{max_steps: 2}]", "stages.0: the recipe has no stage '0'. It has pretrain, finetune"),
        ("stages: {pretrain: {train: null}}", "stages.pretrain.train: lit_mm.stages.stage.Stage needs a value here"),
        ("stages: {pretrain: {max_steps: 1e2}}", "line 1: stages.pretrain.max_steps: expected a whole number"),
        (
            "data: {init_args: {documents: null}}",
            "lit_mm.datamodules.nano.NanoDocuments needs a value here, got null. Leave",
        ),
        ("data: {class_path: datamodules}", "data.class_path: there is no class datamodules. Give its import path"),
        ("model: {class_path: lit_mm.families}", "model.class_path: expected a class below lit_mm.module.Multimodal"),
        ("model: {class_path: null}", "model.class_path: there is no class null. Give its import path"),
        ("a: &a [*a]", "second.yaml: its aliases expand to more than 100,000 entries"),
        (
            "stages: {pretrain: {schedule: {class_path: Linear, init_args: {warmup: -1}}}}",
            "second.yaml, line 1: stages.pretrain.schedule: Linear: warmup is a share of the stage",
        ),
        (
            "stages: {pretrain: {inputs: {tiling: lit_mm.tiling.Pad}}}",
            "stages.pretrain.inputs.tiling: lit_mm.tiling.Pad needs `size`. Add it",
        ),
    ],
)
def test_a_value_of_a_strange_kind_ends_in_one_message(recipe: str, text: str, message: str) -> None:
    Path("second.yaml").write_text(text + "\n")
    with pytest.raises(UserError) as refusal:
        cli = RecipeCLI(["--config", recipe, "--config", "second.yaml"], "fit")
        cli.check_stages()
    assert message in str(refusal.value)


@pytest.mark.parametrize("word", ["--stages.", "--stages.pretrain", "--stages.pretrain.max_steps="])
def test_an_option_of_a_stage_without_a_value_is_refused(recipe: str, word: str) -> None:
    with pytest.raises(UserError, match=r"^--stages\..* needs a value$"):
        RecipeCLI(["--config", recipe, word, "--track=false"], "fit")


def test_aliases_that_double_at_each_level_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 2]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="its aliases expand to more than 100,000 entries"):
        read_config(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("levels", [70, 400, 1200])
def test_a_config_with_too_many_levels_is_refused(tmp_path: Path, levels: int) -> None:
    for text in (
        "[" * levels + "]" * levels,
        "{a: " * levels + "1" + "}" * levels,
        "{'a': " * levels + "1" + "}" * levels,
    ):
        (tmp_path / "c.yaml").write_text(f"a: {text}")
        with pytest.raises(UserError, match=r"nested too deeply\. A config has at most 64 levels"):
            read_config(str(tmp_path / "c.yaml"))
        with pytest.raises(UserError, match=r"nested too deeply\. A config has at most 64 levels"):
            parsed(text, ("stages",))


def test_a_time_with_colons_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 12:00:00:00")
    assert yaml.safe_load(flow(read_config(str(tmp_path / "c.yaml")))) == {"a": "12:00:00:00"}


# --- the agent of a sweep --------------------------------------------------------------------------------------------
LR, RANK = "stages.pretrain.train.connector.lr", "model.init_args.rank"


def nested(lr: float, rank: int) -> dict[str, Any]:
    """Nested parameters of a sweep, as the agent receives them."""
    stages = {"pretrain": {"train": {"connector": {"lr": lr}}, "max_steps": 1}, "finetune": {"max_steps": 1}}
    return {"stages": stages, "model": {"init_args": {"rank": rank}}, "trainer": {"max_time": None}}


def flat(lr: float, rank: int) -> dict[str, Any]:
    return {LR: lr, RANK: rank, "stages.*.max_steps": 1, "trainer.max_time": None}


@pytest.mark.distributed
@pytest.mark.parametrize("parameters", [flat, pytest.param(nested, marks=pytest.mark.slow)])
def test_a_grid_is_executed_with_the_arguments_that_the_agent_builds(
    recipe: str, monkeypatch: pytest.MonkeyPatch, parameters: Callable[[float, int], dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    configs = set()
    for number, (lr, rank) in enumerate([(1e-05, 2), (1e-05, 3), (0.02, 2), (0.02, 3)]):
        monkeypatch.setenv("WANDB_RUN_ID", f"run{number}")
        values = {key: {"value": value} for key, value in parameters(lr, rank).items()}
        words = create_sweep_command_args({"args": values})["args"]
        main(["fit", "--config", recipe, "--run_dir", f"run{number}", "--examine_documents=1", *words])
        config = yaml.safe_load(Path(f"run{number}/config.yaml").read_text())
        assert config["stages"][0]["train"]["connector"]["lr"] == lr
        assert config["model"]["init_args"]["rank"] == rank
        assert Path(f"run{number}/metrics.csv").read_text().count("\n") == 3
        configs.add((config["stages"][0]["train"]["connector"]["lr"], config["model"]["init_args"]["rank"]))
    assert len(configs) == 4
