"""The chat template of an import is the one that the authors' programs choose for its name, config and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lit_mm.commands.published import described
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.vicuna import TEMPLATES
from lit_mm.weights.layouts.chats import LLAVA, MINI_GEMINI, chat_of, language_kind
from lit_mm.weights.layouts.layout import Described, layout_of
from lit_mm.weights.layouts.vila import templates
from tests import hub

UPPER = "{{ message['role'].upper() + ': ' }}"  # of converted LLaVA-1.5
LLAMA_3 = "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>' }}"
CASES = [  # published name, config.json, tokenizer_config.json, template
    ("llava-v1.5-7b", {"model_type": "llava"}, {}, "vicuna_v1"),
    ("llava-v1.5-13b-lora", {"model_type": "llava", "_name_or_path": "lmsys/vicuna-13b-v1.5"}, {}, "vicuna_v1"),
    ("llava-v1.6-mistral-7b", {"model_type": "llava_mistral"}, {"chat_template": "'[INST] '"}, "mistral_instruct"),
    ("llava-v1.6-mistral-7b", {"model_type": "llava_mistral"}, {}, "mistral_instruct"),
    ("llava-v1.6-34b", {"model_type": "llava"}, {"eos_token": "<|im_end|>"}, "chatml_direct"),
    ("llava-v1.6-34b", {"model_type": "llava_llama"}, {}, "chatml_direct"),
    ("llava-llama-2-13b-chat-lightning-preview", {"model_type": "llava"}, {}, "llava_llama_2"),
    ("tuned", {"model_type": "llava"}, {"chat_template": "'[INST] <<SYS>>'"}, "llava_llama_2"),
    ("llama3-llava-next-8b", {"model_type": "llava_llama"}, {"bos_token": "<|begin_of_text|>"}, "llava_llama_3"),
    ("llava-next-72b", {"model_type": "llava_qwen"}, {"eos_token": {"content": "<|im_end|>"}}, "qwen_1_5"),
    ("BakLLaVA-1", {"model_type": "llava_mistral"}, {}, "vicuna_v1"),
    ("llava-1.5-7b-hf", {"text_config": {"model_type": "llama"}}, {"chat_template": UPPER}, "vicuna_v1"),
    ("bakLlava-v1-hf", {"text_config": {"model_type": "mistral"}}, {"chat_template": UPPER}, "vicuna_v1"),
    (
        "llava-v1.6-mistral-7b-hf",
        {"text_config": {"model_type": "mistral"}},
        {"chat_template": "[INST]"},
        "mistral_instruct",
    ),
    ("llama3-llava-next-8b-hf", {"text_config": {}}, {"chat_template": LLAMA_3}, "llava_llama_3"),
    ("llava-next-72b-hf", {"text_config": {"model_type": "qwen2"}}, {"chat_template": "<|im_start|>"}, "qwen_1_5"),
    ("MGM-7B", {"model_type": "mgm", "_name_or_path": "model_zoo/LLM/vicuna/7B-V1.5"}, {}, "vicuna_v1"),
    ("MGM-2B", {"model_type": "mgm_gemma"}, {}, "gemma"),
    ("MGM-8B-HD", {"model_type": "mgm"}, {"chat_template": LLAMA_3, "bos_token": "<|begin_of_text|>"}, "llama_3"),
    ("MGM-8x7B", {"model_type": "mgm_mixtral"}, {"chat_template": "[INST]"}, "mixtral_instruct"),
    ("MGM-34B", {"model_type": "mini_gemini"}, {"chat_template": "<|im_start|>"}, "chatml_direct"),
]


def checkpoint(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any]) -> Described:
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").touch()
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return Described(folder, config, {})


@pytest.mark.parametrize(("name", "config", "tokenizer", "template"), CASES)
def test_the_template_is_that_of_the_authors(
    name: str, config: dict[str, Any], tokenizer: dict[str, Any], template: str, tmp_path: Path
) -> None:
    cached = tmp_path / f"models--owner--{name}" / "snapshots" / "12f34b5"  # a hash is no size
    for place in (tmp_path / name, cached):
        main = checkpoint(place, config, tokenizer)
        chat = chat_of(main, language_kind(main), MINI_GEMINI if name.startswith("MGM") else LLAVA)
        assert chat.template == template in TEMPLATES, chat.reason


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        ({}, "a guess, since nothing in its files names a chat"),
        ({"chat_template": "'<|user|>'"}, "a guess, since its chat template is none of these"),
        ({"chat_template": UPPER}, "by its chat template"),
        ({"eos_token": "<|im_end|>"}, "by its eos_token <|im_end|>"),
    ],
)
def test_a_doubtful_template_is_called_a_guess(tokenizer: dict[str, Any], reason: str, tmp_path: Path) -> None:
    main = checkpoint(tmp_path / "tuned", {"model_type": "llava"}, tokenizer)
    assert chat_of(main, "llama").reason == reason


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("mixtral_instruct", "[INST] Q1 [/INST] A1 </s><s>[INST] Q2 [/INST]"),
        (
            "qwen_1_5",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
            "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llava_llama_3",
            "<|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "Q1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nQ2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "vila_1_5_llama_3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\ns<|end_of_text|><|start_header_id|>user"
            "<|end_header_id|>\n\nQ1<|end_of_text|><|start_header_id|>system<|end_header_id|>\n\nA1<|end_of_text|>"
            "<|start_header_id|>user<|end_header_id|>\n\nQ2<|end_of_text|><|start_header_id|>system<|end_header_id|>"
            "\n\n",
        ),
        (
            "vila_llama_3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nQ1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
            "\n\n",
        ),
    ],
)
def test_two_rounds_have_the_text_of_the_release(template: str, text: str) -> None:
    turns = [Turn("user", ("Q1",)), Turn("assistant", ("A1",)), Turn("user", ("Q2",))]
    if "llama_3" in template:
        turns.insert(0, Turn("system", ("s",)))
    assert ChatPrompt(template).text(Document("a", tuple(turns)))[0] == text


def compiled(text: str) -> Any:
    """Compile a chat template with the options of transformers."""
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)


def test_the_answer_that_ends_a_chat_has_a_marker_of_its_own() -> None:
    turns = [
        Turn(role, (text,)) for role, text in zip(("user", "assistant") * 2, ("Q1", "A1", "Q2", "A2"), strict=True)
    ]
    prompt = ChatPrompt("vila_llama_3")
    text, spans = prompt.text(Document("a", tuple(turns)))
    assert [text[start:end] for start, end in spans] == ["A1<|eot_id|>", "A2<|end_of_text|>"]
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    assert compiled(prompt.jinja()).render(messages=messages) == text
    with pytest.raises(UserError, match=r"contains the marker '<\|end_of_text\|>'"):
        prompt.text(Document("a", (*turns, Turn("user", ("Q3 <|end_of_text|>",)))))


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("Llama-3-VILA1.5-8b", "vila_1_5_llama_3"),
        ("Llama-3-VILA1.5-8B", "vila_1_5_llama_3"),
        ("Llama-3-VILA1.5-8b-Fix", "vila_llama_3"),
        ("my-vila", "vila_llama_3"),
    ],
)
def test_a_vila_with_llama_3_has_the_template_of_its_release(name: str, template: str, tmp_path: Path) -> None:
    main = checkpoint(tmp_path / name, {"model_type": "llava_llama"}, {"bos_token": "<|begin_of_text|>"})
    assert chat_of(main, "llama", templates(main)).template == template in TEMPLATES


def prompt_of(main: Described) -> tuple[str, str | None]:
    """Return the class and the template of the prompt that an import chooses."""
    section = layout_of(main).model(main)["init_args"]["inputs"]["prompt"]
    return section["class_path"].rpartition(".")[2], section.get("init_args", {}).get("template")


@pytest.mark.parametrize(
    ("name", "generation", "prompt"),
    [
        ("Qwen-VL", {"chat_format": "raw"}, "QwenPlain"),
        ("Qwen-VL-Chat", {"chat_format": "chatml"}, "QwenChat"),
        ("Qwen-VL-Chat", {}, "QwenChat"),
        ("tuned", {}, "QwenPlain"),
    ],
)
def test_qwen_vl_chats_if_its_generation_config_or_its_name_says_so(
    name: str, generation: dict[str, Any], prompt: str, tmp_path: Path
) -> None:
    folder = hub.qwen_vl(tmp_path / name)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert prompt_of(described(folder)[0]) == (prompt, None)


@pytest.mark.parametrize(
    ("write", "version", "template"),
    [
        (hub.cogvlm, "chat", "chat_old"),  # the release writes Question: and Answer:
        (hub.cogvlm, "vqa", "vqa"),
        (hub.cogagent, "chat", "chat"),
        (hub.cogagent, "chat_old", "chat_old"),
    ],
)
def test_cogvlm_and_cogagent_read_the_version_of_their_config(
    write: Callable[[Path], Path], version: str, template: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "hub")
    hub.tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"template_version": version}))
    assert prompt_of(described(folder)[0]) == ("CogVLMPrompt", template)
