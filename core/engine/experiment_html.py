"""The report of an experiment as one HTML file: inline styles and SVG, no script, no request to anywhere."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping, Sequence
from typing import Any

from core.spec.answer_metrics import ANSWER_METRICS, AnswerMetric

QUESTIONS_SHOWN = 50  # of each change; the JSON has all
PLOTTED = ("factuality", "f1", "citation_coverage", "unsupported")
SHARE = AnswerMetric("", "")  # how a share of answers is written
WIDTH, LABEL, ROW = 720, 270, 26  # of a plot, in pixels
LABEL_HEAD, LABEL_TAIL = 18, 17  # characters of a long name that a plot shows
STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;
padding:0 1rem;color:#1d2430;background:#fff}table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
.wide{overflow-x:auto}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #d6dbe3;
vertical-align:top}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}h2{margin-top:2.5rem}
.pass{color:#0a6b3d}.fail,.loss{color:#a4262c}.win{color:#0a6b3d}small,.muted{color:#5b6577}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f3f5f8;padding:.6rem}summary{cursor:pointer}
svg text{fill:currentColor;font-size:12px}svg{max-width:100%;height:auto}
@media(prefers-color-scheme:dark){body{color:#e6e9ef;background:#151920}th,td{border-color:#343b48}
pre{background:#1f2530}.pass,.win{color:#5fd39a}.fail,.loss{color:#ff8f8f}small,.muted{color:#9aa5b8}}
"""


def format_html(report: Mapping[str, Any]) -> str:
    """The report as an HTML document.

    Args:
        report: as `core.engine.experiment_report.make_report` returns it.
    """
    name = html.escape(report["experiment"]["name"])
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report["created"]))
    done = [row for row in report["rows"] if "answers" in row]
    parts = [
        f"<h1>{name}</h1><p class='muted'>Report of {made}. Base: {_text(report['base']['name'])}.</p>",
        _write_table(report),
        *(_write_judge(judge) for judge in report.get("judges", ())),
        *(_draw_plot(metric, done) for metric in PLOTTED if metric in report["metrics"]),
        "<h2>Gate</h2>" if report["decisions"] else "",
        *(_write_decision(decision) for decision in report["decisions"]),
        "<h2>Question by question</h2>" if report["changes"] else "",
        *(_write_change(change, done) for change in report["changes"]),
        _write_methods(report["metrics"]),
        _write_settings(report, done),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{name}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def format_figure(metric: AnswerMetric, value: float | None) -> str:
    """A figure for a reader: shares in percent, others with three digits."""
    if value is None:
        return "–"
    if metric.is_share:
        return f"{100 * value:.1f} %"
    return f"{value:.3g} {metric.unit}".strip()


def _write_table(report: Mapping[str, Any]) -> str:
    metrics = [m for m in report["metrics"] if any(m in r.get("figures", {}) for r in report["rows"])]
    judges = [judge for judge in report.get("judges", ()) if judge["counts"]]
    labels = [*(ANSWER_METRICS[m].label for m in metrics), *(judge["column"] for judge in judges)]
    heads = "".join(f"<th>{_text(label)}</th>" for label in labels)
    lines = []
    for row in report["rows"]:
        label = f"<td>{_text(row['row']['name'])}<br><small>{_text(row['group'])}</small></td>"
        if "answers" not in row:
            lines.append(
                f"<tr>{label}<td colspan='{len(labels) + 3}' class='muted'>{_text(row['state'])}</td></tr>"
            )
            continue
        cells = [_write_figure(ANSWER_METRICS[m], row["figures"].get(m)) for m in metrics]
        cells += [_write_figure(SHARE, judge["shares"].get(row["row"]["name"])) for judge in judges]
        p95, speed = row["latency_p95"], row["tokens_per_second"]
        cells.append(f"<td class='n'>{'–' if p95 is None else f'{p95:.2f} s'}</td>")
        cells.append(f"<td class='n'>{'–' if speed is None else f'{speed:.1f}'}</td>")
        cells.append(f"<td class='n'>{row['memory_bytes'] / 1e6:.0f} MB</td>")
        lines.append(f"<tr>{label}{''.join(cells)}</tr>")
    return (
        f"<div class='wide'><table><tr><th>Row</th>{heads}<th>Latency p95</th><th>Tokens/s</th>"
        f"<th>Memory</th></tr>{''.join(lines)}</table></div><p class='muted'>Below each figure, its 95 % "
        "interval from a bootstrap over the questions.</p>"
    )


def _write_judge(judge: Mapping[str, Any]) -> str:
    return (
        f"<p><b>Judge {_text(judge['name'])}</b> {_text(judge['text'])}. It has read "
        f"{judge['read']} of {judge['answers']} answers, {judge['unreadable']} without a verdict.<br>"
        f"<small>{_text(judge['criteria'])}</small></p>"
    )


def _write_figure(metric: AnswerMetric, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "<td class='n'>–</td>"
    low, high = format_figure(metric, figure["low"]), format_figure(metric, figure["high"])
    return f"<td class='n'>{format_figure(metric, figure['value'])}<br><small>{low} to {high}</small></td>"


def _draw_plot(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Figures with their intervals, one row each, as SVG."""
    metric = ANSWER_METRICS[name]
    shown = [(r["row"]["name"], r["figures"][name]) for r in rows if name in r["figures"]]
    if not shown:
        return ""
    span, height = WIDTH - LABEL - 70, ROW * len(shown) + 30
    marks = []
    for i, (label, figure) in enumerate(shown):
        y = ROW * i + 18
        low, value, high = (LABEL + span * min(1.0, max(0.0, figure[k])) for k in ("low", "value", "high"))
        marks.append(
            f"<text x='0' y='{y + 4}'>{_text(_shorten(label))}<title>{_text(label)}</title></text>"
            f"<line x1='{low:.1f}' x2='{high:.1f}' y1='{y}' y2='{y}' stroke='#4c78c9' stroke-width='3'/>"
            f"<circle cx='{value:.1f}' cy='{y}' r='5' fill='#4c78c9'/>"
            f"<text x='{LABEL + span + 10}' y='{y + 4}'>{format_figure(metric, figure['value'])}</text>"
        )
    ticks = "".join(
        f"<text x='{LABEL + span * t / 4 - 10:.0f}' y='{height - 4}'>{25 * t} %</text>"
        f"<line x1='{LABEL + span * t / 4:.0f}' x2='{LABEL + span * t / 4:.0f}' y1='4' y2='{height - 18}' "
        "stroke='#8884'/>"
        for t in range(5)
    )
    title = _text(metric.label)
    return (
        f"<h2>{title}</h2><svg viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' role='img' "
        f"aria-label='{title} of each row with its 95 % interval'>{ticks}{''.join(marks)}</svg>"
    )


def _shorten(name: str) -> str:
    """A name that fits beside a plot: of a long one its beginning and its end, which tells rows apart."""
    fits = len(name) <= LABEL_HEAD + LABEL_TAIL + 1
    return name if fits else f"{name[:LABEL_HEAD]}…{name[-LABEL_TAIL:]}"


def _write_decision(decision: Mapping[str, Any]) -> str:
    classes = {"pass": "pass", "fail": "fail"}
    items = "".join(
        f"<li><b class='{classes.get(c['status'], 'muted')}'>{_text(c['status'])}</b> {_text(c['text'])}</li>"
        for c in decision["criteria"]
    )
    return f"<p><b>{_text(decision['text'])}</b></p><ul>{items}</ul>"


def _write_change(change: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The questions of two rows, the worst losses first."""
    answers = {
        row["row"]["name"]: {a["index"]: a for a in row["answers"]}
        for row in rows
        if row["row"]["name"] in (change["first"], change["second"])
    }
    first, second = answers[change["first"]], answers[change["second"]]
    lines = []
    for index, gain in change["questions"][:QUESTIONS_SHOWN]:
        a, b = first[index], second[index]
        kind = {1: "win", -1: "loss", 0: "tie"}[(gain > 0) - (gain < 0)]
        lines.append(
            f"<tr><td class='n {kind}'>{kind}<br>{gain:+.2f}</td><td>{_text(a['question'])}<br>"
            f"<small>Gold: {_text(a['reference'])}</small></td><td>{_write_answer(a)}</td>"
            f"<td>{_write_answer(b)}</td></tr>"
        )
    left = len(change["questions"]) - QUESTIONS_SHOWN
    more = f"<p class='muted'>And {left} more in the JSON.</p>" if left > 0 else ""
    first_name, second_name = _text(change["first"]), _text(change["second"])
    return (
        f"<details><summary>{first_name} → {second_name}: {change['wins']} wins, {change['losses']} losses, "
        f"{change['ties']} ties by {_text(ANSWER_METRICS[change['metric']].label.lower())}</summary>"
        f"<div class='wide'><table><tr><th></th><th>Question</th><th>{first_name}</th>"
        f"<th>{second_name}</th></tr>{''.join(lines)}</table></div>{more}</details>"
    )


def _write_answer(answer: Mapping[str, Any]) -> str:
    passages = "".join(f"<li>{_text(p['title'])}: {_text(p['text'])}</li>" for p in answer["passages"])
    listed = (
        f"<details><summary><small>Passages</small></summary><ol>{passages}</ol></details>"
        if passages
        else ""
    )
    attached = answer.get("attached")
    after = f"<br><small>Citations attached afterwards: {_text(attached)}</small>" if attached else ""
    written = _text(answer["answer"]) or "<i>empty</i>"
    return f"{written}<br><small>{_text(answer['outcome'])}</small>{after}{listed}"


def _write_methods(metrics: Mapping[str, str]) -> str:
    items = "".join(
        f"<li>{_text(ANSWER_METRICS[m].label)}: {_text(method)}.</li>" for m, method in metrics.items()
    )
    return f"<h2>How it is measured</h2><ul>{items}</ul>"


def _write_settings(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{name}: {value}" for name, value in report["spec"].items()]
    for row in rows:
        lines.append(f"\n{row['row']['name']}\n  cell {row['key']}\n  answers sha256 {row['sha256']}")
        lines += [f"  {name}: {value}" for name, value in row["conditions"].items()]
        lines += [f"  {note}" for note in row["notes"]]
    lines.append(f"\nsha256 of the report {report['sha256']}")
    return f"<h2>Settings, versions and checksums</h2><pre>{_text(chr(10).join(lines))}</pre>"
