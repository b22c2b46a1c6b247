"""Chat templates: what a template writes before an answer, and what it writes after it.

A template never reads the text of a message. It renders placeholders, and the texts replace them afterwards.
So a text can neither change what the template writes nor be taken for it.

    rendered     <|user|>[0]<|end|><|assistant|><think></think>[2]<|end|>       [0] and [2] are placeholders
    prompt       <|user|>Where?<|end|><|assistant|><think></think>
    completion   Here.<|end|>

The prompt of an answer is what the template writes up to its content. That includes an empty thought (Qwen3),
and it leaves out a thought that a generation prompt opens (MiniMax-M2). The prompt of a thought is the
template's own generation prompt with thinking switched on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jinja2

from core.data.tokens import template_process
from core.data.tokens.known_templates import is_known
from core.data.tokens.marked_text import MarkedText
from core.data.tokens.thoughts import MARKERS
from core.errors import DataError

# Characters that Unicode reserves for the inside of a program; they enclose the number of a placeholder.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_PLACEHOLDER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
PART_SEPARATOR = "\n\n"  # between two turns that become one
# The beginning of a template of ours for a base whose tokenizer puts BOS before a text.
OPENING_BOS = "{#- no template of its own -#}{{ bos_token }}"
# A template that writes the date would render other tokens every day, and a run could not be resumed the next
# day. The date is the one that Llama 3's template writes where it cannot read a clock.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format | replace('%d', '26') | replace('%b', 'Jul') | "
    "replace('%B', 'July') | replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24') | "
    "replace('%A', 'Friday') | replace('%a', 'Fri') | replace('%H', '12') | replace('%M', '00') | "
    "replace('%S', '00') }}{%- endmacro -%}"
)
# What a template, or transformers around it, may raise on a conversation.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Turn:
    """One message as it is rendered.

    Attributes:
        parts: the texts that make up the content, joined by a blank line.
        trained: of an assistant's turn, which parts are trained; the others are context.
        thought: of an assistant's turn, without its markers; "" without a thought.
        opening, closing: what stands before and after the thought where the template has no thoughts.
        system_length: characters of a system text at the beginning of the content.
    """

    role: str
    parts: tuple[str, ...]
    trained: tuple[bool, ...] = (True,)
    thought: str = ""
    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"
    system_length: int = 0

    @property
    def content(self) -> str:
        return PART_SEPARATOR.join(self.parts)


@dataclass(frozen=True)
class Answer:
    """An assistant's turn, rendered as the last one.

    Attributes:
        prompt: everything before the tokens that the turn adds.
        completion: the turn, from its first character to the last one that the template writes after it.
        cuts: offsets in the completion where a further part of the content begins.
        end: offset in the completion where the content ends.
    """

    prompt: MarkedText
    completion: MarkedText
    cuts: tuple[int, ...]
    end: int


def template_of(tokenizer: Any) -> str:
    """The chat template that the tokenizer uses, with a fixed date."""
    return fix_date(str(tokenizer.get_chat_template()))


def fix_date(template: str) -> str:
    """A template that writes the same date every day."""
    return _FIXED_DATE + template if "strftime_now" in template else template


def render_chat(
    tokenizer: Any, messages: Sequence[dict[str, Any]], template: str = "", **settings: Any
) -> str:
    """Renders messages; a template that is not known is rendered in a process of its own.

    Args:
        template: in place of the one that the tokenizer uses.
        settings: variables of the template, such as `add_generation_prompt`.

    Raises:
        jinja2.TemplateError and others in `TEMPLATE_ERRORS`: the template refuses the conversation.
    """
    template = template or template_of(tokenizer)
    source = template.removeprefix(_FIXED_DATE)
    if is_known(source) or is_known(source.removeprefix(OPENING_BOS)):
        return str(
            tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **settings)
        )
    return template_process.render(template, messages, {**tokenizer.special_tokens_map, **settings})


def render(
    tokenizer: Any, turns: Sequence[Turn], generation_prompt: bool = False, thinking: bool = False
) -> str:
    """Renders turns with a placeholder for every text that is not blank.

    The text of turn i has placeholder 2 i, and its thought 2 i + 1. Blanks around a text stay around its
    placeholder, so that a template trims them as it always does.

    Raises:
        jinja2.TemplateError and others in `TEMPLATE_ERRORS`: the template refuses the conversation.
    """
    messages = []
    for i, turn in enumerate(turns):
        content = turn.content
        if core := content.strip():
            content = content.replace(core, _mark_content(i), 1)
        message = {"role": turn.role, "content": content}
        if turn.thought and renders_thoughts(tokenizer):
            message["reasoning_content"] = _mark_thoughts(i)
        elif turn.thought:
            message["content"] = turn.opening + _mark_thoughts(i) + turn.closing + message["content"]
        messages.append(message)
    return render_chat(
        tokenizer,
        messages,
        add_generation_prompt=generation_prompt,
        enable_thinking=thinking,
        thinking=thinking,
    )


def _mark_content(index: int) -> str:
    return f"{_OPEN}{2 * index}{_CLOSE}"


def _mark_thoughts(index: int) -> str:
    return f"{_OPEN}{2 * index + 1}{_CLOSE}"


def has_content(rendered: str, index: int) -> bool:
    """Whether the content of turn `index` is in a rendered text."""
    return _mark_content(index) in rendered


def fill(rendered: str, turns: Sequence[Turn]) -> MarkedText:
    """Replaces the placeholders of a rendered text by the texts of its turns."""
    parts: list[tuple[str, bool]] = []
    for i, piece in enumerate(_PLACEHOLDER.split(rendered)):
        is_user = i % 2 == 1  # odd pieces are the numbers of placeholders
        if is_user:
            turn = turns[int(piece) // 2]
            piece = turn.thought if int(piece) % 2 else turn.content.strip()
        parts.append((piece, is_user))
    return MarkedText.join(parts)


def find_content(rendered: str, turns: Sequence[Turn], index: int) -> int:
    """The offset, in the filled text, of the content of turn `index`; -1 where it is not rendered."""
    at = rendered.find(_mark_content(index))
    return len(fill(rendered[:at], turns)) if at >= 0 else -1


@lru_cache(maxsize=4)
def _renders_thoughts(tokenizer: Any, template: str) -> bool:
    turns = (Turn("user", ("x",)), Turn("assistant", ("x",)))
    question, answer = ({"role": t.role, "content": _mark_content(i)} for i, t in enumerate(turns))
    answer["reasoning_content"] = _mark_thoughts(1)
    try:
        rendered = render_chat(tokenizer, [question, answer], template, enable_thinking=True, thinking=True)
    except TEMPLATE_ERRORS:
        return False
    return 0 <= rendered.find(_mark_thoughts(1)) < rendered.find(_mark_content(1))


def renders_thoughts(tokenizer: Any) -> bool:
    """Whether the template writes the thought of a message, given under `reasoning_content`."""
    return _renders_thoughts(tokenizer, template_of(tokenizer))


def render_answer(tokenizer: Any, turns: Sequence[Turn]) -> Answer:
    """Renders a conversation up to an answer, split where the answer begins.

    Args:
        turns: the conversation; the last turn is the assistant's.

    Raises:
        DataError: the template refuses the conversation or leaves the answer out; in the template's words.
    """
    try:
        before, after = (_split_thought_turn if turns[-1].thought else _split_turn)(tokenizer, turns)
    except TEMPLATE_ERRORS as e:
        raise refusal(str(e)) from e
    prompt, completion = fill(before, turns), fill(after, turns)
    content = turns[-1].content
    start = find_content(after, turns, len(turns) - 1)
    end = start + len(content.strip())
    ends = itertools.accumulate(len(part) + len(PART_SEPARATOR) for part in turns[-1].parts[:-1])
    lead = content[: len(content) - len(content.lstrip())]
    is_trimmed = not completion.text[:start].endswith(lead)
    first = start if is_trimmed else start - len(lead)
    cuts = tuple(min(max(first, start - len(lead) + offset), end) for offset in ends)
    blanks = len(prompt) - len(prompt.text.rstrip(" "))
    if blanks and merges_blanks(tokenizer):  # a blank belongs to the word that follows it
        at = len(prompt) - blanks
        completion = prompt.cut(at) + completion
        prompt = prompt.cut(0, at)
        cuts, end = tuple(c + blanks for c in cuts), end + blanks
    return Answer(prompt, completion, cuts, end)


def refusal(words: str) -> DataError:
    """The error for a conversation that a chat template refuses, in the template's own words."""
    words = words.strip().rstrip(".") or "it gives no reason"
    return DataError(
        f"The base's chat template refuses this conversation: {words}.",
        "Change the order or the roles of its messages, or choose another base.",
    )


@lru_cache(maxsize=4)
def merges_blanks(tokenizer: Any) -> bool:
    """Whether the tokenizer joins a blank with the word after it, as most do (" the" is one token)."""
    blanks = ("\u0120", "\u2581", " ")  # of byte-level BPE, of sentencepiece, and itself
    return any(piece[:1] in blanks and piece[1:].isalpha() for piece in tokenizer.get_vocab())


def _split_turn(tokenizer: Any, turns: Sequence[Turn]) -> tuple[str, str]:
    """The rendered text before an answer without a thought, and from the answer on."""
    content, mark = turns[-1].content, _mark_content(len(turns) - 1)
    lead = content[: len(content) - len(content.lstrip())]
    trail = content[len(content.rstrip()) :] if content.strip() else ""
    # Any text shows where the content stands: the prompt cannot depend on the answer.
    rendered = render(tokenizer, [*turns[:-1], replace(turns[-1], parts=("x",))])
    before, found, after = rendered.partition(mark)
    if not found:
        raise ValueError("it leaves out the answer")
    if lead or trail:
        edges = render(tokenizer, [*turns[:-1], replace(turns[-1], parts=(f"{lead}x{trail}",))])
        if edges.startswith(before) and mark in edges[len(before) :]:
            return before, edges[len(before) :]
        return before, lead + mark + trail + after
    return before, mark + after


def _split_thought_turn(tokenizer: Any, turns: Sequence[Turn]) -> tuple[str, str]:
    """The rendered text before an answer with a thought, and from its thought on."""
    *history, last = turns
    thought = _mark_thoughts(len(history))
    opened = render(tokenizer, history, generation_prompt=True, thinking=True) if history else ""
    if renders_thoughts(tokenizer):
        probe = last if last.content.strip() else replace(last, parts=(last.content + "x",))
        rendered = render(tokenizer, [*history, probe], thinking=True)
        if thought not in rendered:
            raise ValueError("it leaves out the thought")
        at = len(opened) if opened and rendered.startswith(opened) else rendered.index(thought)
        return rendered[:at], rendered[at:]
    before, after = _split_turn(tokenizer, [*history, replace(last, thought="")])
    marker = next((o for o, _ in MARKERS if opened.rstrip().endswith(o)), "")
    if marker and opened.startswith(before.rstrip(" ")):  # the generation prompt opens the thought
        return opened, f"{thought}\n{dict(MARKERS)[marker]}\n\n{after}"
    return before, last.opening + thought + last.closing + after
