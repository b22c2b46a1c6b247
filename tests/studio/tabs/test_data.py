"""The handlers of the Data tab: starting imports, failed ones, names, what is made of a dataset."""

import io
import json
import tempfile
import zipfile

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from core.data.derivation.derived_datasets import write_dataset_from_rows
from core.data.inspection.records import Finding, LengthBin, Lengths
from core.engine import Engine
from core.engine.imports import ImportStatus
from core.errors import DataError, NotFound, SpecError
from studio.components import imports, inspection
from studio.reading_choices import Choices
from studio.server.routes import routes
from studio.tabs import data, data_derive, data_hub, data_import
from studio.views import data_inspection
from tests.studio.caller import Caller
from tests.studio.dropped import drop_files


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    with Engine(tmp_path / "ws", load=False) as made:
        yield made


def texts(node) -> str:
    return node if isinstance(node, str) else "".join(texts(k) for k in (node or {}).get("kids", []))


def find(tree, tag):
    if not isinstance(tree, dict):
        return []
    return ([tree] if tree["tag"] == tag else []) + [n for kid in tree["kids"] for n in find(kid, tag)]


def pressed(**said):
    return gr.EventData(None, said)


def pairs(count, start=0, answer="Write to crane{}@example.org."):
    rows = [{"question": f"Crane {i}?", "answer": answer.format(i)} for i in range(start, start + count)]
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def import_pairs(engine, name, count=12, **more):
    forms = imports.Forms()
    value = drop_files({"a.jsonl": pairs(count, **more)})
    job = data_import.start_import(engine, forms, value, Choices(), name, False)[0]["job"]
    status = engine.imports.wait(job, 60)
    assert status.state == "done", status.problem
    return status.dataset_id


def poll(component):
    """The response of the component's server function."""
    return component.poll_imports({})


def test_an_import_ends_with_its_dataset_and_without_its_files(empty, tmp_path):
    forms = imports.Forms()
    value = drop_files({"a.jsonl": pairs(12)})
    started = data_import.start_import(empty, forms, value, Choices(), " Cranes ", False)
    assert started[1] is None, "more files can be dropped at once"
    status = empty.imports.wait(started[0]["job"], 60)
    assert empty.datasets.get(status.dataset_id).name == "Cranes"
    (job,) = poll(imports.imports(empty, forms))["jobs"]
    assert (job["state"], job["dataset"], job["ended"]) == ("done", status.dataset_id, True)
    assert list((tmp_path / "uploads").iterdir()) == [] and forms.by_job == {}


def test_a_failed_import_says_why_and_shows_its_files_again(empty, tmp_path):
    forms = imports.Forms()
    value = drop_files({"a.jsonl": b'{"question": "a", "answer": "b"}\n{"question": \n'})
    chosen = Choices(encoding="utf-8", answered=True)
    job = data_import.start_import(empty, forms, value, chosen, "Broken", True)[0]["job"]
    assert empty.imports.wait(job, 60).state == "failed"
    (shown,) = poll(imports.imports(empty, forms))["jobs"]
    assert "Broken was not imported" in texts(shown["tree"]) and "a.jsonl, line" in texts(shown["tree"])
    files, choices, name, held_out, *_ = data_import.reopen_files(empty, forms, job)
    assert (files, choices.answered, name, held_out) == (value, True, "Broken", True)
    with pytest.raises(NotFound, match="no longer there"):
        data_import.reopen_files(empty, forms, job)


def test_a_dismissed_import_leaves_no_files(empty, tmp_path):
    forms = imports.Forms()
    value = drop_files({"a.jsonl": b"{"})
    job = data_import.start_import(empty, forms, value, Choices(), "Broken", False)[0]["job"]
    empty.imports.wait(job, 60)
    imports.imports(empty, forms).dismiss_import({"job": job})
    assert list((tmp_path / "uploads").iterdir()) == []


def test_an_import_needs_files_and_a_name_and_says_so_at_the_field(empty):
    with pytest.raises(DataError, match="No files to import"):
        data_import.start_import(empty, imports.Forms(), None, Choices(), "x", False)
    with pytest.raises(SpecError, match="no name") as caught:
        data_import.start_import(
            empty, imports.Forms(), drop_files({"a.jsonl": pairs(5)}), Choices(), "  ", False
        )
    assert caught.value.field == "name"


def test_progress_says_share_rows_and_time_left():
    status = ImportStatus("i", "Cranes", "running", "Reading a.jsonl", 250, 1000, 1, 72.0)
    assert imports.describe_progress(status) == "Reading a.jsonl · 25 % · 1 row · about 1 min 12 s left"
    tree = imports.render_import(status)
    assert tree["kids"][0]["kids"][1]["attrs"]["aria-label"] == "Cancel the import of Cranes"


def test_two_datasets_of_one_name_are_told_apart(empty):
    first, second = import_pairs(empty, "Cranes"), import_pairs(empty, "Cranes", count=20)
    third = import_pairs(empty, "Other", count=9)
    labels = {value: label for label, value in data.list_choices(empty)}
    assert labels[third] == "Other"
    assert "12 rows" in labels[first] and "20 rows" in labels[second]
    assert len(set(labels.values())) == 3


def test_redacting_and_merging_make_datasets_that_name_their_parents(empty):
    first = import_pairs(empty, "Cranes")
    made = data_derive.derive(empty, pressed(do="redact", dataset=first))["value"]
    dataset = empty.datasets.get(made)
    assert (dataset.name, dataset.parents, dataset.operation) == ("Cranes, redacted", [first], "redact")
    answers = [r["messages"][-1]["content"] for r in empty.datasets.rows(made, "all")]
    assert answers and not any("@" in a for a in answers)
    assert "Made from Cranes by redacting personal data." in texts(data.show_dataset(empty, made)[0])
    second = import_pairs(empty, "More", count=9, start=50)
    merged, _ = data_derive.merge(empty, first, [second])
    assert empty.datasets.get(merged["value"]).rows == 21
    assert "Made from Cranes and More by merging them." in texts(data.show_dataset(empty, merged["value"])[0])
    with pytest.raises(SpecError, match="No dataset to merge with"):
        data_derive.merge(empty, first, [])


def test_empty_rows_are_left_out_by_one_button(empty):
    first = import_pairs(empty, "Cranes")
    rows = {split: [*empty.datasets.rows(first, split)] for split in ("train", "val", "test")}
    rows["train"][0]["messages"][-1]["content"] = " "
    holes = write_dataset_from_rows(empty.workspace, rows, "Holes", "task", [first], "leave_out").id
    finding = Finding(1, [])
    check = data_inspection._check_empty(finding, holes)
    assert "1 row is empty: there is nothing to learn." in texts(check)
    (act,) = [n["act"] for n in find(check, "button")]
    made = empty.datasets.get(data_derive.derive(empty, pressed(**act))["value"])
    assert (made.name, made.rows, made.operation) == ("Holes, without empty rows", 11, "leave_out")
    assert made.notes == ["1 row was left out, because there was nothing to learn."]


def test_only_datasets_of_one_kind_and_purpose_can_be_merged(empty):
    first, second = import_pairs(empty, "Cranes"), import_pairs(empty, "More", start=50)
    value = drop_files({"notes.txt": "\n\n---\n\n".join(f"Note {i} on cranes." for i in range(9)).encode()})
    job = data_import.start_import(empty, imports.Forms(), value, Choices(), "Notes", False)[0]["job"]
    assert empty.imports.wait(job, 60).state == "done"
    partners = data_derive.list_partners(empty, empty.datasets.get(first))
    assert partners == [("More", second)]


def test_a_note_is_stored_and_shown_in_the_card(empty):
    picked = import_pairs(empty, "Cranes")
    data_derive.save_note(empty, picked, " From the harbour office. ")
    assert empty.datasets.get(picked).note == "From the harbour office."
    assert "From the harbour office." in texts(data_derive.show_card(empty, picked))
    assert data.show_dataset(empty, picked)[4] == "From the harbour office."


def test_an_inspection_is_started_once_and_shown_when_it_is_done(empty):
    picked = import_pairs(empty, "Cranes")
    response = inspection.poll_inspection(empty, {"dataset": picked})
    if not response["done"]:
        assert response["key"] == picked or response["tree"]
    empty.inspection.wait(picked, 120)
    response = inspection.poll_inspection(empty, {"dataset": picked, "key": picked})
    text = texts(response["tree"])
    assert "No rows have the same question." in text and "E-mail addresses (12)" in text
    assert "Make a redacted dataset" in text


def test_the_mark_of_the_max_length_stands_where_longer_rows_begin():
    bins = [LengthBin(1, 10, 5), LengthBin(11, 20, 5), LengthBin(21, 30, 2), LengthBin(31, 90, 1)]
    lengths = Lengths(13, bins, 1, 12, 90, 200, 100, 20, 3, 3 / 13, True, [])
    mark = data_inspection._mark_max_length(lengths)
    assert mark["vars"]["place"] == "50.0%"


def test_a_hub_import_needs_an_id_and_says_why_it_failed(empty):
    with pytest.raises(SpecError, match="no id") as caught:
        data_hub.start_hub_import(empty, data_hub.HubChoice(), " ", "", False)
    assert caught.value.field == "hub_id"
    job = data_hub.start_hub_import(empty, data_hub.HubChoice(), "not-an-id", "", True)[0]["job"]
    status = empty.imports.wait(job, 60)
    assert status.state == "failed" and "owner/name" in status.problem


def test_a_dataset_is_downloaded_with_its_card_and_leaves_no_temporary_file(empty, tmp_path, monkeypatch):
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    picked = import_pairs(empty, "Cranes")
    with TestClient(Starlette(routes=routes(empty), middleware=[Middleware(Caller)])) as client:
        response = client.get(f"/gradio_api/studio/download/dataset/{picked}.zip")
        assert client.get("/gradio_api/studio/download/dataset/no-such-1234.zip").status_code == 404
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert "data/train.jsonl" in archive.namelist() and b"# Cranes" in archive.read("README.md")
    assert list((tmp_path / "temp").iterdir()) == []
