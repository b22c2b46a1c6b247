"""The Library tab's trash and backup: a deletion is offered to be undone until the trash is emptied."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from core.engine import Engine
from core.errors import Busy, InvalidName, NotFound, SpecError
from core.spec.access import Role
from core.store.backup import DOWNLOAD, unpack
from core.store.locks import FileLock
from studio.server.routes import routes
from studio.tabs import library
from tests.studio.caller import Caller
from tests.studio.shown import actions, pressed, texts

OLD = Path(__file__).resolve().parents[2] / "data" / "old_workspace"
TASK, MIX = "answers-dd31", "both-058c"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    shutil.copytree(OLD, tmp_path / "w")
    with Engine(tmp_path / "w", load=False) as opened:
        yield opened


def test_a_deletion_is_undone_and_the_mixes_of_the_adapter_are_right_again(engine: Engine) -> None:
    shelf, picked, details, *_ = library.delete_item(engine, "adapters", TASK)
    assert picked == "" and "Answers is in the trash" in texts(details) and "Answers" not in texts(shelf)
    assert engine.library.mix(MIX).warnings == [f"The adapter {TASK!r} was deleted from the library."]
    refreshed = library.refresh(engine, "adapters", "")
    assert refreshed[2] == gr.skip(), "the offer stays when the lists are refreshed"
    (undo,) = actions(details)
    shown = library.act_on_item(engine, "adapters", "", pressed(**undo))
    assert shown[1] == TASK and "Answers" in texts(shown[0]) and "Water works questions" in texts(shown[2])
    assert engine.library.mix(MIX).warnings == [] and len(engine.library.verify(TASK)) == 3
    with pytest.raises(NotFound, match="It may be restored or deleted already"):
        library.act_on_item(engine, "adapters", "", pressed(**undo))


def test_a_change_elsewhere_leaves_what_a_visitor_has_opened(engine: Engine) -> None:
    selection = library.Selection("mixes", MIX)
    engine.library.save_mix("Another", {})
    shelf, picked, details, *rest = library.follow_changes(engine, selection)
    assert "Another" in texts(shelf) and "Both" in texts(details)
    assert [picked, *rest] == [gr.skip()] * 5, "the question before a deletion and a name that is typed stay"
    engine.library.delete("mixes", MIX)
    shelf, picked, details, tools, name, _, confirmation = library.follow_changes(engine, selection)
    assert picked == selection.picked == "" and details == library.views.NOTHING_SELECTED and name == ""
    assert tools == confirmation == gr.update(visible=False)
    assert library.follow_changes(engine, selection)[1:] == (gr.skip(),) * 6


def test_a_list_that_is_drawn_again_follows_an_event_that_began_since(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection, refresh = library.Selection(), library.refresh
    pick = library._track(library.pick_item)

    def refresh_while_an_item_is_picked(engine: Engine, kind: str, picked: str) -> tuple[Any, ...]:
        monkeypatch.setattr(library, "refresh", refresh)
        shown = refresh(engine, kind, picked)
        pick(engine, "mixes", "", selection, pressed(pick=MIX))
        return shown

    monkeypatch.setattr(library, "refresh", refresh_while_an_item_is_picked)
    shelf, picked, details, *_ = library.follow_changes(engine, selection)
    assert (selection.kind, selection.picked) == ("mixes", MIX) and picked == gr.skip()
    assert "Both" in texts(shelf) and "Both" in texts(details)


def test_the_trash_shows_name_kind_size_and_time(engine: Engine) -> None:
    engine.library.delete("adapters", TASK)
    engine.library.delete("mixes", MIX)
    shelf = library.refresh(engine, library.TRASH, "")[0]
    assert [a["pick"].split(".")[0] for a in actions(shelf) if "pick" in a] == ["mixes", "adapters"]
    assert "Answers adapter 163 kB · deleted" in texts(shelf) and "Both mix" in texts(shelf)
    entry = actions(shelf)[1]["pick"]
    _, picked, details, *_ = library.pick_item(engine, library.TRASH, "", pressed(pick=entry))
    assert picked == entry and TASK in texts(details)
    restored = library.act_on_item(engine, library.TRASH, picked, pressed(**actions(details)[0]))
    assert restored[1] == "" and "Answers is restored" in texts(restored[2])
    assert "Answers" not in texts(restored[0]) and engine.library.adapter(TASK).name == "Answers"


def test_the_trash_is_emptied_after_a_confirmation_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, title: told.append(text))
    engine.library.delete("mixes", MIX)
    shelf = library.refresh(engine, library.TRASH, "")[0]
    assert {"do": "ask_empty"} in actions(shelf) and {"do": "empty"} not in actions(shelf)
    _, picked, *_ = library.pick_item(engine, library.TRASH, "", pressed(do="ask_empty"))
    asked, picked, *_ = library.refresh(engine, library.TRASH, picked)  # a refresh keeps the question
    assert "This cannot be undone" in texts(asked) and {"do": "empty"} in actions(asked)
    kept, picked, *_ = library.pick_item(engine, library.TRASH, picked, pressed(do="keep"))
    assert {"do": "ask_empty"} in actions(kept) and len(engine.library.trash()) == 1
    emptied = library.pick_item(engine, library.TRASH, "", pressed(do="empty"))[0]
    assert "The trash is empty" in texts(emptied) and told == ["Deleted 1 item for good."]
    library.pick_item(engine, "adapters", "", pressed(do="empty"))  # elsewhere the action means nothing


def test_a_mix_whose_name_is_taken_is_refused_in_words(engine: Engine) -> None:
    entry = engine.library.delete("mixes", MIX).entry
    engine.library.save_mix("Both", {})
    with pytest.raises(Busy, match="There is already a mix called 'Both'"):
        library.restore_item(engine, "mixes", entry)


def test_the_whole_workspace_is_downloaded_and_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    client = TestClient(Starlette(routes=routes(engine), middleware=[Middleware(Caller)]))
    address = "/gradio_api/studio/download/workspace.zip"
    response = client.get(address)
    assert response.status_code == 200 and "adapter-studio-" in response.headers["content-disposition"]
    (tmp_path / "b.zip").write_bytes(response.content)
    assert len(zipfile.ZipFile(tmp_path / "b.zip").namelist()) == 76
    record = unpack(tmp_path / "b.zip", tmp_path / "copy")
    assert record.items["adapters"] == engine.workspace.ids("adapters") and not record.left_out
    assert not list(engine.workspace.root.glob(".backup*"))
    with FileLock(engine.workspace.root / f"{DOWNLOAD}.lock", temporary=True):
        busy = client.get(address)
    assert busy.status_code == 400 and "Another backup of this workspace is being made" in busy.text
    trainer = Starlette(routes=routes(engine), middleware=[Middleware(Caller, role=Role.TRAINER)])
    assert TestClient(trainer).get(address).status_code == 403


def test_a_deletion_names_what_uses_the_item(engine: Engine) -> None:
    domain = engine.library.adapter(TASK).stacked_on
    shown, question = library.confirm_delete(engine, "adapters", domain)
    assert shown["visible"] is True
    text = texts(question)
    assert "is used by:" in text and "the saved mix 'Both'" in text
    assert "the adapter 'Answers', which was trained on top of it" in text
    unused = engine.library.save_mix("Alone", {})
    question = library.confirm_delete(engine, "mixes", unused.id)[1]
    assert texts(question) == "Delete Alone? It can be restored from the trash."


def test_a_dataset_is_used_by_its_adapter_its_report_and_what_was_made_from_it(engine: Engine) -> None:
    adapter = engine.library.adapter(TASK)
    users = engine.library.uses("datasets", adapter.dataset)
    assert "the adapter 'Answers', which was trained on it" in users
    reports = [r for r in engine.evaluation.reports() if r.dataset == adapter.dataset]
    assert sum("the report on" in u for u in users) == len(reports)


def test_a_renamed_adapter_is_renamed_in_every_list_of_the_library(engine: Engine) -> None:
    engine.library.rename("adapters", TASK, "Replies")
    for kind in ("adapters", "mixes"):
        text = texts(library.refresh(engine, kind, MIX if kind == "mixes" else TASK)[0])
        assert "Replies" in text and "Answers" not in text and TASK not in text, kind
    details = library.refresh(engine, "mixes", MIX)[2]
    assert "Replies" in texts(details)


def test_ids_and_hashes_are_folded_away(engine: Engine) -> None:
    for _, kind in library.KINDS:
        for item in library.list_items(engine, kind):
            shelf, _, details, *_ = library.refresh(engine, kind, item.id)
            assert item.id not in texts(shelf), kind
            (fold,) = [k for k in details["kids"] if isinstance(k, dict) and k.get("tag") == "details"]
            shown = " ".join(texts(k) for k in details["kids"] if k is not fold)
            assert item.id not in shown and "sha256" not in shown and item.id in texts(fold), kind


@pytest.mark.parametrize("name", ["", "Taken"])
def test_a_name_that_is_refused_is_an_error_of_the_name_field(engine: Engine, name: str) -> None:
    engine.library.save_mix("Taken", {})
    with pytest.raises((SpecError, InvalidName)) as caught:
        library.rename_item(engine, "mixes", MIX, name)
    assert caught.value.field == "name"
