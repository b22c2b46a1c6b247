"""Texts of growing answers: no half characters, each text a prefix of the next one, thoughts apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from core.data.tokens.thoughts import MARKERS
from core.model.columns import SequenceState
from core.model.detokenizer import Detokenizer, hold_back
from core.spec.mix import Mix, Sampling
from tests.conftest import build_tiny_tokenizer

EMBEDDED = Path(__file__).resolve().parents[3] / "assets" / "embedded-base"
THINK = ["<think>", "</think>"]


@cache
def byte_level(special_markers: bool = False) -> Any:
    """Byte-level BPE, as of GPT-2, Qwen and Llama 3."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    build_tiny_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(THINK, special_tokens=special_markers)
    return tokenizer


@cache
def byte_fallback(clean_up: bool = False) -> Any:
    """Sentencepiece with byte fallback, as of Llama 2, Mistral and Gemma."""
    letters = [chr(c) for c in range(33, 127) if chr(c) not in "<>"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *letters, "é", "東"]
    vocabulary = {name: i for i, name in enumerate(names)}
    bpe = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=clean_up,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=clean_up,
    )


@cache
def embedded() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED)


@cache
def cleaning() -> Any:
    """A tokenizer whose `decode` removes the spaces before punctuation."""
    words = ["<unk>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz.,?!'"]
    scores = [(w, -float(i)) for i, w in enumerate(words)]
    unigram = Tokenizer(models.Unigram(scores, 0, False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram, unk_token="<unk>", eos_token="</s>", clean_up_tokenization_spaces=True
    )


def stream(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = (), is_open: bool = False) -> list[Any]:
    """The columns of an answer, one after every token, and the last one when it has ended."""
    state = SequenceState(0, Mix(), Sampling(stop=stop))
    state.opens_in_thought = is_open
    columns = []
    for token in ids:
        state.ids.append(token)
        if stop and state.end_at_stop(tokenizer):
            break
        columns.append(state.column(tokenizer))
    state.reason = state.reason or "length"
    return [*columns, state.column(tokenizer)]


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte fallback": byte_fallback,
    "byte fallback with clean-up": lambda: byte_fallback(True),
    "embedded": embedded,
}
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf"]), max_size=24).filter(
    lambda text: not any(marker in text for pair in MARKERS for marker in pair)
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, data=st.data())
@settings(max_examples=150, deadline=None)
def test_each_streamed_text_is_a_prefix_without_half_characters(name: str, text: str, data: Any) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = encode(tokenizer, text)
    cut = data.draw(st.integers(0, len(ids)))
    whole = stream(tokenizer, ids)[-1].text
    if name == "byte-level":
        assert whole == text.strip()
    for column in [*stream(tokenizer, ids), stream(tokenizer, ids[:cut])[-1]]:
        assert whole.startswith(column.text)
        assert "\ufffd" in whole or "\ufffd" not in column.text


@pytest.mark.parametrize("name", ["byte-level", "byte fallback"])
@given(ids=st.lists(st.integers(5, 255), max_size=12))
@settings(max_examples=200, deadline=None)
def test_texts_extend_one_another_for_any_bytes_a_model_writes(name: str, ids: list[int]) -> None:
    columns = stream(TOKENIZERS[name](), ids)
    for earlier, later in zip(columns, columns[1:]):
        assert later.text.startswith(earlier.text), (earlier.text, later.text)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["5 € and 東京", "Ünï 🦀!", "ab\ufffdcd"])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_character_cut_in_half_at_the_end_is_dropped(name: str, text: str, missing: int) -> None:
    tokenizer = TOKENIZERS[name]()
    for last in "€🦀\ufffd":
        ids = encode(tokenizer, text + last)
        cut = stream(tokenizer, ids[:-missing])[-1].text
        assert stream(tokenizer, ids)[-1].text == text + last, "the whole one is kept, U+FFFD too"
        assert cut == text or (last not in cut and text.startswith(cut))
        assert cut.count("\ufffd") <= text.count("\ufffd")


def test_bytes_that_nothing_can_complete_stay_replacement_characters() -> None:
    tokenizer = byte_level()
    first, second = (tokenizer.convert_tokens_to_ids(c) for c in ("â", "Ĥ"))  # bytes E2 and 82
    letter = tokenizer.convert_tokens_to_ids("a")
    assert [c.text for c in stream(tokenizer, [letter, first, second, letter])] == [
        "a",
        "a",
        "a",
        "a\ufffda",
        "a\ufffda",
    ]
    fallback = byte_fallback()
    ids = [fallback.convert_tokens_to_ids(t) for t in ("<0xC3>", "<0xA9>", "<0x80>", "<0xC3>", "<0xA8>", "a")]
    assert stream(fallback, ids)[-1].text == "é\ufffdèa"


def test_texts_are_decoded_without_a_clean_up_of_spaces() -> None:
    tokenizer = cleaning()
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ["a", "▁", "'", "▁", "b", "▁", "."]]
    assert "a'b" in tokenizer.decode(ids), "this tokenizer would remove the spaces"
    texts = [c.text for c in stream(tokenizer, ids)]
    assert texts == ["a", "a", "a '", "a '", "a ' b", "a ' b", "a ' b .", "a ' b ."]


@given(text=st.text("ab#\n", max_size=12), stop=st.text("ab#\n", min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_the_beginning_of_a_stop_string_is_never_streamed(text: str, stop: str) -> None:
    tokenizer = byte_level()
    columns = stream(tokenizer, encode(tokenizer, text), (stop,))
    assert columns[-1].text == text.lstrip().partition(stop)[0].strip()
    assert all(columns[-1].text.startswith(c.text) for c in columns)


def test_text_that_ends_like_a_stop_string_is_held_back_exactly() -> None:
    assert hold_back("abc#", ["##"]) == "abc"
    assert hold_back("abc##", ["##"]) == "abc#"
    assert hold_back("abc", ["##", "cd", "bcd"]) == "a"
    assert hold_back("abc", []) == "abc"


# --- thoughts


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_thought_is_apart_from_its_answer_at_every_token(special: bool, is_open: bool) -> None:
    tokenizer = byte_level(special)
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in THINK)
    thought, answer = encode(tokenizer, "\nThe bell € north.\n"), encode(tokenizer, "\n\nIn the north room.")
    ids = [*([] if is_open else [start]), *thought, end, *answer]
    columns = stream(tokenizer, ids, is_open=is_open)
    last = columns[-1]
    assert (last.thought, last.text) == ("The bell € north.", "In the north room.")
    assert last.thought_tokens == len(ids) - len(answer) and last.tokens == len(ids)
    for column in columns:
        assert last.thought.startswith(column.thought) and last.text.startswith(column.text)
    inside = stream(tokenizer, ids[: len(ids) - len(answer) - 3], is_open=is_open)[-1]
    assert inside.text == "" and inside.thought and inside.thought_tokens == inside.tokens


@pytest.mark.parametrize("opening, closing", MARKERS)
def test_markers_of_several_tokens_are_never_streamed_as_text(opening: str, closing: str) -> None:
    tokenizer = byte_level()
    written = f"{opening}Hm.{closing}Yes."
    columns = stream(tokenizer, encode(tokenizer, written))
    assert (columns[-1].thought, columns[-1].text) == ("Hm.", "Yes.")
    assert all("Yes.".startswith(c.text) and "Hm.".startswith(c.thought) for c in columns)


def test_a_stop_string_ends_the_answer_and_not_its_thought() -> None:
    tokenizer = byte_level()
    columns = stream(tokenizer, encode(tokenizer, "<think>a. b.</think>c. d."), (".",))
    assert (columns[-1].thought, columns[-1].text, columns[-1].reason) == ("a. b.", "c", "stop")


@pytest.mark.parametrize("name", ["byte-level", "byte fallback"])
def test_a_prompt_that_ends_inside_a_thought_is_recognised(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    detokenizer = Detokenizer(tokenizer)
    question = "Where is it? " * 9
    assert detokenizer.is_in_thought(encode(tokenizer, f"{question}<think>\n"))
    assert not detokenizer.is_in_thought(encode(tokenizer, f"{question}<think>\n\n</think>\n\n"))
    assert not detokenizer.is_in_thought(encode(tokenizer, question))
