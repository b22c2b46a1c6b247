"""Checks of rows: their totals add up, and each finding names its rows."""

from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.inspection import row_checks
from core.data.inspection.records import EXAMPLE_LIMIT, EXCERPT, PairExample, RowExample
from core.data.inspection.row_checks import from_splits, inspect_rows, spread
from core.data.splits import SPLITS, question_key


def pair(question, answer="x"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "A?", "b", "", "jane@example.org"]), st.sampled_from(["x", "y", " "])
    ).map(lambda t: pair(*t)),
    max_size=10,
)


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(SPLITS, ROWS)))
def test_the_totals_of_an_inspection_add_up(splits):
    rows = [row for split in SPLITS for row in splits[split]]
    found = inspect_rows(from_splits("task", splits))
    assert found.rows == found.inspected == sum(size.rows for size in found.splits) == len(rows)
    assert found.repeats.rows == len(rows) - len({question_key(row) for row in rows})
    assert found.repeats.across_splits <= found.repeats.groups
    assert sum(language.rows for language in found.languages) == len(rows)
    assert found.empty.rows == sum(row["messages"][1]["content"] == " " for row in rows)
    assert sum(size.characters for size in found.splits) == sum(
        len(m["content"]) for row in rows for m in row["messages"]
    )
    if rows:
        assert abs(sum(language.share for language in found.languages) - 1) < 1e-9
        characters = sum(size.characters for size in found.splits)
        assert abs(sum(size.share for size in found.splits) - bool(characters)) < 1e-9
    emails = sum(row["messages"][0]["content"] == "jane@example.org" for row in rows)
    assert sum(data.rows for data in found.personal) == emails
    for finding in (found.empty, found.conflicts):
        assert len(finding.examples) == min(EXAMPLE_LIMIT, finding.rows)
        for example in finding.examples:
            assert example.row < len(splits[example.split])


def test_repeats_show_pairs_of_two_splits_first():
    splits = {"train": [pair("a"), pair("a"), pair("b")], "val": [pair("c")], "test": [pair("B?", "y")]}
    found = inspect_rows(from_splits("task", splits))
    assert (found.repeats.rows, found.repeats.groups, found.repeats.across_splits) == (2, 2, 1)
    first, second = found.repeats.examples
    assert first == PairExample(RowExample("train", 2, "b → x"), RowExample("test", 0, "B? → y"), 1.0)
    assert (second.first.row, second.second.row) == (0, 1)
    assert found.conflicts.rows == 1
    assert found.conflicts.examples == [RowExample("test", 0, "B? → y")]


def test_nearly_equal_texts_are_counted_beside_equal_ones():
    words = [f"word{i}" for i in range(50)]
    text, near = " ".join(words), " ".join([*words[:25], "other", *words[26:]])
    splits = {
        "train": [{"text": text}, {"text": text.upper()}, {"text": "else"}],
        "val": [],
        "test": [{"text": near}],
    }
    found = inspect_rows(from_splits("domain", splits))
    assert (found.repeats.rows, found.near.rows, found.near.across_splits) == (1, 1, 1)
    assert found.near.examples[0].similarity == 0.882  # 45 of 51 shingles
    assert found.near_inspected == 4


def test_a_system_text_does_not_make_questions_nearly_equal():
    system = {"role": "system", "content": " ".join(f"rule{i}" for i in range(200))}
    rows = [{"messages": [system, *pair(f"Question {i}")["messages"]]} for i in range(5)]
    assert inspect_rows(from_splits("task", {"train": rows})).near.rows == 0


def test_examples_are_short_and_on_one_line():
    found = inspect_rows(from_splits("domain", {"train": [{"text": "a\nb " * 500}] * 2}))
    example = found.repeats.examples[0].first
    assert len(example.text) == EXCERPT and "\n" not in example.text


def test_of_many_rows_a_sample_of_languages_is_spread_over_all(monkeypatch):
    assert list(spread(5, 10)) == [0, 1, 2, 3, 4]
    assert list(spread(1000, 4)) == [0, 250, 500, 750]
    monkeypatch.setattr(row_checks, "LANGUAGE_ROWS", 10)
    rows = [{"text": f"Where is the lamp number {i}?"} for i in range(30)]
    found = inspect_rows(from_splits("domain", {"train": rows}, total=90))
    assert [(x.code, x.rows, x.share) for x in found.languages] == [("en", 10, 1.0)]
    assert found.scope == "of the first 30 rows"


def test_progress_names_the_checks_and_stops_them():
    seen = []
    inspect_rows(from_splits("task", {"train": [pair("a")]}), lambda text, done, total: seen.append(text))
    assert seen == [
        "Searching repeats",
        "Searching near-duplicates",
        "Detecting languages",
        "Searching personal data",
    ]
