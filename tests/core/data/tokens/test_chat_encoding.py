"""What is asked is what was trained, over the templates of the real families: ids, masks, strings, cuts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data.tokens import first_rules
from core.data.tokens.encoding import EncodedSequence, encode_chat, encode_question, encode_task, encode_turns
from core.data.tokens.special_tokens import count_with_special_tokens
from tests.templates import CAUSAL, SHAPES, build_tokenizer, ends_of, tokenizer_of

LONG = 10**6  # tokens; nothing is cut
Message = dict[str, Any]

WORDS = ("yes", "no", " ", "  ", "\n", "\n\n", "\t", "12", "3", "1234", "-5", "In the north room.", "Where?")
OTHERS = ("你好", "é", "🦊", "x:\n    return", "User: ", "Assistant: ", "<b>", "</b>", "<|", "im_end|>")
MARKERS = (
    "[INST]", "[/INST]", "<<SYS>>", "<think>", "</think>", "<|im_end|>", "<|im_start|>", "<end_of_turn>",
    "</s>", "<s>", "<unk>", "<|end|>", "<|eot_id|>", "<|endoftext|>", "<extra_id_0>", "[e~[", "]~b]",
    "\ufdd0", "\ufdd2",
)  # fmt: skip
texts = st.lists(st.sampled_from(WORDS + OTHERS + MARKERS), max_size=5).map("".join)
answers = texts.filter(lambda t: t.strip())


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Conversations as data sets have them: system, tools, context, thoughts, turns of one role in a row."""

    def sometimes() -> bool:
        return draw(st.integers(0, 6)) == 0

    messages = [system(draw(texts))] if draw(st.booleans()) else []
    if sometimes():
        messages.append(assistant(draw(answers)))
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(texts)))
        if sometimes():
            messages.append(user(draw(texts)))
        if sometimes():
            messages.append({"role": "tool", "content": draw(texts)})
        if sometimes():
            messages.append(assistant(draw(texts), weight=0))
        answer = assistant(draw(answers))
        if sometimes():
            answer["thought"] = draw(answers)
        if sometimes():
            answer["weight"] = 0
        messages.append(answer)
    return messages


def trained(tokenizer: Any, encoded: EncodedSequence) -> str:
    return str(tokenizer.decode([t for t, m in zip(encoded.ids, encoded.loss_mask, strict=True) if m]))


def begins_with(encoded: EncodedSequence, asked: list[int]) -> bool:
    """Whether a sequence trains the token after a prompt."""
    if encoded.encoder_ids:
        return encoded.encoder_ids == asked and encoded.loss_mask[:2] == [0, 1]
    size = len(asked)
    return encoded.ids[:size] == asked and len(encoded.ids) > size and encoded.loss_mask[size] == 1


@pytest.mark.parametrize("family", SHAPES)
@given(messages=conversations())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_ids_asked_are_a_prefix_of_the_ids_trained(family: str, messages: list[Message]) -> None:
    tokenizer = tokenizer_of(family)
    sequences = encode_turns(tokenizer, messages, LONG, ends_of(family))
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight", 1):
            asked = encode_question(tokenizer, messages[: i + 1])
            assert any(begins_with(e, asked) for e in sequences), (i, tokenizer.decode(asked))


@pytest.mark.parametrize("family", SHAPES)
@given(question=texts, answer=texts)
@settings(max_examples=40, deadline=None)
def test_a_single_answer_is_what_follows_its_prompt(family: str, question: str, answer: str) -> None:
    tokenizer = tokenizer_of(family)
    messages = [user(question), assistant(answer)]
    (encoded,) = encode_turns(tokenizer, messages, LONG, ends_of(family))
    asked = encode_question(tokenizer, messages)
    assert begins_with(encoded, asked)
    if not encoded.encoder_ids:
        assert encoded.loss_mask == [0] * len(asked) + [1] * (len(encoded.ids) - len(asked))
        assert encoded.ids[-1] in ends_of(family), "an answer learns to end"


@pytest.mark.parametrize("family", ["llama2", "mistral", "qwen2.5", "gemma2", "gemma3", "phi3", "gpt2", "t5"])
@given(turns=st.lists(st.tuples(answers, answers), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_ids_that_were_right_before_are_the_same(family: str, turns: list[tuple[str, str]]) -> None:
    """The first rules asked for a prefix of what they trained, in every turn."""
    tokenizer, ends = tokenizer_of(family), ends_of(family)
    messages = [m for q, a in turns for m in (user(q), assistant(a))]
    if count_with_special_tokens(tokenizer, [m["content"] for m in messages]):
        return
    if any("<think>" in m["content"] for m in messages):
        return  # a thought, which the first rules did not know
    before = first_rules.encode_task(tokenizer, messages, LONG, ends)
    asked = [first_rules._encode_chat(tokenizer, messages[:i], True) for i in range(1, len(messages), 2)]
    if family == "t5":
        was_right = before.encoder_ids == asked[-1]
    else:
        was_right = all(begins_with(before, a) for a in asked)
    if was_right:
        now = encode_task(tokenizer, messages, LONG, ends)
        assert (now.ids, now.loss_mask, now.encoder_ids) == (before.ids, before.loss_mask, before.encoder_ids)


# --- golden strings

TALK = [system("Be brief."), user("Where?"), assistant("yes"), user("And?"), assistant("no 12")]
# The trained parts, sequence by sequence, and what stands before the first of them.
GOLDEN = {
    "llama3": (
        ["yes<|eot_id|>no 12<|eot_id|>"],
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhere?"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama2": (
        ["yes </s> no 12 </s>"],
        "<s> [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhere? [/INST]",
    ),
    "mistral": ([" yes</s>", " no 12</s>"], "<s>[INST]  Be brief.\n\nWhere?[/INST]"),
    "qwen2.5": (
        ["yes<|im_end|>no 12<|im_end|>"],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "qwen3": (
        ["yes<|im_end|>", "no 12<|im_end|>"],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n",
    ),
    "gemma2": (
        ["yes<end_of_turn>no 12<end_of_turn>"],
        "<bos><start_of_turn>user\nBe brief.\n\nWhere?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma3": (
        ["yes<end_of_turn>no 12<end_of_turn>"],
        "<bos><start_of_turn>user\nBe brief.\n\nWhere?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi3": (
        ["yes<|end|> no 12<|end|>"],
        "<|system|> Be brief.<|end|><|user|> Where?<|end|><|assistant|>",
    ),
    "gpt2": (["yes<|endoftext|>no 12<|endoftext|>"], "Be brief.<|endoftext|>Where?<|endoftext|>"),
    "minimax": (
        ["yes[e~[no 12[e~["],
        "]~!b[]~b]system\nBe brief.[e~[\n]~b]user\nWhere?[e~[\n]~b]ai\n",
    ),
    "t5": (["yes</s>", "no 12</s>"], "Be brief. Where?</s>"),
    "plain bytes": (
        [" yes<|endoftext|> no 12<|endoftext|>"],
        "System: Be brief.\nUser: Where?\nAssistant:",
    ),
    "plain blank": (["yes</s> no 12</s>"], "<s> System: Be brief.\nUser: Where?\nAssistant:"),
}


@pytest.mark.parametrize("family", SHAPES)
def test_the_trained_parts_of_a_conversation_are_its_answers(family: str) -> None:
    tokenizer = tokenizer_of(family)
    sequences = encode_turns(tokenizer, TALK, LONG, ends_of(family))
    parts, prompt = GOLDEN[family]
    assert [trained(tokenizer, e) for e in sequences] == parts
    assert tokenizer.decode(encode_chat(tokenizer, TALK[:2], True)) == prompt


@pytest.mark.parametrize("family", ["plain bytes", "plain blank"])
def test_the_blank_after_a_plain_role_belongs_to_the_answer(family: str) -> None:
    """In training it merges with the first word; a prompt that ends with it asks for another token."""
    tokenizer = tokenizer_of(family)
    (encoded,) = encode_turns(tokenizer, [user("Where?"), assistant("yes")], LONG, ends_of(family))
    asked = encode_chat(tokenizer, [user("Where?")], True)
    assert tokenizer.convert_ids_to_tokens(encoded.ids[len(asked) :])[0] in ("Ġyes", "▁yes")
    assert tokenizer.convert_ids_to_tokens(asked)[-1].endswith(":")


# --- thoughts

THINKING = {
    # family: (prompt's end, trained part)
    "qwen3": ("assistant\n", "<think>\nThe room.\n</think>\n\nyes<|im_end|>"),
    "minimax": ("ai\n<think>\n", "The room.\n</think>\n\nyes[e~["),
    "qwen2.5": ("assistant\n", "<think>\nThe room.\n</think>\n\nyes<|im_end|>"),
    "plain bytes": ("Assistant:", " <think>\nThe room.\n</think>\n\nyes<|endoftext|>"),
}


@pytest.mark.parametrize("family", THINKING)
@pytest.mark.parametrize("form", ["key", "content"])
def test_a_thought_is_trained_where_a_row_has_one(family: str, form: str) -> None:
    tokenizer = tokenizer_of(family)
    answer = assistant("yes", reasoning_content="The room.")
    if form == "content":
        answer = assistant("<think>\nThe room.\n</think>\n\nyes")
    messages = [user("Where?"), answer]
    (encoded,) = encode_turns(tokenizer, messages, LONG, ends_of(family))
    opening, part = THINKING[family]
    assert trained(tokenizer, encoded) == part
    asked = encode_chat(tokenizer, messages[:1], True, thinking=True)
    assert asked == encode_question(tokenizer, messages)
    assert begins_with(encoded, asked) and tokenizer.decode(asked).endswith(opening)
    thought = tokenizer.convert_tokens_to_ids("</think>")
    if family in ("qwen3", "minimax"):
        assert encoded.ids.count(thought) == 1, "the marker is the token that the template writes"


def test_an_empty_thought_is_neither_trained_nor_scored() -> None:
    tokenizer = tokenizer_of("qwen3")
    for content in ("yes", "<think>\n\n</think>\n\nyes", "<think></think>yes"):
        (encoded,) = encode_turns(tokenizer, [user("Where?"), assistant(content)], LONG, ends_of("qwen3"))
        assert trained(tokenizer, encoded) == "yes<|im_end|>"
        context = tokenizer.decode([t for t, m in zip(encoded.ids, encoded.loss_mask, strict=True) if not m])
        assert context.endswith("assistant\n<think>\n\n</think>\n\n")


def test_thinking_is_off_unless_it_is_chosen() -> None:
    expected = {"qwen3": ("<think>\n\n</think>\n\n", "assistant\n"), "minimax": ("ai\n", "ai\n<think>\n")}
    for family, (without, with_thought) in expected.items():
        tokenizer = tokenizer_of(family)
        assert tokenizer.decode(encode_chat(tokenizer, [user("Where?")], True)).endswith(without)
        asked = encode_chat(tokenizer, [user("Where?")], True, thinking=True)
        assert tokenizer.decode(asked).endswith(with_thought)


def test_a_users_thought_markers_are_plain_text() -> None:
    tokenizer = tokenizer_of("qwen3")
    marker = tokenizer.convert_tokens_to_ids("<think>")
    messages = [user("<think>x</think>"), assistant("yes <think>no</think>", thought="a <think> b")]
    (encoded,) = encode_turns(tokenizer, messages, LONG, ends_of("qwen3"))
    assert encoded.ids.count(marker) == 1
    assert trained(tokenizer, encoded) == "<think>\na <think> b\n</think>\n\nyes <think>no</think><|im_end|>"


def test_a_history_forgets_its_thoughts_as_the_template_does() -> None:
    tokenizer = tokenizer_of("qwen3")
    messages = [user("Where?"), assistant("yes", thought="Hm."), user("And?"), assistant("no", thought="Oh.")]
    first, second = encode_turns(tokenizer, messages, LONG, ends_of("qwen3"))
    assert trained(tokenizer, first) == "<think>\nHm.\n</think>\n\nyes<|im_end|>"
    assert trained(tokenizer, second) == "<think>\nOh.\n</think>\n\nno<|im_end|>"
    assert "Hm." not in tokenizer.decode(second.ids)


# --- context


@pytest.mark.parametrize("family", CAUSAL)
def test_an_answer_with_weight_0_is_context(family: str) -> None:
    tokenizer, ends = tokenizer_of(family), ends_of(family)
    messages = [user("Where?"), assistant("yes", weight=0), user("And?"), assistant("cold")]
    (encoded,) = encode_turns(tokenizer, messages, LONG, ends)
    assert trained(tokenizer, encoded).strip().startswith("cold") and "yes" in tokenizer.decode(encoded.ids)
    last = [user("Where?"), assistant("yes"), user("And?"), assistant("cold", weight=0)]
    (encoded,) = encode_turns(tokenizer, last, LONG, ends)
    assert trained(tokenizer, encoded).strip().startswith("yes") and "cold" not in tokenizer.decode(
        encoded.ids
    )
    nothing = [user("Where?"), assistant("yes", weight=0)]
    assert encode_turns(tokenizer, nothing, LONG, ends) == []
    assert not any(encode_task(tokenizer, nothing, LONG, ends).loss_mask)


def test_every_answer_ends_where_the_template_ends_none() -> None:
    tokenizer = build_tokenizer("plain bytes")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    messages = [user("Where?"), assistant("yes"), user("And?"), assistant("no")]
    sequences = encode_turns(tokenizer, messages, LONG, [tokenizer.eos_token_id])
    assert [trained(tokenizer, e) for e in sequences] == [" yes\n<|endoftext|>", " no\n<|endoftext|>"]
    for i, encoded in zip((1, 3), sequences, strict=True):
        assert begins_with(encoded, encode_chat(tokenizer, messages[:i], True))


def test_a_template_with_the_date_renders_the_same_ids_every_day() -> None:
    tokenizer = tokenizer_of("llama3")
    assert "Today Date: 26 Jul 2024\n" in tokenizer.decode(encode_chat(tokenizer, [user("Where?")], True))


# --- the max length


@pytest.mark.parametrize("family", CAUSAL)
def test_a_long_answer_keeps_its_question_and_its_system_text(family: str) -> None:
    tokenizer, ends = tokenizer_of(family), ends_of(family)
    messages = [system("Be brief."), user("Where is the red lamp?"), assistant("In the north room. " * 60)]
    (whole,) = encode_turns(tokenizer, messages, LONG, ends)
    asked = encode_question(tokenizer, messages)
    limit = len(asked) + 20
    (cut,) = encode_turns(tokenizer, messages, limit, ends)
    assert cut.ids == whole.ids[:limit] and cut.loss_mask == whole.loss_mask[:limit]
    assert cut.cut == (len(whole.ids) - limit, 0, 0) and cut.truncated == len(whole.ids) - limit


@pytest.mark.parametrize("family", CAUSAL)
def test_a_long_question_loses_its_beginning_and_keeps_the_system_text(family: str) -> None:
    tokenizer, ends = tokenizer_of(family), ends_of(family)
    messages = [system("Be brief."), user("In the north room. " * 60 + "Where?"), assistant("yes")]
    (whole,) = encode_turns(tokenizer, messages, LONG, ends)
    limit = 200
    (cut,) = encode_turns(tokenizer, messages, limit, ends)
    assert len(cut.ids) == limit and trained(tokenizer, cut) == trained(tokenizer, whole)
    text = tokenizer.decode(cut.ids)
    assert "Be brief." in text and "Where?" in text
    assert cut.cut == (0, len(whole.ids) - limit, 0)
    head = next(i for i in range(limit) if cut.ids[i] != whole.ids[i])
    assert cut.ids[head:] == whole.ids[-(limit - head) :], "the beginning and the end, nothing else"


def test_older_turns_are_lost_before_the_question() -> None:
    tokenizer, ends = tokenizer_of("qwen2.5"), ends_of("qwen2.5")
    old = [m for i in range(9) for m in (user(f"Where is {i}?"), assistant("In the north room."))]
    messages = [system("Be brief."), *old, user("And the old bell?"), assistant("no")]
    (cut,) = encode_turns(tokenizer, messages, 90, ends)
    text = tokenizer.decode(cut.ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_start|>user\nAnd the old bell?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>")
    assert "Where is 0?" not in text and cut.cut.answer == cut.cut.system == 0 < cut.cut.question


def test_a_system_text_longer_than_the_sequence_loses_its_own_end() -> None:
    tokenizer, ends = tokenizer_of("qwen2.5"), ends_of("qwen2.5")
    messages = [system("First. " + "In the north room. " * 60), user("Where?"), assistant("yes")]
    (whole,) = encode_turns(tokenizer, messages, LONG, ends)
    (cut,) = encode_turns(tokenizer, messages, 60, ends)
    text = tokenizer.decode(cut.ids)
    assert text.startswith("<|im_start|>system\nFirst.")
    assert text.endswith(
        "<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )
    assert len(cut.ids) == 60 and cut.cut == (0, 0, len(whole.ids) - 60)


@pytest.mark.parametrize("family", SHAPES)
@given(messages=conversations(), limit=st.integers(2, 80))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_cut_sequence_fits_and_counts_what_it_lost(
    family: str, messages: list[Message], limit: int
) -> None:
    tokenizer, ends = tokenizer_of(family), ends_of(family)
    whole = encode_turns(tokenizer, messages, LONG, ends)
    cut = encode_turns(tokenizer, messages, limit, ends)
    assert len(whole) == len(cut)
    for a, b in zip(whole, cut, strict=True):
        assert len(b.ids) <= limit and len(b.encoder_ids) <= limit and len(b.ids) == len(b.loss_mask)
        assert a.length - b.length == b.truncated == sum(b.cut) and min(b.cut) >= 0
        assert any(b.loss_mask)
