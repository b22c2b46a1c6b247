"""Views of an experiment: its progress, the matrix with intervals, what changed, and the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.engine.experiment_report import RowChange
from core.engine.experiment_results import ExperimentResults, RowResult
from core.engine.experiments import ExperimentStatus
from core.engine.judge_results import name_column
from core.evaluate.answer_figures import RowFigure
from core.evaluate.promotion_gate import FAIL, PASS, Decision
from core.spec.answer_metrics import ANSWER_METRICS, AnswerMetric
from core.spec.promotion import PRODUCTION
from core.store.promotions import Promotion
from studio import formatting
from studio.tree import Node, button, chip, details, download, empty, node, progress_bar, table, title
from studio.views.judges import render_judges

NO_EXPERIMENT = empty(
    "No experiment yet",
    "Choose questions, documents and a mix. The experiment answers every question four times: base, base + "
    "documents, mix, and mix + documents.",
)
SHOWN = ("factuality", "f1", "citation_coverage", "unsupported", "latency")  # columns beside the folded ones
SHARE = AnswerMetric("", "")  # how a share of answers is written
KINDS = {PASS: "good", FAIL: "bad"}


def render_status(status: ExperimentStatus) -> Node:
    """The progress of an experiment, with a button that stops it."""
    stop = button("Stop", {"do": "stop", "experiment": status.experiment_id})
    return node(
        "div",
        node("p", f"{status.name}: {status.text}", cls="reading"),
        progress_bar(status.share, f"Progress of {status.name}"),
        node("div", stop, cls="row"),
        role="status",
    )


def render_results(
    results: ExperimentResults,
    changes: list[RowChange],
    decisions: Mapping[str, Decision],
    names: Mapping[str, str],
    judges: Mapping[str, str] | None = None,
) -> Node:
    """The table of an experiment, what changed, and what the gate decides.

    Args:
        decisions: of the gate, by the name of the row.
        names: of the rows, for people, by their name.
        judges: names of the judges, for people, by their key.
    """
    experiment = results.experiment
    is_complete = all(row.cell is not None for row in results.rows)
    buttons = [download("Download the report", f"experiment/{experiment.id}.html", f"{experiment.id}.html")]
    if not is_complete:
        buttons.insert(0, button("Continue", {"do": "resume", "experiment": experiment.id}, "primary"))
    judges = judges or {}
    scores = [(name_column(judges.get(j.key, j.name)), j.shares) for j in results.judges if j.counts]
    shown = [m for m in SHOWN if any(m in (row.figures or {}) for row in results.rows)]
    rest = [m for m in results.metrics if m not in shown]
    about = f"{formatting.format_time(experiment.created)}, on {formatting.format_base(experiment.base)}"
    return node(
        "div",
        node("div", title(experiment.name, about), node("div", *buttons, cls="row"), cls="row spread"),
        _render_table(results, shown, names, "Each figure with its 95 % interval over the questions", scores),
        *render_judges(results, judges),
        *_render_states(results, names),
        *(_render_decision(row, decision, experiment.id, names) for row, decision in decisions.items()),
        _render_changes(results, changes, names),
        details("More metrics", _render_table(results, rest, names, "Further figures")) if rest else None,
        details("How it is measured", node("ul", *[_describe_metric(m) for m in results.metrics])),
        cls="experiment",
    )


def _describe_metric(name: str) -> Node:
    metric = ANSWER_METRICS[name]
    return node("li", f"{metric.label}: {metric.method}.")


def _render_table(
    results: ExperimentResults,
    metrics: list[str],
    names: Mapping[str, str],
    caption: str,
    more: Sequence[tuple[str, Mapping[str, RowFigure]]] = (),
) -> Node:
    """A table of metrics.

    Args:
        more: further columns, each with its heading and the figure of each row.
    """
    done = [row for row in results.rows if row.cell is not None]
    columns = ["Row", *[f"{ANSWER_METRICS[m].label}{_arrow(m)}" for m in metrics]]
    lines = [[names.get(row.name, row.name), *[_render_figure(row, m) for m in metrics]] for row in done]
    for heading, figures in more:
        columns.append(f"{heading}\u00a0↑")
        for line, row in zip(lines, done, strict=True):
            line.append(_write_figure(SHARE, figures.get(row.name)))
    return table(columns, lines, caption, frozenset(range(1, len(columns))))


def _arrow(metric: str) -> str:
    return "\u00a0↓" if ANSWER_METRICS[metric].lower_is_better else "\u00a0↑"


def _render_figure(row: RowResult, name: str) -> Any:
    return _write_figure(ANSWER_METRICS[name], (row.figures or {}).get(name))


def _write_figure(metric: AnswerMetric, figure: RowFigure | None) -> Any:
    if figure is None:
        return formatting.NONE
    if metric.is_share:
        low, high = (f"{100 * v:.0f}" for v in (figure.low, figure.high))
        value = formatting.format_percent(figure.value)
    else:
        low, high = (formatting.format_number(v) for v in (figure.low, figure.high))
        value = f"{formatting.format_number(figure.value)} {metric.unit}".strip()
    return node("div", node("div", value), node("div", f"{low} to {high}", cls="quiet"))


def _render_states(results: ExperimentResults, names: Mapping[str, str]) -> list[Node]:
    """What rows without figures wait for."""
    return [
        node("p", node("strong", names.get(row.name, row.name)), f": {row.state}.", cls="reading")
        for row in results.rows
        if row.cell is None
    ]


def _render_decision(row: str, decision: Decision, experiment_id: str, names: Mapping[str, str]) -> Node:
    items = [
        node("p", chip(c.status, KINDS.get(c.status, "warn")), f" {c.text}", cls="reading")
        for c in decision.criteria
    ]
    promote = None
    if decision.status == PASS:
        act = {"do": "promote", "experiment": experiment_id, "row": row}
        promote = node("div", button(f"Make it {PRODUCTION}", act, "primary"), cls="row below")
    return node(
        "section",
        node(
            "h3",
            f"May {names.get(row, row)} go to production? ",
            chip(decision.status, KINDS.get(decision.status, "warn")),
        ),
        node("p", _describe_shortfall(decision), cls="reading") if decision.missing else None,
        *items,
        promote,
        cls="gate-decision",
    )


def _describe_shortfall(decision: Decision) -> str:
    more = formatting.count(decision.missing, "more question")
    return f"About {more} are needed, by the variance that was observed."


def _render_changes(
    results: ExperimentResults, changes: list[RowChange], names: Mapping[str, str]
) -> Node | None:
    if not changes:
        return None
    lines: list[list[Any]] = []
    for change in changes:
        found = results.compare(change.first, change.second, change.metric)
        first, second = (names.get(n, n) for n in (change.first, change.second))
        points = ""
        if found is not None:
            gain, low, high = (f"{100 * v:+.1f}" for v in (found.gain, found.low, found.high))
            points = f"{gain} ({low} to {high})"
        lines.append([f"{first} → {second}", points, change.wins, change.losses, change.ties])
    columns = ["Rows", "Points (95 % interval)", "Wins", "Losses", "Ties"]
    label = ANSWER_METRICS[changes[0].metric].label.lower()
    return table(columns, lines, f"What changed in {label}, question by question", frozenset(range(1, 5)))


def render_production(current: Promotion | None, name: str, is_owner: bool) -> Node:
    """What `production` stands for, with the button that takes it back.

    Args:
        name: of its mix, for people.
        is_owner: whether the reader may roll back.
    """
    if current is None:
        return node(
            "p", "Nothing is promoted. The model name ", node("code", PRODUCTION), " is free.", cls="quiet"
        )
    made = formatting.format_time(current.time)
    back = button("Roll back", {"do": "rollback"}, "quiet danger") if is_owner else None
    return node(
        "div", node("p", node("code", PRODUCTION), f" is {name}, promoted {made}."), back, cls="row spread"
    )
