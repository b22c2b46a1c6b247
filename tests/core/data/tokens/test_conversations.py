"""Conversations that a chat template refuses: what is changed, its note, and the error that names the row."""

from __future__ import annotations

from typing import Any

import pytest

from core.data.tokens.conversations import (
    NOTES,
    check_conversation,
    check_conversations,
    list_texts,
    read_turns,
)
from core.data.tokens.encoding import EncodedSequence, encode_chat, encode_turns
from core.errors import DataError
from tests.templates import CAUSAL, build_tokenizer, ends_of, tokenizer_of

LONG = 10**6


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASK, TELL, RULE = message("user", "Where?"), message("assistant", "yes"), message("system", "Be brief.")


def show(tokenizer: Any, encoded: EncodedSequence) -> str:
    """The text of a sequence, trained parts in braces."""
    text, inside = "", 0
    groups: list[tuple[int, list[int]]] = []
    for token, mask in zip(encoded.ids, encoded.loss_mask, strict=True):
        if not groups or groups[-1][0] != mask:
            groups.append((mask, []))
        groups[-1][1].append(token)
    for inside, ids in groups:
        part = tokenizer.decode(ids)
        text += "{" + part + "}" if inside else part
    return text


def test_a_system_text_that_is_refused_stands_before_the_first_question() -> None:
    tokenizer = tokenizer_of("gemma2")
    (encoded,) = encode_turns(tokenizer, [RULE, ASK, TELL], LONG, ends_of("gemma2"))
    assert show(tokenizer, encoded) == (
        "<bos><start_of_turn>user\nBe brief.\n\nWhere?<end_of_turn>\n<start_of_turn>model\n{yes<end_of_turn>}"
    )
    assert check_conversation(tokenizer, [RULE, ASK, TELL]) == ("system",)
    assert check_conversation(tokenizer, [ASK, TELL]) == ()
    assert check_conversation(tokenizer_of("gemma3"), [RULE, ASK, TELL]) == ()


@pytest.mark.parametrize(
    ("family", "text", "notes"),
    [
        (
            "gemma2",
            "<bos><start_of_turn>user\n<end_of_turn>\n<start_of_turn>model\n{yes<end_of_turn>}",
            ("open",),
        ),
        ("llama2", "<s> [INST]  [/INST]{yes </s>}", ("open",)),
        ("mistral", "<s>[INST]  [/INST]{ yes</s>}", ("open",)),
        (
            "qwen3",
            "<|im_start|>assistant\n{yes<|im_end|>}",  # as the real template: it waits for a question
            (),
        ),
        ("gpt2", "<|endoftext|>{yes<|endoftext|>}", ("open",)),
        ("plain bytes", "Assistant:{ yes<|endoftext|>}", ()),
        ("t5", "<pad>{yes</s>}", ("open",)),
    ],
)
def test_a_conversation_that_the_assistant_opens_trains(
    family: str, text: str, notes: tuple[str, ...]
) -> None:
    tokenizer = tokenizer_of(family)
    sequences = encode_turns(tokenizer, [TELL, ASK, message("assistant", "no")], LONG, ends_of(family))
    first = encode_turns(tokenizer, [TELL], LONG, ends_of(family))[0]
    assert show(tokenizer, first) == text
    assert sequences[0].ids[: len(first.ids)] == first.ids, "with what follows, too"
    assert check_conversation(tokenizer, [TELL, ASK, TELL]) == notes


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama2", "mistral"])
def test_turns_of_one_role_are_joined_where_they_must_alternate(family: str) -> None:
    tokenizer, ends = tokenizer_of(family), ends_of(family)
    messages = [ASK, message("user", "And?"), TELL, message("assistant", "no")]
    joined = [message("user", "Where?\n\nAnd?"), message("assistant", "yes\n\nno")]
    (encoded,), (expected,) = (encode_turns(tokenizer, m, LONG, ends) for m in (messages, joined))
    assert show(tokenizer, encoded) == show(tokenizer, expected)
    assert check_conversation(tokenizer, messages) == ("merge",)
    context = [ASK, message("assistant", "yes", weight=0), message("assistant", "no")]
    (encoded,) = encode_turns(tokenizer, context, LONG, ends)
    assert show(tokenizer, encoded).split("yes")[1].strip(" ").startswith("\n\n{no")
    asked = encode_chat(tokenizer, context[:2], True)
    assert encoded.ids[: len(asked)] == asked and encoded.loss_mask[len(asked)] == 1


def test_turns_of_one_role_stay_apart_where_the_template_takes_them() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    messages = [RULE, ASK, message("user", "And?"), TELL, message("assistant", "no")]
    (encoded,) = encode_turns(tokenizer, messages, LONG, ends_of("qwen2.5"))
    assert show(tokenizer, encoded) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>user\nAnd?"
        "<|im_end|>\n<|im_start|>assistant\n{yes<|im_end|>}\n<|im_start|>assistant\n{no<|im_end|>}"
    )
    assert check_conversation(tokenizer, messages) == ()


def test_a_tools_turn_is_rendered_or_becomes_a_users() -> None:
    messages = [ASK, message("assistant", "call", weight=0), message("tool", "12"), TELL]
    minimax = tokenizer_of("minimax")
    (encoded,) = encode_turns(minimax, messages, LONG, ends_of("minimax"))
    assert "]~b]tool\n<response>12</response>[e~[\n]~b]ai\n{yes[e~[}" in show(minimax, encoded)
    assert check_conversation(minimax, messages) == ()
    for family in ("phi3", "gemma2", "mistral"):  # left out without a word, refused, refused
        tokenizer = tokenizer_of(family)
        (encoded,) = encode_turns(tokenizer, messages, LONG, ends_of(family))
        assert "12" in tokenizer.decode(encoded.ids) and check_conversation(tokenizer, messages) == ("tool",)


@pytest.mark.parametrize("family", CAUSAL)
def test_every_order_of_roles_is_accepted_by_every_template(family: str) -> None:
    tokenizer = tokenizer_of(family)
    tool = message("tool", "12")
    for messages in (
        [ASK, TELL],
        [RULE, TELL],
        [RULE, TELL, ASK, TELL],
        [ASK, ASK, tool, TELL, TELL],
        [RULE, ASK, TELL, tool, tool, TELL],
        [message("system", ""), message("user", ""), TELL],
    ):
        sequences = encode_turns(tokenizer, messages, LONG, ends_of(family))
        assert sequences and all(any(e.loss_mask) for e in sequences)
        text = " ".join(tokenizer.decode(e.ids) for e in sequences)
        assert all(m["content"] in text for m in messages)


def picky() -> Any:
    tokenizer = build_tokenizer("qwen2.5")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' and loop.index0 > 1 %}"
        "{{ raise_exception('Only one question is allowed.') }}{% endif %}"
        "{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}"
    )
    return tokenizer


def test_what_a_template_refuses_is_an_error_with_its_own_words_and_the_row() -> None:
    tokenizer = picky()
    rows = [{"messages": [ASK, TELL]}, {"text": "a document"}, {"messages": [ASK, TELL, ASK, TELL]}]
    with pytest.raises(
        DataError, match="^The base's chat template refuses .*: Only one question is allowed\\. "
    ):
        encode_turns(tokenizer, rows[2]["messages"], LONG, [tokenizer.eos_token_id])
    with pytest.raises(DataError, match="^Row 3: the base's chat template refuses .*: Only one question"):
        check_conversations(tokenizer, rows)
    places = [("a.jsonl", 4), ("a.jsonl", 5), ("b.jsonl", 9)]
    with pytest.raises(
        DataError, match="^b.jsonl, line 9: the base's chat template .*Only one question"
    ) as e:
        check_conversations(tokenizer, rows, places)
    assert (e.value.file, e.value.line) == ("b.jsonl", 9)
    assert check_conversations(tokenizer, rows[:2]) == []


def test_a_check_counts_the_rows_of_each_note() -> None:
    tokenizer = tokenizer_of("gemma2")
    rows = [{"messages": m} for m in ([RULE, ASK, TELL], [ASK, TELL], [RULE, TELL, ASK, TELL], [TELL])]
    assert check_conversations(tokenizer, rows) == [
        f"{NOTES['system']} (2 rows)",
        f"{NOTES['open']} (1 row)",
    ]


def test_texts_are_listed_without_the_markers_of_thoughts() -> None:
    messages = [
        ASK,
        message("assistant", "<think>\nHm.\n</think>\n\nyes"),
        message("assistant", "no", thought="Oh"),
    ]
    assert list_texts(messages) == ["Where?", "Hm.", "yes", "Oh", "no"]
    assert [t.role for t in read_turns([message("developer", "a"), message("model", "b")])] == [
        "system",
        "assistant",
    ]
