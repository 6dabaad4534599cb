"""Chat templates as data: those of Vicuna and of the other language models that LLaVA was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass

CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
CURIOUS_HUMAN = CURIOUS_USER.replace("user", "human")
CHATML_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)


@dataclass(frozen=True, slots=True)
class Template:
    """The texts around the questions and answers of a chat.

    The text is `opening`, with the system's text at {system}, then for each round
    `user` question `assistant` answer `end`; `again` stands before every round except the first, and `last` in place of
    `end` after an answer that ends the chat. Answer and end carry loss.

    Attributes:
        opening: text at the start of a chat, with {system} in place of the system's text.
        system: text of the system unless the document has a system turn.
        user, assistant: texts before a question and before an answer.
        end: text after an answer; generation stops at its last token.
        again: text before every round except the first.
        stop: special token at the end of `end`; "" if `end` is one token, apart from spaces.
        last: special token after the answer that ends a chat; "" if it is `end`.
    """

    opening: str
    system: str
    user: str
    assistant: str
    end: str
    again: str = ""
    stop: str = ""
    last: str = ""

    @property
    def stop_token(self) -> str:
        """The token at which generation stops."""
        return self.stop or self.end.strip()

    @property
    def end_of_chat(self) -> str:
        """The text after the answer that ends a chat."""
        return self.last or self.end


def chatml(system: str) -> Template:
    """Build a ChatML template with this system text."""
    return Template(
        opening="<|im_start|>system\n{system}<|im_end|>",
        system=system,
        user="<|im_start|>user\n",
        assistant="<|im_end|><|im_start|>assistant\n",
        end="<|im_end|>",
    )


VISION_ASSISTANT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
LLAMA_3 = "<|start_header_id|>{role}<|end_header_id|>\n\n"


def llama_3(answers: str, end: str = "<|eot_id|>", last: str = "", start: str = "") -> Template:
    """Build the template of Llama 3.

    Args:
        answers: role of the turns that answer.
        end: token after every turn.
        last: token after the answer that ends a chat; "" stands for `end`.
        start: text in front of the system's turn.
    """
    return Template(
        start + LLAMA_3.format(role="system") + "{system}" + end,
        VISION_ASSISTANT,
        LLAMA_3.format(role="user"),
        end + LLAMA_3.format(role=answers),
        end,
        last=last,
    )


# Source: github.com/haotian-liu/LLaVA c121f04, llava/conversation.py, whose names are used here
TEMPLATES: dict[str, Template] = {
    "vicuna_v1": Template("{system} ", CURIOUS_USER, "USER: ", " ASSISTANT: ", "</s>"),
    "llava_v1": Template("{system} ", CURIOUS_HUMAN, "USER: ", " ASSISTANT: ", "</s>"),
    "mistral_instruct": Template("{system}", "", "[INST] ", " [/INST] ", " </s>"),
    "llava_llama_2": Template(
        "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n",
        VISION_ASSISTANT,
        "",
        " [/INST] ",
        " </s>",
        again="<s>[INST] ",
    ),
    "chatml_direct": chatml("Answer the questions."),
    "mpt": chatml(CHATML_SYSTEM),
    # Source: github.com/LLaVA-VL/LLaVA-NeXT, llava/conversation.py; llava_llama_3 is the template of Llama 3 itself
    "llava_llama_3": llama_3("assistant"),
    "qwen_1_5": Template(
        "<|im_start|>system\n{system}<|im_end|>\n",
        "You are a helpful assistant.",
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        again="\n",
    ),
    # Source: github.com/dvlab-research/MGM 60d021f, mgm/conversation.py. There the assistant of llama_3 has the role
    # "system", and BOS is part of the text; here BOS comes from the tokenizer. mixtral_instruct is mistral_instruct
    # there, which writes <s> before every question
    "mixtral_instruct": Template("{system}", "", "[INST] ", " [/INST] ", " </s>", again="<s>"),
    "gemma": Template(
        "{system}",
        "",
        "<start_of_turn>user\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>\n<eos>",
        stop="<eos>",
    ),
    "llama_3": llama_3("system"),
    # Source: github.com/NVlabs/VILA, llava/conversation.py, llama_3_chat: of the release of VILA-1.5 (6b941da), and the
    # later one (54c9706). BOS is part of the text there, and the tokenizer writes another one in front of it
    "vila_1_5_llama_3": llama_3("system", end="<|end_of_text|>", start="<|begin_of_text|>"),
    "vila_llama_3": llama_3("assistant", last="<|end_of_text|>", start="<|begin_of_text|>"),
}

# Jinja: texts of a message, and the rounds of a chat around them
ROUNDS = """
{%- macro text_of(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}{{- content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -}}
{%- endif -%}
{%- endmacro -%}
{%- set first = 1 if messages[0]['role'] == 'system' else 0 -%}
{{- BEFORE -}}
{{- text_of(messages[0]['content']) if first else SYSTEM -}}
{{- AFTER -}}
{%- for message in messages[first:] -%}
{%- if message['role'] == 'user' -%}
{{- ('' if loop.first else AGAIN) + USER -}}
{%- set text = text_of(message['content']) -%}
{%- set parts = [] if message['content'] is string else message['content'] -%}
{%- set images = parts | selectattr('type', 'equalto', 'image') | list | length -%}
{%- set leading = parts[:images] | selectattr('type', 'equalto', 'image') | list | length == images -%}
{%- if images == 0 -%}{{- text -}}
{%- elif images == 1 -%}{{- PLACEHOLDER + ('\\n' + text | trim if text | trim else '') -}}
{%- elif leading -%}
{{- ([PLACEHOLDER] * images) | join('\\n') -}}
{{- text if not text or text[0] == '\\n' else '\\n' + text -}}
{%- else -%}
{%- for part in parts -%}{{- PLACEHOLDER if part['type'] == 'image' else part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- START if not loop.last or add_generation_prompt else '' -}}
{%- else -%}
{{- SPACE + text_of(message['content']) + (LAST if loop.last else END) -}}
{%- endif -%}
{%- endfor -%}
"""


def chat_template(template: Template, placeholder: str, bos: str = "") -> str:
    """Write a template of LLaVA's chats as the Jinja text that transformers reads.

    Contents are texts, or lists of parts of the types "image" and "text". A single picture goes to the front, several
    keep their places, and pictures in front of a text get a line each.

    Args:
        template: texts around questions and answers.
        placeholder: text of a picture.
        bos: token at the start, for a tokenizer that does not write it; "" for others.
    """
    before, after = template.opening.split("{system}")
    start = template.assistant.rstrip(" ")
    text = {
        "BEFORE": bos + before,
        "SYSTEM": template.system,
        "AFTER": after,
        "AGAIN": template.again,
        "USER": template.user,
        "START": start,
        "SPACE": template.assistant[len(start) :],
        "END": template.end,
        "LAST": template.end_of_chat,
        "PLACEHOLDER": placeholder,
    }
    names = "\n".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in text.items())
    return f"{names}\n{ROUNDS}"
