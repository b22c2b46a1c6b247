"""A dataset of the Hub on the Data tab: first rows, parts, roles of the columns, and the import."""

from __future__ import annotations

from functools import partial

import gradio as gr
import pytest

from core.data.formats import hub_datasets, hub_heads
from core.engine import Engine
from core.errors import DataError, SpecError
from studio import uploads
from studio.tabs import data_hub
from studio.tabs.data_hub import HubChoice
from tests.mock_hub import Handler, serve_hub


@pytest.fixture(scope="module")
def hub():
    with serve_hub() as address:
        yield address


@pytest.fixture
def engine(tmp_path, monkeypatch, hub):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    for module, name in (
        (hub_datasets, "list_splits"),
        (hub_datasets, "resolve"),
        (hub_datasets, "download"),
        (hub_heads, "read_head"),
    ):
        monkeypatch.setattr(module, name, partial(getattr(module, name), endpoint=hub))
    with Engine(tmp_path / "ws", load=False) as made:
        yield made


def texts(node):
    return node if isinstance(node, str) else " ".join(texts(k) for k in (node or {}).get("kids", []))


def find(tree, tag):
    if not isinstance(tree, dict):
        return []
    return ([tree] if tree["tag"] == tag else []) + [n for kid in tree["kids"] for n in find(kid, tag)]


def look(engine, hub_id, revision="", picked=None):
    *_, shown = data_hub.look_up(engine, picked or HubChoice(), hub_id, revision, False)
    return shown


def press(engine, picked, **act):
    return data_hub.change_preview(engine, picked, False, gr.EventData(None, act))


def finish(engine, picked, hub_id, held_out=False):
    value, after, preview, typed = data_hub.start_hub_import(
        engine, picked, hub_id, picked.revision, held_out
    )
    assert (after, preview, typed) == (HubChoice(), None, "")
    return engine.imports.wait(value["job"], 60)


def count_drops(tmp_path):
    return len(list((tmp_path / "uploads").glob("drop-*")))


def test_two_unknown_columns_are_asked_and_imported_as_answered(engine, tmp_path):
    picked, preview = look(engine, "a/asked")
    assert "Preview of a/asked" in texts(preview) and "Nothing is imported yet." in texts(preview)
    assert [b["act"]["do"] for b in find(preview, "button")][:4] == ["close", "confirm", "swap", "other"]
    with pytest.raises(SpecError, match="asks a question") as caught:
        finish(engine, picked, "a/asked")
    assert caught.value.field == "hub_id"
    picked, preview = press(engine, picked, do="swap")
    assert picked.choices.roles == {"question": "rechts", "answer": "links"} and not picked.asks
    picked, preview = press(engine, picked, do="role", column="links", value="question")
    assert picked.choices.roles == {"question": "links", "answer": "rechts"}
    assert "Where is dog 0?" in texts(preview) and count_drops(tmp_path) == 1
    status = finish(engine, picked, "a/asked")
    assert status.state == "done", status.problem
    dataset = engine.datasets.get(status.dataset_id)
    assert (dataset.rows, dataset.kind, dataset.unread) == (30, "task", ["nr"])
    row = engine.datasets.rows(dataset.id, "all", 1)[0]["messages"]
    assert row[0]["content"].startswith("Where is dog") and row[1]["content"].startswith("At quay")
    assert count_drops(tmp_path) == 0, "the first rows are deleted"


def test_the_configuration_and_the_split_are_chosen_in_the_preview(engine):
    picked, preview = look(engine, "a/script")
    assert "Choose the one to import" in texts(preview)
    (select,) = find(preview, "select")
    assert [o["attrs"]["value"] for o in select["kids"]] == ["", "de", "en"]
    with pytest.raises(SpecError, match="asks a question"):
        finish(engine, picked, "a/script")
    picked, preview = press(engine, picked, do="config", value="en")
    assert (picked.config, picked.split) == ("en", "train") and "1" in texts(preview)
    picked, preview = look(engine, "a/configs", picked=picked)
    assert (picked.config, picked.split) == ("plain", "train")
    assert [s["attrs"]["aria-label"] for s in find(preview, "select")][:2] == ["Configuration", "Split"]
    picked, preview = press(engine, picked, do="split", value="test")
    assert "three" in texts(preview)
    picked, preview = press(engine, picked, do="config", value="other")
    assert (picked.config, picked.split) == ("other", "train") and "four" in texts(preview)
    for wrong in ("../x", "plain/train"):
        assert press(engine, picked, do="config", value=wrong)[0].config == "other"


def test_a_chosen_part_is_what_is_imported(engine):
    picked, _ = look(engine, "a/names")
    picked, _ = press(engine, picked, do="split", value="validation")
    Handler.asked.clear()
    finish(engine, picked, "a/names", held_out=True)
    assert any("validation-00000" in path for path in Handler.asked)
    assert not any("train-00000" in path for path in Handler.asked)


def test_what_the_hub_says_stands_at_the_id(engine, tmp_path):
    with pytest.raises(SpecError, match="no id") as caught:
        list(data_hub.look_up(engine, HubChoice(), "  ", "", False))
    assert caught.value.field == "hub_id"
    for hub_id, revision, field in (
        ("a/none", "", "hub_id"),
        ("a/rows", "v9", "revision"),
        ("x", "", "hub_id"),
    ):
        with pytest.raises(DataError) as caught:
            list(data_hub.look_up(engine, HubChoice(), hub_id, revision, False))
        assert caught.value.field == field
    assert count_drops(tmp_path) == 0


def test_first_rows_that_cannot_be_read_leave_the_import_possible(engine, monkeypatch):
    monkeypatch.setattr(hub_heads, "HEAD_BYTES", 5)
    picked, preview = look(engine, "a/rows")
    assert find(preview, "p")[-1]["attrs"]["role"] == "alert" and picked.problem
    assert finish(engine, picked, "a/rows").state == "done"


def test_an_id_that_was_typed_after_the_look_is_read_as_it_is(engine):
    picked, _ = look(engine, "a/asked")
    picked, _ = press(engine, picked, do="swap")
    status = finish(engine, picked, "a/rows")
    assert engine.datasets.get(status.dataset_id).roles == {"question": "question", "answer": "answer"}


def test_a_closed_preview_leaves_nothing(engine, tmp_path):
    picked, _ = look(engine, "a/asked")
    assert [f.name for f in uploads.list_files(picked.drop)] == ["head.jsonl"]
    assert press(engine, picked, do="close") == (HubChoice(), None)
    assert count_drops(tmp_path) == 0
    assert data_hub.show_again(engine, HubChoice(), True) == (HubChoice(), None)
