"""Datasets of the Hub, from a mock on this machine: commit, configuration, split, only data files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from core.data.base_checks import BaseAnswer
from core.data.formats import hub_datasets
from core.data.formats.hub_datasets import download, resolve
from core.data.formats.readers import read_files
from core.engine.datasets import Datasets
from core.engine.imports import Imports
from core.errors import DataError
from core.store.workspace import Workspace
from tests.mock_hub import CONVERTED, MAIN, OLD, Handler, serve_hub


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with serve_hub() as address:
        yield address


def texts(found, folder, hub):
    folder.mkdir(exist_ok=True)
    return [r.values["text"] for r in read_files(download(found, folder, endpoint=hub))]


def test_the_readme_names_configurations_and_splits(hub, tmp_path):
    found = resolve("a/configs", endpoint=hub)
    assert (found.config, found.split, found.commit) == ("plain", "train", MAIN)
    assert texts(found, tmp_path / "a", hub) == ["one", "two"]
    assert texts(resolve("a/configs", split="test", endpoint=hub), tmp_path / "b", hub) == ["three"]
    assert texts(resolve("a/configs", "other", endpoint=hub), tmp_path / "c", hub) == ["four"]
    assert not [p for p in Handler.asked if p.endswith(".py")], "code is never downloaded"


def test_a_revision_is_pinned_to_its_commit_and_said(hub, tmp_path):
    found = resolve("a/configs", revision="v1", endpoint=hub)
    assert found.commit == OLD and texts(found, tmp_path / "a", hub) == ["old"]
    assert found.describe() == f"From the Hub: a/configs, configuration default, split train, commit {OLD}."


def test_names_of_files_give_the_splits_without_a_readme(hub, tmp_path):
    found = resolve("a/names", split="validation", endpoint=hub)
    assert texts(found, tmp_path / "a", hub) == ["two"]
    assert resolve("a/names", endpoint=hub).split == "train"


def test_a_dataset_with_a_script_is_read_from_its_converted_files(hub, tmp_path):
    with pytest.raises(DataError, match="several configurations.*--config: de, en"):
        resolve("a/script", endpoint=hub)
    found = resolve("a/script", "de", endpoint=hub)
    assert found.commit == CONVERTED and texts(found, tmp_path / "a", hub) == ["eins"]


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("a/none",), "has no dataset 'a/none', or it is private"),
        (("a/gated",), "'a/gated' is gated"),
        (("a/code",), "no parquet, JSONL or CSV files, and its code is never run"),
        (("a/configs", "no"), "no configuration 'no'. It has: plain, other"),
        (("a/configs", "", "dev"), "no split 'dev'. It has: train, test"),
        (("a/configs", "", "", "v9"), "no revision 'v9'"),
        (("http://x/y",), 'must be "owner/name"'),
        (("../x",), 'must be "owner/name"'),
        (("a/b/c",), 'must be "owner/name"'),
        (("",), 'must be "owner/name"'),
        (("a/configs", "../x"), "A configuration must be"),
        (("a/configs", "", "", "../../x"), "A revision must be"),
    ],
)
def test_t20_what_cannot_be_downloaded_is_said_in_words(hub, args, what):
    with pytest.raises(DataError) as caught:
        resolve(*args, endpoint=hub)
    assert what in str(caught.value) and caught.value.fix


def test_without_a_network_the_message_says_so_and_shows_no_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(DataError, match="The Hub could not be reached for 'a/b'") as caught:
        resolve("a/b", endpoint="http://127.0.0.1:9")
    assert "hf_secret" not in str(caught.value)


def test_a_file_with_a_wrong_checksum_is_deleted(hub, tmp_path):
    found = resolve("a/names", endpoint=hub)
    name, size, _ = found.files[0]
    wrong = hub_datasets.HubFiles(
        found.id, found.config, found.split, found.commit, ((name, size, "0" * 64),)
    )
    with pytest.raises(DataError, match="failed its checksum"):
        download(wrong, tmp_path, endpoint=hub)
    assert not list(tmp_path.glob("*.parquet"))


def test_an_import_follows_the_download_and_notes_the_commit(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_datasets, "resolve", partial(resolve, endpoint=hub))
    monkeypatch.setattr(hub_datasets, "download", partial(download, endpoint=hub))
    monkeypatch.setattr(Datasets, "_check_shapes", lambda self, shapes: BaseAnswer([], []))  # without a base
    datasets = Datasets(Workspace(tmp_path / "ws"), None, None)
    imports = Imports(datasets)

    def finish(job):
        while not imports.status(job).has_ended:
            time.sleep(0.02)
        return imports.status(job)

    status = finish(imports.start_hub("a/rows", revision=MAIN))
    assert (status.state, status.problem) == ("done", "")
    dataset = datasets.get(status.dataset_id)
    assert (dataset.name, dataset.kind, dataset.rows) == ("rows", "task", 30)
    assert f"From the Hub: a/rows, configuration default, split train, commit {MAIN}." in dataset.notes
    status = finish(imports.start_hub("a/none"))
    assert status.state == "failed" and "has no dataset 'a/none'" in status.problem


def test_patterns_of_paths_are_those_of_the_hub():
    matches = [
        p for p in ("a.csv", "d/a.csv", "d/e/a.csv") if hub_datasets._compile_pattern("d/*.csv").fullmatch(p)
    ]
    assert matches == ["d/a.csv"]
    assert hub_datasets._compile_pattern("**/*.csv").fullmatch("a.csv")
    assert hub_datasets._compile_pattern("d/**").fullmatch("d/e/a.csv")


def test_caps_are_checked_before_the_download(hub, monkeypatch):
    monkeypatch.setattr(hub_datasets, "TOTAL_LIMIT_BYTES", 10)
    with pytest.raises(DataError, match="2 files of 32 bytes; at most"):
        resolve("a/configs", endpoint=hub)
