"""The data card and the download: the datasets library reads them, and nothing in a name is markup."""

import io
import json
import zipfile

import datasets
import pytest
import yaml

from core.data.datasets import annotate_dataset, import_dataset, load_dataset, read_split
from core.data.derivation.data_card import LIST_LIMIT, escape, write_card, write_download
from core.data.derivation.operations import derive_dataset
from core.data.splits import SPLITS
from core.errors import SpecError
from core.store.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


def add(workspace, tmp_path, rows, name="Boxes", **options):
    file = tmp_path / "boxes.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return import_dataset(workspace, [file], name, **options)


def load_front(card):
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


QUESTIONS = [{"question": f"Where is the box with number {i}?", "answer": "In the hall."} for i in range(40)]


def test_the_front_matter_says_what_the_hub_reads(workspace, tmp_path):
    dataset = add(workspace, tmp_path, QUESTIONS)
    front, text = load_front(write_card(workspace, dataset))
    assert front == {
        "pretty_name": "Boxes",
        "language": ["en"],
        "task_categories": ["question-answering"],
        "size_categories": ["n<1K"],
        "tags": ["conversational"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "data/train.jsonl"},
                    {"split": "validation", "path": "data/validation.jsonl"},
                    {"split": "test", "path": "data/test.jsonl"},
                ],
            }
        ],
    }
    assert f"| train | {dataset.splits['train']} |" in text
    assert "- Read from boxes\\.jsonl" in text or "- Read from boxes.jsonl" in text
    assert dataset.sha256 in text


def test_nothing_in_a_name_or_note_is_markup(workspace, tmp_path):
    dataset = add(workspace, tmp_path, QUESTIONS, name="# <b>x | [a](b) `c` {{d}} --- : 'e'")
    annotate_dataset(workspace, dataset.id, "---\n<script>1</script>\n# big")
    front, text = load_front(write_card(workspace, load_dataset(workspace, dataset.id)))
    assert front["pretty_name"] == "# <b>x | [a](b) `c` {{d}} --- : 'e'"
    assert "<" not in text.replace("\\<", "")
    assert text.splitlines()[1].startswith("# \\# \\<b\\>x")
    assert "\\-\\-\\-\n" in text and "\n\\# big" in text


def test_long_lines_and_lists_are_capped(workspace, tmp_path):
    assert len(escape("a" * 5000)) == 500
    assert escape("a\u2028b\x07c\nd") == "a b c d"
    dataset = add(workspace, tmp_path, [{**q, "type": f"t{i}"} for i, q in enumerate(QUESTIONS * 2)])
    card = write_card(workspace, dataset)
    assert card.count("\n- t") <= LIST_LIMIT


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_the_datasets_library_loads_the_download(workspace, tmp_path, purpose):
    dataset = add(workspace, tmp_path, QUESTIONS, purpose=purpose)
    archive = write_download(workspace, dataset, tmp_path / "boxes.zip")
    zipfile.ZipFile(archive).extractall(tmp_path / "folder")
    loaded = datasets.load_dataset(str(tmp_path / "folder"), cache_dir=str(tmp_path / "cache"))
    names = {"train": "train", "val": "validation", "test": "test"}
    assert {s: len(loaded[names[s]]) for s in SPLITS if dataset.splits[s]} == {
        s: n for s, n in dataset.splits.items() if n
    }
    assert len(loaded) == sum(n > 0 for n in dataset.splits.values())
    for split in SPLITS:
        for row, original in zip(
            loaded.get(names[split], []), read_split(workspace, dataset.id, split), strict=True
        ):
            assert row["messages"] == original["messages"]


def test_rows_with_different_keys_load_as_one_table(workspace, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": "a", **({"weight": 0} if i % 7 == 3 else {})},
                {"role": "user", "content": "more"},
                {"role": "assistant", "content": "b"},
            ]
        }
        for i in range(40)
    ]
    dataset = add(workspace, tmp_path, rows)
    archive = write_download(workspace, dataset, tmp_path / "chats.zip")
    with zipfile.ZipFile(archive) as z:
        lines = [
            json.loads(line) for n in z.namelist() if n.endswith("jsonl") for line in io.BytesIO(z.read(n))
        ]
    assert len(lines) == 40
    assert {tuple(message) for row in lines for message in row["messages"]} == {("role", "content", "weight")}
    assert sum(m["weight"] == 0 for row in lines for m in row["messages"] if m["weight"] is not None) == 6


def test_a_card_names_the_parents_and_what_was_done(workspace, tmp_path):
    parent = add(workspace, tmp_path, QUESTIONS)
    child = derive_dataset(workspace, [parent.id], "dedup", "Fewer")
    _, text = load_front(write_card(workspace, child))
    assert f"- Made from Boxes \\({escape(parent.id)}\\) by dedup" in text
    assert "- No repeats were found." in text
    workspace.remove("datasets", parent.id)
    _, text = load_front(write_card(workspace, child))
    assert f"- Made from {escape(parent.id)}, which was deleted by dedup" in text


def test_a_note_is_kept_and_has_limits(workspace, tmp_path):
    dataset = add(workspace, tmp_path, QUESTIONS)
    assert (
        annotate_dataset(workspace, dataset.id, "  From the hall.\r\nTwice. ").note
        == "From the hall.\nTwice."
    )
    assert load_dataset(workspace, dataset.id).note == "From the hall.\nTwice."
    for wrong in ("a" * 4001, "a\x00b"):
        with pytest.raises(SpecError, match="at most 4,000 characters"):
            annotate_dataset(workspace, dataset.id, wrong)
    assert load_dataset(workspace, dataset.id).note == "From the hall.\nTwice."


def test_an_imported_download_has_the_same_rows_and_splits(workspace, tmp_path):
    dataset = add(workspace, tmp_path, QUESTIONS)
    archive = write_download(workspace, dataset, tmp_path / "boxes.zip")
    again = import_dataset(workspace, [archive], "Again")
    assert again.splits == dataset.splits
    for split in SPLITS:
        assert read_split(workspace, again.id, split) == read_split(workspace, dataset.id, split)
