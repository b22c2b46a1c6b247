"""The sequences of a run: BOS, the rules that a run began under, and rows that the template refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.errors import DataError
from core.model.base import load_base
from core.model.resident import Resident
from core.spec.training import RULES, TrainSpec
from core.store.workspace import Workspace
from core.train.sequences import build_sequences
from tests.conftest import build_tiny_llama
from tests.templates import build_tokenizer

QWEN_ONE_QUESTION = (
    "{% for m in messages %}{% if m.role == 'user' and loop.index0 > 1 %}"
    "{{ raise_exception('Only one question is allowed.') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_base(folder: Path, family: str, template: str = "") -> Path:
    """A random Llama of two layers with the tokenizer of a family."""
    tokenizer: Any = build_tokenizer(family)
    tokenizer.chat_template = template or tokenizer.chat_template
    if family == "plain blank":
        tokenizer.chat_template = None
    size = max(tokenizer.get_vocab().values()) + 1
    build_tiny_llama(folder, vocab_size=size, bos_token_id=1, eos_token_id=tokenizer.eos_token_id)
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def engine_of(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(family: str, template: str = "") -> Engine:
        folder = build_base(tmp_path / f"base{len(engines)}", family, template)
        engines.append(Engine(tmp_path / f"ws{len(engines)}", str(folder), device="cpu"))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def talk(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


def build(engine: Engine, **fields: Any) -> Any:
    spec = TrainSpec(name="run", max_length=64, packing=False, **fields)
    dataset = engine.datasets.get(spec.dataset)
    resident = engine.worker.call(engine.resident_base.get)
    notes: list[str] = []
    made = build_sequences(engine.workspace, resident, spec, dataset, list, notes.append)
    return made, notes, resident.base.tokenizer


def test_windows_and_chats_of_a_base_with_bos_begin_with_it(
    engine_of: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = engine_of("plain blank")
    assert not engine.bases.current(wait=True).error
    text = tmp_path / "text.txt"
    text.write_text("\n\n---\n\n".join(f"In the north room. {i} " * 20 for i in range(12)), encoding="utf-8")
    corpus = engine.datasets.import_files([text], "text", "domain")
    pairs = [talk(f"Where is {i}?", "In the north room.") for i in range(24)]
    questions = engine.datasets.import_files([write_rows(tmp_path / "q.jsonl", pairs)], "pairs", "task")
    for kind, dataset in (("domain", corpus), ("task", questions)):
        made, _, tokenizer = build(engine, kind=kind, dataset=dataset.id, replay_share=0.0)
        rows = [*made.rows, *({"input_ids": e.ids, "loss_mask": e.loss_mask} for e in made.validation)]
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        assert rows and all(r["input_ids"][0] == bos and not r["loss_mask"][0] for r in rows)
        assert all(r["input_ids"].count(bos) == 1 for r in rows)
        first, _, _ = build(engine, kind=kind, dataset=dataset.id, replay_share=0.0, rules=1)
        assert all(bos not in r["input_ids"] for r in first.rows), "as version 0.1.0 trained"
        if kind == "domain":
            assert made.stats.windows > 12 and {r["input_ids"][0] for r in first.rows} != {bos}
            assert any(r["input_ids"][-1] == eos for r in made.rows)
    assert RULES > 1


def test_a_row_that_the_template_refuses_is_an_error_before_a_run_is_queued(
    engine_of: Callable[..., Engine], tmp_path: Path
) -> None:
    accepting = engine_of("qwen2.5")
    rows = [talk(f"Where is {i}?", "yes") for i in range(12)]
    refused = [*rows, talk("Where?", "yes", "And?", "no")]
    file = write_rows(tmp_path / "rows.jsonl", refused)
    assert not accepting.bases.current(wait=True).error
    dataset = accepting.datasets.import_files([file], "rows", "task")
    spec = TrainSpec(kind="task", name="run", dataset=dataset.id, max_length=64)
    assert accepting.runs.check(spec).id == dataset.id
    other = build_base(tmp_path / "other", "qwen2.5", QWEN_ONE_QUESTION)
    accepting.close()
    with Engine(accepting.workspace.root, str(other), device="cpu") as engine:
        assert not engine.bases.current(wait=True).error
        with pytest.raises(
            DataError, match="^Row [0-9]+ of the (train|val|test) split of 'rows': .*Only one"
        ):
            engine.runs.start(spec)
        assert engine.runs.list() == []
        with pytest.raises(DataError, match="line 13: .*Only one question is allowed"):
            engine.datasets.import_files([file], "again", "task")


def test_a_run_names_what_the_template_changes(engine_of: Callable[..., Engine], tmp_path: Path) -> None:
    engine = engine_of("gemma2")
    assert not engine.bases.current(wait=True).error
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."}, *talk(f"Where is {i}?", "yes")["messages"]]}
        for i in range(20)
    ]
    dataset = engine.datasets.import_files([write_rows(tmp_path / "r.jsonl", rows)], "rows", "task")
    made, notes, tokenizer = build(engine, kind="task", dataset=dataset.id)
    count = dataset.splits["train"]
    assert f"its text stands before the first question. ({count} rows)" in notes[0]
    assert "user\nBe brief.\n\nWhere is" in tokenizer.decode(made.rows[0]["input_ids"])


def test_a_base_without_a_template_gets_one_that_begins_with_its_bos(tmp_path: Path) -> None:
    base = load_base(str(build_base(tmp_path / "base", "plain blank")), "none", "cpu")
    resident = Resident(base, Workspace(tmp_path / "ws"))
    assert not base.has_own_template and resident.base.tokenizer.chat_template.startswith("{#-")
