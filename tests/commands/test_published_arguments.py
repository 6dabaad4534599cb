"""Arguments that a recipe leaves out come from the config.json of the weights, and are in the config of the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_mm.commands.config_text import config_of, overrides, read_config
from lit_mm.commands.published_arguments import with_published_arguments
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.commands.signatures import merged

LLAMA = {
    **{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "intermediate_size": 32, "vocab_size": 512, "tie_word_embeddings": False},
    **{"rms_norm_eps": 1e-6, "rope_theta": 500000.0, "attention_bias": True},
}
SIZES = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32, "vocab_size": 512}
CLASS = "lit_mm.language.llama.Llama"
KEY = "model.init_args.language.init_args"


def recipe_of(folder: Path, **arguments: Any) -> dict[str, Any]:
    """The recipe of a decoder with weights beside a config.json."""
    (folder / "config.json").write_text(json.dumps(LLAMA))
    language = {"class_path": CLASS, "init_args": {"weights": f"llama:{folder}", **arguments}}
    return {
        "model": {"class_path": "lit_mm.families.Decoder", "init_args": {"language": language, "tokenizer": "nano"}},
        "stages": [{"name": "all", "train": {"language": {"lr": 1e-3}}, "max_steps": 1}],
        "data": {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": {"documents": 8}},
    }


@pytest.mark.parametrize(
    ("arguments", "words", "expected"),
    [
        (SIZES, (), {"rope_theta=500000.0", "norm_eps=1e-06", "attention_bias=true"}),
        (SIZES | {"rope_theta": 1e4, "norm_eps": None}, (), {"norm_eps=1e-06", "attention_bias=true"}),
        (SIZES | {"attention_bias": True}, ("--model.language.rope_theta=7",), {"norm_eps=1e-06"}),
        (SIZES, (f"--{KEY}.rope_theta=7", "--model.language.norm_eps=7"), {"attention_bias=true"}),
        (SIZES | {"weights": "llama:none"}, (), set()),
        (SIZES | {"weights": "none"}, (), set()),
        (SIZES | {"weights": None}, (), set()),
    ],
)
def test_what_a_recipe_leaves_out_is_completed(
    arguments: dict[str, Any], words: tuple[str, ...], expected: set[str], tmp_path: Path
) -> None:
    config = config_of(recipe_of(tmp_path, **arguments), "recipe")
    for option in overrides(words):
        config = merged(config, option)
    complete, options = with_published_arguments(config)
    assert set(options) == {f"--{KEY}.{option}" for option in expected}
    assert (complete == config) == (not expected)
    if expected:
        value = complete.keys["model"].keys["init_args"].keys["language"].keys["init_args"].keys["attention_bias"]
        assert value.value == "true"


def test_the_config_of_a_run_has_the_numbers_that_came_from_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_of(tmp_path)))  # no size is written
    cli = RecipeCLI(["--config", str(file)], "fit")
    assert cli.model.network.language.compare_config(LLAMA) == []
    resolved = yaml.safe_load(cli.resolved())
    numbers = resolved["model"]["init_args"]["language"]["init_args"]
    assert numbers.items() >= (SIZES | {"rope_theta": 5e5, "norm_eps": 1e-6, "attention_bias": True}).items()
    (tmp_path / "config.json").unlink()
    assert RecipeCLI(resolved, "fit", build=False).resolved() == cli.resolved()
    assert with_published_arguments(read_config(str(file)))[1] == []
