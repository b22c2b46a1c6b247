"""A run as a notebook: it is written, executed by Jupyter without a network, and its result is collected."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.data.datasets import import_dataset
from core.engine import Engine
from core.errors import InvalidName, SpecError, StorageError, StudioError
from core.remote.collect import collect
from core.remote.notebook import write_notebook
from core.remote.pack import pack
from core.remote.weights_log import train_bundle
from core.spec.training import RunStatus, TrainSpec
from core.store import runs
from core.store.files import sha256_of
from core.store.workspace import Workspace
from tests.conftest import SENTENCES

FAST: dict[str, Any] = {
    "max_steps": 2, "learning_rate": 1e-3, "batch_size": 1, "accumulation": 1, "max_length": 32, "rank": 2,
    "alpha": 4, "dropout": 0.0,
}  # fmt: skip
JUPYTER = ("nbformat", "nbclient", "ipykernel")
needs_nbformat = pytest.mark.skipif(not importlib.util.find_spec("nbformat"), reason="nbformat is missing")
needs_jupyter = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, JUPYTER)), reason="nbformat, nbclient or ipykernel is missing"
)


@pytest.fixture(autouse=True)
def ignore_warnings_of_jupyter() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_run(workspace: Workspace, base: str, status: RunStatus) -> str:
    """A run of 24 short texts, as if it had been started here."""
    corpus = workspace.root / "corpus.txt"
    corpus.write_text("\n\n---\n\n".join(SENTENCES[:24]), encoding="utf-8")
    data = import_dataset(workspace, [corpus], "Corpus", "domain")
    spec = TrainSpec(**{"kind": "domain", "name": "My *run*", "dataset": data.id, **FAST})
    bundle = pack(workspace, spec, workspace.root / "bundle.zip", base, "none")
    runs.put(workspace, bundle.to_run(status))
    return bundle.run_id


@needs_jupyter
def test_a_notebook_trains_offline_and_its_result_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import nbclient
    import nbformat

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    workspace, away = Workspace(tmp_path / "ws"), tmp_path / "colab"
    run_id = make_run(workspace, "embedded", RunStatus.INTERRUPTED)
    arguments = ["notebook", run_id, "-o", str(away / "mine.ipynb"), "--workspace", str(workspace.root)]
    assert main(arguments) == 0
    assert "bundle collect mine.result.zip" in capsys.readouterr().out
    notebook = nbformat.read(away / "mine.ipynb", as_version=4)
    assert [c.metadata.get("tags") for c in notebook.cells if "tags" in c.metadata] == [["parameters"]]
    assert "# Train My  run" in notebook.cells[0].source

    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(away)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "nothing, all versions are right" in said and "validation at step 2: loss" in said
    (entry,) = json.loads((away / "weights.json").read_text())["runs"]
    result = away / "mine.result.zip"
    assert (entry["status"], entry["run"], entry["step"]) == ("finished", run_id, 2)
    assert entry["sha256"] == sha256_of(result) and entry["results"]["steps"] == 2
    with Engine(workspace.root, load=False) as engine:
        run = collect(engine, result)
        assert run.status is RunStatus.DONE
        assert engine.library.adapter(run.adapter).sha256 == entry["weights_sha256"]


@needs_nbformat
def test_a_base_in_a_folder_is_left_to_the_user(tiny_base: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    run_id = make_run(workspace, str(tiny_base), RunStatus.PAUSED)
    written = write_notebook(workspace, run_id, tmp_path / "out" / "a.ipynb")
    text = written.notebook.read_text()
    assert written.base == "" and "BASE = ''  # set this" in text and str(tiny_base) not in text
    with zipfile.ZipFile(written.kit) as kit:
        names = set(kit.namelist())
    assert {"bundle.zip", "requirements.txt", "core/remote/weights_log.py"} <= names
    assert not [n for n in names if n.startswith(("studio/", "tests/", "assets/embedded-base/"))]
    write_notebook(workspace, run_id, written.notebook)
    assert written.notebook.read_text() == text


@needs_nbformat
def test_a_finished_run_becomes_a_new_one(tiny_base: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    run_id = make_run(workspace, str(tiny_base), RunStatus.DONE)
    written = write_notebook(workspace, run_id, tmp_path / "a.ipynb")
    assert written.bundle.run_id != run_id
    assert written.bundle.spec == runs.load(workspace, run_id).spec


@pytest.mark.parametrize("name", ["train.txt", "a b.ipynb", '".ipynb', ".ipynb"])
def test_a_name_that_would_break_a_cell_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidName, match="must have letters, digits, dots or hyphens and end with .ipynb"):
        write_notebook(Workspace(tmp_path / "ws"), "run", tmp_path / name)


def test_without_nbformat_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nbformat", None)
    with pytest.raises(SpecError, match=r'pip install "adapter-studio\[notebook\]"'):
        write_notebook(Workspace(tmp_path / "ws"), "run", tmp_path / "a.ipynb")


# --- the log


def test_a_failed_run_is_logged_beside_the_entries_of_others(tiny_base: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    make_run(workspace, str(tiny_base), RunStatus.PAUSED)
    weights = tmp_path / "weights.json"
    weights.write_text('{"format": 1, "note": "mine", "runs": [{"run": "other"}]}')
    for _ in range(2):  # again: its entry is replaced
        with pytest.raises(StudioError, match="base|folder"):
            train_bundle(workspace.root / "bundle.zip", tmp_path / "r.zip", weights, str(tmp_path / "none"))
        value = json.loads(weights.read_text())
        assert [r["run"] for r in value["runs"]][0] == "other" and len(value["runs"]) == 2
        assert (
            value["note"] == "mine" and value["runs"][1]["status"] == "failed" and value["runs"][1]["error"]
        )


@pytest.mark.parametrize("content", ["[]", '{"runs": 3}'])
def test_a_file_that_is_not_a_log_stays_as_it_is(tiny_base: Path, tmp_path: Path, content: str) -> None:
    workspace = Workspace(tmp_path / "ws")
    make_run(workspace, str(tiny_base), RunStatus.PAUSED)
    weights = tmp_path / "weights.json"
    weights.write_text(content)
    with pytest.raises(StorageError, match="not a log of weights"):
        train_bundle(workspace.root / "bundle.zip", tmp_path / "r.zip", weights)
    assert weights.read_text() == content


def test_a_file_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_text("text")
    with pytest.raises(StorageError, match="b.zip is not a bundle"):
        train_bundle(tmp_path / "b.zip", tmp_path / "r.zip", tmp_path / "weights.json")
