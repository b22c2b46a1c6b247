"""The tokenizer of a folder is written so that a reader gives every text the same ids, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from core.errors import BaseModelError
from core.gguf import tokenizer_writer
from core.gguf.header import GgufHeader
from core.gguf.tokenizer import SPLITS, build_tokenizer
from tests.conftest import CHATML, SENTENCES, build_tiny_tokenizer
from tests.core.gguf.export_maker import build_sentencepiece_tokenizer

TEXTS = (
    "The red lamp is kept in room 1234567, isn't it? 3.14 and ½",
    "  leading blanks, 中文没有空格。été e\u0301 🙂\n\n\nnext\t\ttab   end ",
    "a<|user|>b <|end|>c<|pad|>",
)
ROWS = 384


def read_back(
    folder: Path, architecture: str = "llama", name: str = "Tiny"
) -> tuple[Any, dict[str, Any], list[str]]:
    """(the tokenizer that a reader builds, the keys, the notes)"""
    built = tokenizer_writer.build_keys(folder, ROWS, architecture, name)
    metadata = {**built.keys, "general.architecture": architecture, "general.name": built.name}
    return build_tokenizer(GgufHeader("file", metadata, {}, 0), 256).backend, built.keys, built.notes


def save_byte_level(
    folder: Path, pre_tokenizer: Any, change: Callable[[Any], None] = lambda backend: None, **more: Any
) -> Any:
    """Saves a tokenizer of bytes that splits texts in a way; returns it."""
    backend = Tokenizer(models.BPE(ignore_merges=more.pop("ignore_merges", False)))
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>"]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    backend.train_from_iterator([*SENTENCES, "12345 678 90 123 12 1234 don't we'll"], trainer)
    change(backend)
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", **more
    )
    fast.save_pretrained(folder)
    return fast


def make_steps(name: str) -> Any:
    """The pre-tokenizer of a name of the table, as the folders of these models have it."""
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in SPLITS[name].patterns]
    return pre_tokenizers.Sequence([*steps, last])


@pytest.mark.parametrize(
    "name", ["llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o", "smollm", "gpt-2", "default"]
)
def test_every_way_of_splitting_is_found_in_the_table_of_the_reader(name: str, tmp_path: Path) -> None:
    whole = {"ignore_merges": SPLITS[name].whole_words}
    own = save_byte_level(tmp_path, make_steps(name), **whole)
    backend, keys, _ = read_back(tmp_path)
    assert SPLITS[keys["tokenizer.ggml.pre"]] == SPLITS[name]
    for text in TEXTS:
        assert backend.encode(text).ids == own(text).input_ids


def test_usual_spellings_of_a_way_of_splitting_are_one_way(tmp_path: Path) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    save_byte_level(tmp_path / "a", pre_tokenizers.Sequence([digits, bytes_]))
    assert read_back(tmp_path / "a")[1]["tokenizer.ggml.pre"] == "smollm"
    pattern = (
        SPLITS["llama-bpe"]
        .patterns[0]
        .replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
    )
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    save_byte_level(tmp_path / "b", pre_tokenizers.Sequence([split, last]), ignore_merges=True)
    assert read_back(tmp_path / "b")[1]["tokenizer.ggml.pre"] == "llama-bpe"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([pre_tokenizers.Split(Regex(r"\p{N}{1,2}"), "isolated")], r"no name for: \\p\{N\}\{1,2\} then"),
        ([pre_tokenizers.Whitespace()], "no name for: Whitespace"),
        ([pre_tokenizers.Split(Regex(r"\p{N}"), "merged_with_next")], "no name for: Split"),
    ],
)
def test_an_unknown_way_of_splitting_is_refused(steps: list[Any], message: str, tmp_path: Path) -> None:
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    save_byte_level(tmp_path, pre_tokenizers.Sequence([*steps, bytes_]))
    with pytest.raises(BaseModelError, match=message) as raised:
        read_back(tmp_path)
    assert "These ways have a name: default, gpt-2" in raised.value.fix


def test_whole_words_without_a_name_pass_only_where_merges_give_the_same(tmp_path: Path) -> None:
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    save_byte_level(tmp_path / "same", bytes_, ignore_merges=True)
    assert read_back(tmp_path / "same")[1]["tokenizer.ggml.pre"] == "gpt-2"

    def lose_merges(backend: Any) -> None:
        state = json.loads(backend.to_str())
        state["model"]["merges"] = state["model"]["merges"][:-5]
        backend.model = Tokenizer.from_str(json.dumps(state)).model

    save_byte_level(tmp_path / "other", bytes_, lose_merges, ignore_merges=True)
    with pytest.raises(BaseModelError, match="takes a word that is a token as a whole"):
        read_back(tmp_path / "other")


def test_kinds_ids_and_template_are_those_of_the_folder(tmp_path: Path) -> None:
    build_tiny_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2, 999]}')
    _, keys, notes = read_back(tmp_path)
    tokens = keys["tokenizer.ggml.tokens"]
    assert keys["tokenizer.ggml.token_type"][:6] == [3, 3, 3, 3, 3, 1] and notes == []
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.padding_token_id"]) == (1, 0)
    assert keys["tokenizer.ggml.eot_token_id"] == tokens.index("<|user|>") == 2
    assert "tokenizer.ggml.bos_token_id" not in keys and keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.chat_template"] == CHATML
    assert len(tokens) == len(set(tokens)) == ROWS and tokens[-1] == "[PAD383]"
    assert keys["tokenizer.ggml.token_type"][-1] == 5


def test_tokens_beyond_the_embedding_are_left_out_and_named(tmp_path: Path) -> None:
    build_tiny_tokenizer(tmp_path)
    own = hf.AutoTokenizer.from_pretrained(tmp_path)
    own.add_tokens([f"<|new{i}|>" for i in range(80)])
    own.save_pretrained(tmp_path)
    _, keys, notes = read_back(tmp_path)
    beyond = len(own) - ROWS
    assert beyond > 3 and len(keys["tokenizer.ggml.tokens"]) == ROWS
    assert len(notes) == 1 and notes[0].endswith(
        f"{beyond - 3} more are left out: the embedding has 384 rows."
    )
    assert keys["tokenizer.ggml.token_type"][ROWS - 1] == 4, "an added token that is not special"


def test_bos_and_eos_are_put_where_the_tokenizer_puts_them(tmp_path: Path) -> None:
    def put_both(backend: Any) -> None:
        ids = [("<|user|>", 2), ("<|end|>", 1)]
        backend.post_processor = processors.TemplateProcessing(
            single="<|user|> $A <|end|>", pair="$A $B", special_tokens=ids
        )

    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own = save_byte_level(tmp_path / "a", bytes_, put_both, bos_token="<|user|>")
    backend, keys, _ = read_back(tmp_path / "a")
    assert keys["tokenizer.ggml.add_bos_token"] is keys["tokenizer.ggml.add_eos_token"] is True
    assert backend.encode("lamp").ids == own("lamp").input_ids and own("lamp").input_ids[0] == 2
    save_byte_level(tmp_path / "b", bytes_, put_both)  # the first token is not bos
    with pytest.raises(BaseModelError, match="puts other tokens around a text"):
        read_back(tmp_path / "b")


def test_normalizers_are_refused_but_for_composed_accents(tmp_path: Path) -> None:
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def normalize(normalizer: Any) -> Callable[[Any], None]:
        return lambda backend: setattr(backend, "normalizer", normalizer)

    save_byte_level(tmp_path / "nfc", bytes_, normalize(normalizers.NFC()))
    assert "composes accents" in read_back(tmp_path / "nfc")[2][0]
    save_byte_level(tmp_path / "lower", bytes_, normalize(normalizers.Lowercase()))
    with pytest.raises(BaseModelError, match=r"changes texts \(Lowercase\)"):
        read_back(tmp_path / "lower")
    prefix = pre_tokenizers.ByteLevel(add_prefix_space=True)
    save_byte_level(tmp_path / "prefix", prefix)
    with pytest.raises(BaseModelError, match="no name for: ByteLevel"):
        read_back(tmp_path / "prefix")
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")), eos_token="a"
    )
    words.save_pretrained(tmp_path / "words")
    with pytest.raises(BaseModelError, match="is of the kind 'WordLevel'; BPE over bytes"):
        read_back(tmp_path / "words")


def metaspace(scheme: str) -> dict[str, Any]:
    return {"normalizer": None, "pre_tokenizer": pre_tokenizers.Metaspace("▁", scheme, False)}


CHAT = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
PLAIN = ("The lamp is red.", "a  b   1234 été 中文 🙂\n\nend  ")


@pytest.mark.parametrize(
    ("changes", "prefix", "same", "note"),
    [
        ({}, True, [*PLAIN, "  two", "a</s>b"], ""),
        ({"normalizer": normalizers.Replace(" ", "▁")}, False, [*PLAIN, "  two", "a</s>b"], ""),
        (metaspace("never"), False, [*PLAIN, "  two", "a</s>b"], ""),
        (metaspace("always"), True, [*PLAIN, "a</s>b"], "before a text that begins with a blank"),
        (metaspace("first"), True, [*PLAIN], "a blank behind control tokens"),
        ({**metaspace("first"), "template": CHAT}, False, ["</s>The lamp", "<s>a  b"], "no blank before"),
    ],
)
def test_sentencepiece_tokenizers_keep_their_ids(
    changes: dict[str, Any], prefix: bool, same: list[str], note: str, tmp_path: Path
) -> None:
    build_sentencepiece_tokenizer(tmp_path, **changes)
    backend, keys, notes = read_back(tmp_path)
    own = hf.AutoTokenizer.from_pretrained(tmp_path)
    assert keys["tokenizer.ggml.model"] == "llama" and keys["tokenizer.ggml.add_space_prefix"] is prefix
    for text in same:
        assert backend.encode(text).ids == own(text).input_ids, text
    assert note in "".join(notes) and bool(note) == bool(notes)
    kinds = keys["tokenizer.ggml.token_type"]
    assert kinds[:4] == [2, 3, 3, 6] and keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.unknown_token_id"] == 0


def test_added_tokens_of_blanks_are_reached_by_merges(tmp_path: Path) -> None:
    build_sentencepiece_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    vocab = {"▁▁" if i == 383 else token: i for token, i in state["model"]["vocab"].items()}
    state["model"] |= {"vocab": vocab, "merges": [["▁", "▁"], *state["model"]["merges"]]}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    state["added_tokens"].append({"id": 383, "content": "▁▁", **flags})
    path.write_text(json.dumps(state), encoding="utf-8")
    backend, keys, notes = read_back(tmp_path)
    own = hf.AutoTokenizer.from_pretrained(tmp_path)
    assert 383 in own("a  b").input_ids and notes == []
    assert backend.encode("a  b").ids == own("a  b").input_ids
    assert keys["tokenizer.ggml.token_type"][383] == 1, "llama.cpp would write a whole token as it is"


def test_merges_that_llama_cpp_would_not_make_are_refused(tmp_path: Path) -> None:
    build_sentencepiece_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["model"]["merges"] = state["model"]["merges"][::-1][:40]
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(BaseModelError, match="llama.cpp would give the text .* other tokens"):
        read_back(tmp_path)


def test_blanks_behind_control_tokens_are_removed_in_models_called_phi_3(tmp_path: Path) -> None:
    def strip_all(backend: Any) -> None:
        names = ("<|pad|>", "<|end|>", "<|user|>")
        backend.add_special_tokens([AddedToken(t, normalized=False, rstrip=True) for t in names])

    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own = save_byte_level(tmp_path / "all", bytes_, strip_all)
    built = tokenizer_writer.build_keys(tmp_path / "all", ROWS, "phi3", "My model")
    assert (built.name, built.notes) == ("Phi-3 My model", [])
    backend, _, _ = read_back(tmp_path / "all", "phi3", "phi3-mini")
    ids = own("<|user|>\n lamp").input_ids
    assert backend.encode("<|user|>\n lamp").ids == ids == own("<|user|>lamp").input_ids
    build_tiny_tokenizer(tmp_path / "none")
    plain = tokenizer_writer.build_keys(tmp_path / "none", ROWS, "phi3", "Phi-3-mini tuned")
    assert plain.name == "Phi 3-mini tuned"


def test_a_tokenizer_without_an_end_or_without_files_is_refused(tmp_path: Path) -> None:
    save_byte_level(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    with pytest.raises(BaseModelError, match="names no token that ends an answer"):
        read_back(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match="The tokenizer of 'empty' cannot be loaded"):
        read_back(tmp_path / "empty")
