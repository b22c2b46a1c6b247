"""Datasets: imported atomically, and verified when they are read."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.data import datasets, split_rows
from core.data.datasets import (
    Dataset,
    import_dataset,
    list_datasets,
    load_dataset,
    preview,
    read_split,
    rename_dataset,
    verify_dataset,
)
from core.errors import DataError, InvalidName, NotFound, StorageError, StudioError
from core.spec.settings import SEED
from core.store.records import load_items
from core.store.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def qa(tmp_path):
    path = tmp_path / "qa.jsonl"
    rows = [{"question": f"q {i}", "answer": f"a {i}", "type": "ab"[i % 2]} for i in range(100)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("\n\n---\n\n".join(f"Story {i} é" for i in range(20)), encoding="utf-8")
    return path


def folder_of(workspace, dataset):
    return workspace.root / "datasets" / dataset.id


def leftovers(workspace):
    return list((workspace.root / "datasets").iterdir())


def test_an_import_writes_the_documented_files(workspace, qa):
    dataset = import_dataset(workspace, [qa], " My QA ")
    folder = folder_of(workspace, dataset)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == sorted(
        ["dataset.json", "rows.jsonl", "source/0001.jsonl"]
        + [f"splits/{dataset.id}_{s}.jsonl" for s in ("train", "val", "test")]
    )
    assert re.fullmatch(r"my-qa-[0-9a-f]{4}", dataset.id)
    assert (dataset.name, dataset.kind, dataset.rows, dataset.splits) == (
        "My QA",
        "task",
        100,
        {"train": 70, "val": 15, "test": 15},
    )
    assert (dataset.seed, dataset.ratios, dataset.types, dataset.duplicates) == (
        SEED,
        (0.7, 0.15, 0.15),
        {"a": 50, "b": 50},
        0,
    )
    assert dataset.roles == {"question": "question", "answer": "answer", "type": "type"}
    assert dataset.columns == ["question", "answer", "type"]
    data = qa.read_bytes()
    assert (folder / "source/0001.jsonl").read_bytes() == data
    assert dataset.files == [
        {
            "name": "qa.jsonl",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "stored": "0001.jsonl",
        }
    ]


def test_the_splits_together_are_the_rows(workspace, qa):
    dataset = import_dataset(workspace, [qa], "qa")
    rows = [
        json.loads(line) for line in (folder_of(workspace, dataset) / "rows.jsonl").read_text().splitlines()
    ]
    parts = [row for s in ("train", "val", "test") for row in read_split(workspace, dataset.id, s)]
    assert rows[0] == {
        "messages": [{"role": "user", "content": "q 0"}, {"role": "assistant", "content": "a 0"}],
        "type": "a",
    }
    assert sorted(map(json.dumps, parts)) == sorted(map(json.dumps, rows)) and len(rows) == 100
    for s in ("train", "val", "test"):
        types = [row["type"] for row in read_split(workspace, dataset.id, s)]
        assert abs(types.count("a") - types.count("b")) <= 2


def test_same_bytes_and_seed_give_the_same_fingerprint_and_splits(workspace, qa, stories):
    one, two, other = (
        import_dataset(workspace, [qa], name, seed=seed)
        for name, seed in (("one", 1), ("two", 1), ("one", 2))
    )
    assert one.sha256 == two.sha256 != other.sha256
    assert one.split_sha256 == two.split_sha256 != other.split_sha256
    assert (
        read_split(workspace, one.id, "test")
        == read_split(workspace, two.id, "test")
        != read_split(workspace, other.id, "test")
    )


def test_the_fingerprint_covers_rows_seed_and_ratios(workspace, stories):
    dataset = import_dataset(workspace, [stories], "stories")
    rows = (folder_of(workspace, dataset) / "rows.jsonl").read_bytes()
    assert (
        dataset.sha256
        == hashlib.sha256(rows + b'{"ratios": [0.7, 0.15, 0.15], "seed": 20251101}').hexdigest()
    )


def test_texts_keep_non_ascii_characters(workspace, stories):
    dataset = import_dataset(workspace, [stories], "stories")
    assert dataset.kind == "domain" and dataset.types == {} and dataset.rows == 20
    assert all(
        re.fullmatch(r"Story \d+ é", r["text"])
        for s in ("train", "val", "test")
        for r in read_split(workspace, dataset.id, s)
    )
    assert "é".encode() in (folder_of(workspace, dataset) / "rows.jsonl").read_bytes()


def test_all_formats_make_one_dataset(workspace, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    (folder / "b.md").write_text("# two")
    (folder / "c.json").write_text('[{"text": "three"}]')
    (folder / "d.jsonl").write_text('{"text": "four"}')
    (folder / "e.csv").write_text("text\nfive\n")
    pq.write_table(pa.table({"text": ["six"]}), folder / "f.parquet")
    dataset = import_dataset(workspace, [folder], "all")
    assert [f["name"] for f in dataset.files] == ["a.txt", "b.md", "c.json", "d.jsonl", "e.csv", "f.parquet"]
    rows = (folder_of(workspace, dataset) / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in rows] == ["one", "# two", "three", "four", "five", "six"]


def test_roles_kind_and_encoding_can_be_corrected(workspace, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"frage;antwort\n" + b"".join(f"wie viel {i}?;é{i}\n".encode("latin-1") for i in range(3))
    )
    with pytest.raises(DataError, match=r"a.csv, line 2: the line is not valid utf-8. .*latin-1"):
        import_dataset(workspace, [path], "x")
    result = preview([path], encoding="latin-1")
    assert (result.kind, result.roles) == ("task", {"question": "frage", "answer": "antwort"})
    assert result.problem == ""
    roles = {"question": "frage", "answer": "antwort"}
    result = preview([path], roles=roles, encoding="latin-1")
    assert (result.kind, result.problem, result.canonical[0]["messages"][1]["content"]) == ("task", "", "é0")
    dataset = import_dataset(workspace, [path], "x", kind="task", roles=roles, encoding="latin-1")
    assert (dataset.roles, dataset.encoding, dataset.rows) == (roles, "latin-1", 3)


def test_duplicates_are_counted_and_never_leak(workspace, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"t {i % 10}"}) + "\n" for i in range(30)))
    dataset = import_dataset(workspace, [path], "x")
    parts = [{r["text"] for r in read_split(workspace, dataset.id, s)} for s in ("train", "val", "test")]
    assert dataset.duplicates == 20 and sum(map(len, parts)) == 10


# ------------------------------------------------------------ preview


def test_a_preview_shows_raw_and_canonical_rows_and_writes_nothing(workspace, qa):
    result = preview([qa], limit=3)
    assert (result.kind, result.total, result.problem, len(result.rows), len(result.canonical)) == (
        "task",
        100,
        "",
        3,
        3,
    )
    assert result.rows[0] == {"question": "q 0", "answer": "a 0", "type": "a"}
    assert leftovers(workspace) == []


def test_a_preview_says_what_an_import_would_refuse(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": ""}\n')
    assert (
        preview([path]).problem
        == "a.jsonl, line 2: the column 'text' is empty. Fill it in or delete the row."
    )
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert "at least 3 different rows, one each for train, val and test, got 2" in preview([path]).problem


# ------------------------------------------------------------ atomic imports


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a"}\n{"text": ',
        '{"text": "a"}\n',
        '{"text": "a"}\n{"text": null}\n',
        '{"x": "1", "y": "2"}\n',
    ],
)
def test_a_refused_import_leaves_nothing_behind(workspace, tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        import_dataset(workspace, [path], "x")
    assert caught.value.fix and leftovers(workspace) == []
    assert "0001" not in str(caught.value)  # errors show the name that the user gave the file


def test_a_full_disk_is_named_and_leaves_nothing(workspace, qa, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "_write", full)
    with pytest.raises(StorageError, match="The disk is full"):
        import_dataset(workspace, [qa], "x")
    assert leftovers(workspace) == []


def test_free_space_is_checked_before_anything_is_written(workspace, qa, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr(
        "core.store.files.shutil.disk_usage", lambda _: namedtuple("u", "total used free")(1, 1, 1000)
    )
    with pytest.raises(StorageError, match="The disk is full: 69 MB are needed and 0 MB are free"):
        import_dataset(workspace, [qa], "x")
    assert leftovers(workspace) == []


def test_a_killed_import_leaves_no_dataset_and_its_files_can_be_removed(workspace, qa):
    code = (
        "import os, sys; from core.data import datasets; from core.store.workspace import Workspace\n"
        "datasets._compute_fingerprint = lambda *_: os._exit(9)\n"
        "datasets.import_dataset(Workspace(sys.argv[1]), [sys.argv[2]], 'x')"
    )
    root = Path(datasets.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(workspace.root), str(qa)], cwd=root, check=False)
    assert done.returncode == 9 and len(leftovers(workspace)) == 2  # the draft and its claim
    assert list_datasets(workspace) == []
    assert workspace.remove_partials() == 1 and leftovers(workspace) == []


def test_concurrent_imports_do_not_affect_each_other(workspace, qa, stories):
    threads = [
        threading.Thread(target=import_dataset, args=(workspace, [path], "same name"))
        for path in (qa, stories) * 4
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    imported = list_datasets(workspace)
    assert sorted(d.rows for d in imported) == [20] * 4 + [100] * 4
    for dataset in imported:
        verify_dataset(workspace, dataset.id)


# ------------------------------------------------------------ T6, T7


@pytest.mark.parametrize(
    "name", ["", "  ", "../x", "a/b", "a\\b", "a\0b", "x" * 121, "..", "a\nb", "a\ud800"]
)
def test_t6_a_name_that_cannot_be_used_is_refused(workspace, qa, name):
    with pytest.raises(InvalidName):
        import_dataset(workspace, [qa], name)
    assert leftovers(workspace) == []


@pytest.mark.parametrize("name", ["CON", "trailing.", "[glob]*", "Zoë — 日本語", "<b onclick=x>bold"])
def test_t6_display_names_are_data_and_ids_are_ours(workspace, qa, name):
    dataset = import_dataset(workspace, [qa], name)
    assert dataset.name == name and re.fullmatch(r"[a-z0-9][a-z0-9-]*", dataset.id)
    assert load_dataset(workspace, dataset.id).name == name


def test_t6_a_hostile_file_name_stays_data(workspace, tmp_path):
    path = tmp_path / "-rf $(x) \n *.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(3)))
    dataset = import_dataset(workspace, [path], "x")
    assert dataset.files[0]["name"] == path.name and dataset.files[0]["stored"] == "0001.jsonl"


@pytest.mark.parametrize("bad", ["../x", "x/../../y", "", "X", "a" * 65, None])
def test_t6_malformed_ids_are_refused(workspace, bad):
    with pytest.raises(InvalidName):
        load_dataset(workspace, bad)


def test_t7_bytes_are_copied_and_links_never_followed(workspace, qa, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(qa)
    with pytest.raises(DataError, match="link.jsonl: this is not a regular file"):
        import_dataset(workspace, [link], "x")
    dataset = import_dataset(workspace, [qa], "x")
    stored = folder_of(workspace, dataset) / "source/0001.jsonl"
    assert not stored.is_symlink() and os.stat(stored).st_ino != os.stat(qa).st_ino
    qa.unlink()
    verify_dataset(workspace, dataset.id)


def test_an_import_reads_the_copies_that_it_hashed(workspace, qa, monkeypatch):
    def read(*args):
        qa.write_text("changed while it was imported")
        return honest(*args)

    honest = datasets.read_sources
    monkeypatch.setattr(datasets, "read_sources", read)
    dataset = import_dataset(workspace, [qa], "x")
    assert dataset.rows == 100
    verify_dataset(workspace, dataset.id)


# ------------------------------------------------------------ reading back


def test_a_loaded_dataset_equals_the_imported_one(workspace, qa, stories):
    imported = [import_dataset(workspace, [qa], "a"), import_dataset(workspace, [stories], "b")]
    assert [load_dataset(workspace, d.id) for d in imported] == imported == list_datasets(workspace)
    assert isinstance(load_dataset(workspace, imported[0].id), Dataset)


def test_a_rename_changes_the_name_only(workspace, qa):
    dataset = import_dataset(workspace, [qa], "a")
    renamed = rename_dataset(workspace, dataset.id, " b ")
    assert renamed.name == "b" and renamed == load_dataset(workspace, dataset.id)
    assert {**vars(renamed), "name": "a"} == vars(dataset)
    verify_dataset(workspace, dataset.id)
    with pytest.raises(InvalidName):
        rename_dataset(workspace, dataset.id, "a/b")


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "splits/{id}_train.jsonl", "splits/{id}_test.jsonl", "source/0001.jsonl"]
)
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_t13_a_flipped_byte_or_a_lost_file_is_found(workspace, qa, name, harm):
    dataset = import_dataset(workspace, [qa], "a")
    verify_dataset(workspace, dataset.id)
    path = folder_of(workspace, dataset) / name.format(id=dataset.id)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data) if harm == "flip" else path.unlink()
    with pytest.raises(
        StorageError, match=f"{path.name}.* {'differs' if harm == 'flip' else 'cannot be read'}"
    ):
        verify_dataset(workspace, dataset.id)


def test_t13_training_never_reads_a_damaged_split(workspace, qa):
    dataset = import_dataset(workspace, [qa], "a")
    path = folder_of(workspace, dataset) / "splits" / f"{dataset.id}_train.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"a 1"', b'"a 2"'))
    with pytest.raises(StorageError, match="sha256 differs.*Import the data again"):
        read_split(workspace, dataset.id, "train")
    assert len(read_split(workspace, dataset.id, "val")) == 15


def test_a_limited_read_gives_the_first_rows(workspace, qa):
    dataset = import_dataset(workspace, [qa], "a")
    assert (
        read_split(workspace, dataset.id, "train", limit=4) == read_split(workspace, dataset.id, "train")[:4]
    )


def test_a_changed_seed_in_the_record_is_found(workspace, qa):
    dataset = import_dataset(workspace, [qa], "a")
    record = folder_of(workspace, dataset) / "dataset.json"
    record.write_text(record.read_text().replace("20251101", "20251102"))
    with pytest.raises(StorageError, match="sha256 differs"):
        verify_dataset(workspace, dataset.id)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"ratios": [1]}', "null"])
def test_a_damaged_record_is_an_error_and_does_not_hide_other_datasets(workspace, qa, content):
    bad, good = import_dataset(workspace, [qa], "bad"), import_dataset(workspace, [qa], "good")
    (folder_of(workspace, bad) / "dataset.json").write_text(content)
    with pytest.raises(StorageError):
        load_dataset(workspace, bad.id)
    assert list_datasets(workspace) == [good]
    (damaged,) = load_items(workspace, "datasets", load_dataset)[1]
    assert (damaged.id, damaged.file) == (bad.id, f"datasets/{bad.id}/dataset.json")


def test_an_unknown_dataset_or_split_is_not_found(workspace, qa):
    with pytest.raises(NotFound):
        load_dataset(workspace, "nothing-0000")
    dataset = import_dataset(workspace, [qa], "a")
    with pytest.raises(NotFound, match="must be one of train, val, test, got 'dev'"):
        read_split(workspace, dataset.id, "dev")


def test_datasets_are_imported_without_heavy_packages():
    code = (
        "import sys; import core.data.datasets; "
        "print([m for m in ('pyarrow', 'torch', 'pandas', 'numpy', 'gradio') if m in sys.modules])"
    )
    root = Path(datasets.__file__).parents[2]
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


# ------------------------------------------------------------ what an import says


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def chat(question, answer, **fields):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **fields}]


def test_preview_and_record_name_layout_unread_columns_and_rows_left_out(workspace, tmp_path):
    rows = [{"messages": chat(f"q {i}", "a"), "kto_tag": i != 3, "tools": "[]", "id": i} for i in range(10)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    note = "1 row left out: the column 'kto_tag' marks the answer as bad (first: a.jsonl, line 4)."
    result = preview([path])
    assert (result.layout, result.unread, result.notes) == (
        "Answers marked good or bad (KTO)",
        ["tools", "id"],
        [note],
    )
    assert (result.total, result.read, result.left_out, result.duplicates) == (10, 9, 1, 0)
    dataset = import_dataset(workspace, [path], "x", kind=result.kind, roles=result.roles)
    assert (dataset.layout, dataset.unread, dataset.notes) == ("kto", ["tools", "id"], [note])
    assert (dataset.rows, dataset.left_out, sum(dataset.splits.values())) == (9, 1, 9)
    assert load_dataset(workspace, dataset.id) == dataset
    assert "q 3" not in (folder_of(workspace, dataset) / "rows.jsonl").read_text()


def test_rows_of_weight_0_are_stored_with_it_and_others_without(workspace, tmp_path):
    rows = [
        {"messages": [*chat(f"q {i}", "hm", weight=0), *chat("look", f"a {i}", weight=1)]} for i in range(4)
    ]
    dataset = import_dataset(workspace, [write_rows(tmp_path / "a.jsonl", rows)], "x")
    lines = (folder_of(workspace, dataset) / "rows.jsonl").read_text().splitlines()
    assert lines[0] == json.dumps(
        {"messages": [*chat("q 0", "hm", weight=0), *chat("look", "a 0")]}, ensure_ascii=False
    )


def test_questions_that_read_the_same_count_as_duplicates_and_stay_together(workspace, tmp_path):
    rows = [
        {"question": q.format(i), "answer": f"{i} {k}"}
        for i in range(10)
        for k, q in enumerate(("Where is {}?", " WHERE  is {}? ", "Ｗhere is {}?"))
    ]
    dataset = import_dataset(workspace, [write_rows(tmp_path / "a.jsonl", rows)], "x")
    assert (dataset.rows, dataset.duplicates) == (30, 20)
    asked = [
        {row["messages"][1]["content"].split()[0] for row in read_split(workspace, dataset.id, s)}
        for s in ("train", "val", "test")
    ]
    assert sum(map(len, asked)) == 10 and set.union(*asked) == {str(i) for i in range(10)}


def test_a_record_from_before_layouts_loads(workspace, qa):
    dataset = import_dataset(workspace, [qa], "a")
    path = folder_of(workspace, dataset) / "dataset.json"
    record = json.loads(path.read_text())
    for key in ("layout", "unread", "notes", "left_out"):
        del record[key]
    path.write_text(json.dumps(record))
    assert load_dataset(workspace, dataset.id) == dataset


def test_a_check_adds_notes_or_refuses_and_leaves_nothing(workspace, qa):
    def accept(reading):
        return [f"{len(reading.rows)} rows, the last one on line {reading.places[-1].line}"]

    def refuse(reading):
        raise DataError("no.", "Do not.", file=reading.places[1].file, line=reading.places[1].line)

    assert preview([qa], check=accept).notes == ["100 rows, the last one on line 100"]
    assert preview([qa], check=refuse).problem == "qa.jsonl, line 2: no. Do not."
    assert import_dataset(workspace, [qa], "x", check=accept).notes == ["100 rows, the last one on line 100"]
    before = leftovers(workspace)
    with pytest.raises(DataError, match="qa.jsonl, line 2: no"):
        import_dataset(workspace, [qa], "x", check=refuse)
    assert leftovers(workspace) == before


@pytest.mark.parametrize("lost", ["source", "source/0001.jsonl", "rows.jsonl", "splits"])
def test_an_import_whose_files_vanish_fails_in_words(workspace, qa, monkeypatch, lost):
    def vanish(rows, questions):
        (partial,) = (workspace.root / "datasets").glob(".*.partial")
        target = partial / lost
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        return honest(rows, questions)

    honest = split_rows.count_repeats
    monkeypatch.setattr(split_rows, "count_repeats", vanish)
    with pytest.raises(StudioError) as caught:
        import_dataset(workspace, [qa], "x")
    assert caught.value.what and caught.value.fix
    assert list_datasets(workspace) == [] and leftovers(workspace) == []
