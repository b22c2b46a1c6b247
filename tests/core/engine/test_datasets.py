"""Imports with a base: what its chat template accepts, and the control tokens that texts write out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.engine.import_checks import BUSY
from core.errors import DataError

# Like Gemma 2's: no system turn, and turns must alternate.
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user and assistant') }}{% endif %}"
    "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Refuses what no change of the turns can help.
SHORT = (
    "{% if messages | length > 3 %}{{ raise_exception('At most one question') }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def turns(*contents: str, system: str = "") -> list[dict[str, Any]]:
    roles = ("user", "assistant") * len(contents)
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": r, "content": c} for r, c in zip(roles, contents)]


def write(path: Path, conversations: list[list[dict[str, Any]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in conversations), encoding="utf-8")
    return path


@pytest.fixture
def studio(tiny_base: Path, tmp_path: Path):
    """Opens an engine on the tiny base with another chat template; "" loads no base."""
    engines = []

    def open_studio(template: str) -> Engine:
        folder = tmp_path / "base"
        shutil.copytree(tiny_base, folder)
        for file in folder.glob("chat_template*"):
            file.unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        engine = Engine(tmp_path / "workspace", str(folder), "none", load=bool(template))
        engines.append(engine)
        engine.resident_base.wait()
        return engine

    yield open_studio
    for engine in engines:
        engine.close()


def test_a_conversation_that_the_template_refuses_names_its_row_and_the_reason(
    studio, tmp_path: Path
) -> None:
    rows = [turns(f"q {i}", "a") for i in range(5)] + [turns("q", "a", "q", "a")] * 3
    path = write(tmp_path / "chats.jsonl", rows)
    engine = studio(SHORT)
    problem = engine.datasets.preview([path]).problem
    assert problem.startswith("chats.jsonl, line 6: ") and "At most one question" in problem
    with pytest.raises(DataError) as caught:
        engine.datasets.import_files([path], "chats")
    assert (caught.value.file, caught.value.line) == ("chats.jsonl", 6) and caught.value.fix
    assert list(engine.datasets.list()) == []
    assert list((tmp_path / "workspace" / "datasets").iterdir()) == []


def test_changes_that_a_template_needs_are_noted_with_their_rows(studio, tmp_path: Path) -> None:
    rows = [turns(f"q {i}", "a", system="s") for i in range(4)] + [turns("q", "a")]
    path = write(tmp_path / "chats.jsonl", rows)
    engine = studio(STRICT)
    notes = engine.datasets.preview([path]).notes
    assert len(notes) == 1 and "before the first question" in notes[0]
    assert notes[0].endswith("(4 rows)")
    assert engine.datasets.import_files([path], "chats").notes == notes


def test_control_tokens_in_texts_are_counted_at_import(studio, tmp_path: Path) -> None:
    rows = [turns(f"q {i} {'<|end|>' if i < 3 else ''}", "a") for i in range(6)] + [turns("q", "<|user|>")]
    path = write(tmp_path / "chats.jsonl", rows)
    expected = ["4 texts have control tokens of the base written out; they are read as plain characters."]
    engine = studio(STRICT)
    assert engine.datasets.preview([path]).notes == expected
    assert engine.datasets.import_files([path], "chats").notes == expected


def test_without_a_base_an_import_goes_through(studio, tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", [turns(f"q {i}", "a", "q", "a") for i in range(5)])
    engine = studio("")
    assert engine.datasets.preview([path]).problem == ""
    dataset = engine.datasets.import_files([path], "chats")
    assert (dataset.rows, dataset.notes) == (5, [])


def test_a_busy_model_does_not_hold_up_an_import(studio, tmp_path: Path, monkeypatch) -> None:
    import threading

    path = write(tmp_path / "chats.jsonl", [turns(f"q {i}", "a") for i in range(5)])
    engine = studio(STRICT)
    monkeypatch.setattr("core.engine.datasets.IMPORT_WAIT", 0.1)
    release = threading.Event()
    engine.worker.post(lambda: release.wait(30))
    try:
        notes = engine.datasets.import_files([path], "chats").notes
    finally:
        release.set()
    assert notes == [BUSY]


def test_an_example_of_a_turn_of_weight_0_marks_the_last_answer_only(studio, tmp_path: Path) -> None:
    rows = [
        [
            {"role": "user", "content": f"{i}?"},
            {"role": "assistant", "content": "no", "weight": 0},
            *turns("2", "yes"),
        ]
        for i in range(5)
    ]
    engine = studio(STRICT)
    dataset = engine.datasets.import_files([write(tmp_path / "a.jsonl", rows)], "chats")
    tokens = engine.datasets.example_tokens(dataset.id)
    assert "".join(t.text for t in tokens if t.trained).startswith("yes")
    assert "no" not in "".join(t.text for t in tokens if t.trained)
