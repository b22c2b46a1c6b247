"""The Evaluate tab: mixes measured on a held-out split, as a table, bars and a CSV.

Knows which figures to show and how. Knows nothing of how they are measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from studio import events, fields, formatting, mix_choices, samples
from studio.components import bars, mixer
from studio.session import Session
from studio.tree import Node, download, empty, node, table, title, view

SPLITS = [("Test", "test"), ("Validation", "val"), ("Everything", "all")]
# column of a report's row: heading, whether it is a share, digits
FIGURES = {
    "perplexity": ("Perplexity", False, 2), "answer_perplexity": ("Answer perplexity", False, 2), "exact_match": ("Exact match", True, 1),
    "f1": ("F1", True, 1), "general_perplexity": ("General perplexity", False, 2), "latency_seconds": ("Latency (s)", False, 2),
    "tokens_per_second": ("Tokens / s", False, 0),
}  # fmt: skip
IN_BARS = ("exact_match", "f1", "perplexity", "general_perplexity")
NOTHING = empty(
    "No report yet", "Choose a dataset and some mixes, then measure. Every report is kept in the Library."
)


@dataclass(frozen=True)
class EvaluateTab:
    """The components of the Evaluate tab."""

    dataset: gr.Dropdown
    split: gr.Radio
    mixes: gr.Dropdown
    limit: gr.Number
    start: gr.Button
    stop: gr.Button
    reports: gr.Dropdown
    bars: gr.HTML
    shown: gr.HTML
    session: gr.State


def build() -> EvaluateTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(title("Evaluate", "Held-out data only: nothing here was trained on."))
            dataset = fields.picker("Dataset")
            split = gr.Radio(
                SPLITS,
                value="test",
                label="Split",
                info="Everything is for datasets that no adapter was trained on.",
            )
            mixes = fields.picker("Mixes", value=[], multiselect=True)
            limit = gr.Number(
                0,
                label="Limit",
                info="At most so many rows; 0 means all.",
                minimum=0,
                maximum=1_000_000,
                precision=0,
            )
            with gr.Row(elem_classes="actions"):
                start = gr.Button("Measure", variant="primary", scale=2)
                stop = gr.Button("Stop", scale=1, min_width=80)
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            reports = fields.picker("Report")
            shown = view(NOTHING, elem_id="report")
            charts = bars.bars()
    return EvaluateTab(
        dataset,
        split,
        mixes,
        limit,
        start,
        stop,
        reports,
        charts,
        shown,
        gr.State(Session(), delete_callback=Session.stop),
    )


def wire(
    tab: EvaluateTab, engine: Engine, library_changed: events.EventGroup, mix_changed: events.EventGroup, mixer_rows: gr.HTML
) -> None:
    """Connects the events."""
    inputs = [tab.dataset, tab.split, tab.mixes, tab.limit, mixer_rows, tab.session]
    events.refresh_after(
        events.bind(
            tab.start.click, engine, measured, inputs, [tab.shown, tab.bars, tab.reports], concurrency_limit=4
        )
    )
    events.bind(tab.stop.click, engine, stopped, [tab.session], None)
    events.bind(tab.reports.input, engine, opened, [tab.reports], [tab.shown, tab.bars])
    lists = [tab.dataset, tab.split, tab.mixes, tab.reports]
    for event in (library_changed, mix_changed):
        event.add(refresh, [tab.dataset, tab.mixes, tab.reports, mixer_rows], lists)
    events.bind(tab.dataset.input, engine, suited, [tab.dataset], [tab.split])


def refresh(
    engine: Engine, dataset: str | None, mixes: list[str], picked: str | None, rows: Any
) -> tuple[Any, ...]:
    """The datasets, mixes and reports there are; a fresh page measures the default mixes on the held-out questions."""
    sets = list(reversed(engine.datasets.list()))
    ids = [d.id for d in sets]
    fresh = dataset not in ids
    chosen = (samples.find_held_out(engine) or (ids[0] if ids else None)) if fresh else dataset
    offered = mix_choices.list_choices(engine, mixer.current_mix(engine, rows))
    known = [c["id"] for c in offered]
    usual = [str(m) for m in engine.library.default_mixes()]
    kept = [m for m in mixes or [] if m in known]
    earlier = (
        len(kept) < 3 and kept == usual[: len(kept)]
    )  # what was suggested before there were more adapters
    reports = engine.evaluation.reports()
    return (
        fields.update_choices([(d.name, d.id) for d in sets], chosen, dataset),
        suited(engine, chosen) if fresh else gr.skip(),
        fields.update_choices([(c["name"], c["id"]) for c in offered], usual if earlier else kept, mixes),
        fields.update_choices(_titles(reports), picked if picked in [r.id for r in reports] else None, picked),
    )


def _titles(reports: list[Any]) -> list[tuple[str, str]]:
    return [(f"{r.dataset_name} · {r.split} · {formatting.format_time(r.created)}", r.id) for r in reports]


def suited(engine: Engine, dataset: str | None) -> str:
    """The held-out questions are measured whole; of anything else, the test split."""
    return "all" if dataset and dataset == samples.find_held_out(engine) else "test"


def measured(
    engine: Engine, dataset: str | None, split: str, mixes: list[str], limit: int, rows: Any, session: Session
) -> Iterator[tuple[Any, ...]]:
    """Measures the chosen mixes; yields how far it is, then the report."""
    if not dataset:
        raise SpecError("No dataset is chosen.", "Import one under Data, then choose it here.")
    session.stop()
    stream = engine.evaluation.measure(
        mix_choices.parse_mixes(engine, mixes or [], mixer.current_mix(engine, rows)), dataset, split, int(limit or 0)
    )
    session.stream = stream
    report_id = ""
    try:
        for part in stream:
            report_id = part.report
            yield _progress(part), None, gr.skip()
    finally:
        stream.close()
    if report_id:
        yield *opened(engine, report_id), gr.update(choices=_titles(engine.evaluation.reports()), value=report_id)
    else:
        yield empty("Stopped", "No report was made."), None, gr.skip()


def stopped(engine: Engine, session: Session) -> None:
    """Ends the measurement under way; no report is kept."""
    session.stop()


def opened(engine: Engine, picked: str | None) -> tuple[Any, ...]:
    """A report as a table and bars."""
    if not picked:
        return NOTHING, None
    report = engine.evaluation.report(picked)
    kinds = {a.id: a.kind for a in engine.library.mixable_adapters()}
    names = [r["name"] for r in report.rows]
    colours = [
        "base"
        if not r["weights"]
        else kinds.get(next(iter(r["weights"])), "mix")
        if len(r["weights"]) == 1
        else "mix"
        for r in report.rows
    ]
    panels = [
        bars.panel(FIGURES[f][0], names, colours, [r.get(f) for r in report.rows], FIGURES[f][1])
        for f in IN_BARS
        if any(isinstance(r.get(f), (int, float)) for r in report.rows)
    ]
    return _report(report), panels


def _report(report: Any) -> Node:
    present = [f for f in FIGURES if any(f in r for r in report.rows)]
    body = [[r["name"], *[_figure(r.get(f), FIGURES[f]) for f in present]] for r in report.rows]
    counted = next((r["questions"] for r in report.rows if "questions" in r), None)
    about = f"{report.dataset_name}, {report.split} split, {f'{counted} questions, ' if counted else ''}{formatting.format_duration(report.seconds)}. {formatting.format_time(report.created)}"
    head = node(
        "div",
        title("Report", about),
        download("Download as CSV", f"report/{report.id}.csv", f"{report.id}.csv"),
        cls="row spread",
    )
    numeric = frozenset(range(1, len(present) + 1))
    return node(
        "div",
        head,
        table(["Mix", *[FIGURES[f][0] for f in present]], body, "Figures for each mix", numeric),
        _examples(report.rows),
    )


def _figure(value: Any, figure: tuple[str, bool, int]) -> str:
    return formatting.format_percent(value) if figure[1] else formatting.format_number(value, figure[2])


def _examples(rows: list[dict[str, Any]]) -> Node | None:
    """A few questions with what each mix answered."""
    asked = [r for r in rows if r.get("examples")]
    if not asked:
        return None
    first = asked[0]["examples"][:5]
    lines = [
        [e["question"], e["reference"], *[r["examples"][i]["answer"] for r in asked]]
        for i, e in enumerate(first)
    ]
    inner = table(["Question", "Reference", *[r["name"] for r in asked]], lines, "What each mix answered")
    return node("details", node("summary", "Read some of the answers"), inner)


def _progress(part: Any) -> Node:
    share = f"{100 * part.done / part.total:.1f}%" if part.total else "0%"
    bar = node(
        "div",
        node("div", cls="bar-fill"),
        cls="bar busy",
        vars={"share": share},
        role="progressbar",
        aria_label="Progress",
    )
    return node("div", title("Measuring", f"{part.text}: {part.done} of {part.total}"), bar)
