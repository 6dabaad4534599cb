"""Configs and checkpoints of the previous version can be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_mm.checkpoints import manifest
from lit_mm.checkpoints.before import translate_config, translate_family, translate_path
from lit_mm.checkpoints.manifest import digest_file
from lit_mm.cli import main
from lit_mm.commands.trained import open_trained
from lit_mm.tiling import Hd
from tests.tiny import MODEL, PROMPT

PLAIN = {"class_path": "lit_mm.prompts.plain.Plain"}
CHAT = {"class_path": "lit_mm.prompts.llava.ChatPrompt"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("lit_mm.families.llava_1_5.Llava15", "lit_mm.families.Llava15"),
        ("lit_mm.families.Llava15", "lit_mm.families.Llava15"),
        ("lit_mm.strategies.ZeRO", "lit_mm.distributed.zero.ZeRO"),
        ("lit_mm.distributed.zero.ZeRO", "lit_mm.distributed.zero.ZeRO"),
        ("lit_mm.layout.in_order", "lit_mm.samples.layout.in_order"),
        ("lit_mm.data.sources.folder.Folder", "lit_mm.documents.sources.folder.Folder"),
        ("lit_mm.data.mixture.Joined", "lit_mm.stream.mixture.Joined"),
        ("data/lit_mm.data/images", "data/lit_mm.data/images"),
    ],
)
def test_paths_of_modules_that_have_moved_are_translated(before: str, after: str) -> None:
    assert translate_path(before) == after


def test_a_family_is_known_by_its_public_name() -> None:
    assert translate_family("lit_mm.families.xcomposer2_4khd.XComposer2HD") == "lit_mm.families.XComposer2HD"


def config(family: str, stages: tuple[str, ...] = ("pretrain",), **arguments: Any) -> dict[str, Any]:
    return {
        "model": {"class_path": f"lit_mm.families.{family}", "init_args": arguments},
        "stages": [{"name": name, "train": {}} for name in stages],
    }


def tiling(name: str, **sizes: Any) -> dict[str, Any]:
    return {"class_path": f"lit_mm.tiling.{name}", "init_args": sizes}


CASES = [  # family, its arguments before, its arguments today, inputs of the stage `pretrain`
    (
        "Llava15",
        {"image_size": 28, "inputs": {"aspect": "pad"}, "by_stage": {"pretrain": {"prompt": PLAIN, "aspect": "crop"}}},
        {
            "image_size": 28,
            "inputs": {
                "tiling": tiling("Pad", size=28),
                "layout": {"class_path": "lit_mm.samples.InOrder"},
                "prompt": CHAT,
                "fill": [122, 116, 104],
                "max_length": 2048,
            },
        },
        {"tiling": tiling("CentreCrop", size=28), "prompt": PLAIN},
    ),
    (
        "LlavaNext",
        {"rule": "hf", "inputs": {"aspect": "anyres"}, "by_stage": {"pretrain": {"aspect": "stretch"}}},
        {
            "inputs": {
                "tiling": tiling("AnyRes", tile=336, rule="hf"),
                "layout": {"class_path": "lit_mm.samples.BaseThenUnpaddedRows", "init_args": {"rule": "hf"}},
                "prompt": CHAT,
                "fill": [0, 0, 0],
                "max_length": 2048,
            },
        },
        {
            "tiling": tiling("Stretch", size=336),
            "layout": {"class_path": "lit_mm.samples.InOrder"},
            "fill": [122, 116, 104],
        },
    ),
    (
        "XComposer2HD",
        {
            "tile": 28,
            "prompt": PLAIN,
            "limits": {"max_tiles": 4, "by_source": {"dense": 9}},
            "by_stage": {"pretrain": {"max_tiles": 4}},
        },
        {
            "tile": 28,
            "inputs": {
                "tiling": tiling("Hd", max_tiles=4, tile=28),
                "by_source": {"dense": tiling("Hd", max_tiles=9, tile=28)},
                "max_length": 16384,
                "prompt": PLAIN,
            },
        },
        {"by_source": {}},
    ),
    (
        "Monkey",
        {"size": [56, 56], "window": 28, "max_length": 99, "by_stage": {"pretrain": "whole"}},
        {"size": [56, 56], "window": 28, "inputs": {"max_length": 99}},
        {"tiling": tiling("Whole", size=[56, 56], window=28)},
    ),
    (
        "Recombined",
        {
            "inputs": {
                "tiling": {"function": "lit_mm.tiling.anyres.plan_anyres", "arguments": {"tile": 28}},
                "layout": "lit_mm.layout.base_then_unpadded_rows",
                "fill": [0, 0, 0],
            },
            "injection": {
                "function": "lit_mm.language.partial_lora.apply_partial_lora",
                "arguments": {"rank": 2},
            },
            "by_stage": {
                "pretrain": {"tiling": {"function": "lit_mm.tiling.square.plan_pad", "arguments": {"size": 28}}}
            },
        },
        {
            "inputs": {
                "tiling": tiling("AnyRes", tile=28),
                "layout": {"class_path": "lit_mm.samples.BaseThenUnpaddedRows"},
                "prompt": CHAT,
                "fill": [0, 0, 0],
                "max_length": 4096,
            },
            "injection": {"class_path": "lit_mm.language.partial_lora.PartialLoRA", "init_args": {"rank": 2}},
        },
        {
            "tiling": tiling("Pad", size=28),
            "layout": {"class_path": "lit_mm.samples.InOrder"},
            "fill": [122, 116, 104],
        },
    ),
    (
        "XComposer2",
        {"prompt": PLAIN, "max_length": 64},
        {"inputs": {"prompt": PLAIN, "max_length": 64}},
        None,
    ),
]


@pytest.mark.parametrize(("family", "before", "after", "inputs"), CASES, ids=[case[0] for case in CASES])
def test_inputs_of_model_and_stages_are_translated(
    family: str, before: dict[str, Any], after: dict[str, Any], inputs: dict[str, Any] | None
) -> None:
    written = config(family, **before)
    translated = translate_config(written)
    assert translated["model"]["init_args"] == after
    assert translated["stages"][0].get("inputs") == inputs
    assert written == config(family, **before)  # not changed
    assert translate_config(translated) == translated


# --- a checkpoint of before ------------------------------------------------------------------------------------------
HD = {
    "class_path": "lit_mm.families.XComposer2HD",
    "init_args": {name: MODEL["init_args"][name] for name in ("vision", "language", "tokenizer", "rank")}
    | {"tile": 28},
}


def recipe(steps: int = 2) -> dict[str, Any]:
    inputs = MODEL["init_args"]["inputs"] | {"tiling": tiling("Hd", max_tiles=4, tile=28)}
    return {
        "model": {**HD, "init_args": HD["init_args"] | {"inputs": inputs}},
        "stages": [
            {
                "name": "read",
                "train": {"connector": {"lr": 1e-3}},
                "max_steps": steps,
                "inputs": {"tiling": tiling("Hd", max_tiles=2, tile=28)},
            }
        ],
        "data": {
            "class_path": "datamodules.nano.NanoDocuments",
            "init_args": {"documents": 8, "global_batch": 2, "window": 8, "num_workers": 0, "heldout_documents": 9},
        },
        "trainer": {"accelerator": "cpu", "precision": "32-true"},
        "examine_documents": 9,
        "checkpoint_every": 1,
        "track": False,
    }


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder with the config and manifests of the previous version, stopped at step 1 of 2."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe()))
    main(["fit", "--config", "tiny.yaml", "--run_dir", "run"])
    run = tmp_path / "run"
    first, last = manifest.published(run / "checkpoints")[-2:]
    for file in last.path.iterdir():
        file.unlink()
    last.path.rmdir()
    old = yaml.safe_load((run / "config.yaml").read_text())
    arguments = old["model"]["init_args"]
    arguments["prompt"] = arguments.pop("inputs")["prompt"]
    arguments |= {"limits": {"max_tiles": 4, "by_source": {}, "max_length": 16384}}
    arguments |= {"by_stage": {"read": {"max_tiles": 2, "by_source": {}, "max_length": 16384}}}
    for stage in old["stages"]:
        del stage["inputs"], stage["inputs_from"]
    old["model"]["class_path"] = "lit_mm.families.xcomposer2_4khd.XComposer2HD"
    text = yaml.safe_dump(old, sort_keys=False)
    (run / "config.yaml").write_text(text)
    (first.path / "config.yaml").write_text(text)
    content = json.loads((first.path / "manifest.json").read_text())
    content["family"] = "lit_mm.families.xcomposer2_4khd.XComposer2HD"
    content["files"]["config.yaml"] |= {"bytes": len(text), "blake2b": digest_file(first.path / "config.yaml")}
    del content["blake2b"]
    (first.path / "manifest.json").write_text(json.dumps(content | {"format": 1}))
    yield run
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


def test_a_checkpoint_of_before_is_asked_started_from_and_resumed(
    old_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, _ = open_trained(str(old_run))
    assert module.processor.tiling == Hd(4, 28) and module.processor.prompt == PROMPT
    assert main(["evaluate", str(old_run), "--documents", "9"]) in (0, None)
    assert main(["fit", "--config", "tiny.yaml", "--run_dir", "other", "--init_from", str(old_run)]) in (0, None)
    assert main(["fit", "--config", "tiny.yaml", "--run_dir", str(old_run)]) in (0, None)
    assert manifest.newest(old_run / "checkpoints").step == 2
    assert "inputs" in yaml.safe_load((old_run / "config.yaml").read_text())["model"]["init_args"]


def test_a_run_of_before_is_not_resumed_with_other_inputs(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = recipe()
    other["stages"][0]["inputs"]["tiling"] = tiling("Hd", max_tiles=3, tile=28)
    Path("other.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "other.yaml", "--run_dir", str(old_run)])
    assert "differs in stages.read.inputs.tiling.init_args.max_tiles" in capsys.readouterr().err


# --- recipes of before -----------------------------------------------------------------------------------------------
def test_a_recipe_of_before_is_refused_with_the_lines_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    old = recipe()
    inputs = old["model"]["init_args"].pop("inputs")
    del old["stages"][0]["inputs"]
    old["model"]["init_args"] |= {"prompt": inputs["prompt"], "limits": {"max_tiles": 4}}
    old["model"]["init_args"]["by_stage"] = {"read": {"max_tiles": 2}}
    Path("old.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(SystemExit, match="2"):
        main(["describe", "--config", "old.yaml"])
    message = capsys.readouterr().err
    assert (
        "`model.init_args.by_stage`, `model.init_args.limits`, `model.init_args.prompt` are written otherwise"
        in message
    )
    lines = yaml.safe_load(message.partition("their other keys:\n")[2])
    assert lines["model"]["init_args"]["inputs"] == inputs | {"by_source": {}, "max_length": 16384}
    assert lines["stages"] == [{"name": "read", "inputs": {"tiling": tiling("Hd", max_tiles=2, tile=28)}}]


def test_schedule_keys_of_before_are_refused_with_the_lines_to_write_and_these_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    old = recipe()
    old["stages"][0] |= {"schedule": "linear", "warmup": 0.25}
    Path("old.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(SystemExit, match="2"):
        main(["describe", "--config", "old.yaml"])
    message = capsys.readouterr().err
    assert "`stages.read.schedule`, `stages.read.warmup` are written otherwise" in message
    (stage,) = yaml.safe_load(message.partition("their other keys:\n")[2])["stages"]
    assert stage["schedule"]["class_path"] == "lit_mm.stages.Linear"
    del old["stages"][0]["warmup"]
    short = {"class_path": "Linear", "init_args": {"warmup": 0.25}}  # without its module
    for schedule in (stage["schedule"], short):
        old["stages"][0]["schedule"] = schedule
        Path("new.yaml").write_text(yaml.safe_dump(old))
        main(["describe", "--config", "new.yaml"])


def test_schedules_and_new_keys_of_stages_are_translated_and_todays_are_left_alone() -> None:
    stage = {"name": "a", "train": {"connector": {"lr": 0.1}}, "warmup": 0.03, "schedule": "linear", "floor": 0.1}
    (translated,) = translate_config({"stages": [stage]})["stages"]
    assert translated == {
        "name": "a",
        "train": {
            "connector": {"lr": 0.1, "decay_vectors": False, "adapter": None, "average": None, "optional": False}
        },
        "schedule": {"class_path": "lit_mm.stages.Linear", "init_args": {"warmup": 0.03, "start": 0.0, "floor": 0.1}},
        "noisy": [],
        "starts_from": None,
    }
    assert translate_config({"stages": [translated]}) == {"stages": [translated]}


def test_activation_checkpointing_of_parts_was_true_or_false() -> None:
    def of(vision: Any, language: Any) -> dict[str, Any]:
        parts = {"vision": vision, "language": language}
        return {"model": {"init_args": {p: {"init_args": {"activation_checkpointing": v}} for p, v in parts.items()}}}

    assert translate_config(of(True, False)) == of("full", "none") == translate_config(of("full", "none"))
