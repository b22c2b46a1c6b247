"""The Evaluate tab: mixes measured on held-out data, with the report as a table, bars and a CSV file.

`core/evaluate` measures; `studio/views/report.py` shows a report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from core.spec.mix import NEW_TOKENS_LIMIT
from studio import events, fields, formatting, mix_choices, samples
from studio.components import bars, damaged, mixer
from studio.session import Session
from studio.tree import empty, title, view
from studio.views import report as report_view

SPLITS = [("Test", "test"), ("Validation", "val"), ("Everything", "all")]
BAR_METRICS = ("exact_match", "f1", "perplexity", "general_perplexity")
NO_REPORT = empty(
    "No report yet", "Choose a dataset and some mixes, then press Measure. Reports are saved in the Library."
)


@dataclass(frozen=True)
class EvaluateTab:
    """The components of the Evaluate tab."""

    dataset: gr.Dropdown
    split: gr.Radio
    mixes: gr.Dropdown
    limit: gr.Number
    longest: gr.Number
    start: gr.Button
    stop: gr.Button
    picker: gr.Dropdown
    bars: gr.HTML
    report: gr.HTML
    damaged: gr.HTML
    session: gr.State


def build() -> EvaluateTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(title("Evaluate", "Measures mixes on held-out data that no adapter was trained on."))
            dataset = fields.picker("Dataset")
            split = gr.Radio(
                SPLITS,
                value="test",
                label="Split",
                info="Choose Everything only for data that no adapter was trained on.",
            )
            mixes = fields.picker("Mixes", value=[], multiselect=True)
            limit = gr.Number(
                0,
                label="Limit",
                info="Maximum number of rows; 0 means all.",
                minimum=0,
                maximum=1_000_000,
                precision=0,
            )
            longest = gr.Number(
                0,
                label="Longest answer (tokens)",
                info="0 follows the longest answer of the data, as far as the base's context allows.",
                minimum=0,
                maximum=NEW_TOKENS_LIMIT,
                precision=0,
            )
            with gr.Row(elem_classes="actions"):
                start = gr.Button("Measure", variant="primary", scale=2)
                stop = gr.Button("Stop", scale=1, min_width=80)
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            picker = fields.picker("Report")
            report = view(NO_REPORT, elem_id="report")
            damaged_items = damaged.damaged_list("reports")
            charts = bars.bars()
    return EvaluateTab(
        dataset,
        split,
        mixes,
        limit,
        longest,
        start,
        stop,
        picker,
        charts,
        report,
        damaged_items,
        gr.State(Session(), delete_callback=Session.stop),
    )


def wire(
    tab: EvaluateTab,
    engine: Engine,
    library_changed: events.EventGroup,
    mix_changed: events.EventGroup,
    mixer_rows: gr.HTML,
) -> None:
    """Connects the events."""
    inputs = [tab.dataset, tab.split, tab.mixes, tab.limit, mixer_rows, tab.session, tab.longest]
    outputs = [tab.report, tab.bars, tab.picker]
    events.refresh_after(
        events.bind(tab.start.click, engine, measure_mixes, inputs, outputs, concurrency_limit=4)
    )
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    events.bind(tab.picker.input, engine, open_report, [tab.picker], [tab.report, tab.bars])
    lists = [tab.dataset, tab.split, tab.mixes, tab.picker]
    damaged.wire(tab.damaged, engine, library_changed, "reports")
    for event in (library_changed, mix_changed):
        event.add(refresh, [tab.dataset, tab.mixes, tab.picker, mixer_rows], lists)
    events.bind(tab.dataset.input, engine, suggest_split, [tab.dataset], [tab.split])


def refresh(
    engine: Engine, dataset: str | None, mixes: list[str], picked: str | None, rows: Any
) -> tuple[Any, ...]:
    """Updates the lists of datasets, mixes and reports.

    A fresh page suggests the default mixes on the held-out questions.
    """
    datasets = list(reversed(engine.datasets.list()))
    ids = [d.id for d in datasets]
    is_fresh = dataset not in ids
    chosen = (samples.find_held_out(engine) or next(iter(ids), None)) if is_fresh else dataset
    choices = mix_choices.list_choices(engine, mixer.current_mix(engine, rows))
    reports = engine.evaluation.reports()
    report = picked if picked in [r.id for r in reports] else None
    return (
        fields.update_choices([(d.name, d.id) for d in datasets], chosen, dataset),
        suggest_split(engine, chosen) if is_fresh else gr.skip(),
        fields.update_choices(
            [(c["name"], c["id"]) for c in choices],
            _suggest_mixes(engine, mixes or [], {c["id"] for c in choices}),
            mixes,
        ),
        fields.update_choices(_report_choices(reports), report, picked),
    )


def _suggest_mixes(engine: Engine, mixes: list[str], known: set[str]) -> list[str]:
    """The chosen mixes that still exist; the default mixes if the choice is an earlier suggestion."""
    defaults = [str(m) for m in engine.library.default_mixes()]
    chosen = [m for m in mixes if m in known]
    is_earlier_suggestion = len(chosen) < 3 and chosen == defaults[: len(chosen)]
    return defaults if is_earlier_suggestion else chosen


def _report_choices(reports: Sequence[Any]) -> list[tuple[str, str]]:
    return [(f"{r.dataset_name} · {r.split} · {formatting.format_time(r.created)}", r.id) for r in reports]


def suggest_split(engine: Engine, dataset: str | None) -> str:
    """The whole dataset for the held-out questions, else the test split."""
    return "all" if dataset and dataset == samples.find_held_out(engine) else "test"


def measure_mixes(
    engine: Engine,
    dataset: str | None,
    split: str,
    mixes: list[str],
    limit: int,
    rows: Any,
    session: Session,
    longest: int = 0,
) -> Iterator[tuple[Any, ...]]:
    """Measures the chosen mixes; yields the progress, then the report.

    Args:
        limit: at most this many rows; 0 means all.
        rows: the mixer's value.
        longest: tokens of an answer; 0 follows the longest answer of the data.
    """
    if not dataset:
        raise SpecError("No dataset is chosen.", "Import one in the Data tab, then choose it here.")
    session.stop()
    chosen = mix_choices.parse_mixes(engine, mixes or [], mixer.current_mix(engine, rows))
    session.stream = stream = engine.evaluation.measure(
        chosen, dataset, split, int(limit or 0), max_new_tokens=int(longest or 0)
    )
    report_id = ""
    try:
        for part in stream:
            report_id = part.report
            yield report_view.render_progress(part), None, gr.skip()
    finally:
        stream.close()
    if report_id:
        choices = _report_choices(engine.evaluation.reports())
        yield *open_report(engine, report_id), gr.update(choices=choices, value=report_id)
    else:
        yield empty("Stopped", "No report was saved."), None, gr.skip()


def stop(engine: Engine, session: Session) -> None:
    """Stops the measurement; no report is saved."""
    session.stop()


def open_report(engine: Engine, picked: str | None) -> tuple[Any, ...]:
    """Shows a report as a table and bars."""
    if not picked:
        return NO_REPORT, None
    report = engine.evaluation.report(picked)
    kinds = {a.id: a.kind for a in engine.library.mixable_adapters()}
    names = [r["name"] for r in report.rows]
    colours = [_colour_of(r["weights"], kinds) for r in report.rows]
    panels = [
        bars.panel(
            report_view.heading_of(m, report),
            names,
            colours,
            [r.get(m) for r in report.rows],
            report_view.METRICS[m][1],
        )
        for m in BAR_METRICS
        if any(isinstance(r.get(m), (int, float)) for r in report.rows)
    ]
    return report_view.render_report(report), panels


def _colour_of(weights: dict[str, float], kinds: dict[str, str]) -> str:
    """The colour of a mix: base, the kind of its only adapter, or mix."""
    if not weights:
        return "base"
    return kinds.get(next(iter(weights)), "mix") if len(weights) == 1 else "mix"
