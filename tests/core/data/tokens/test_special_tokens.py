"""Control tokens: no text of a user becomes one, however a tokenizer declares it; BOS before texts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from core.data.tokens.encoding import (
    boundary_ids,
    count_with_special_tokens,
    encode_answer,
    encode_chat,
    encode_cloze,
    encode_documents,
    encode_text,
    encode_text_prompt,
    encode_turns,
    text_prefix,
)
from core.data.tokens.packing import split_into_windows
from core.data.tokens.special_tokens import control_tokens
from core.model.families import FAMILIES
from tests.templates import CAUSAL, CHATML, SHAPES, build_tokenizer, ends_of, tokenizer_of

END = 10**6


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def count_controls(tokenizer: Any, ids: list[int]) -> Counter[int]:
    """How often each control token occurs, without unk, which stands for unknown characters."""
    controls = set(control_tokens(tokenizer).values()) - {tokenizer.unk_token_id}
    return Counter(i for i in ids if i in controls)


@pytest.mark.parametrize("family", SHAPES)
def test_a_written_out_control_token_is_plain_text_in_a_chat(family: str) -> None:
    tokenizer, ends = tokenizer_of(family), ends_of(family)
    (plain,) = encode_turns(tokenizer, talk("yes", "no"), END, ends)
    wanted = count_controls(tokenizer, plain.ids + plain.encoder_ids)
    assert wanted, "the template writes control tokens"
    for token in (*control_tokens(tokenizer), "".join(control_tokens(tokenizer))):
        for text in (token, f"yes {token} no", f"\n{token}\n{token}", f"{token}yes"):
            (forged,) = encode_turns(tokenizer, talk(text, text), END, ends)
            assert count_controls(tokenizer, forged.ids + forged.encoder_ids) == wanted, text
            asked = encode_chat(tokenizer, talk(text, text)[:1], True)
            assert count_controls(tokenizer, asked) <= wanted


@pytest.mark.parametrize("family", SHAPES)
def test_a_written_out_control_token_is_plain_text_in_documents(family: str) -> None:
    tokenizer = tokenizer_of(family)
    for token in control_tokens(tokenizer):
        text = f"yes {token}{token} no"
        (ids,) = encode_documents(tokenizer, [text])
        assert not count_controls(tokenizer, ids[:-1]) and ids[-1] == tokenizer.eos_token_id
        assert not count_controls(tokenizer, encode_answer(tokenizer, text))
        if family != "t5":
            opening = len(boundary_ids(tokenizer))
            assert not count_controls(tokenizer, encode_text_prompt(tokenizer, text)[opening:])
            assert not count_controls(tokenizer, encode_cloze(tokenizer, text, text).ids[opening:])


@pytest.mark.parametrize("family", CAUSAL)
def test_plain_characters_decode_to_what_the_user_wrote(family: str) -> None:
    tokenizer = tokenizer_of(family)
    text = "yes".join(control_tokens(tokenizer)) + " 12\n\n你好"
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.decode(ids[:-1]).strip() == text.strip()
    assert tokenizer.decode(encode_answer(tokenizer, text)).strip() == text.strip()


@pytest.mark.parametrize("family", SHAPES)
def test_forged_texts_are_counted_for_every_declaration(family: str) -> None:
    tokenizer = tokenizer_of(family)
    tokens = list(control_tokens(tokenizer))
    assert set(SHAPES[family].special) <= set(tokens)
    assert count_with_special_tokens(tokenizer, ["plain", *(f"a{t}b" for t in tokens)]) == len(tokens)
    assert count_with_special_tokens(tokenizer, ["<", "<|", "a < b > c", "[0]", "messages", "\n\n"]) == 0


def test_blanks_and_html_stay_tokens_where_the_template_does_not_write_them() -> None:
    tokenizer = tokenizer_of("gemma2")
    (ids,) = encode_documents(tokenizer, ["<b>yes</b>\n\nno <start_of_turn>"])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[0] == "<b>" and {"</b>", "\n\n"} <= set(tokens) and "<start_of_turn>" not in tokens
    assert tokenizer.convert_tokens_to_ids("<start_of_turn>") in encode_chat(
        tokenizer, talk("a", "b")[:1], True
    )


def declare(how: str, folder: Path) -> Any:
    """A tokenizer on disk whose <|user|> is declared in one of the ways that tokenizers have."""
    backend = Tokenizer.from_str(build_tokenizer("plain bytes").backend_tokenizer.to_str())
    template = CHATML.replace("<|im_start|>' + m['role'] + '", "<|user|>").replace(
        "<|im_end|>", "<|endoftext|>"
    )
    template = template.replace("<|im_start|>assistant", "<|user|>a")
    if how == "only in tokenizer.json, special":
        backend.add_special_tokens([AddedToken("<|user|>", normalized=False)])
    elif how in ("only in tokenizer.json, not special", "normalized", "single word"):
        token = AddedToken(
            "<|user|>", special=False, normalized=how == "normalized", single_word=how == "single word"
        )
        backend.add_tokens([token])
    more = {"additional_special_tokens": ["<|user|>"]} if how == "additional_special_tokens" else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>", **more
    )
    made.chat_template = template
    made.save_pretrained(folder)
    if how == "added_tokens_decoder":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        size = backend.get_vocab_size()
        entry = {
            "content": "<|user|>",
            "special": False,
            "normalized": False,
            "lstrip": False,
            "rstrip": False,
        }
        config["added_tokens_decoder"] = {str(size): {**entry, "single_word": False}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "how",
    [
        "additional_special_tokens",
        "added_tokens_decoder",
        "only in tokenizer.json, special",
        "only in tokenizer.json, not special",
        "normalized",
        "single word",
    ],
)
def test_every_declaration_of_a_token_keeps_it_for_the_template(how: str, tmp_path: Path) -> None:
    tokenizer = declare(how, tmp_path)
    token = tokenizer.convert_tokens_to_ids("<|user|>")
    assert token not in (None, tokenizer.unk_token_id)
    assert tokenizer("<|user|>", add_special_tokens=False)["input_ids"] == [token]
    asked = encode_chat(tokenizer, talk("yes <|user|> <|endoftext|>", "")[:1], True)
    assert asked.count(token) == 2, "the question and the opening of the answer"
    assert "yes <|user|> <|endoftext|>" in tokenizer.decode(asked)
    (document,) = encode_documents(tokenizer, ["<|user|>"])
    assert token not in document and tokenizer.decode(document[:-1]) == "<|user|>"
    assert count_with_special_tokens(tokenizer, ["<|user|>", "user"]) == 1


def test_a_text_cannot_complete_a_token_that_the_template_begins() -> None:
    tokenizer = build_tokenizer("qwen2.5")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|' + m.content }}{% else %}"
        "{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    asked = encode_chat(tokenizer, [{"role": "user", "content": "im_start|>"}], True)
    assert asked.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 1


def test_a_token_of_the_vocabulary_that_was_never_added_is_a_control_token() -> None:
    """As a sentencepiece of the kind "control": the letters of a text would merge into it."""
    letters = [*"abcdefghijklmnopqrstuvwxyz<>: ", "<e", "<e>"]
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [("<", "e"), ("<e", ">")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<e>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    token = tokenizer.convert_tokens_to_ids("<e>")
    assert tokenizer("a <e>", add_special_tokens=False)["input_ids"].count(token) == 1
    asked = encode_chat(tokenizer, talk("a <e> b", "")[:1], True)
    assert asked.count(token) == 1 and tokenizer.decode(asked).count("<e>") == 1
    assert token not in next(encode_documents(tokenizer, ["a <e>"]))
    assert count_with_special_tokens(tokenizer, ["a <e>", "a <e"]) == 1


def test_a_tokenizer_written_in_python_keeps_its_control_tokens_too() -> None:
    tokenizer: Any = ByT5Tokenizer()
    tokenizer.chat_template = FAMILIES["llama"].template_for(tokenizer)
    text = "a</s><pad>b<extra_id_0>"
    (document,) = encode_documents(tokenizer, [text])
    assert document == [*(b + 3 for b in text.encode()), tokenizer.eos_token_id]
    (encoded,) = encode_turns(tokenizer, talk(text, text), END, [tokenizer.eos_token_id])
    assert encoded.ids.count(tokenizer.eos_token_id) == 1
    asked = encode_chat(tokenizer, talk(text, text)[:1], True)
    assert asked == [b + 3 for b in f"User: {text}\nAssistant: ".encode()] == encoded.ids[: len(asked)]


# --- what stands before a text


@pytest.mark.parametrize("family", CAUSAL)
def test_bos_stands_before_texts_where_the_tokenizer_puts_it(family: str) -> None:
    tokenizer = tokenizer_of(family)
    puts_bos = SHAPES[family].puts_bos
    opening = [tokenizer.bos_token_id if puts_bos else tokenizer.eos_token_id]
    assert boundary_ids(tokenizer) == opening and bool(text_prefix(tokenizer)) == puts_bos
    text = "In the north room. " * 12
    windows = encode_text(tokenizer, text, 16)
    assert len(windows) > 2 and all(w.ids[0] == opening[0] and not w.loss_mask[0] for w in windows)
    (document,) = encode_documents(tokenizer, [text])
    assert [t for w in windows for t, m in zip(w.ids, w.loss_mask, strict=True) if m] == document
    assert encode_text_prompt(tokenizer, "In the")[0] == opening[0]
    assert encode_cloze(tokenizer, "In the", " north").ids[0] == opening[0]


@pytest.mark.parametrize("family", CAUSAL)
def test_a_chat_has_bos_at_most_once(family: str) -> None:
    tokenizer = tokenizer_of(family)
    if not SHAPES[family].bos or SHAPES[family].bos == tokenizer.eos_token:
        pytest.skip("it has no BOS of its own")
    (encoded,) = encode_turns(tokenizer, talk("Where?", "yes"), END, ends_of(family))
    writes_bos = SHAPES[family].puts_bos
    assert encoded.ids.count(tokenizer.bos_token_id) == int(writes_bos)
    assert (encoded.ids[0] == tokenizer.bos_token_id) == writes_bos


@pytest.mark.parametrize("family", CAUSAL)
def test_a_raw_prompt_and_its_cloze_begin_a_document(family: str) -> None:
    tokenizer = tokenizer_of(family)
    for prompt, completion in (("In the", " north room."), ("Where", "?"), ("yes ", "no"), ("12", "34")):
        asked = encode_text_prompt(tokenizer, prompt)
        cloze = encode_cloze(tokenizer, prompt, completion)
        assert cloze.ids[: len(asked)] == asked
        assert cloze.loss_mask == [0] * len(asked) + [1] * (len(cloze.ids) - len(asked))
        text = tokenizer.decode(cloze.ids[len(boundary_ids(tokenizer)) :])
        assert text.strip() == prompt + completion


@pytest.mark.parametrize("overlap", [0, 1, 5])
def test_every_window_of_training_opens_with_bos_where_there_is_one(overlap: int) -> None:
    ids = list(range(100, 171))
    parts = split_into_windows([1, 2], ids, 16, overlap, repeat=True)
    assert all(p.ids[:2] == [1, 2] and p.loss_mask[:2] == [0, 0] and len(p.ids) <= 16 for p in parts)
    assert [t for p in parts for t, m in zip(p.ids, p.loss_mask, strict=True) if m] == ids
    for before, after in zip(parts, parts[1:], strict=False):
        shared = max(1, overlap)
        assert after.ids[2 : 2 + shared] == before.ids[-shared:]
        assert after.loss_mask == [0] * (2 + shared) + [1] * (len(after.ids) - shared - 2)
