"""The Evaluate tab: mixes measured on held-out data, with the report as a table, bars and a CSV file.

`core/evaluate` measures; `studio/views/report.py` shows a report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from core.spec.mix import NEW_TOKENS_LIMIT
from studio import events, fields, formatting, labels, mix_choices
from studio.components import bars, damaged, field_errors, mixer
from studio.measured_data import list_datasets, list_whole_datasets
from studio.session import Session
from studio.tree import Node, empty, title, view
from studio.views import answer_figures
from studio.views import report as report_view

ROWS_LIMIT = 1_000_000  # of a measurement
DAYS = [("Today", 1), ("7 days", 7), ("30 days", 30), ("90 days", 90)]
SPLITS = [("Test", "test"), ("Validation", "val"), ("Everything", "all")]
# In the browser, so that no suggestion arrives after a choice: the split that suits a newly chosen dataset,
# and on a fresh page the one that suits the suggested dataset, unless the user has chosen a split meanwhile.
NEW_DATASET = """(dataset, whole) => {
  window.studio.splitIsChosen = false;
  window.studio.chosenSplit = null;
  return whole.split(" ").includes(dataset) ? "all" : "test";
}"""
FRESH_PAGE = """(dataset, whole, split) => {
  const isSuggested = !window.studio.splitIsChosen && dataset && dataset !== window.studio.splitDataset;
  window.studio.splitDataset = dataset;
  if (!isSuggested) return { __type__: "update" };
  return whole.split(" ").includes(dataset) ? "all" : "test";
}"""
CHOSEN_SPLIT = """(split) => {
  window.studio.splitIsChosen = true;
  window.studio.chosenSplit = split;
}"""
# A suggestion is shown a moment after it was made; a choice of that moment is shown again.
KEEP_CHOICE = "(split) => window.studio.chosenSplit ?? split"
BAR_METRICS = ("exact_match", "f1", "perplexity", "general_perplexity")
NO_REPORT = empty(
    "No report yet", "Choose a dataset and some mixes, then press Measure. Reports are saved in the Library."
)


@dataclass(frozen=True)
class EvaluateTab:
    """The components of the Evaluate tab; `whole` holds the ids of datasets that are measured whole."""

    dataset: gr.Dropdown
    whole: gr.Textbox
    split: gr.Radio
    mixes: gr.Dropdown
    limit: gr.Number
    longest: gr.Number
    errors: field_errors.FieldErrors
    start: gr.Button
    stop: gr.Button
    picker: gr.Dropdown
    bars: gr.HTML
    report: gr.HTML
    damaged: gr.HTML
    answers: gr.Accordion
    days: gr.Radio
    figures: gr.HTML
    session: gr.State


def build() -> EvaluateTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(title("Evaluate", "Measures mixes on held-out data that no adapter was trained on."))
            dataset = fields.picker("Dataset")
            whole = gr.Textbox("", visible=False)
            split = gr.Radio(
                SPLITS,
                value="test",
                label="Split",
                info="Choose Everything only for data that no adapter was trained on.",
            )
            mixes = fields.picker("Mixes", value=[], multiselect=True)
            limit = fields.number(
                0,
                label="Limit",
                info="Maximum number of rows; 0 means all.",
                minimum=0,
                maximum=ROWS_LIMIT,
                precision=0,
            )
            longest = fields.number(
                0,
                label="Longest answer (tokens)",
                info="0 follows the longest answer of the data, as far as the base's context allows.",
                minimum=0,
                maximum=NEW_TOKENS_LIMIT,
                precision=0,
            )
            form = {"dataset": dataset, "mixes": mixes, "limit": limit, "longest": longest}
            errors = field_errors.field_errors(form)
            with gr.Row(elem_classes="actions"):
                start = gr.Button("Measure", variant="primary", scale=2)
                stop = gr.Button("Stop", scale=1, min_width=80)
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            picker = fields.picker("Report")
            report = view(NO_REPORT, elem_id="report")
            damaged_items = damaged.damaged_list("reports")
            charts = bars.bars()
    with gr.Accordion(
        "Answers of the last days", open=False, elem_classes="quiet-fold", elem_id="answers"
    ) as answers:
        days = gr.Radio(
            DAYS,
            value=7,
            label="Days",
            elem_classes="segments",
            info="Counted as answers end, on this page and through the API. Their texts are not kept.",
        )
        figures = view(elem_id="answer-figures")
    return EvaluateTab(
        dataset,
        whole,
        split,
        mixes,
        limit,
        longest,
        errors,
        start,
        stop,
        picker,
        charts,
        report,
        damaged_items,
        answers,
        days,
        figures,
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
        events.bind(
            tab.start.click, engine, measure_mixes, inputs, outputs, errors=tab.errors, concurrency_limit=4
        )
    )
    form = [tab.dataset, tab.mixes, tab.limit, tab.longest]
    field_errors.wire(tab.errors, engine, check_form, form)
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    for trigger in (tab.answers.expand, tab.days.input):
        events.bind(trigger, engine, show_answers, [tab.days], [tab.figures])
    events.bind(tab.picker.input, engine, open_report, [tab.picker], [tab.report, tab.bars])
    lists = [tab.dataset, tab.whole, tab.mixes, tab.picker, tab.report, tab.bars]
    damaged.wire(tab.damaged, engine, library_changed, "reports")
    for event in (library_changed, mix_changed):
        event.add(refresh, [tab.dataset, tab.mixes, tab.picker, mixer_rows], lists)
    suggest: dict[str, Any] = {"fn": None, "api_visibility": "private"}
    library_changed.then(FRESH_PAGE, [tab.dataset, tab.whole, tab.split], [tab.split])
    library_changed.then(KEEP_CHOICE, [tab.split], [tab.split])
    tab.dataset.input(inputs=[tab.dataset, tab.whole], outputs=[tab.split], js=NEW_DATASET, **suggest)
    tab.split.input(inputs=[tab.split], js=CHOSEN_SPLIT, **suggest)


def show_answers(engine: Engine, days: int) -> Node:
    """Shows what the answers of the last days were like."""
    return answer_figures.render_figures(engine.answer_quality.summarize(days), engine.library.labels())


def refresh(
    engine: Engine, dataset: str | None, mixes: list[str], picked: str | None, rows: Any
) -> tuple[Any, ...]:
    """Updates the lists of datasets, mixes and reports.

    A fresh page suggests the default mixes on data for evaluation only, and shows the newest report.
    """
    datasets = list_datasets(engine)
    ids = [i for _, i in datasets]
    chosen = dataset if dataset in ids else next(iter(ids), None)
    choices = mix_choices.list_choices(engine, mixer.current_mix(engine, rows))
    reports = engine.evaluation.reports()
    report = picked if picked in [r.id for r in reports] else next((r.id for r in reports), None)
    shown = (gr.skip(), gr.skip()) if report == picked else open_report(engine, report)
    return (
        fields.update_choices(datasets, chosen, dataset),
        " ".join(list_whole_datasets(engine)),
        fields.update_choices(
            [(c["name"], c["id"]) for c in choices],
            _suggest_mixes(engine, mixes or [], {c["id"] for c in choices}),
            mixes,
        ),
        fields.update_choices(_report_choices(engine, reports), report, picked),
        *shown,
    )


def _suggest_mixes(engine: Engine, mixes: list[str], known: set[str]) -> list[str]:
    """The chosen mixes that still exist; the default mixes if the choice is an earlier suggestion."""
    defaults = [str(m) for m in engine.library.default_mixes()]
    chosen = [m for m in mixes if m in known]
    is_earlier_suggestion = len(chosen) < 3 and chosen == defaults[: len(chosen)]
    return defaults if is_earlier_suggestion else chosen


def _report_choices(engine: Engine, reports: Sequence[Any]) -> list[tuple[str, str]]:
    names = labels.label_datasets(engine.datasets.list())
    return [
        (
            f"{names.get(r.dataset, r.dataset_name)} · {formatting.format_split(r.split)} · "
            f"{formatting.format_time(r.created)}",
            r.id,
        )
        for r in reports
    ]


def check_form(engine: Engine, dataset: str | None, mixes: list[str], limit: Any, longest: Any) -> None:
    """Checks the form.

    Raises:
        SpecError: something is missing, or a number is outside its limits; it names the field.
    """
    if not dataset:
        raise SpecError("No dataset is chosen.", "Import one in the Data tab, then choose it here.").at(
            "dataset"
        )
    if not mixes:
        raise SpecError("No mix is chosen.", "Choose at least one; Base is the model without adapters.").at(
            "mixes"
        )
    for name, value, most in (("limit", limit, ROWS_LIMIT), ("longest", longest, NEW_TOKENS_LIMIT)):
        if not isinstance(value or 0, (int, float)) or not 0 <= (value or 0) <= most:
            raise SpecError(f"Must be between 0 and {most:,}, got {value}.", "0 sets no limit.").at(name)


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
    check_form(engine, dataset, mixes, limit, longest)
    session.stop()
    chosen = mix_choices.parse_mixes(engine, mixes or [], mixer.current_mix(engine, rows))
    session.stream = stream = engine.evaluation.measure(
        chosen, str(dataset), split, int(limit or 0), max_new_tokens=int(longest or 0)
    )
    report_id = ""
    try:
        for part in stream:
            report_id = part.report
            yield report_view.render_progress(part), None, gr.skip()
    finally:
        stream.close()
    if report_id:
        choices = _report_choices(engine, engine.evaluation.reports())
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
    report = _rename(engine, engine.evaluation.report(picked))
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
            report_view.describe_direction(m),
        )
        for m in BAR_METRICS
        if any(isinstance(r.get(m), (int, float)) for r in report.rows)
    ]
    return report_view.render_report(report), panels


def _rename(engine: Engine, report: Any) -> Any:
    """A report with the present names of its dataset and of its mixes; what was deleted keeps its name."""
    datasets = labels.label_datasets(engine.datasets.list())
    mixes = {c["id"]: c["name"] for c in mix_choices.list_choices(engine)}
    rows = [{**r, "name": mixes.get(r.get("mix", ""), r["name"])} for r in report.rows]
    return dataclasses.replace(
        report, dataset_name=datasets.get(report.dataset, report.dataset_name), rows=rows
    )


def _colour_of(weights: dict[str, float], kinds: dict[str, str]) -> str:
    """The colour of a mix: base, the kind of its only adapter, or mix."""
    if not weights:
        return "base"
    return kinds.get(next(iter(weights)), "mix") if len(weights) == 1 else "mix"
