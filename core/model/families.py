"""What differs between model architectures, one row each.

The only place that names an architecture or its layers. Knows nothing of devices, adapters or data.
Target modules follow the attention and feed-forward projections that QLoRA adapts
(Dettmers et al. 2023, arXiv 2305.14314), except where a note says why not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LLAMA_LIKE = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
# Layers beside each other that read the same tensor; who relies on it looks whether it is so (T5's query reads another one when it crosses over).
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("k", "v"), ("wi_0", "wi_1"))

# Turns for a base model whose tokenizer brings no chat template. Both end every assistant turn with eos.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() + ': ' + m['content'] }}"
    "{{ eos_token + '\n' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
JOINED_TEMPLATE = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
# What an encoder reads: the turns so far, one a line, and eos, as T5 was trained.
READ_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{{ '' if loop.last else '\n' }}{% endfor %}{{ eos_token }}"
)


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: `config.model_type` of transformers.
        label: the name that people use.
        targets: module names that get an adapter by default; `("all-linear",)` means every linear layer.
        template: Jinja chat template for tokenizers that bring none.
        seq2seq: an encoder reads, a decoder writes.
        fan_in_fan_out: weights are stored transposed (GPT-2's Conv1D).
        note: one sentence for the page, or "".
    """

    model_type: str
    label: str
    targets: tuple[str, ...]
    template: str = PLAIN_TEMPLATE
    seq2seq: bool = False
    fan_in_fan_out: bool = False
    note: str = ""

    @property
    def task_type(self) -> str:
        """peft's word for what the base does."""
        return "SEQ_2_SEQ_LM" if self.seq2seq else "CAUSAL_LM"


_ROWS = (
    Family("llama", "Llama", LLAMA_LIKE),
    Family("mistral", "Mistral", LLAMA_LIKE),
    Family("qwen2", "Qwen2.5", LLAMA_LIKE),
    Family("qwen3", "Qwen3", LLAMA_LIKE),
    Family("gemma2", "Gemma 2", LLAMA_LIKE),
    Family("gemma3_text", "Gemma 3 (text)", LLAMA_LIKE),
    Family("phi3", "Phi-3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    Family("gpt2", "GPT-2 / DialoGPT", ("c_attn", "c_proj", "c_fc"), JOINED_TEMPLATE, fan_in_fan_out=True),
    Family(
        "t5",
        "T5 / FLAN-T5",
        ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
        READ_TEMPLATE,
        seq2seq=True,
        note="An encoder reads and a decoder writes: text is learned by filling in gaps, and nothing is packed.",
    ),
    Family(
        "minimax_m2",
        "MiniMax-M2",
        ATTENTION,
        note="Adapters go on the attention only, unless the experts are asked for: on those, rank 8 alone is two billion weights.",
    ),
)
FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}


def family_of(config: Any) -> Family:
    """The row of a transformers config, or a fallback with all linear layers and a visible note."""
    known = FAMILIES.get(config.model_type)
    if known:
        return known
    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    return Family(
        config.model_type,
        config.model_type,
        ("all-linear",),
        READ_TEMPLATE if seq2seq else PLAIN_TEMPLATE,
        seq2seq,
        note=f"{config.model_type!r} has no row in the families table: adapters go on all linear layers.",
    )
