"""Mistakes of a user end with exit code 2 and one to three lines that say what, where and what to do."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lit_mm.environment
from lit_mm.cli import main, message_of, mistake_of
from lit_mm.commands.config_text import COMMAND_LINE, Entry, config_of
from lit_mm.commands.evaluate import declared
from lit_mm.commands.mistakes import Problem, explain, locate
from lit_mm.commands.options import RECIPE_OPTIONS, nearest_option
from lit_mm.errors import UserError
from lit_mm.families import XComposer2
from tests.tiny import MODEL

Config = dict[str, Any]
Mistake = Callable[..., str]

STAGES = [
    {"name": "pretrain", "train": {"connector": {"lr": 1e-3}}, "max_steps": 2},
    {"name": "finetune", "train": {"connector": {"lr": 1e-3}}, "max_steps": 2, "data": {"kind": "captions"}},
]
NANO = {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": {"documents": 8, "global_batch": 2}}
RECIPE: Config = {"model": MODEL, "stages": STAGES, "data": NANO, "trainer": {"accelerator": "cpu"}, "track": False}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in a separate folder, and restore the settings that `fit` makes for the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a command that must end with a mistake of the user. Returns the message."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        message = capsys.readouterr().err
        assert left.value.code == 2, message
        assert message.startswith("lit_mm: ")
        assert "Traceback" not in message
        assert 1 <= len(message.strip().splitlines()) <= 3, message
        return message.removeprefix("lit_mm: ").strip()

    return run


def written(config: Config, name: str = "recipe.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(config, sort_keys=False))
    return name


def with_key(dotted: str, value: Any) -> Config:
    """The recipe with one key set; numbers in `dotted` are list indices."""
    config = copy.deepcopy(RECIPE)
    *inner, last = dotted.split(".")
    at: Any = config
    for key in inner:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[last] = value
    return config


def line_of(text: str, name: str = "recipe.yaml") -> int:
    """Number, from 1, of the only line of a file that contains `text`."""
    lines = [at for at, line in enumerate(Path(name).read_text().splitlines(), 1) if text in line]
    assert len(lines) == 1
    return lines[0]


# --- keys, values and classes of a config ----------------------------------------------------------------------------
VISION = "model.init_args.vision.init_args"


@pytest.mark.parametrize(
    ("dotted", "spoken", "owner", "nearest"),
    [
        ("modle", "modle", "a recipe", "model"),
        ("model.init_args.rnak", "model.init_args.rnak", "lit_mm.families.XComposer2", "rank"),
        (f"{VISION}.widht", f"{VISION}.widht", "lit_mm.vision.vit.ViT", "width"),
        (
            "model.init_args.inputs.prompt.init_args.turnstart",
            "model.init_args.inputs.prompt.init_args.turnstart",
            "lit_mm.prompts.xcomposer2.XComposer2Prompt",
            "turn_start",
        ),
        (
            "data.init_args.golbal_batch",
            "data.init_args.golbal_batch",
            "lit_mm.datamodules.nano.NanoDocuments",
            "global_batch",
        ),
        ("trainer.acelerator", "trainer.acelerator", "`trainer`", "accelerator"),
        ("stages.1.max_step", "stages.finetune.max_step", "lit_mm.stages.stage.Stage", "max_steps"),
        (
            "stages.1.train.connector.wieght_decay",
            "stages.finetune.train.connector.wieght_decay",
            "lit_mm.stages.stage.Train",
            "weight_decay",
        ),
        ("stages.1.data.knid", "stages.finetune.data.knid", "lit_mm.datamodules.nano.NanoDocuments", "kind"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(
    mistake: Mistake, dotted: str, spoken: str, owner: str, nearest: str
) -> None:
    message = mistake("fit", "--config", written(with_key(dotted, 1)))
    key = dotted.rpartition(".")[2]
    line = line_of(f"{key}: 1")
    assert message == f"recipe.yaml, line {line}: {spoken}: {owner} has no key {key!r}. Did you mean {nearest!r}?"
    assert not Path("runs").exists(), "no run folder is made before the config is known to be right"


def test_an_unknown_key_unlike_any_other_is_answered_with_all_keys(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key("stages.0.train.connector.zzz", 1)))
    keys = "lr, weight_decay, layer_decay, from_step, optimizer, decay_vectors, adapter, average, optional"
    assert message.splitlines()[1].strip() == f"It has {keys}"


def test_a_wrong_name_of_an_optional_part_leaves_no_added_part_frozen_in_silence(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key("stages.1.train.lora", {"lr": 1e-3, "optional": True})))
    place = f"recipe.yaml, line {line_of('lora:') - 3}: stages.finetune.train: the model has no parts ['lora']"
    assert message.startswith(place) and "added parts ['partial_lora'], which have no settings" in message


@pytest.mark.parametrize("command", [("fit",), ("data", "check")])
def test_a_tiling_of_an_unknown_source_is_refused(mistake: Mistake, command: tuple[str, ...]) -> None:
    tiling = {"class_path": "lit_mm.tiling.Pad", "init_args": {"size": 28}}
    message = mistake(*command, "--config", written(with_key("stages.1.inputs", {"by_source": {"dense": tiling}})))
    place = f"recipe.yaml, line {line_of('by_source')}: stages.finetune.inputs.by_source"
    assert message.startswith(f"{place}: the data have no source 'dense'. They have ")


@pytest.mark.parametrize(
    ("dotted", "value", "spoken", "expected"),
    [
        ("stages.1.train.connector.lr", "fast", "stages.finetune.train.connector.lr", "expected a number, got 'fast'"),
        ("model.init_args.rank", "eight", "model.init_args.rank", "expected a whole number, got 'eight'"),
        (f"{VISION}.width", "wide", f"{VISION}.width", "expected a whole number, got 'wide'"),
        ("data.init_args.global_batch", "many", "data.init_args.global_batch", "expected a whole number, got 'many'"),
        (
            "stages.0.schedule",
            "cosin",
            "stages.pretrain.schedule",
            "expected a `class_path` such as lit_mm.stages.schedule.Schedule's Constant, Cosine, EpochCosine, "
            "EpochDecay, GlobalCosine, Linear, got 'cosin'. Did you mean 'Cosine'?",
        ),
        (
            "stages.1.data.kind",
            "caption",
            "stages.finetune.data.kind",
            "expected one of 'captions', 'questions', 'mixed', 'text', got 'caption'. Did you mean 'captions'?",
        ),
        (
            "model.class_path",
            "lit_mm.families.XCompozer2",
            "model.class_path",
            "there is no 'lit_mm.families.XCompozer2'. Did you mean 'XComposer2'?",
        ),
        (
            "model.init_args.vision.class_path",
            "lit_mm.vision.vit.Vit",
            "model.init_args.vision.class_path",
            "there is no 'lit_mm.vision.vit.Vit'. Did you mean 'ViT'?",
        ),
        (
            "model.init_args.connector",
            "lit_mm.connectors.mlp.MLPProjectr",
            "model.init_args.connector",
            "there is no 'lit_mm.connectors.mlp.MLPProjectr'. Did you mean 'MLPProjector'?",
        ),
        (
            "data.class_path",
            "lit_mm.datamodules.nanno.NanoDocuments",
            "data.class_path",
            "there is no 'lit_mm.datamodules.nanno'. Did you mean 'nano'?",
        ),
        ("seed_everything", -1, "seed_everything", "a seed is from 0 to 4294967295, got -1"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_is_accepted(
    mistake: Mistake, dotted: str, value: str, spoken: str, expected: str
) -> None:
    message = mistake("fit", "--config", written(with_key(dotted, value)))
    assert message == f"recipe.yaml, line {line_of(f': {value}')}: {spoken}: {expected}"


def test_a_seed_that_every_launch_draws_anew_is_refused(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key("seed_everything", True)))
    assert message == (
        f"recipe.yaml, line {line_of(': true')}: seed_everything: true draws another seed at every launch, so a "
        "run could not be resumed. Write a number, such as 0"
    )


STOP = "there is no class EarlyStoping. Did you mean 'EarlyStopping'?"


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("trainer.callbacks", ["EarlyStoping"], f"trainer.callbacks.0: {STOP}"),
        ("trainer.callbacks", "EarlyStoping", f"trainer.callbacks: {STOP}"),
        ("trainer.callbacks", [{"class_path": "EarlyStoping"}], f"trainer.callbacks.0.class_path: {STOP}"),
        ("trainer.callbacks", [5], "trainer.callbacks.0: there is no class 5. Give its import path, such as package."),
        (
            "trainer.strategy",
            {"class_path": "lit_mm.distributed.zero.ZeRO", "init_args": {"stage": 7}},
            "trainer.strategy.class_path: ZeRO has the stages 1, 2 and 3, got 7",
        ),
        (
            "stages.0.train.connector",
            0.1,
            "stages.pretrain.train.connector: expected keys of lit_mm.stages.stage.Train, lr, weight_decay, ",
        ),
    ],
)
def test_a_value_in_place_of_a_class_or_its_keys_is_answered_with_what_belongs_there(
    mistake: Mistake, dotted: str, value: Any, message: str
) -> None:
    answer = mistake("fit", "--config", written(with_key(dotted, value)))
    assert answer.startswith("recipe.yaml, line ") and message in answer


@pytest.mark.parametrize(
    "words",
    [("generate", "runs/x", "--question"), ("compose", "runs/x", "--images", ".", "--out", "out", "--instruction")],
)
def test_a_question_in_another_encoding_is_refused(mistake: Mistake, words: tuple[str, ...]) -> None:
    assert f"argument {words[-1]}: expected text in UTF-8, got 'what\\udcff'" in mistake(*words, "what\udcff")


def test_a_precision_that_lightning_does_not_have_is_answered_with_those_it_has(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key("trainer.precision", "bf17")))
    assert "trainer.precision: expected one of " in message
    assert "'bf16-mixed'" in message and "got 'bf17'" in message


@pytest.mark.parametrize(
    ("dotted", "missing", "needs"),
    [
        ("stages.1.train.connector", {}, "stages.finetune.train.connector: lit_mm.stages.stage.Train needs `lr`"),
        (
            "data.init_args",
            {"init_arg": 1},
            "data.init_args.init_arg: lit_mm.datamodules.nano.NanoDocuments has no key",
        ),
    ],
)
def test_a_key_that_must_be_there_is_asked_for(mistake: Mistake, dotted: str, missing: Config, needs: str) -> None:
    assert needs in mistake("fit", "--config", written(with_key(dotted, missing)))


def test_a_part_without_its_required_argument_is_named(mistake: Mistake) -> None:
    config = copy.deepcopy(RECIPE)
    del config["model"]["init_args"]["tokenizer"]
    message = mistake("fit", "--config", written(config))
    assert message == "recipe.yaml, line 1: model: lit_mm.families.XComposer2 needs `tokenizer`. Add it"


def test_a_misspelt_init_args_is_corrected(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key("model.init_arg", {})))
    assert message.endswith("got 'init_arg'. Did you mean 'init_args'?")


def test_what_a_part_refuses_is_said_in_its_own_words(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key(f"{VISION}.heads", 3)))
    assert message == "ViT: `heads` must divide `width`, got width=16, heads=3"


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        (
            "data.class_path",
            "lit_mm.families.XComposer2",
            "data.class_path: expected a subclass of lightning.pytorch.core.datamodule.LightningDataModule, "
            "got lit_mm.families.XComposer2",
        ),
    ],
)
def test_a_class_of_another_kind_is_refused(mistake: Mistake, dotted: str, value: str, message: str) -> None:
    path = written(with_key(dotted, value))
    assert mistake("fit", "--config", path).partition(": ")[2] == message


@pytest.mark.parametrize(("content", "message"), [(b"{path: \xe9}", "is not YAML"), (b"- 1", r"got \[1\]")])
def test_a_declaration_of_data_that_is_no_mapping_in_utf8_is_refused(content: bytes, message: str) -> None:
    Path("asked.yaml").write_bytes(content)
    with pytest.raises(UserError, match=f"--data asked.yaml .*{message}"):
        declared("asked.yaml")


def test_a_data_module_that_plans_no_samples_is_refused(mistake: Mistake) -> None:
    data = {"class_path": "lightning.pytorch.LightningDataModule"}
    path = written(RECIPE | {"data": data, "stages": STAGES[:1]})
    assert "Extend lit_mm.stream.datamodule.StreamDataModule" in mistake("fit", "--config", path)


def test_a_key_that_is_in_a_file_twice_is_refused_with_both_lines(mistake: Mistake) -> None:
    text = yaml.safe_dump(RECIPE, sort_keys=False) + "data: {}\n"
    Path("recipe.yaml").write_text(text)
    message = mistake("fit", "--config", "recipe.yaml")
    first, second = (at for at, line in enumerate(text.splitlines(), 1) if line.startswith("data:"))
    assert message == (
        f"recipe.yaml, line {second}: data: the key 'data' is also in line {first}. Remove one of the two"
    )


def test_an_unknown_key_behind_a_class_of_another_file_is_named(mistake: Mistake) -> None:
    other = {"model": {"class_path": "lit_mm.families.Llava15", "init_args": {"rank": 3}}}
    message = mistake("fit", "--config", written(RECIPE), "--config", written(other, "other.yaml"))
    assert message.startswith("other.yaml, line 4: model.init_args.rank: lit_mm.families.Llava15 has no key 'rank'")


@pytest.mark.parametrize(
    "option",
    ["--model.init_args.rnak=8", "--model.rnak=8", "--model.init_args={rnak: 8}", "--model={init_args: {rnak: 8}}"],
)
def test_an_unknown_key_is_named_however_the_command_line_spells_it(mistake: Mistake, option: str) -> None:
    message = mistake("fit", "--config", written(RECIPE), option)
    assert message.startswith("model.") and message.endswith(
        "rnak (on the command line): lit_mm.families.XComposer2 has no key 'rnak'. Did you mean 'rank'?"
    )


# --- stages ----------------------------------------------------------------------------------------------------------
def test_a_stage_that_trains_an_unknown_part_is_refused_with_the_parts_there_are(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key("stages.1.train", {"visoin": {"lr": 1e-3}})))
    assert "stage 'finetune' trains unknown parts ['visoin']" in message
    assert "['connector', 'language', 'partial_lora', 'vision']" in message
    assert not Path("runs").exists()


def test_a_learning_rate_below_zero_names_its_stage_and_part(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key("stages.1.train.connector.lr", -1.0)))
    line = line_of("lr: -1.0") - 1
    assert message.startswith(f"recipe.yaml, line {line}: stages.finetune.train.connector: a part learns with lr > 0")


def test_what_the_data_module_refuses_of_a_later_stage_is_said_before_the_first_step(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(with_key("stages.1.data", {"skills": ["reading"]})))
    assert ": stages.finetune.data: the nano world has no skills ['reading']" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize("stages", [None, []])
def test_a_recipe_without_stages_is_refused(mistake: Mistake, stages: list | None) -> None:
    assert mistake("fit", "--config", written(with_key("stages", stages))).startswith("the recipe has no stages")


def test_choosing_a_stage_that_is_not_there_names_those_that_are(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(RECIPE), "--stages", "pretrain,polish")
    assert message == "--stages names ['polish']; the recipe has ['pretrain', 'finetune']"


def test_what_the_trainer_refuses_is_said_before_a_run_folder_is_made(mistake: Mistake) -> None:
    assert mistake("fit", "--config", written(with_key("trainer.strategy", "dpp"))).startswith("trainer: ")
    message = mistake("fit", "--config", written(RECIPE), "--trainer.max_time", "soon")
    assert message.startswith("trainer.max_time (on the command line): expected days:hours:minutes:seconds")
    assert not Path("runs").exists()


# --- the config file -------------------------------------------------------------------------------------------------
def test_a_missing_config_file_is_answered_with_the_nearest_name(mistake: Mistake) -> None:
    written(RECIPE, "xcomposer2.yaml")
    message = mistake("fit", "--config", "xcomposer.yaml")
    assert message == "there is no config file 'xcomposer.yaml'. Did you mean 'xcomposer2.yaml'?"


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        ("model: {a: [1\nb: }", "bad.yaml, line 2, column 2 is not YAML: "),
        ("model:\n\tclass_path: x", "bad.yaml, line 2, column 1 is not YAML: "),
        ("", "the config 'bad.yaml' holds nothing; "),
        ("hello", "the config 'bad.yaml' holds a scalar; "),
        ("- model", "the config 'bad.yaml' holds a sequence; "),
    ],
)
def test_a_config_that_is_not_a_yaml_mapping_is_refused(mistake: Mistake, text: str, said_of_it: str) -> None:
    Path("bad.yaml").write_text(text)
    assert mistake("fit", "--config", "bad.yaml").startswith(said_of_it)


def test_a_folder_or_a_binary_file_is_no_config(mistake: Mistake, tmp_path: Path) -> None:
    assert "is a folder" in mistake("fit", "--config", str(tmp_path))
    Path("picture.yaml").write_bytes(b"\x89PNG\xff\xfe\x00")
    assert mistake("fit", "--config", "picture.yaml").startswith("picture.yaml is not a YAML text: ")


def test_a_run_folder_or_a_sweep_in_place_of_a_recipe_is_answered_with_what_is_meant(mistake: Mistake) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump(RECIPE))
    assert mistake("fit", "--config", "run").endswith("needs a YAML file. That of this run is 'run/config.yaml'")
    Path("sweep.yaml").write_text("program: lit_mm\nmethod: grid\nparameters: {seed_everything: {values: [0]}}\n")
    assert mistake("fit", "--config", "sweep.yaml").endswith("python -m lit_mm sweep sweep.yaml runs it")
    assert mistake("sweep", "run/config.yaml").startswith("run/config.yaml: this is a recipe (it has the key `data`)")


def test_fit_without_a_config_says_how_to_give_one(mistake: Mistake) -> None:
    assert mistake("fit") == "no config was given. Add --config, such as: --config experiments/xcomposer2.yaml"
    assert mistake("fit", "--config") == "--config needs a value"
    assert mistake("fit", written(RECIPE)).endswith("a config is given by --config recipe.yaml")


def test_a_recipe_without_a_model_is_refused(mistake: Mistake) -> None:
    config = {key: value for key, value in RECIPE.items() if key != "model"}
    assert mistake("fit", "--config", written(config)).startswith("recipe.yaml: `model:` missing.")


def test_with_two_configs_the_file_that_holds_the_mistake_is_named(mistake: Mistake) -> None:
    overlay = written({"data": {"init_args": {"golbal_batch": 1}}}, "smoke.yaml")
    message = mistake("fit", "--config", written(RECIPE), "--config", overlay)
    assert message.startswith("smoke.yaml, line 3: data.init_args.golbal_batch: ")


# --- the command line ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ("--data.init_args.global_bach", "4"),
            "data.init_args.global_bach (on the command line): "
            "lit_mm.datamodules.nano.NanoDocuments has no key 'global_bach'. Did you mean 'global_batch'?",
        ),
        (
            ("--data.init_args.global_batch", "x"),
            "data.init_args.global_batch (on the command line): expected a whole number, got 'x'",
        ),
        ((f"--{VISION}.width=x",), f"{VISION}.width (on the command line): expected a whole number, got 'x'"),
        (
            ("--modl.init_args.rank", "8"),
            "there is no option --modl.init_args.rank. Did you mean --model.init_args.rank?",
        ),
        (("--trainer.max_tim", "1"), "there is no option --trainer.max_tim. Did you mean --trainer.max_time?"),
        (("--checkpoint", "4"), "there is no option --checkpoint. Did you mean --checkpoint_every?"),
        (("--image_size", "4"), "there is no option --image_size (see --help)"),
        (("--checkpoint_evry=4",), "there is no option --checkpoint_evry. Did you mean --checkpoint_every?"),
        (("--checkpoint_every", "x"), "checkpoint_every (on the command line): expected a whole number, got 'x'"),
        (("more",), "'more' is not expected on the command line; options start with --"),
    ],
)
def test_a_misspelt_override_is_told_from_a_mistake_in_the_file(
    mistake: Mistake, option: tuple[str, ...], message: str
) -> None:
    assert mistake("fit", "--config", written(RECIPE), *option) == message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--checkpoint", "--checkpoint_every"),  # by letters alone it is as near to --keep_checkpoints
        ("--checkpoints", "--keep_checkpoints"),
        ("--keep", "--keep_checkpoints"),
        ("--examine", "--examine_every"),
        ("--exam", "--examine_every"),
        ("--run_folder", "--run_dir"),
        ("--rundir", "--run_dir"),
        ("--timeout", "--step_timeout"),
        ("--max_steps", "--trainer.max_steps"),
        ("--modle", "--model"),  # the word it is, not the one in --trainer.inference_mode
        ("--trainer.progress_bar", "--trainer.enable_progress_bar"),
        ("--lr", None),
        ("--batch_size", None),
        ("--resume", None),
        ("--wandb", None),
        ("--", None),
        ("-x", None),
    ],
)
def test_an_option_is_corrected_by_its_words_and_not_at_all_where_none_is_near(typed: str, meant: str | None) -> None:
    trainer = ("max_epochs", "max_steps", "max_time", "inference_mode", "enable_progress_bar", "overfit_batches")
    options = ["-h", "--help", "--config", "--model", "--data", "--stages", *(f"--trainer.{name}" for name in trainer)]
    assert nearest_option(typed, [*options, *(f"--{option.name}" for option in RECIPE_OPTIONS)]) == meant


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("fti",), "there is no command 'fti'. Did you mean 'fit'?"),
        (("evalute", "runs/latest"), "there is no command 'evalute'. Did you mean 'evaluate'?"),
        (("zzz",), "there is no command 'zzz'. There are fit, evaluate, generate, compose, "),
        (("evaluate", "--docments", "3"), "there is no option --docments. Did you mean --documents?"),
        (("evaluate", "--documents", "few"), "argument --documents: invalid int value: 'few'"),
        (("evaluate", "--documents", "0"), "--documents is at least 1, got 0"),
        (("evaluate", "--format", "xml"), "argument --format: invalid choice: 'xml'"),
        (("generate", "--queston", "why?"), "the following arguments are required: --question"),
        (("generate", "--question", "why?", "--imge=x.png"), "there is no option --imge=x.png. Did you mean --image?"),
        (("generate", "--question", "why?", "--max_new_tokens", "0"), "--max_new_tokens is at least 1, got 0"),
        (("generate", "--question", "why?", "--image", "none.png"), "there is no image '"),
        (("generate", "nowhere", "--question", "why?"), "there is no checkpoint 'nowhere'"),
        (("evaluate", "."), "'.' holds no checkpoint. Is it a run folder, and has its run saved one yet?"),
        (("finetune",), "there is no command 'finetune': `fit` runs a recipe's stages"),
        (
            ("generate", "runs/a", "--question", "what", "is", "it?"),
            "'is' belongs to no option: a text of several words",
        ),
        (("generate", "runs/a", "--question", "why?", "--image", "."), "'.' is a folder and not an image. Name a file"),
    ],
)
def test_a_misspelt_command_or_option_is_corrected(mistake: Mistake, command: tuple[str, ...], message: str) -> None:
    assert mistake(*command).startswith(message)


def test_a_file_that_is_no_checkpoint_is_refused(mistake: Mistake) -> None:
    Path("x.ckpt").write_text("hello")
    assert "'x.ckpt' is a file, but a checkpoint is a folder" in mistake("evaluate", "x.ckpt")


def test_a_broken_pair_of_torch_and_torchvision_stops_every_command(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "2.15.0", "torchvision": "0.27.0"}
    monkeypatch.setattr(lit_mm.environment, "_installed", versions.get)
    monkeypatch.setattr(lit_mm.environment.metadata, "requires", lambda package: ["torch==2.13.0"])
    for command in ("fit", "evaluate", "generate"):
        message = mistake(command)
        assert "torch 2.15.0 and torchvision 0.27.0 do not work together" in message
        assert "pip install" in message


# --- data ------------------------------------------------------------------------------------------------------------
def conversations(*images: bytes | None) -> Config:
    """Write a recipe over one conversation per image file; None stands for a sound picture."""
    entries = []
    for number, content in enumerate(images):
        name = f"{number}.jpg"
        if content is None:
            Image.fromarray(np.full((20, 30, 3), number, np.uint8)).save(name)
        else:
            Path(name).write_bytes(content)
        turns = [{"from": "user", "value": "<ImageHere>what?"}, {"from": "assistant", "value": "grey"}]
        entries.append({"id": f"sample-{number}", "image": name, "conversations": turns})
    Path("data.json").write_text(json.dumps(entries))
    data = {
        "class_path": "lit_mm.datamodules.conversations.Conversations",
        "init_args": {"path": "data.json", "format": "xcomposer", "global_batch": 2, "num_workers": 1},
    }
    return {**RECIPE, "data": data, "stages": STAGES[:1]}


def truncated_jpeg() -> bytes:
    """A picture with a whole header and truncated pixels; only decoding shows the damage."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("whole.jpg")
    return Path("whole.jpg").read_bytes()[:2000]


def test_a_damaged_image_found_by_a_worker_is_told_without_the_workers_traceback(mistake: Mistake) -> None:
    damaged = truncated_jpeg()
    message = mistake("fit", "--config", written(conversations(damaged, damaged)))
    assert message.startswith("data.json:") and ".jpg' is damaged (" in message
    assert message.endswith("Replace the file, or leave it out")


def test_a_file_that_is_no_image_is_named(mistake: Mistake) -> None:
    message = mistake("fit", "--config", written(conversations(b"hello", b"hello")))
    assert ".jpg' is not an image that can be read" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "the data set is empty: 'data.json' holds no conversation"),
        ("", "the data set is empty: 'data.json' holds no conversation"),
        ("{", "'data.json' is not JSON"),
        ('{"a": 1}', "'data.json' holds dict, expected a list of conversations"),
        (None, "there is no data file 'data.json'"),
    ],
)
def test_an_empty_or_missing_data_set_is_told_before_a_run_folder_is_made(
    mistake: Mistake, content: str | None, message: str
) -> None:
    config = conversations(None, None)
    Path("data.json").unlink()
    if content is not None:
        Path("data.json").write_text(content)
    assert mistake("fit", "--config", written(config)).startswith(message)
    assert not Path("runs").exists()


def test_a_missing_file_of_a_later_stage_is_told_before_the_first_step(mistake: Mistake) -> None:
    config = conversations(None, None)
    config["stages"] = [STAGES[0], {**STAGES[1], "data": {"path": "later.json"}}]
    assert mistake("fit", "--config", written(config)).startswith("there is no data file 'later.json'")


# --- how a command ends ----------------------------------------------------------------------------------------------
def test_debug_shows_the_traceback_and_keeps_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", "none.yaml", "--debug"])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("Traceback")
    assert message.splitlines()[-1].startswith("lit_mm: there is no config file 'none.yaml'")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr(XComposer2, "training_step", broken)
    with pytest.raises(IndexError, match="a bug"):  # python prints it and exits with 1
        main(["fit", "--config", written(RECIPE)])


def test_ctrl_c_while_training_says_how_to_resume_and_does_not_look_like_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(XComposer2, "training_step", interrupted)
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", written(RECIPE), "--examine_documents", "3"])
    assert left.value.code == 130
    folder = Path("runs/latest").resolve().relative_to(Path.cwd())
    expected = f"python -m lit_mm fit --config recipe.yaml --examine_documents 3 --run_dir {folder}"
    assert capsys.readouterr().err.strip() == f"lit_mm: interrupted. To resume: {expected}"


def test_a_message_from_a_worker_loses_the_traceback_around_it() -> None:
    inside = "Traceback ...\nlit_mm.errors.UserError: first\nlit_mm.errors.UserError: x.png\n two"
    assert (
        message_of(UserError(f"Caught UserError in DataLoader worker process 0.\nOriginal {inside}")) == "x.png\n two"
    )
    assert message_of(UserError("plain")) == "plain"


def test_a_mistake_that_a_failing_cleanup_hides_is_found_again() -> None:
    hidden, bug = UserError("the data"), RuntimeError("Please call iter first")
    bug.__context__ = hidden
    assert mistake_of(bug) is hidden
    assert mistake_of(hidden) is hidden
    assert mistake_of(RuntimeError("alone")) is None


# --- the parser's messages, without the parser -----------------------------------------------------------------------
NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'lit_mm.families.XComposer2':
        Parser key "vision":
          Problem with given class_path 'lit_mm.vision.vit.ViT':
            Option 'widht' is not accepted
    - Expected a <class 'NoneType'>
  Given value: {'a': 1}"""


def test_the_deepest_complaint_of_a_nested_message_is_picked() -> None:
    problem = Problem.of(NESTED)
    assert problem.names == ("model", "vision")
    assert problem.complaint == "Option 'widht' is not accepted"


def test_a_key_is_found_in_the_item_of_a_list_that_has_it() -> None:
    config = config_of({"stages": [{"name": "a", "lr": 1}, {"name": "b", "lr": 2}, {"lr": 3}]}, "kept")
    assert locate(config, ("stages", "lr"), "2") == "kept: stages.b.lr"
    assert locate(config, ("stages", "lr"), "3") == "kept: stages.2.lr"
    assert locate(config, ("stages", "lr"), "4") == "stages.lr"


def test_a_complaint_that_is_not_known_keeps_its_first_lines() -> None:
    assert (
        explain('Parser key "data":\n  one\n  two\n  three\n  four', Entry({}, COMMAND_LINE), [])
        == "data: one\n  two\n  three"
    )


# --- published files -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["describe", "fit"])
def test_weights_of_another_model_are_refused_before_they_are_read(mistake: Mistake, command: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 32, "vocab_size": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
    Path("weights").mkdir()
    Path("weights/config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    recipe = with_key("model.init_args.language.init_args.weights", "llama:weights")
    recipe["model"]["init_args"]["language"]["init_args"]["rope_theta"] = 10000
    message = mistake(command, "--config", written(recipe))
    assert "'weights/config.json'" in message and "rope_theta is 500000.0 there and 10000.0 in the recipe" in message
    assert message.endswith("set model.init_args.language.init_args.rope_theta: 500000.0")
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["describe", "fit"])
def test_a_tokenizer_with_more_entries_than_embeddings_is_refused(mistake: Mistake, command: str) -> None:
    message = mistake(command, "--config", written(with_key("model.init_args.language.init_args.vocab_size", 500)))
    assert "the tokenizer has 509 entries, but the language model has embeddings for 500 (`vocab_size`)" in message
    assert len(message.splitlines()) == 1 and not Path("runs").exists()
