"""An evaluation report: its figures, how they were measured, the rows that do not fit, sample answers."""

from __future__ import annotations

from typing import Any

from core.spec.metric_rules import describe_rule, label_metric
from studio import answers, formatting
from studio.tree import Node, details, download, node, progress_bar, table, title

# Key of a report's row -> heading, whether the value is a share, digits.
METRICS = {
    "perplexity": ("Perplexity", False, 2),
    "answer_perplexity": ("Answer perplexity", False, 2),
    "exact_match": ("Exact match", True, 1),
    "f1": ("F1", True, 1),
    "general_perplexity": ("General perplexity", False, 2),
    "latency_seconds": ("Latency (s)", False, 2),
    "tokens_per_second": ("Tokens / s", False, 0),
}
LOWER_IS_BETTER = ("perplexity", "answer_perplexity", "general_perplexity", "latency_seconds")
ARROWS = {True: "\u00a0↓", False: "\u00a0↑"}  # by whether lower is better; not on a line of their own
RULED_METRICS = ("exact_match", "f1")  # those that compare answers by a rule
OTHER_DIGITS = 4
NOTES_SHOWN = 20  # rows that the page names


def render_report(report: Any) -> Node:
    """Renders a report (`core.store.reports.Report`) with its CSV file."""
    metrics = [m for m in METRICS if any(m in r for r in report.rows)]
    others = list_other_metrics(report)
    lines = [
        [
            r["name"],
            *[_format_metric(r.get(m), m) for m in metrics],
            *[formatting.format_number(r.get(m), OTHER_DIGITS) for m in others],
        ]
        for r in report.rows
    ]
    asked = next((r["questions"] for r in report.rows if r.get("questions")), 0)
    questions = f"{formatting.count(asked, 'question')}, " if asked else ""
    duration, created = formatting.format_duration(report.seconds), formatting.format_time(report.created)
    split = formatting.format_split(report.split)
    about = f"{report.dataset_name}, {split}, {questions}{duration}. {created}"
    link = download("Download as CSV", f"report/{report.id}.csv", f"{report.id}.csv")
    return node(
        "div",
        node("div", title("Report", about), link, cls="row spread"),
        table(
            ["Mix", *[f"{heading_of(m, report)}{ARROWS[m in LOWER_IS_BETTER]}" for m in metrics], *others],
            lines,
            "Metrics for each mix. ↓ lower is better, ↑ higher is better.",
            frozenset(range(1, len(metrics) + len(others) + 1)),
        ),
        _render_conditions(report),
        _render_notes(report.conditions),
        render_examples(report.rows),
    )


def list_other_metrics(report: Any) -> list[str]:
    """The figures of the lm-evaluation-harness, "TASK METRIC", without their standard errors."""
    names = {name for row in report.rows for name in row if " " in name and "_stderr" not in name}
    return sorted(names)


def heading_of(metric: str, report: Any) -> str:
    """The heading of a metric, with its rule where that is not the studio's own."""
    name = METRICS[metric][0]
    return label_metric(name, report.conditions.rule) if metric in RULED_METRICS else name


def describe_direction(metric: str) -> str:
    """Which values of a metric are better."""
    return "lower is better" if metric in LOWER_IS_BETTER else "higher is better"


def _render_conditions(report: Any) -> Node | None:
    """How the answers were generated and compared; None for texts."""
    if not any(r.get("questions") for r in report.rows):
        return None
    how, sentences = report.conditions, []
    if how.max_new_tokens:
        cuts = [f"{r['name']} {r['answers_cut']}" for r in report.rows if r.get("answers_cut")]
        sentences.append(f"Answers were cut at {how.max_new_tokens} tokens.")
        if cuts:
            sentences.append(f"Answers that reached this length: {', '.join(cuts)}.")
    sentences.append(f"Exact match and F1: {describe_rule(how.rule)}")
    if any("squad_f1" in r for r in report.rows):
        sentences.append("SQuAD's own figures are in the CSV file.")
    return details("How this was measured", node("p", " ".join(sentences), cls="quiet below"))


def _render_notes(how: Any) -> Node | None:
    """The rows that were cut or left out, by name; None where every row was measured whole."""
    counts = [(how.rows_left_out, "left out"), (how.rows_cut, "cut")]
    parts = [f"{formatting.count(n, 'row was', 'rows were')} {effect}" for n, effect in counts if n]
    if not parts:
        return None
    lines = [
        node("li", f"Row {n.row}{f' of {n.data}' if n.data else ''} was {n.effect}: {n.reason}. “{n.text}”")
        for n in how.notes[:NOTES_SHOWN]
    ]
    more = how.rows_left_out + how.rows_cut - len(lines)
    rest = node("p", f"And {more} more, which the report's file names.", cls="quiet") if more > 0 else None
    fold = node("details", node("summary", "Which rows"), node("ul", *lines), rest)
    return node(
        "div", node("p", f"{' and '.join(parts)}. All other rows were measured whole."), fold, cls="note"
    )


def _format_metric(value: Any, metric: str) -> str:
    _, is_share, digits = METRICS[metric]
    return formatting.format_percent(value) if is_share else formatting.format_number(value, digits)


def render_examples(rows: list[dict[str, Any]]) -> Node | None:
    """A few questions with the answer of each mix."""
    answered = [r for r in rows if r.get("examples")]
    if not answered:
        return None
    lines = [
        [e["question"], e["reference"], *[_render_example(r["examples"][i]) for r in answered]]
        for i, e in enumerate(answered[0]["examples"][:5])
    ]
    shown = table(["Question", "Reference", *[r["name"] for r in answered]], lines, "Answers by mix")
    return node("details", node("summary", "Sample answers"), shown)


def _render_example(example: dict[str, Any]) -> Node:
    """An answer below its folded thought."""
    thought = answers.render_fold(example.get("thought", ""), example.get("thought_tokens", 0))
    text = example["answer"]
    if not text:
        text = "The answer is empty: it ended inside its thought." if thought else "(empty answer)"
    cut = node("div", f"cut at {example['cut']} tokens", cls="quiet") if example.get("cut") else None
    return node("div", thought, node("span", text), cut)


def render_progress(part: Any) -> Node:
    """Renders the progress of a measurement."""
    share = part.done / part.total if part.total else 0.0
    return node("div", title("Measuring", f"{part.text}: {part.done} of {part.total}"), progress_bar(share))
