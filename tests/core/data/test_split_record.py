"""The zip of a dataset, imported again, keeps splits and sections; a record that does not fit is not used."""

import json
import zipfile

import pytest

from core.data import split_record
from core.data.datasets import import_dataset, preview, read_split
from core.data.derivation.data_card import write_download
from core.data.derivation.operations import derive_dataset
from core.data.formats.compressed import RECORD
from core.data.splits import SPLITS, list_questions
from core.store.workspace import Workspace

KEEPER = "In chapter {0} the keeper number {1} lights the lamp with {0} and {1} matches."
BOOK = "\n\n".join(f"# Chapter {i}\n\n" + " ".join(KEEPER.format(i, j) for j in range(30)) for i in range(14))
REPEATS = [
    {"question": q.format(i), "answer": f"In hall {i % 7}."}
    for q in ("Box {}?", "box  {}")
    for i in range(40)
]


EXTRA = b'{"messages": [{"role": "user", "content": "Box 99?"}, {"role": "assistant", "content": "In 9."}]}\n'


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


def add(workspace, path, content, **options):
    path.write_text(content, encoding="utf-8")
    return import_dataset(workspace, [path], path.stem, **options)


def add_questions(workspace, tmp_path, **options):
    return add(workspace, tmp_path / "q.jsonl", "\n".join(map(json.dumps, REPEATS)), **options)


def repack(archive, target, **changes):
    """The zip with other contents of some files; None leaves a file out. The record is "record"."""
    with zipfile.ZipFile(archive) as z:
        parts = {name: z.read(name) for name in z.namelist()}
    for name, content in changes.items():
        path = RECORD if name == "record" else f"data/{name}.jsonl"
        parts[path] = content(parts.get(path, b"")) if callable(content) else content
    with zipfile.ZipFile(target, "w") as z:
        for name, content in parts.items():
            if content is not None:
                z.writestr(name, content)
    return target


def edit(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes}).encode()


def rows_of(workspace, dataset):
    return {split: read_split(workspace, dataset.id, split) for split in SPLITS}


def is_split_again(dataset):
    return any("are not used" in note and "split again" in note for note in dataset.notes)


def test_sections_of_a_document_and_their_splits_survive_the_zip(workspace, tmp_path):
    book = add(workspace, tmp_path / "book.txt", BOOK)
    assert all(book.splits.values()) and book.cuts[0]["sections"] == book.rows
    again = import_dataset(workspace, [write_download(workspace, book, tmp_path / "b.zip")], "Again")
    assert rows_of(workspace, again) == rows_of(workspace, book)
    assert (again.cuts, again.unread, again.roles) == (book.cuts, [], {"text": "text"})
    sizes = f"{book.splits['train']} training, {book.splits['val']} validation, {book.splits['test']} test"
    assert f"The rows keep the splits that b.zip records: {sizes}." in again.notes


def test_the_splits_of_a_derived_dataset_survive_the_zip(workspace, tmp_path):
    derived = derive_dataset(workspace, [add_questions(workspace, tmp_path).id], "dedup", "Fewer")
    again = import_dataset(workspace, [write_download(workspace, derived, tmp_path / "d.zip")], "Again")
    assert rows_of(workspace, again) == rows_of(workspace, derived)
    assert not is_split_again(again)


def test_held_out_rows_stay_held_out_whatever_is_chosen(workspace, tmp_path):
    held_out = add_questions(workspace, tmp_path, purpose="evaluation")
    archive = write_download(workspace, held_out, tmp_path / "h.zip")
    again = import_dataset(workspace, [archive], "Again", purpose="training")
    assert (again.purpose, again.splits) == ("evaluation", {"train": 0, "val": 0, "test": 80})
    assert "h.zip says that its rows are for evaluation only, and they stay so." in again.notes


def test_a_training_zip_can_be_held_out(workspace, tmp_path):
    archive = write_download(workspace, add_questions(workspace, tmp_path), tmp_path / "q.zip")
    again = import_dataset(workspace, [archive], "Again", purpose="evaluation")
    assert (again.purpose, again.splits) == ("evaluation", {"train": 0, "val": 0, "test": 80})


def test_the_preview_says_what_the_import_does(workspace, tmp_path):
    book = add(workspace, tmp_path / "book.txt", BOOK)
    shown = preview([write_download(workspace, book, tmp_path / "b.zip")])
    assert (shown.problem, shown.question, shown.kind) == ("", "", "domain")
    assert [cut["sections"] for cut in shown.cuts] == [book.rows]
    assert any("b.zip records" in note for note in shown.notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"test": lambda text: text.replace(b"hall", b"room")}, "test.jsonl has changed"),
        ({"validation": None}, "other files than it names"),
        ({"extra": EXTRA}, "other files than it names"),
        ({"record": b"{"}, "not a complete"),
        ({"record": b"\xff"}, "decode"),
        ({"record": edit(version=99)}, "another version"),
        ({"record": edit(splits={"hidden": {"file": "data/train.jsonl", "sha256": "0"}})}, "other splits"),
        ({"record": edit(splits={"train": {"file": 3, "sha256": "0"}})}, "must be text"),
        ({"record": edit(purpose="both")}, "another purpose"),
        ({"record": edit(kind="image")}, "kind"),
    ],
)
def test_a_record_that_does_not_fit_its_files_is_not_used(workspace, tmp_path, changes, reason):
    questions = add_questions(workspace, tmp_path)
    archive = write_download(workspace, questions, tmp_path / "q.zip")
    again = import_dataset(workspace, [repack(archive, tmp_path / "c.zip", **changes)], "Again")
    assert is_split_again(again), again.notes
    assert all(again.splits.values()) and again.purpose == "training"
    if reason not in ("not a complete", "must be text"):
        assert any(reason in note for note in again.notes), again.notes


def test_a_zip_of_others_without_a_record_says_nothing(workspace, tmp_path):
    archive = write_download(workspace, add_questions(workspace, tmp_path), tmp_path / "q.zip")
    again = import_dataset(workspace, [repack(archive, tmp_path / "c.zip", record=None)], "Again")
    assert not any("records" in note or "recorded" in note for note in again.notes)


def test_other_roles_of_the_user_split_the_rows_again(workspace, tmp_path):
    book = add(workspace, tmp_path / "book.txt", BOOK)
    archive = write_download(workspace, book, tmp_path / "b.zip")
    again = import_dataset(
        workspace, [archive], "Again", kind="task", roles={"question": "heading", "answer": "text"}
    )
    assert again.kind == "task" and is_split_again(again)


def test_a_question_in_two_recorded_splits_is_held_out(workspace, tmp_path):
    archive = write_download(workspace, add_questions(workspace, tmp_path), tmp_path / "q.zip")
    with zipfile.ZipFile(archive) as z:
        leaked = z.read("data/train.jsonl") + z.read("data/test.jsonl").splitlines(keepends=True)[0]
    digest = split_record.hashlib.sha256(leaked).hexdigest()

    def name_it(text):
        record = json.loads(text)
        record["splits"]["train"]["sha256"] = digest
        return json.dumps(record).encode()

    changed = repack(archive, tmp_path / "leak.zip", train=leaked, record=name_it)
    again = import_dataset(workspace, [changed], "Again")
    rows = rows_of(workspace, again)
    assert not set(list_questions(rows["train"])) & set(list_questions(rows["test"]))
    assert any("1 row is held out" in note for note in again.notes)


def test_a_record_above_its_limit_is_refused_in_words(workspace, tmp_path, monkeypatch):
    archive = write_download(workspace, add_questions(workspace, tmp_path), tmp_path / "q.zip")
    monkeypatch.setattr(split_record, "SIZE_LIMIT", 20)
    again = import_dataset(workspace, [archive], "Again")
    assert is_split_again(again)


def test_what_a_row_says_about_its_section_has_the_right_form(workspace, tmp_path):
    book = add(workspace, tmp_path / "book.txt", BOOK)
    archive = write_download(workspace, book, tmp_path / "b.zip")
    with zipfile.ZipFile(archive) as z:
        lines = [json.loads(line) for line in z.read("data/train.jsonl").splitlines()]
    for row, wrong in zip(lines, [{"part": -1}, {"part": True}, {"document": ["x"]}, {"document": "a\nb"}]):
        row.update(wrong)
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    digest = split_record.hashlib.sha256(text).hexdigest()

    def name_it(record):
        value = json.loads(record)
        value["splits"]["train"]["sha256"] = digest
        return json.dumps(value).encode()

    again = import_dataset(workspace, [repack(archive, tmp_path / "c.zip", train=text, record=name_it)], "C")
    rows = rows_of(workspace, again)["train"]
    assert [set(row) for row in rows[:4]] == [{"text"}] * 4
    assert all(isinstance(row["part"], int) for row in rows[4:]) and again.cuts == []
