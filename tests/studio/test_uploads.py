"""Dropped files keep their names and folders, and a request can name nothing but uploads."""

import os
import stat
import tempfile
import time
from pathlib import Path

import pytest

from core.errors import DataError
from studio import uploads
from studio.components import drop
from tests.studio.dropped import drop_files, upload


@pytest.fixture(autouse=True)
def upload_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return tmp_path / "uploads"


def test_a_folder_keeps_its_paths_and_its_files_their_bytes():
    value = drop_files({"notes/a.txt": b"one", "notes/deep/a.txt": b"two", "b.csv": b"x"})
    assert value["files"] == [
        {"name": "b.csv", "bytes": 1},
        {"name": "notes/a.txt", "bytes": 3},
        {"name": "notes/deep/a.txt", "bytes": 3},
    ]
    (folder,) = drop.folder_of(value)
    assert (Path(folder) / "notes/deep/a.txt").read_bytes() == b"two"


def test_equal_files_of_one_name_are_stored_once_and_dropped_twice(upload_folder):
    path = upload(b"same", "readme.txt")
    files = [{"path": path, "name": "x/readme.txt"}, {"path": path, "name": "y/readme.txt"}]
    value = drop.store_upload(None, {"files": files})
    assert [f["name"] for f in value["files"]] == ["x/readme.txt", "y/readme.txt"]
    assert [p.name for p in upload_folder.iterdir()] == [f"drop-{value['drop']}"], "no empty folder is left"


def test_a_second_file_of_one_name_gets_a_number():
    value = drop_files({"a.txt": b"one"})
    value = drop_files({"a.txt": b"two"}, into=value["drop"])
    assert [f["name"] for f in value["files"]] == ["a (2).txt", "a.txt"]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/notes.txt", "etc/notes.txt"),
        ("/abs/./x.txt", "abs/x.txt"),
        ("C:\\data\\x.txt", "C/data/x.txt"),
        ("..", "file"),
        ("a\0\nb.txt", "ab.txt"),
        ("n" * 300 + ".jsonl", "n" * 114 + ".jsonl"),
    ],
)
def test_a_name_stays_below_the_folder_of_its_drop(name, clean):
    assert uploads.clean_name(name) == clean
    value = drop.store_upload(None, {"files": [{"path": upload(b"x", "u.txt"), "name": name}]})
    assert [f["name"] for f in value["files"]] == [clean]


def test_a_path_that_is_no_upload_is_refused(tmp_path, upload_folder):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    stored = Path(upload(b"x", "a.txt"))
    link = stored.with_name("link.txt")
    link.symlink_to(secret)
    taken = drop_files({"b.txt": b"b"})
    inside = upload_folder / f"drop-{taken['drop']}" / "b.txt"
    for path in (secret, link, stored.parent / ".." / ".." / "secret.txt", upload_folder, inside, "", "/etc"):
        with pytest.raises(DataError, match="did not arrive"):
            uploads.add_files([(str(path), "a.txt")])
    assert secret.read_text() == "secret" and inside.exists()


@pytest.mark.parametrize("drop_id", ["", "..", "../x", "0" * 31, "g" * 32, "drop-" + "0" * 32])
def test_an_id_of_no_drop_is_refused(drop_id):
    with pytest.raises(DataError, match="no longer there"):
        uploads.find_folder(drop_id)


def test_a_removed_file_and_a_discarded_drop_leave_nothing(upload_folder):
    value = drop_files({"a.txt": b"a", "b.txt": b"b"})
    left = drop.remove_upload(None, {"drop": value["drop"], "name": "a.txt"})
    assert [f["name"] for f in left["files"]] == ["b.txt"]
    drop.discard_upload(None, {"drop": value["drop"]})
    assert list(upload_folder.iterdir()) == []


def test_a_drop_of_yesterday_is_deleted_by_the_next_one(upload_folder):
    old = drop_files({"a.txt": b"a"})
    then = time.time() - uploads.KEEP_SECONDS - 60
    os.utime(upload_folder / f"drop-{old['drop']}", (then, then))
    new = drop_files({"b.txt": b"b"})
    assert [p.name for p in upload_folder.iterdir()] == [f"drop-{new['drop']}"]


def test_too_many_files_are_refused_before_any_is_moved(monkeypatch):
    monkeypatch.setattr(uploads, "FILE_COUNT_LIMIT", 2)
    paths = [upload(b"x", f"{i}.txt") for i in range(3)]
    with pytest.raises(DataError, match="at most 2 files, got 3"):
        uploads.add_files([(p, "a.txt") for p in paths])
    assert all(Path(p).exists() for p in paths)


def test_a_dataset_is_named_after_the_folder_or_the_first_file():
    assert drop.name_of({"files": [{"name": "notes/a.txt"}, {"name": "notes/b/c.txt"}]}) == "notes"
    assert drop.name_of({"files": [{"name": "faq.v2.csv"}, {"name": "other.csv"}]}) == "faq"
    assert drop.name_of(None) == ""


def test_t24_uploads_are_private_and_go_at_exit_and_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{uploads.FOLDER}left"
    left.mkdir()
    (left / uploads.LOCK).touch()
    (left / "secret.txt").write_text("x")
    new = tmp_path / f"{uploads.FOLDER}new"  # another studio has made it and locks it next
    new.mkdir()
    with uploads.keep_uploads() as first, uploads.keep_uploads() as second:
        assert not left.exists() and new.exists() and first != second
        assert [stat.S_IMODE(os.stat(f).st_mode) for f in (first, second)] == [0o700, 0o700]
        (Path(first) / "a.txt").write_text("x")
        with uploads.keep_uploads():
            assert Path(first, "a.txt").exists(), "a studio that runs keeps its uploads"
    assert list(tmp_path.glob(f"{uploads.FOLDER}*")) == [new]
    with uploads.keep_uploads(str(new)) as chosen:
        assert chosen == str(new)
    assert new.exists()
