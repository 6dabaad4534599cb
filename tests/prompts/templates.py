"""Chat templates with the structure of published ones, and a tokenizer with the tokens of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.vocabularies import QWEN_PATTERN

CORPUS = [
    "What is in the picture? A red dog and two cats.\nHow many? Three.\n\n",
    "user\n\nassistant\n\nsystem\n",
] * 4
SPECIAL = (
    *("<pad>", "<s>", "</s>", "<|begin|>", "<|eot|>", "<|start_header|>", "<|end_header|>"),
    *("<|im_start|>", "<|im_end|>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>"),
    *("<|system|>", "<|end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<image>"),
)
ORDINARY = ("<think>", "</think>")  # tokens that are text


@dataclass(frozen=True)
class Published:
    """A chat template with the structure of a published one.

    Attributes:
        template: jinja text.
        stop: special token that ends an answer.
        bos, eos: special tokens of the tokenizer.
        system: False if it refuses a system turn.
        lead: text between the generation prompt and an answer.
        variables: values of its variables.
    """

    template: str
    stop: str
    bos: str | None = "<s>"
    eos: str = "</s>"
    system: bool = True
    lead: str = ""
    variables: dict[str, Any] = field(default_factory=dict)


LLAMA_2 = """
{%- if messages[0]['role'] == 'system' -%}
  {%- set rest = messages[1:] -%}
  {%- set text = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- else -%}
  {%- set rest = messages -%}{%- set text = '' -%}
{%- endif -%}
{%- for message in rest -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
  {%- set content = (text if loop.first else '') + message['content'] -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}"""

LLAMA_3 = """
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set header = '<|start_header|>' + message['role'] + '<|end_header|>\\n\\n' %}
    {%- set content = header + message['content'] | trim + '<|eot|>' %}
    {%- if loop.first %}{%- set content = bos_token + content %}{%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header|>assistant<|end_header|>\\n\\n' }}
{%- endif %}"""

LLAMA_3_DATED = """
{%- if date_string is not defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}
        {%- set date_string = '26 Jul 2024' %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- bos_token + '<|start_header|>system<|end_header|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}
{{- system + '<|eot|>' }}
{%- for message in messages %}
    {{- '<|start_header|>' + message['role'] + '<|end_header|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header|>assistant<|end_header|>\\n\\n' }}
{%- endif %}"""

VICUNA = """
{%- if messages[0]['role'] == 'system' %}
  {{- messages[0]['content'] + ' ' }}{%- set rest = messages[1:] %}
{%- else %}
  {{- 'A chat between a curious user and an assistant. ' }}{%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
  {%- if message['role'] == 'user' %}{{- 'USER: ' + message['content'] + ' ' }}
  {%- else %}{{- 'ASSISTANT: ' + message['content'] + eos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"""

MISTRAL = """
{{- bos_token }}
{%- for message in messages %}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('After the optional system message, roles must alternate') }}
  {%- endif %}
  {%- if message.role == 'user' %}{{- ' [INST] ' + message.content + ' [/INST]' }}
  {%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}"""

QWEN_2 = """
{%- for message in messages %}
  {%- if loop.first and message['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
  {%- endif %}
  {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN_3 = """
{%- set ns = namespace(last_query=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
  {%- if ns.searching and message.role == 'user' %}
    {%- set ns.searching = false %}{%- set ns.last_query = messages | length - 1 - loop.index0 %}
  {%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- set content = message.content %}
  {%- if message.role != 'assistant' %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
  {%- else %}
    {%- set reasoning = '' %}
    {%- if '</think>' in content %}
      {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
      {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
    {%- else %}
      {{- '<|im_start|>assistant\\n' + content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
  {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
  {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

PHI_3 = """
{%- for message in messages %}
  {{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}"""

CHATML = """
{%- for message in messages %}
  {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# As trainers write it: what generation produces is inside the markers
MARKED = """
{%- for message in messages %}
  {%- if message['role'] == 'assistant' %}
    {{- '<|im_start|>assistant\\n' }}
    {%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
    {{- '\\n' }}
  {%- else %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Messages are lists of parts, and the template writes the tokens of a picture
MULTIMODAL = """
{%- for message in messages %}
  {{- '<|im_start|>' + message['role'] + '\\n' }}
  {%- if message['content'] is string %}{{- message['content'] }}
  {%- else %}
    {%- for part in message['content'] %}
      {%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
      {%- else %}{{- part['text'] }}{%- endif %}
    {%- endfor %}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

THINK = "<think>\n\n</think>\n\n"
TEMPLATES: dict[str, Published] = {
    "llama 2": Published(LLAMA_2, "</s>", lead=" "),
    "llama 3": Published(LLAMA_3, "<|eot|>", bos="<|begin|>", eos="<|eot|>"),
    "llama 3, dated": Published(LLAMA_3_DATED, "<|eot|>", bos="<|begin|>", variables={"date_string": "26 Jul 2024"}),
    "vicuna": Published(VICUNA, "</s>", lead=" "),
    "mistral": Published(MISTRAL, "</s>", system=False, lead=" "),
    "qwen 2": Published(QWEN_2, "<|im_end|>", bos=None, eos="<|im_end|>"),
    "gemma": Published(GEMMA, "<end_of_turn>", bos="<bos>", eos="</s>", system=False),
    "phi 3": Published(PHI_3, "<|end|>"),
    "chatml": Published(CHATML, "<|im_end|>", bos=None, eos="<|im_end|>"),
    "marked": Published(MARKED, "<|im_end|>", bos=None, eos="<|im_end|>"),
}
QWEN_3_THINKING = Published(QWEN_3, "<|im_end|>", bos=None, eos="<|im_end|>", lead=THINK)
QWEN_3_SILENT = Published(QWEN_3, "<|im_end|>", bos=None, eos="<|im_end|>", variables={"enable_thinking": False})


@cache
def backend_json() -> str:
    """A small byte-level vocabulary with the special tokens of all templates."""
    backend = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=True, special=True)])  # as Phi-3's: it takes white space
    backend.add_tokens(list(ORDINARY))
    return backend.to_str()


def tokenizer_of(published: Published) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(backend_json())
    return Tokenizer(backend, bos=published.bos, eos=published.eos, pad="<pad>", chat_template=published.template)
