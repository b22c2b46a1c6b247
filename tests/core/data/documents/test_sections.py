"""Sections of long documents: where they are cut, that nothing is lost, and how they are split."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import datasets
from core.data.documents.document import Block
from core.data.documents.sections import LARGEST, cut, cut_documents, join_parts, split_sentences
from core.data.documents.text_blocks import read_blocks
from core.errors import DataError
from core.store.workspace import Workspace

SENTENCE = "The ferry {i} leaves pier {j} at seven, and nobody waits for the mail bag number {k}."
WORDS = st.text("abcdefg ", min_size=1, max_size=40).map(str.strip).filter(bool)


def paragraph(i: int, sentences: int = 4) -> str:
    return " ".join(SENTENCE.format(i=i, j=i * 7 + j, k=i * 31 + j) for j in range(sentences))


def book(chapters: int, paragraphs: int) -> str:
    parts = []
    for c in range(chapters):
        parts.append(f"# Chapter {c}")
        parts += [paragraph(c * 100 + p) for p in range(paragraphs)]
    return "\n\n".join(parts)


def import_texts(tmp_path: Path, texts: dict[str, str], **options):
    workspace = Workspace(tmp_path / "workspace")
    paths = []
    for name, text in texts.items():
        paths.append(tmp_path / name)
        paths[-1].write_text(text, encoding="utf-8")
    dataset = datasets.import_dataset(workspace, paths, "Data", **options)
    return dataset, {s: datasets.read_split(workspace, dataset.id, s) for s in ("train", "val", "test")}


@pytest.mark.parametrize("name", ["book.txt", "book.md"])
def test_one_long_file_gives_all_three_splits(tmp_path, name):
    dataset, rows = import_texts(tmp_path, {name: book(12, 6)})
    lengths = {s: sum(len(r["text"]) for r in rows[s]) for s in rows}
    total = sum(lengths.values())
    assert abs(lengths["train"] / total - 0.7) < 0.06
    assert abs(lengths["val"] / total - 0.15) < 0.06 and abs(lengths["test"] / total - 0.15) < 0.06
    assert dataset.cuts[0]["document"] == name and dataset.cuts[0]["sections"] == dataset.rows


def test_twenty_notes_are_cut_into_sections_and_lose_nothing(tmp_path):
    notes = {f"note{i:02d}.txt": "\n\n".join(paragraph(i * 50 + p) for p in range(4)) for i in range(20)}
    dataset, rows = import_texts(tmp_path, notes)
    assert dataset.rows > 20
    parts = sorted((r for s in rows.values() for r in s), key=lambda r: (r["document"], r["part"]))
    assert join_parts(parts) == [notes[name] for name in sorted(notes)]


def test_three_sentences_are_enough(tmp_path):
    dataset, _ = import_texts(
        tmp_path, {"a.txt": "Dogs travel free. Cats pay half. Birds must stay at home."}
    )
    assert dataset.splits == {"train": 1, "val": 1, "test": 1} and dataset.cuts[0]["how"] == "sentences"


def test_two_sentences_are_too_few(tmp_path):
    with pytest.raises(DataError, match="at least 3 different"):
        import_texts(tmp_path, {"a.txt": "Dogs travel free. Cats pay half."})


def test_many_documents_stay_whole(tmp_path):
    documents = {f"d{i:03d}.txt": "\n\n".join(paragraph(i * 50 + p) for p in range(8)) for i in range(80)}
    dataset, rows = import_texts(tmp_path, documents)
    assert dataset.rows == 80 and dataset.cuts == []
    assert all(set(r) == {"text"} for r in rows["train"])


def test_near_duplicate_sections_share_a_split(tmp_path):
    texts = [paragraph(i, 6) for i in range(40)]
    near = [t.replace("nobody", "no one", 1) for t in texts[:10]]
    _, rows = import_texts(tmp_path, {"a.txt": "\n\n".join([*texts, *near])})
    where = {r["text"]: s for s in rows for r in rows[s]}
    for original, copy in zip(texts[:10], near, strict=True):
        places = [{s for t, s in where.items() if part in t} for part in (original, copy)]
        assert places[0] == places[1], "a section and its near-duplicate are in one split"


def test_an_evaluation_dataset_has_all_its_rows_in_test(tmp_path):
    dataset, rows = import_texts(tmp_path, {"book.txt": book(6, 4)}, purpose="evaluation")
    assert dataset.purpose == "evaluation" and dataset.splits["test"] == dataset.rows
    assert rows["train"] == [] and rows["val"] == []


def test_code_tables_and_headings_are_not_torn():
    code = "```\n" + "\n\n".join(f"x{i} = {i}" for i in range(400)) + "\n```"
    text = f"# One\n\n{paragraph(1)}\n\n{code}\n\n# Two\n\n{paragraph(2)}"
    sections = cut(read_blocks(text), 300)
    assert sum(code in s.text for s in sections) == 1
    assert all(not s.text.rstrip().endswith(("# One", "# Two")) for s in sections)


def test_abbreviations_do_not_end_a_sentence():
    text = "Dr. Ellis paid approx. 3.50 to Mr. A. Brook, e.g. for No. 7 of the U.S. Mail. He left. "
    text += "“Why?” She knew."
    assert split_sentences(text) == [
        "Dr. Ellis paid approx. 3.50 to Mr. A. Brook, e.g. for No. 7 of the U.S. Mail.",
        "He left.",
        "“Why?”",
        "She knew.",
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["heading", "paragraph", "list", "footnote"]),
            st.lists(WORDS, min_size=1, max_size=30),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(20, 400),
)
def test_sections_hold_every_word_in_order_and_end_at_sentences(drawn, size):
    blocks = [Block(kind, ". ".join(w.capitalize() for w in words) + ".", 1) for kind, words in drawn]
    sections = cut(blocks, size)
    joined = " ".join(s.text for s in sections)
    assert re.sub(r"\s+", " ", joined) == re.sub(r"\s+", " ", " ".join(b.text for b in blocks))
    assert all(s.text.rstrip().endswith(".") for s in sections)
    assert all(len(s.text) <= LARGEST * 2 + 2 * size for s in sections)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=60), min_size=1, max_size=6))
def test_joined_parts_are_the_documents(drawn):
    texts = ["\n\n".join(". ".join(w) + "." for w in [words]) for words in drawn]
    rows, places, _ = cut_documents([(f"d{i}", t, None) for i, t in enumerate(texts)])
    joined = join_parts(rows)
    assert [re.sub(r"\s+", " ", t).strip() for t in joined] == [re.sub(r"\s+", " ", t).strip() for t in texts]
    assert sorted(set(places)) == list(range(len(texts)))


@pytest.mark.parametrize(
    ("line", "glue"),
    [("2024-05-03 12:00:{i:02d} INFO job {i} started", "\n"), ("term{i}: the meaning of term {i}", "\n")],
)
def test_logs_and_glossaries_are_cut_between_lines(line, glue):
    lines = [line.format(i=i) for i in range(600)]
    rows, _, _ = cut_documents([("a.txt", glue.join(lines), None)])
    assert len(rows) > 20
    assert [x for row in rows for x in row["text"].split(glue)] == lines


def test_a_long_line_without_sentences_is_cut_at_spaces():
    words = [f"word{i}" for i in range(12_000)]
    rows, _, _ = cut_documents([("a.txt", " ".join(words), None)])
    assert len(rows) > 20 and max(len(r["text"]) for r in rows) < 2 * LARGEST + 100
    assert join_parts(rows) == [" ".join(words)]


def test_thai_is_cut_at_its_spaces():
    phrases = [f"เรือข้ามฟากลำที่{i}ออกจากท่าเรือเวลาเจ็ดโมงเช้า" for i in range(300)]
    rows, _, _ = cut_documents([("a.txt", " ".join(phrases), None)])
    assert len(rows) > 20 and join_parts(rows) == [" ".join(phrases)]
    assert {x for row in rows for x in row["text"].split(" ")} == set(phrases)


def test_chinese_sentences_get_no_spaces():
    text = "".join(f"第{i}班渡船在七点离开港口。没有人等待邮袋{i}！" for i in range(300))
    rows, _, _ = cut_documents([("a.txt", text, None)])
    assert len(rows) > 10 and join_parts(rows) == [text]
    assert all(r["text"].endswith(("。", "！")) for r in rows)
