"""Chat templates in the formats of six families, written for the tests."""

from __future__ import annotations

from chat import TEMPLATE

_ALTERNATE = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}"
)

LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

# No system role of its own: what the system says stands before the first user's message.
GEMMA = (
    "{{ '<bos>' }}{% set before = '' %}{% set turns = messages %}"
    "{% if messages[0].role == 'system' %}{% set before = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% endif %}{% for message in turns %}" + _ALTERNATE + "{{"
    " '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n'"
    " + (before if loop.first else '') + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# What the system says stands before the last user's message.
MISTRAL = (
    "{{ '<s>' }}{% set system = '' %}{% set turns = messages %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% endif %}{% for message in turns %}" + _ALTERNATE + "{%"
    " if message.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + message.content"
    " + ' [/INST]' }}{% else %}{{ ' ' + message.content | trim + '</s>' }}{% endif %}{% endfor %}"
)

PHI_3 = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content"
    " + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# The reasoning of earlier answers is left out.
QWEN_3 = (
    "{% for message in messages %}{% set content = message.content %}"
    "{% if message.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

FAMILIES = {
    "ChatML": TEMPLATE,
    "Llama 3": LLAMA_3,
    "Gemma": GEMMA,
    "Mistral": MISTRAL,
    "Phi": PHI_3,
    "Qwen": QWEN_3,
}
