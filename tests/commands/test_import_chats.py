"""Imports with other language models than Llama, and the line that names the template of a chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from lit_mm.weights.convert import read_checkpoint
from tests import hub
from tests.commands.test_import import QUESTION, command, conversation  # noqa: F401  # `command` is a fixture


@pytest.mark.distributed
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


ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "line"),
    [
        (LlamaConfig(**hub.TEXT, rope_parameters=ROPE), "the template vicuna_v1, a guess, since nothing in its files"),
        (Qwen2Config(**hub.TEXT), "the template qwen_1_5, by its language model, a qwen2"),
    ],
)
def test_a_converted_checkpoint_with_another_decoder_gives_the_logits_of_transformers(
    command: Callable,  # noqa: F811
    tmp_path: Path,
    text: PretrainedConfig,
    line: str,
) -> None:
    code, output, error = command("import", hub.hf_llava(tmp_path / "hub", text=text), "--to", "run")
    assert code == 0 and line in output, error
    assert "against transformers' LlavaForConditionalGeneration" in output and "fit will refuse" not in output
    language = yaml.safe_load(Path("run/recipe.yaml").read_text())["model"]["init_args"]["language"]
    assert language["class_path"] == "lit_mm.language.pretrained.Pretrained"


def test_tokens_without_a_row_are_named(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder = hub.hf_llava(tmp_path / "hub")
    hub.special(folder, *(f"<more {number}>" for number in range(8)))
    code, output, error = command("import", folder, "--to", "run", "--proof_memory", "0")
    assert code == 0, error
    assert "fit will refuse this checkpoint: model.init_args: the tokenizer has 518 entries, but the language" in output


def test_the_user_chooses_another_template(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder, words = hub.hf_llava(tmp_path / "hub"), ("--to", "run", "--proof_memory", "0")
    code, _, error = command("import", folder, *words, "--template", "bird")
    assert code == 2 and "`template` is one of" in error and not Path("run").exists()
    code, _, error = command("import", hub.xcomposer2(tmp_path / "x"), *words, "--template", "mpt")
    assert code == 2 and "--template mpt: a checkpoint of xcomposer2/authors has only one prompt" in error
    code, output, error = command("import", folder, *words, "--template", "mpt")
    assert code == 0 and "prompt: ChatPrompt with the template mpt, as --template says\n" in output, error
    inputs = yaml.safe_load(Path("run/recipe.yaml").read_text())["model"]["init_args"]["inputs"]
    assert inputs["prompt"]["init_args"]["template"] == "mpt"
