"""Views of the judges of an experiment: whether each counts, the one that is reading, and a person's turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.engine.experiment_results import ExperimentResults
from core.engine.judge_results import JudgeResult
from core.engine.judges import Ballot, JudgeStatus
from core.evaluate.judging import ShownAnswer
from core.spec.judge import GOOD, POOR, SKIP
from studio import formatting
from studio.tree import Node, button, chip, details, node, progress_bar

FOR_TRAINERS = "Trainers and owners judge answers here: they are rows of the dataset."
STOPPED = "Stopped. The verdicts are kept; start the judge again to continue."
ALL_DONE = "You have judged every answer of this experiment."


def render_judges(results: ExperimentResults, names: Mapping[str, str]) -> list[Node]:
    """One line for each judge: whether its verdicts count, and why.

    Args:
        names: of the judges, for people, by their key.
    """
    return [_render_judge(judge, names.get(judge.key, judge.name)) for judge in results.judges]


def _render_judge(judge: JudgeResult, name: str) -> Node:
    read = f"It has read {judge.read} of {formatting.count(judge.answers, 'answer')}"
    if judge.unreadable:
        read += f", {judge.unreadable} without a verdict"
    return node(
        "p",
        chip("Judge", "good" if judge.counts else "warn"),
        node("strong", f" {name}"),
        f" {judge.text}. ",
        node("span", f"{read}.", cls="quiet"),
        cls="reading",
        title=judge.criteria,
    )


def render_status(status: JudgeStatus, name: str) -> Node:
    """The progress of a judge, with a button that stops it; of one that failed, why."""
    if status.has_ended:
        text = STOPPED if status.state == "cancelled" else f"{status.text}."
        return node("p", status.problem or text, cls="note", role="status")
    stop = button("Stop", {"do": "stop", "experiment": status.experiment_id})
    return node(
        "div",
        node("p", f"{name}: {status.text}", cls="reading"),
        progress_bar(status.share, f"Progress of the judge {name}"),
        node("div", stop, cls="row"),
        role="status",
    )


def render_ballot(ballot: Ballot, experiment_id: str) -> Node:
    """One answer for a person, without its row; and how many are judged."""
    said = f"{ballot.count} of {ballot.needed} answers judged"
    head = node(
        "header",
        node("h3", "Judge answers yourself"),
        node("p", f"{ballot.criteria} {said}.", cls="quiet"),
        progress_bar(min(1.0, ballot.count / ballot.needed), said, "bar thin"),
    )
    if ballot.answer is None:
        return node("section", head, node("p", ALL_DONE, cls="note"), cls="judge-ballot")
    act = {"do": "vote", "experiment": experiment_id, "answer": ballot.answer.key}
    buttons = [
        button(label, {**act, "verdict": verdict, "criteria": ballot.criteria}, kind)
        for label, verdict, kind in (
            ("Good", GOOD, "primary"),
            ("Poor", POOR, "primary"),
            ("Skip", SKIP, "quiet"),
        )
    ]
    return node(
        "section", head, *_render_answer(ballot.answer), node("div", *buttons, cls="row"), cls="judge-ballot"
    )


def _render_answer(shown: ShownAnswer) -> list[Node | None]:
    passages = [node("p", text, cls="passage-text") for text in shown.passages]
    return [
        _render_part("Question", shown.question),
        _render_part("Reference answer", shown.reference) if shown.reference.strip() else None,
        details("Passages", *passages) if passages else None,
        _render_part("Answer to judge", shown.answer or "(empty)"),
    ]


def _render_part(label: str, text: Any) -> Node:
    return node("div", node("strong", label, cls="quiet"), node("p", text, cls="passage-text"))
