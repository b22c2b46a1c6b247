"""Experiments as settings: the matrix becomes rows, YAML round-trips, and wrong files are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import SpecError
from core.spec.answer_metrics import ANSWER_METRICS
from core.spec.experiment import (
    ExperimentRow,
    ExperimentSpec,
    format_yaml,
    list_rows,
    parse_yaml,
    read_documents,
)
from core.spec.experiment_presets import ask_what_helps, plan_size_series
from core.spec.promotion import PromotionRule

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x85\u2028\u2029"), max_size=20)
DOCUMENTS = st.sampled_from(["off", "on", "on:8", "on:chunk_size=400,overlap=50,passages=3"])
ROWS = st.builds(
    lambda i, documents, base, group: ExperimentRow(f"row {i}", "notes=0.5@1", documents, base, group),
    st.integers(0, 10**6),
    DOCUMENTS,
    TEXT,
    TEXT,
)
SPECS = st.builds(
    ExperimentSpec,
    name=TEXT,
    dataset=TEXT,
    split=st.sampled_from(["test", "val", "all"]),
    limit=st.integers(0, 1000),
    sources=st.lists(TEXT, max_size=3).map(tuple),
    mixes=st.sampled_from([("",), ("", "notes=0.7,tone=-1@0.5"), ("notes=auto:0.5",)]),
    documents=st.lists(DOCUMENTS, min_size=1, max_size=3, unique=True).map(tuple),
    rows=st.lists(ROWS, max_size=3, unique_by=lambda r: r.name).map(tuple),
    metrics=st.lists(st.sampled_from(sorted(ANSWER_METRICS)), max_size=3).map(tuple),
    rule=st.builds(PromotionRule, factuality_gain=st.floats(-99, 99), forgetting=st.floats(0, 99)),
)


@settings(max_examples=60, deadline=None)
@given(SPECS)
def test_yaml_and_json_give_back_the_same_experiment(spec: ExperimentSpec) -> None:
    assert parse_yaml(format_yaml(spec)) == spec
    assert ExperimentSpec.from_json(spec.to_json()) == spec


def test_a_matrix_has_every_combination_once_with_a_name() -> None:
    spec = ExperimentSpec(mixes=("", "notes"), documents=("off", "on", "on:8"), bases=("a", "b"))
    rows = list_rows(spec)
    assert (
        len(rows)
        == 12
        == len({row.name for row in rows})
        == len({(r.mix, r.documents, r.base) for r in rows})
    )
    assert [r.name for r in list_rows(ask_what_helps("q", "notes"))] == [
        "base", "base + documents", "notes", "notes + documents",
    ]  # fmt: skip
    assert {row.group_name for row in rows} == {"a", "b"}


def test_the_series_of_two_sizes_has_the_seven_rows_in_groups() -> None:
    series = plan_size_series("q", "small", "large")
    assert [(r.name, r.group_name) for r in list_rows(series)] == [
        ("rag_baseline_0p5", "0.5B"), ("lora_science_0p5_ft", "0.5B"), ("hybrid_science_0p5", "0.5B"),
        ("rag_baseline_3b", "3B"), ("lora_science_3b_ft", "3B"), ("hybrid_science_3b", "3B"),
        ("cloud_eval_v1", "cloud"),
    ]  # fmt: skip
    assert [bool(r.passages) for r in series.rows] == [True, False, True, True, False, True, True]
    assert series.rows[6].key_variable == "OPENAI_API_KEY" and parse_yaml(format_yaml(series)) == series


def test_a_bare_on_or_off_in_yaml_means_the_documents() -> None:
    spec = parse_yaml("mixes: ['']\ndocuments: [off, on]\nrows: [{name: x, documents: on}]\n")
    assert spec.documents == ("off", "on") and spec.rows[0].documents == "on"
    found = read_documents("on:chunk_size=400,overlap=50,passages=8")
    assert found and (found.chunk_size, found.overlap, found.passages) == (400, 50, 8)
    assert read_documents("off") is None and read_documents("on").passages == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixes: [", "not YAML"),
        ("- a", "must map names"),
        ("mixes: []", "has no rows"),
        ("mixes: ['', '']", "Two rows are called 'base'"),
        ("mixes: &a ['']\nbases: *a", "has an alias"),
        ("mixes: ['']\ndocuments: sometimes", 'must be "off", "on"'),
        ("mixes: ['']\ndocuments: ['on:0']", "between 1 and 50"),
        ("mixes: ['']\ndocuments: ['on:colour=red']", "Unknown settings: colour"),
        ("mixes: ['']\nmetrics: [taste]", "Metrics must be among"),
        ("mixes: ['']\nsecret: x", "Unknown settings: secret"),
        ("rows: [{name: a, address: 'ftp://x', model: m}]", "must begin with http"),
        ("rows: [{name: a, address: 'https://u:p@x/v1', model: m}]", "no user or password"),
        ("rows: [{name: a, address: 'https://x/v1'}]", "belong together"),
        ("rows: [{name: a, key_variable: 'sk-123'}]", "must be a name of letters"),
        ("rows: 5", "must be a list"),
        ("mixes: ['']\nrule: {forgetting: -1}", "Forgetting"),
        ("mixes: ['']\nname: 2026-02-31", "cannot be read"),
        ("[" * 40, "nested 8 levels deep"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_yaml(text)
    assert "sk-123" not in str(caught.value)
