"""Loading: ids in use lie within the embedding, eos and pad are found, a broken base is refused in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from core.data.tokens.encoding import encode_text
from core.errors import BaseModelError
from core.model.base import Base, load_base
from core.model.generate import encode_prompt, generate
from core.model.resident import Resident
from core.model.scoring import score
from core.model.token_ids import complete_tokenizer
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace
from tests.conftest import build_tiny_llama, build_tiny_tokenizer

ROWS = 384  # of the embedding of the tiny base
FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "base"))


def edit(folder: Path, file: str, **values: Any) -> None:
    """Sets keys of a JSON file of a base; None is written as null: a missing key would get a default."""
    path = folder / file
    raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**raw, **values}), encoding="utf-8")


def remove_tokens(folder: Path) -> None:
    """Removes eos, pad and bos from all files of a base."""
    edit(folder, "tokenizer_config.json", eos_token=None, pad_token=None, bos_token=None)
    for file in ("config.json", "generation_config.json"):
        edit(folder, file, eos_token_id=None, pad_token_id=None, bos_token_id=None)


def add_tokens(folder: Path, count: int, special: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"[new {i}]" for i in range(count)], special_tokens=special)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> Base:
    return load_base(str(folder), "none", "cpu")


def use(base: Base, tmp_path: Path) -> None:
    """Generates and scores with a base: no id of it may be beyond the embedding."""
    resident = Resident(base, Workspace(tmp_path / "workspace"))
    ids = [encode_prompt(resident, t, True, 4) for t in ("Hi", "Where is the red lamp?")]
    *_, states = generate(resident, ids, [Mix()] * 2, [Sampling(max_new_tokens=4)] * 2)
    assert all(s.reason for s in states)
    sequences = [e for t in ("a", "The red lamp.") for e in encode_text(base.tokenizer, t, 64)]
    *_, (_, scores) = score(resident, sequences, [Mix()])
    assert 0 < scores[0].loss < 20


def test_eos_is_found_in_tokenizer_generation_config_and_config_in_order(
    folder: Path, tmp_path: Path
) -> None:
    edit(folder, "generation_config.json", eos_token_id=[2, 3])
    edit(folder, "config.json", eos_token_id=4)
    base = load(folder)
    assert (base.tokenizer.eos_token, base.eos_ids) == ("<|end|>", [1, 2, 3]), "the tokenizer's comes first"
    edit(folder, "tokenizer_config.json", eos_token=None)
    base = load(folder)
    assert (base.tokenizer.eos_token_id, base.eos_ids) == (2, [2, 3])
    edit(folder, "generation_config.json", eos_token_id=None)
    base = load(folder)
    assert (base.tokenizer.eos_token_id, base.eos_ids) == (4, [4])
    use(base, tmp_path)


def test_pad_is_found_in_the_same_order_and_is_eos_otherwise(folder: Path, tmp_path: Path) -> None:
    edit(folder, "generation_config.json", pad_token_id=3)
    edit(folder, "config.json", pad_token_id=4)
    assert load(folder).tokenizer.pad_token_id == 0
    edit(folder, "tokenizer_config.json", pad_token=None)
    assert load(folder).tokenizer.pad_token_id == 3
    edit(folder, "generation_config.json", pad_token_id=-1)
    assert load(folder).tokenizer.pad_token_id == 4, "-1 means none"
    edit(folder, "config.json", pad_token_id=None)
    base = load(folder)
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == 1
    use(base, tmp_path)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no eos anywhere": (remove_tokens, "has no end token"),
    "eos of the generation config": (
        lambda f: edit(f, "generation_config.json", eos_token_id=[1, 900]),
        r"eos_token_id of its generation config must be below 384, the rows of its embedding, got 900",
    ),
    "eos of the config": (
        lambda f: (remove_tokens(f), edit(f, "config.json", eos_token_id=384)),  # type: ignore[func-returns-value]
        r"eos_token_id of its config must be below 384, .* got 384",
    ),
    "pad of the config": (
        lambda f: edit(f, "config.json", pad_token_id=5000),
        r"pad_token_id of its config must be below 384, .* got 5,000",
    ),
    "pad of the generation config": (
        lambda f: (
            edit(f, "tokenizer_config.json", pad_token=None),  # type: ignore[func-returns-value]
            edit(f, "generation_config.json", pad_token_id=385),
        ),
        r"pad_token_id of its generation config must be below 384, .* got 385",
    ),
    "more words than rows": (
        lambda f: add_tokens(f, ROWS, special=False),
        r"has ids up to \d+, but its embedding has only 384 rows: '\[new \d+\]' \(384\).* and \d+ more",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_base_with_ids_beyond_its_embedding_is_refused_in_words(folder: Path, name: str) -> None:
    break_base, words = BROKEN[name]
    break_base(folder)
    with pytest.raises(BaseModelError, match=words) as caught:
        load(folder)
    assert caught.value.fix and "base" in caught.value.what


def test_a_model_that_writes_more_tokens_than_it_reads_is_refused(folder: Path) -> None:
    base = load(folder)
    base.model.lm_head = torch.nn.Linear(64, ROWS + 16)
    with pytest.raises(BaseModelError, match="can write 400 tokens, but its embedding has 384 rows"):
        complete_tokenizer("tiny base", base.tokenizer, base.model, False)


def test_a_pad_token_beyond_the_embedding_is_refused(folder: Path) -> None:
    add_tokens(folder, ROWS, special=True)
    edit(folder, "tokenizer_config.json", pad_token="[new 383]")
    with pytest.raises(BaseModelError, match=r"the pad token of its tokenizer must be below 384, .* got \d+"):
        load(folder)


def test_special_tokens_that_nothing_writes_may_lie_beyond(folder: Path, tmp_path: Path) -> None:
    add_tokens(folder, ROWS, special=True)
    base = load(folder)
    assert max(base.tokenizer.get_vocab().values()) >= ROWS
    use(base, tmp_path)
    resident = Resident(base, Workspace(tmp_path / "second"))
    ids = encode_prompt(resident, "What is [new 383]?", True, 4)
    assert max(ids) < ROWS, "a user's text never becomes such a token"
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text("[new 383]" + template, encoding="utf-8")
    with pytest.raises(BaseModelError, match=r"'\[new 383\]' \(\d+\)"):
        load(folder)


def test_a_token_that_a_template_puts_together_is_in_use(folder: Path) -> None:
    add_tokens(folder, ROWS, special=True)
    template = "{% for m in messages %}{{ '[new 3' + m.role|length|string + '0]' + m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(BaseModelError, match=r"'\[new 340\]' \(\d+\)"):  # 4 letters: user
        load(folder)


def test_a_template_may_write_added_tokens_within_the_embedding(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert max(tokenizer.get_vocab().values()) < ROWS
    use(load(folder), tmp_path)


@pytest.mark.parametrize("where", ["config", "generation_config", "bos"])
def test_the_decoder_start_is_found_or_the_base_refused(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    build_tiny_tokenizer(folder)
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    config = T5Config(vocab_size=ROWS, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **shape)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    assert load(folder).tokenizer.decoder_start_token_id == 0
    edit(folder, "config.json", decoder_start_token_id=None)
    edit(folder, "generation_config.json", decoder_start_token_id=None)
    if where == "bos":
        edit(folder, "config.json", bos_token_id=2)
    else:
        edit(folder, f"{where}.json", decoder_start_token_id=2)
    assert load(folder).tokenizer.decoder_start_token_id == 2
    edit(folder, "config.json", decoder_start_token_id=ROWS)
    with pytest.raises(BaseModelError, match="its decoder_start_token_id must be below 384"):
        load(folder)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ids=st.dictionaries(
        st.tuples(
            st.sampled_from(["config.json", "generation_config.json"]),
            st.sampled_from(["eos_token_id", "pad_token_id", "bos_token_id"]),
        ),
        st.sampled_from([None, -1, 0, 1, 383, 384, 10**6, [1, 2], [2, 500], "1", 1.5, True]),
        max_size=4,
    ),
    without=st.lists(st.sampled_from(["eos_token", "pad_token"]), unique=True),
)
def test_a_base_works_or_is_refused_in_words_whatever_its_ids(
    original: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ids: dict[tuple[str, str], Any],
    without: list[str],
) -> None:
    tmp_path = tmp_path_factory.mktemp("ids")
    folder = Path(shutil.copytree(original, tmp_path / "base"))
    edit(folder, "tokenizer_config.json", **dict.fromkeys(without))
    for (file, key), value in ids.items():
        edit(folder, file, **{key: value})
    try:
        base = load(folder)
    except BaseModelError as e:
        assert "base" in str(e)
        return
    assert base.eos_ids and max(base.eos_ids) < ROWS and base.tokenizer.pad_token_id < ROWS
    use(base, tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": 7},
        {"hidden_size": -4},
        {"num_hidden_layers": "two"},
        {"vocab_size": 10},
        {"architectures": None, "model_type": "no such model"},
        {"rope_parameters": {"rope_type": "no such type"}},
    ],
)
def test_a_damaged_config_is_refused_in_words(folder: Path, values: dict[str, Any]) -> None:
    edit(folder, "config.json", **values)
    with pytest.raises(BaseModelError, match="base"):
        load(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_base_without_one_of_its_files_is_refused_or_works(folder: Path, tmp_path: Path, file: str) -> None:
    (folder / file).write_text("[]", encoding="utf-8")
    try:
        use(load(folder), tmp_path)
    except BaseModelError as e:
        assert "base" in str(e)
