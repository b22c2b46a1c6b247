"""Chat templates for GGUF files without one: the usual forms, recognized by the control tokens that they use.

Ollama keeps the template of a model beside it, as a template of Go. It is not run and not translated: where
its control tokens are those of a form below and in the vocabulary, that form is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.gguf.header import GgufHeader

_CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Gemma has no system role: what it says begins the first question.
_GEMMA = (
    "{{ bos_token }}{% set first = namespace(text='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set first.text = m['content'] + '\n\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + first.text + "
    "m['content'] | trim + '<end_of_turn>\n' }}{% set first.text = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_INST = (
    "{{ bos_token }}{% set first = namespace(text='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set first.text = m['content'] + '\n\n' %}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + first.text + m['content'] + ' [/INST]' }}"
    "{% set first.text = '' %}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Form:
    """A usual form of conversations.

    Attributes:
        marks: texts that the foreign template has.
        tokens: those of them that the vocabulary must have.
        template: in Jinja.
    """

    marks: tuple[str, ...]
    tokens: tuple[str, ...]
    template: str


FORMS = (
    Form(("<|im_start|>", "<|im_end|>"), ("<|im_start|>", "<|im_end|>"), _CHATML),
    Form(("<|start_header_id|>", "<|eot_id|>"), ("<|start_header_id|>", "<|eot_id|>"), _LLAMA3),
    Form(("<start_of_turn>", "<end_of_turn>"), ("<start_of_turn>", "<end_of_turn>"), _GEMMA),
    Form(("<|user|>", "<|end|>"), ("<|user|>", "<|end|>"), _PHI3),
    Form(("[INST]", "[/INST]"), (), _INST),
)


def find_template(foreign: str, header: GgufHeader) -> str:
    """The form that a foreign template has; "" where none is recognized."""
    tokens = header.metadata.get("tokenizer.ggml.tokens", [])
    for form in FORMS if foreign else ():
        if all(mark in foreign for mark in form.marks) and all(token in tokens for token in form.tokens):
            return form.template
    return ""
