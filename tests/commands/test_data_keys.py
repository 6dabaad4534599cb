"""A recipe whose data module changes: bare class names, and left-over keys of the class before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.errors import UserError
from tests.tiny import MODEL

GENERATED = {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": {"documents": 8, "global_batch": 2}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    return tmp_path


def parse(*words: str, data: dict[str, Any] = GENERATED, changes: dict[str, Any] | None = None) -> RecipeCLI:
    stage = {"name": "only", "train": {"connector": {"lr": 1e-3}}, "max_steps": 1, "data": changes or {}}
    Path("recipe.yaml").write_text(yaml.safe_dump({"model": MODEL, "stages": [stage], "data": data}, sort_keys=False))
    return RecipeCLI(["--config", "recipe.yaml", *words], "fit", build=False)


def test_a_data_module_may_be_named_without_its_package_and_keeps_the_arguments_it_has():
    corpora = ("--data.corpora", "[{name: a, format: llava, path: x.json}]")
    data = parse("--data", "Corpora", *corpora).config.data.as_dict()
    assert data["class_path"].endswith("Corpora")
    assert data["init_args"]["global_batch"] == 2
    assert data["init_args"]["corpora"][0]["path"] == "x.json"


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (("--data", "Conversations", "--data.path", "x.json"), GENERATED),
        ((), {"class_path": "lit_mm.datamodules.Conversations", "init_args": {"path": "x.json", "documents": 8}}),
    ],
    ids=["on the command line", "in the file"],
)
def test_keys_of_the_class_before_are_named_together_with_their_lines(words, data):
    with pytest.raises(UserError) as refusal:
        parse(*words, data=data, changes={"kind": "captions", "skills": ["form"]})
    message = str(refusal.value)
    keys = ["stages.only.data.kind", "stages.only.data.skills"]
    keys += [] if words else ["data.init_args.documents"]
    assert all(f": {key}" in message for key in keys)
    assert message.count("recipe.yaml, line ") == len(keys)
    assert "has these keys" in message and "Delete them, or start from own_data" in message
    assert "Conversations" in message.partition(",")[0]


def test_a_misspelt_key_is_still_answered_with_the_nearest():
    data = {"class_path": "lit_mm.datamodules.Conversations", "init_args": {"path": "x.json", "fromat": "llava"}}
    with pytest.raises(UserError, match="Did you mean 'format'"):
        parse(data=data)
