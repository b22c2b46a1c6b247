"""Tiny tokenizers of the real families: their special tokens, their way with blanks, their chat templates.

The templates are written for these tests and render what the real ones render. The vocabularies are trained
on a few sentences, so that a blank merges with the word after it, and line breaks merge with each other.

    byte-level BPE    Llama 3, Qwen2.5, Qwen3, MiniMax-M2, GPT-2: " yes" is one token
    sentencepiece     Llama 2, Mistral, Phi-3 put a blank before a text, Gemma does not; T5 is a unigram model
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

SENTENCES = [
    f"{a} {b} yes no In the north room. Where is the red lamp?\n\n\nUser: what\nAssistant: yes\n 1234 12 3\n"
    f"  if x:\n    return y\n<b>bold</b> INST system user assistant model {c}"
    for a in ("The", "A", "Yes")
    for b in ("old bell", "cold pump", "clock")
    for c in ("answer", "thought", "think")
]

CHATML = """{%- for m in messages -%}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

QWEN25 = (
    """{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif -%}
"""
    + CHATML
)

QWEN3 = """{%- set state = namespace(question=messages|length - 1) -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}{% set state.question = loop.index0 %}{% endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role != 'assistant' -%}
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- else -%}
{%- set content = m.content -%}
{%- set thought = '' -%}
{%- if m.reasoning_content is string -%}
{%- set thought = m.reasoning_content -%}
{%- elif '</think>' in content -%}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{ '<|im_start|>assistant\n' }}
{%- if loop.index0 > state.question and (loop.last or thought) -%}
{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{ content }}{% endif -%}
{{ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif -%}
{%- endif -%}"""

MINIMAX = """{{ ']~!b[' }}
{%- set state = namespace(question=-1) -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}{% set state.question = loop.index0 %}{% endif -%}
{%- endfor -%}
{{ ']~b]system\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}{{ 'You are a helpful assistant.' }}
{%- endif %}{{ '[e~[\n' }}
{%- for m in messages -%}
{%- if m.role == 'user' %}{{ ']~b]user\n' + m.content + '[e~[\n' }}{% endif -%}
{%- if m.role == 'assistant' -%}
{{ ']~b]ai\n' }}
{%- set content = m.content -%}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' -%}
{%- if not thought and '</think>' in content -%}
{%- set thought = content.split('</think>')[0].strip('\n').split('<think>')[-1].strip('\n') -%}
{%- set content = content.split('</think>')[-1].strip('\n') -%}
{%- endif -%}
{%- if thought and loop.index0 > state.question %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif -%}
{{ content + '[e~[\n' }}
{%- endif -%}
{%- if m.role == 'tool' %}{{ ']~b]tool\n<response>' + m.content + '</response>[e~[\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ ']~b]ai\n<think>\n' }}{% endif %}"""

LLAMA3 = """{{- bos_token -}}
{%- if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% else %}
{%- set today = '26 Jul 2024' %}{% endif -%}
{%- set text = '' -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set text = messages[0]['content']|trim %}{% set messages = messages[1:] -%}
{%- endif -%}
{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' }}
{{- today + '\n\n' + text + '<|eot_id|>' }}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content']|trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

LLAMA2 = """{%- if messages[0]['role'] == 'system' -%}
{%- set turns = messages[1:] %}{% set text = messages[0]['content'] -%}
{%- else %}{% set turns = messages %}{% set text = false %}{% endif -%}
{%- for m in turns -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- if loop.index0 == 0 and text is not false -%}
{%- set content = '<<SYS>>\n' + text + '\n<</SYS>>\n\n' + m['content'] -%}
{%- else %}{% set content = m['content'] %}{% endif -%}
{%- if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif -%}
{%- endfor -%}"""

MISTRAL = """{%- if messages[0]['role'] == 'system' -%}
{%- set text = messages[0]['content'] %}{% set turns = messages[1:] -%}
{%- else %}{% set turns = messages %}{% endif -%}
{{ bos_token }}
{%- for m in turns -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('After the optional system message, conversation roles must alternate user/assistant') }}
{%- endif -%}
{%- if m['role'] == 'user' -%}
{%- if loop.last and text is defined %}{{ '[INST] ' + text + '\n\n' + m['content'] + '[/INST]' }}
{%- elif loop.index0 == turns|length - 2 and text is defined -%}
{{ '[INST] ' + text + '\n\n' + m['content'] + '[/INST]' }}
{%- else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif -%}
{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif -%}
{%- endfor -%}"""

GEMMA2 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{%- for m in messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
{{ '<start_of_turn>' + role + '\n' + m['content']|trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
{%- set before = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] -%}
{%- else %}{% set before = '' %}{% set turns = messages %}{% endif -%}
{%- for m in turns -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
{{ '<start_of_turn>' + role + '\n' + (before if loop.first else '') + m['content']|trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

PHI3 = """{%- for m in messages -%}
{%- if m['role'] in ('system', 'user', 'assistant') -%}
{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""


@dataclass(frozen=True)
class Shape:
    """How the tokenizer of a family is built.

    Attributes:
        kind: "bytes", "blank" (sentencepiece with a blank before a text), "pieces" (without), or "unigram".
        special: special tokens; the first is eos. ordinary: added tokens that are not marked special.
        bos: BOS, or "". puts_bos: whether the tokenizer puts it before a text.
        template: the chat template; "" for none.
        rstrip: whether special tokens swallow the blanks after them.
    """

    kind: str
    special: tuple[str, ...]
    template: str
    bos: str = ""
    puts_bos: bool = False
    ordinary: tuple[str, ...] = ()
    rstrip: bool = False


SHAPES = {
    "llama3": Shape(
        "bytes",
        ("<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        LLAMA3,
        "<|begin_of_text|>",
        True,
    ),
    "llama2": Shape("blank", ("</s>", "<s>", "<unk>"), LLAMA2, "<s>", True),
    "mistral": Shape("blank", ("</s>", "<s>", "<unk>", "[INST]", "[/INST]"), MISTRAL, "<s>", True),
    "qwen2.5": Shape(
        "bytes",
        ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
        QWEN25,
        ordinary=("<tool_call>", "</tool_call>", "<|fim_prefix|>"),
    ),
    "qwen3": Shape(
        "bytes",
        ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
        QWEN3,
        ordinary=("<think>", "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"),
    ),
    "gemma2": Shape(
        "pieces",
        ("<eos>", "<bos>", "<pad>", "<unk>"),
        GEMMA2,
        "<bos>",
        True,
        ordinary=("<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "<b>", "</b>"),
    ),
    "gemma3": Shape(
        "pieces",
        ("<eos>", "<bos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        GEMMA3,
        "<bos>",
        True,
        ordinary=("\n", "\n\n", "<b>", "</b>"),
    ),
    "phi3": Shape(
        "blank",
        ("<|endoftext|>", "<s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        PHI3,
        "<s>",
        rstrip=True,
    ),
    "gpt2": Shape("bytes", ("<|endoftext|>",), "", "<|endoftext|>"),
    "minimax": Shape(
        "bytes",
        ("[e~[", "]~!b[", "]~b]"),
        MINIMAX,
        ordinary=("<think>", "</think>"),
    ),
    "t5": Shape("unigram", ("</s>", "<pad>", "<unk>", *(f"<extra_id_{i}>" for i in range(8))), ""),
    "plain bytes": Shape("bytes", ("<|endoftext|>", "<|pad|>"), ""),
    "plain blank": Shape("blank", ("</s>", "<s>", "<unk>"), "", "<s>", True),
}
# The model type whose fallback template a family without its own one gets.
MODEL_TYPES = {"gpt2": "gpt2", "t5": "t5", "plain bytes": "llama", "plain blank": "llama"}
CAUSAL = tuple(name for name in SHAPES if name != "t5")


def _train_bytes(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # As Llama 3 and Qwen: line breaks join, a blank joins the word after it, digits stay in groups of three.
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _train_pieces(special: list[str], blank: bool) -> Tokenizer:
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *fallback], limit_alphabet=80, show_progress=False
    )
    tokenizer.train_from_iterator([w for s in SENTENCES for w in s.replace(" ", "\0 ").split("\0")], trainer)
    if blank:  # as Llama 2: a blank stands before every piece between special tokens
        tokenizer.normalizer = normalizers.Sequence([
            normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581"),
        ])  # fmt: skip
    parts: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if blank else []))
    state = json.loads(tokenizer.to_str())  # the bytes are ordinary pieces, as in sentencepiece
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in fallback]
    return Tokenizer.from_str(json.dumps(state))


def _train_unigram(special: list[str]) -> Tokenizer:
    pieces: dict[str, float] = dict.fromkeys(special, 0.0)
    words = {f"\u2581{w}" for s in SENTENCES for w in s.split()}
    letters = {c for s in SENTENCES for c in s if not c.isspace()} | {"\u2581", *"<>/_B"}
    pieces |= dict.fromkeys(sorted(words), -3.0) | dict.fromkeys(sorted(letters), -6.0)
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(),
    ])  # fmt: skip
    tokenizer.decoder = decoders.Metaspace()
    eos = pieces and special[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, special.index(eos))]
    )
    return tokenizer


def build_tokenizer(family: str) -> Any:
    """A new tokenizer of a family, with its template or the fallback that a base of it gets."""
    from core.model.families import FAMILIES

    shape = SHAPES[family]
    special = list(shape.special)
    if shape.kind == "bytes":
        backend = _train_bytes(special)
    elif shape.kind == "unigram":
        backend = _train_unigram(special)
    else:
        backend = _train_pieces(special, shape.kind == "blank")
    if shape.kind in ("blank", "pieces") and shape.rstrip:
        backend.add_special_tokens([AddedToken(t, rstrip=True, normalized=False) for t in special[3:]])
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in special if not shape.rstrip])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in shape.ordinary])
    if shape.puts_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{shape.bos} $A", special_tokens=[(shape.bos, backend.token_to_id(shape.bos))]
        )
    named = {"eos_token": special[0]}
    named |= {"bos_token": shape.bos} if shape.bos else {}
    named |= {"unk_token": "<unk>"} if "<unk>" in special else {}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.pad_token = next((t for t in special if "pad" in t), special[0])
    if family == "t5":
        tokenizer.decoder_start_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = shape.template or FAMILIES[MODEL_TYPES[family]].template_for(tokenizer)
    return tokenizer


@cache
def tokenizer_of(family: str) -> Any:
    """The tokenizer of a family, built once; tests that change one call `build_tokenizer`."""
    return build_tokenizer(family)


def ends_of(family: str) -> list[int]:
    """The ids that end an answer of a family."""
    tokenizer = tokenizer_of(family)
    names = {"gemma2": ["<end_of_turn>"], "gemma3": ["<end_of_turn>"], "phi3": ["<|end|>"]}
    return sorted({tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, names.get(family, []))})
