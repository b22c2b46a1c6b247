"""The page and the terminal name damaged items with file and reason, and delete them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from core.cli.main import main
from core.engine import Engine
from core.engine.damaged import WORKSPACE
from core.errors import NotFound
from core.store.records import Damaged
from studio.components import damaged, guide
from tests.studio.tabs.conftest import acts, texts

STORED = Path(__file__).resolve().parents[1] / "data" / "old_workspace"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A workspace with a damaged run and a damaged base."""
    shutil.copytree(STORED, tmp_path / "ws")
    with Engine(tmp_path / "ws", load=False) as made:
        made.bases.load = lambda: None  # type: ignore[method-assign]
        made.workspace.path("runs", "killed-df78", "run.json").write_text('{"name": "Killed"}')
        made.workspace.base_path.write_text("{}")
        yield made


def test_a_damaged_item_is_shown_with_file_reason_and_delete(engine: Engine) -> None:
    tree = damaged.render_damaged(engine.library.damaged())
    assert tree is not None
    shown = texts(tree)
    assert "Killedrun" in shown and "runs/killed-df78/run.json: id is missing." in shown
    assert "Base chosen lastfile" in shown and "base.json: base is missing." in shown
    assert acts(tree) == [
        {"do": "delete_damaged", "kind": "runs", "id": "killed-df78"},
        {"do": "delete_damaged", "kind": WORKSPACE, "id": "base"},
    ]
    assert damaged.render_damaged(engine.library.damaged("mixes", "datasets")) is None


def test_the_names_in_a_damaged_file_stay_text_and_are_shortened() -> None:
    evil = "<img src=x onerror=alert(1)>"
    tree = damaged.render_damaged([Damaged("maps", "a" * 64, "a" * 64, "maps/x", evil)])
    assert evil in texts(tree) and "a" * 13 not in texts(tree)


def test_delete_moves_a_damaged_item_to_the_trash_and_files_away(engine: Engine) -> None:
    for action in acts(damaged.render_damaged(engine.library.damaged())):
        damaged.delete_damaged(engine, gr.EventData(None, action))
    assert engine.library.damaged() == [] and not engine.workspace.base_path.exists()
    assert [(t.kind, t.id, t.name) for t in engine.library.trash()] == [("runs", "killed-df78", "Killed")]
    with pytest.raises(NotFound):
        engine.library.delete_damaged(WORKSPACE, "nothing")
    damaged.delete_damaged(engine, gr.EventData(None, {"do": "other"}))


def test_a_deletion_says_what_is_gone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, title: told.append(text))
    with open(engine.workspace.votes_path, "ab") as f:
        f.write(b"not a vote\n")
    for kind, item_id in (("runs", "killed-df78"), (WORKSPACE, "votes"), (WORKSPACE, "base")):
        action = {"do": "delete_damaged", "kind": kind, "id": item_id}
        damaged.delete_damaged(engine, gr.EventData(None, action))
    assert told == [
        "Deleted killed-df78. It can be restored under Library, Trash.",
        "Deleted the damaged lines of the votes.",
        "Deleted the choice of the base.",
    ]


def test_the_lists_of_the_page_follow_damage(engine: Engine) -> None:
    before = guide.poll(engine, {})["revision"]
    engine.workspace.path("mixes", "both-058c").write_text("{")
    after = guide.poll(engine, {})["revision"]
    assert before != after == guide.poll(engine, {})["revision"]


def test_the_terminal_lists_damage_on_standard_error_and_deletes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ws"
    shutil.copytree(STORED, root)
    (root / "adapters" / "answers-dd31" / "adapter_config.json").write_text("{")
    where = ["--workspace", str(root), "--json"]
    assert main(["adapters", "list", *where]) == 0
    out, err = capsys.readouterr()
    assert {a["id"] for a in json.loads(out.splitlines()[-1])} == {"water-works-b087", "ranks-rank-2-442e"}
    assert err.startswith("damaged: Answers (adapters/answers-dd31/adapter_config.json): it is not JSON")
    assert main(["library", "damaged", *where]) == 0
    (item,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (item["kind"], item["id"], item["name"]) == ("adapters", "answers-dd31", "Answers")
    assert main(["library", "delete", "adapters", "answers-dd31", *where]) == 0
    assert main(["library", "damaged", *where]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == []


def test_a_file_of_the_workspace_that_is_healthy_is_not_deleted(engine: Engine) -> None:
    content = '{"base": "embedded", "quantization": "auto", "device": "auto"}'
    engine.workspace.base_path.write_text(content)
    assert [d.id for d in engine.library.damaged(WORKSPACE)] == []
    engine.library.delete_damaged(WORKSPACE, "base")
    assert engine.workspace.base_path.read_text() == content
