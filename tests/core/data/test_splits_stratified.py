"""Stratified splits: no row twice, proportions by stratum, whole documents, files with their seed."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.cli.main import main
from core.data.datasets import import_dataset, load_dataset, read_split
from core.data.splits import question_key
from core.data.splits_files import SplitOptions, write_splits
from core.data.splits_stratified import split_by_stratum
from core.errors import DataError, InvalidName, SpecError
from core.store.workspace import Workspace

SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}


def make_row(question: str, kind: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "x"}],
        "type": kind,
    }


# Some questions occur twice, in other letters, in other documents and with other types.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 60), st.sampled_from(["", "  ", "?"]), st.sampled_from("ab"), st.sampled_from("pqrst")
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=40, deadline=None)
@given(
    ROWS, st.integers(0, 2**31 - 1), st.sampled_from(["row", "document"]), st.randoms(use_true_random=False)
)
def test_every_row_is_in_one_split_whatever_their_order(
    drawn: list[tuple[int, str, str, str]], seed: int, by: str, shuffler: random.Random
) -> None:
    rows = [make_row(f"Question {n}{end}", kind) for n, end, kind, _ in drawn]
    documents = [d for *_, d in drawn]
    try:
        parts = split_by_stratum(rows, documents, by, seed)
    except DataError as e:
        assert "at least 3" in e.what
        if by == "row":
            assert len({question_key(r) for r in rows}) < 3
        return
    assert list(parts) == ["train", "val", "test"] and all(parts.values())
    assert sorted(i for part in parts.values() for i in part) == list(range(len(rows)))
    questions = [{question_key(rows[i]) for i in part} for part in parts.values()]
    assert sum(map(len, questions)) == len(set().union(*questions)), "duplicates lie in one split"
    if by == "document":
        found = [{documents[i] for i in part} for part in parts.values()]
        assert sum(map(len, found)) == len(set(documents)), "no document is torn"
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    again = split_by_stratum([rows[i] for i in order], [documents[i] for i in order], by, seed)
    assert {name: sorted(order[i] for i in part) for name, part in again.items()} == parts


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 2**31 - 1))
def test_each_stratum_is_within_one_row_of_its_share(sizes: list[int], seed: int) -> None:
    strata = [(f"document {d}", kind) for d in range(len(sizes)) for kind in ("recall", "reason")]
    rows, places = [], []
    for (document, kind), size in zip(strata, [s for s in sizes for _ in range(2)], strict=True):
        rows += [make_row(f"{kind} {i} of {document}", kind) for i in range(size)]
        places += [(document, kind)] * size
    if len(rows) < 12:  # so few that an empty split may be filled from another stratum
        return
    parts = split_by_stratum(rows, [d for d, _ in places], "row", seed)
    totals = Counter(places)
    for name, share in SHARES.items():
        counts = Counter(places[i] for i in parts[name])
        assert all(abs(counts[s] - share * n) < 1 for s, n in totals.items())
        assert abs(len(parts[name]) - share * len(rows)) <= 2
        of_type = Counter(places[i][1] for i in parts[name])
        assert all(abs(of_type[k] - share * sum(sizes)) <= 2 for k in ("recall", "reason"))


def test_another_seed_gives_another_split() -> None:
    rows = [make_row(f"Question {i}", "a") for i in range(40)]
    for documents in ([""] * 40, [f"paper {i}" for i in range(40)]):
        tests = {tuple(split_by_stratum(rows, documents, "row", seed)["test"]) for seed in range(5)}
        assert len(tests) == 5 and {len(t) for t in tests} == {6}


def test_whole_documents_come_near_to_the_shares_of_every_type() -> None:
    rows, documents = [], []
    for paper in range(40):
        for i in range(2 + paper % 5):
            rows.append(make_row(f"Paper {paper}, question {i}", "recall" if i % 2 else "reason"))
            documents.append(f"paper {paper}")
    parts = split_by_stratum(rows, documents, "document")
    totals = Counter(r["type"] for r in rows)
    for name, share in SHARES.items():
        counts = Counter(rows[i]["type"] for i in parts[name])
        assert all(math.isclose(counts[k], share * n, abs_tol=3) for k, n in totals.items())


def test_wrong_settings_are_refused() -> None:
    rows = [make_row(f"Question {i}", "a") for i in range(4)]
    with pytest.raises(SpecError, match="row or document, got 'paper'"):
        split_by_stratum(rows, [""] * 4, "paper")
    with pytest.raises(DataError, match="at least 3 documents without common questions, got 2"):
        split_by_stratum(rows, ["a", "a", "b", "b"], "document")


# --- files


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A dataset of 20 papers with five questions each, of two types."""
    rows = [
        {
            "paper_id": f"p{p:02}",
            "question": f"Paper {p}: what is {i}?",
            "answer": f"It is {i}.",
            "type": "abc"[i % 2],
        }
        for p in range(20)
        for i in range(5)
    ]
    file = tmp_path / "papers.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    made = Workspace(tmp_path / "ws")
    import_dataset(made, [file], "Papers")
    return made


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_terminal_writes_three_files_with_the_seed_beside_them(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (dataset,) = workspace.ids("datasets")
    arguments = ["data", "split", dataset, "--tag", "papers_v1", "--workspace", str(workspace.root)]
    assert main(arguments) == 0
    assert "Documents: 20 different ones, from paper_id." in capsys.readouterr().out
    folder = tmp_path / "evaluation" / "datasets" / "splits"
    names = ["papers_v1_test.jsonl", "papers_v1_train.jsonl", "papers_v1_val.jsonl"]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "papers_v1_splits.json"])
    record = json.loads((folder / "papers_v1_splits.json").read_text())
    assert record["FINETUNE_SPLIT_SEED"] == 20251101 and record["rows"] == {
        "train": 70,
        "val": 15,
        "test": 15,
    }
    assert record["sha256"] == {
        n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in record["sha256"]
    }
    train = read_lines(folder / "papers_v1_train.jsonl")
    assert Counter(r["document"] for r in train).keys() == {f"p{p:02}" for p in range(20)}
    assert main(arguments) == 0, "the same files may be written again"
    capsys.readouterr()
    assert main([*arguments, "--by", "document"]) == 1
    assert "exists with other rows or settings" in capsys.readouterr().err
    assert main([*arguments, "--by", "document", "--replace"]) == 0
    test = {r["document"] for r in read_lines(folder / "papers_v1_test.jsonl")}
    assert len(test) == 3 and not test & {r["document"] for r in read_lines(folder / "papers_v1_train.jsonl")}


def test_an_import_of_the_zip_keeps_the_splits(workspace: Workspace, tmp_path: Path) -> None:
    (dataset_id,) = workspace.ids("datasets")
    written = write_splits(
        workspace, dataset_id, SplitOptions("v1", "document", zipped=True), tmp_path / "out"
    )
    assert [p.name for p in written.files] == [
        "v1.zip",
        "v1_train.jsonl",
        "v1_val.jsonl",
        "v1_test.jsonl",
        "v1_splits.json",
    ]
    again = import_dataset(workspace, [written.files[0]], "Papers, whole")
    for name, file in zip(("train", "val", "test"), written.files[1:], strict=False):
        rows = [{k: v for k, v in r.items() if k != "document"} for r in read_lines(file)]
        assert read_split(workspace, again.id, name) == rows
    # The new dataset knows the documents, too: its files name them.
    assert write_splits(workspace, again.id, SplitOptions("v2"), tmp_path / "out").documents == 20


def test_texts_are_documents_and_evaluation_data_is_refused(tmp_path: Path, corpus: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    data = import_dataset(workspace, [corpus], "Corpus", "domain")
    assert write_splits(workspace, data.id, SplitOptions("c"), tmp_path / "out").documents == 48
    held = import_dataset(workspace, [corpus], "Held out", "domain", purpose="evaluation")
    with pytest.raises(SpecError, match="for evaluation only"):
        write_splits(workspace, held.id, SplitOptions("c"), tmp_path / "out")


def test_a_wrong_tag_or_column_is_refused_and_nothing_is_written(
    workspace: Workspace, tmp_path: Path
) -> None:
    (dataset_id,) = workspace.ids("datasets")
    for tag in ("../up", "", "a b"):
        with pytest.raises(InvalidName, match="A tag has"):
            write_splits(workspace, dataset_id, SplitOptions(tag), tmp_path / "out")
    with pytest.raises(SpecError, match="no column 'paper'.*paper_id, question, answer, type"):
        write_splits(workspace, dataset_id, SplitOptions("v1", column="paper"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and load_dataset(workspace, dataset_id).rows == 100
