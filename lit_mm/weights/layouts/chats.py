"""The chat template of a published checkpoint, by its tokenizer, its name and the kind of its language model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lit_mm.weights.files import read_json
from lit_mm.weights.layouts.layout import Config, Described
from lit_mm.weights.layouts.sizes import names_of, tokenizer

CHAT = "lit_mm.prompts.llava.ChatPrompt"
# Kind of chat -> template of `ChatPrompt` with which LLaVA's authors train it
LLAVA = {
    "vicuna": "vicuna_v1",
    "mistral": "mistral_instruct",
    "llama_2": "llava_llama_2",
    "llama_3": "llava_llama_3",
    "gemma": "gemma",
    "chatml": "chatml_direct",
    "qwen": "qwen_1_5",
}
VILA = LLAVA | {"llama_3": "vila_llama_3"}
MINI_GEMINI = LLAVA | {"mistral": "mixtral_instruct", "llama_3": "llama_3"}
MARKS = (  # (kind of chat, text of its chat template); the first that is found tells
    ("chatml", re.compile(r"<\|im_start\|>")),
    ("llama_3", re.compile(r"<\|start_header_id\|>")),
    ("gemma", re.compile("<start_of_turn>")),
    ("mistral", re.compile(r"\[INST\]")),
    ("vicuna", re.compile(r"USER|\bupper\b")),
)
TOKENS = (  # (kind of chat, special token, role in the tokenizer)
    ("chatml", "<|im_end|>", "eos_token"),
    ("llama_3", "<|eot_id|>", "eos_token"),
    ("llama_3", "<|begin_of_text|>", "bos_token"),
)
NAMES = (  # (kind of chat, part of the name of a checkpoint)
    ("llama_2", re.compile("llama-?2", re.I)),
    ("vicuna", re.compile("bakllava|vicuna", re.I)),
    ("chatml", re.compile("34b", re.I)),
)
KINDS = {"mistral": "mistral", "mixtral": "mistral", "gemma": "gemma", "qwen2": "qwen"}  # model_type -> kind of chat

FAMILIES = ("llava_", "mini_gemini_", "mgm_")  # in front of the kind of language model in a model_type
DECODERS = {"qwen": "qwen2"}  # kind of language model in a model_type of the authors -> in transformers


@dataclass(frozen=True)
class Chat:
    """The template of a chat.

    Attributes:
        template: name in `lit_mm.prompts.vicuna.TEMPLATES`.
        reason: words that say how it was found.
    """

    template: str
    reason: str


def language_kind(described: Described) -> str:
    """Return the model_type of the language model of a checkpoint of the authors, or of one of transformers."""
    config = described.config
    if "text_config" in config or "vision_config" in config:
        return (config.get("text_config") or {}).get("model_type", "llama")
    kind = str(config.get("model_type") or "llama")
    inner = next((kind.removeprefix(family) for family in FAMILIES if kind.startswith(family)), "llama")
    if inner == "llama" and "language" in described.parts:
        inner = described.parts["language"].config.get("model_type", "llama")
    return DECODERS.get(inner, inner)


def chat_arguments(described: Described, kind: str, templates: Mapping[str, str] = LLAVA) -> Config:
    """Return the arguments of `ChatPrompt`, see `chat_of`. A tokenizer without BOS gives `bos: false`.

    Raises:
        UserError: there is no tokenizer.
    """
    settings = read_json(Path(tokenizer(described)), "tokenizer_config.json")
    no_bos = {"bos": False} if settings.get("add_bos_token") is False else {}
    return {"template": chat_of(described, kind, templates).template, **no_bos}


def chat_of(described: Described, kind: str, templates: Mapping[str, str] = LLAVA) -> Chat:
    """Find the template of a chat.

    The name that the user gives comes first, then the chat template of the tokenizer, its special tokens, the name of
    the checkpoint and the kind of its language model.

    Args:
        described: files of the checkpoint.
        kind: model_type of the language model.
        templates: kind of chat -> name of the template that the family was trained with.
    Raises:
        UserError: there is no tokenizer.
    """
    if described.template is not None:
        return Chat(described.template, "as --template says")
    chat, reason = _kind_of_chat(described, kind)
    if chat == "mistral" and kind == "llama":
        chat = "llama_2"
    if chat == "chatml" and kind == "qwen2":
        chat = "qwen"
    return Chat(templates[chat], reason)


def _kind_of_chat(described: Described, kind: str) -> tuple[str, str]:
    """Return the kind of chat, and the words that say how it was found."""
    folder = Path(tokenizer(described))
    settings, tokens = (read_json(folder, name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    texts = [settings.get("chat_template"), read_json(folder, "chat_template.json").get("chat_template")]
    texts += [path.read_text(encoding="utf-8") for path in (folder / "chat_template.jinja",) if path.is_file()]
    texts = [str(text) for text in texts if text]
    for chat, mark in MARKS:
        if any(mark.search(text) for text in texts):
            return chat, "by its chat template"
    for chat, token, role in TOKENS:
        if token in str(settings.get(role) or tokens.get(role)):
            return chat, f"by its {role} {token}"
    for chat, name in NAMES:
        if match := next((match for text in names_of(described) if (match := name.search(text))), None):
            return chat, f"by {match[0]!r} in its name"
    if kind in KINDS:
        return KINDS[kind], f"by its language model, a {kind}"
    unknown = "its chat template is none of these" if texts else "nothing in its files names a chat"
    return "vicuna", f"a guess, since {unknown}"
