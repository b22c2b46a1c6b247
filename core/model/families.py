"""The table of model families: one row for what differs between architectures.

Names of architectures and of their layers appear in no other module. A model without a row gets adapters on
all linear layers, and a note. Target modules are the attention and feed-forward projections that QLoRA adapts
(Dettmers et al. 2023, arXiv 2305.14314), except where a note says why not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.tokens.rendering import OPENING_BOS
from core.data.tokens.special_tokens import text_prefix

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LLAMA_LIKE = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
# Sibling layers that usually read the same tensor; the mixer checks at run time whether they do. T5's `q` is
# left out, because in cross attention it reads another tensor than `k` and `v`.
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("k", "v"), ("wi_0", "wi_1"))

# Families with RMS norms before attention and before a gated SiLU, rotary positions, and no other parts:
# `core.model.fast_layers` packs their layers. The projections that read one tensor are packed as one.
PLAIN_DECODERS = ("llama", "mistral", "qwen2", "qwen3")
QUERY_KEY_VALUE, ATTENTION_OUTPUT = ATTENTION[:3], ATTENTION[3:]
GATE_UP, DOWN = LLAMA_LIKE[4:6], LLAMA_LIKE[6:]

# Chat templates for tokenizers without one. Both end every assistant turn with eos. The blank after
# "Assistant:" is encoded with the answer (`core.data.tokens.rendering`), since it merges with the first word.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() + ': ' + m['content'] }}"
    "{{ eos_token + '\n' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
JOINED_TEMPLATE = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
# The encoder's input: the turns so far, one per line, then eos, as T5 was trained.
ENCODER_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{{ '' if loop.last else '\n' }}{% endfor %}{{ eos_token }}"
)


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: `config.model_type` of transformers.
        label: the name to show.
        targets: module names that get an adapter by default; `("all-linear",)` means every linear layer.
        template: Jinja chat template for tokenizers without one.
        seq2seq: whether it is an encoder-decoder model.
        fan_in_fan_out: weights are stored transposed (GPT-2's Conv1D).
        note: one sentence for the page, or "".
        attention, down: its attention and its feed-forward down projections; empty where they are unknown or,
            for `down`, lie inside experts.
    """

    model_type: str
    label: str
    targets: tuple[str, ...]
    template: str = PLAIN_TEMPLATE
    seq2seq: bool = False
    fan_in_fan_out: bool = False
    note: str = ""
    attention: tuple[str, ...] = ATTENTION
    down: tuple[str, ...] = DOWN

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups of layers that settings may name in place of module names; none of an unknown family."""
        return {"attention": self.attention, "down": self.down} if self.attention else {}

    @property
    def task_type(self) -> str:
        """peft's `task_type`."""
        return "SEQ_2_SEQ_LM" if self.seq2seq else "CAUSAL_LM"

    def template_for(self, tokenizer: Any) -> str:
        """The chat template for a tokenizer without one; it begins with BOS where the tokenizer puts BOS."""
        puts_bos = tokenizer.bos_token_id is not None and text_prefix(tokenizer) == (tokenizer.bos_token_id,)
        return OPENING_BOS + self.template if puts_bos and not self.seq2seq else self.template


_ROWS = (
    Family("llama", "Llama", LLAMA_LIKE),
    Family("mistral", "Mistral", LLAMA_LIKE),
    Family("qwen2", "Qwen2.5", LLAMA_LIKE),
    Family("qwen3", "Qwen3", LLAMA_LIKE),
    Family("gemma2", "Gemma 2", LLAMA_LIKE),
    Family("gemma3_text", "Gemma 3 (text)", LLAMA_LIKE),
    Family(
        "phi3",
        "Phi-3",
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        attention=("qkv_proj", "o_proj"),
    ),
    Family(
        "gpt2",
        "GPT-2 / DialoGPT",
        ("c_attn", "c_proj", "c_fc"),
        JOINED_TEMPLATE,
        fan_in_fan_out=True,
        attention=("c_attn", "c_proj"),  # the attention's output and the down projection have one name
        down=("c_proj",),
    ),
    Family(
        "t5",
        "T5 / FLAN-T5",
        ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
        ENCODER_TEMPLATE,
        seq2seq=True,
        note="An encoder-decoder model: it learns text by filling in masked spans, without packing.",
        attention=("q", "k", "v", "o"),
        down=("wo",),
    ),
    Family(
        "minimax_m2",
        "MiniMax-M2",
        ATTENTION,
        note="Adapters go on the attention layers. Training the experts as well is an option: "
        "rank 8 then has two billion weights.",
        down=(),
    ),
)
FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}


def expand_groups(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Module names, with the names of groups replaced by those of their modules.

    Example:
        >>> expand_groups(["attention", "down"], FAMILIES["phi3"].groups)
        ('qkv_proj', 'o_proj', 'down_proj')
    """
    return tuple(dict.fromkeys(module for name in names for module in groups.get(name, (name,))))


def family_of(config: Any) -> Family:
    """Returns the family of a transformers config; an unknown one gets a fallback with all linear layers."""
    family = FAMILIES.get(config.model_type)
    if family:
        return family
    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    return Family(
        config.model_type,
        config.model_type,
        ("all-linear",),
        ENCODER_TEMPLATE if seq2seq else PLAIN_TEMPLATE,
        seq2seq,
        note=f"The family {config.model_type!r} is not in the table: adapters go on all linear layers.",
        attention=(),
        down=(),
    )
