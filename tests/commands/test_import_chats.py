"""Imports with other language models than Llama, and the line that names the template of a chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lit_mm.weights.convert import read_checkpoint
from tests import hub
from tests.commands.test_import import QUESTION, command, conversation  # noqa: F401  # `command` is a fixture


@pytest.mark.parametrize(
    ("write", "line", "decoder"),
    [
        (hub.mini_gemini_2b, "ChatPrompt with the template gemma, by its language model, a gemma", "gemma"),
        pytest.param(
            hub.mini_gemini_8x7b,
            "the template mixtral_instruct, by its language model, a mixtral",
            "mixtral",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mini_gemini_with_another_decoder_is_imported_asked_and_exported(
    command: Callable,  # noqa: F811
    tmp_path: Path,
    write: Callable,
    line: str,
    decoder: str,
) -> None:
    folder, _ = write(tmp_path / "hub"), conversation(tmp_path)
    parts = {"vision": hub.clip, "second_vision": hub.convnext}
    words = [word for part, make in parts.items() for word in ("--with", f"{part}={make(tmp_path / part)}")]
    code, output, error = command("import", folder, "--to", "run", *words)
    assert code == 0 and line in output and "; --template NAME takes another one" in output, error
    arguments = yaml.safe_load(Path("run/recipe.yaml").read_text())["model"]["init_args"]
    assert arguments["language"]["init_args"]["config"]["model_type"] == decoder
    connector = arguments.get("connector", {"init_args": {}})
    assert connector["init_args"] == ({"scale_by_width": True} if decoder == "gemma" else {})
    code, _, error = command("generate", "run", "--image", "red.png", *QUESTION, "--accelerator", "cpu")
    assert code == 0, error
    code, _, error = command("export", "run", "--to", "same", "--format", "authors")
    assert code == 0, error
    published, exported = read_checkpoint(folder), read_checkpoint("same")
    assert published.keys() == exported.keys()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in published.items())


def test_the_user_chooses_another_template(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder, words = hub.hf_llava(tmp_path / "hub"), ("--to", "run", "--proof_memory", "0")
    code, _, error = command("import", folder, *words, "--template", "bird")
    assert code == 2 and "`template` is one of" in error and not Path("run").exists()
    code, _, error = command("import", hub.xcomposer2(tmp_path / "x"), *words, "--template", "mpt")
    assert code == 2 and "--template mpt: a checkpoint of xcomposer2/authors has a prompt without a choice" in error
    code, output, error = command("import", folder, *words, "--template", "mpt")
    assert code == 0 and "prompt: ChatPrompt with the template mpt, as --template says\n" in output, error
    inputs = yaml.safe_load(Path("run/recipe.yaml").read_text())["model"]["init_args"]["inputs"]
    assert inputs["prompt"]["init_args"]["template"] == "mpt"
