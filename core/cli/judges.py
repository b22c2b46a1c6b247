"""The terminal's verbs over judges of experiments: `experiment judge` and `experiment vote`."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields
from typing import Any

from core.cli.common import REFRESH_SECONDS, AddVerb, ProgressBar, add_setting, read_settings
from core.engine import Engine
from core.engine.judge_results import METHOD, JudgeResult
from core.engine.judges import Ballot
from core.errors import SpecError
from core.spec.judge import GOOD, POOR, SKIP, JudgeSpec

KEYS = {"g": GOOD, "p": POOR, "s": SKIP}


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the verbs to the group `experiment`."""
    help = (
        "Let a mix, or a model at an address, judge the answers of an experiment: Good or Poor. Its score "
        "counts once `experiment vote` shows that people agree with it."
    )
    p = add(group, "judge", judge_answers, help, needs_model=True)
    p.add_argument("experiment", help="An id or a name.")
    for f in fields(JudgeSpec):
        add_setting(p, f)
    help = (
        "Judge answers yourself, without the names of their rows: g (good), p (poor), s (skip) or q (quit)."
    )
    p = add(group, "vote", judge_yourself, help)
    p.add_argument("experiment", help="An id or a name.")
    p.add_argument(
        "--criteria", default="", help="Judge by these criteria. Default: those of the newest judge."
    )
    p.add_argument("--answer", default="", metavar="KEY", help="Judge this answer, without a question.")
    said = p.add_mutually_exclusive_group()
    for verdict in (GOOD, POOR, SKIP):
        said.add_argument(
            f"--{verdict}",
            dest="verdict",
            action="store_const",
            const=verdict,
            help=f"With --answer: {verdict}.",
        )


def judge_answers(engine: Engine, args: argparse.Namespace) -> Any:
    experiment = engine.experiments.find(args.experiment)
    spec = JudgeSpec.from_json(read_settings(args, JudgeSpec))
    key, bar = engine.judges.start(experiment.id, spec), ProgressBar()
    while not (status := engine.judges.wait(experiment.id, REFRESH_SECONDS)).has_ended:
        if not args.json:
            bar.show(status.share, status.text)
        time.sleep(REFRESH_SECONDS)
    if status.error is not None:
        raise status.error
    found = engine.judges.results(experiment.id).judges
    print_judges(found)
    return next(judge.to_json() for judge in found if judge.key == key)


def print_judges(judges: tuple[JudgeResult, ...]) -> None:
    """Prints each judge, whether it counts, and where it does, its figures."""
    for judge in judges:
        read = f"It has read {judge.read} of {judge.answers} answers, {judge.unreadable} without a verdict"
        print(f"Judge {judge.name} {judge.text}. {read}.")
        for row, figure in judge.shares.items():
            print(f"  {row}: {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})")
        if judge.counts:
            print(f"{judge.column}: {METHOD}.")


def judge_yourself(engine: Engine, args: argparse.Namespace) -> Any:
    experiment_id = engine.experiments.find(args.experiment).id
    if bool(args.answer) != bool(args.verdict):
        raise SpecError(
            "An answer and a verdict belong together.", "Give --answer KEY with --good, --poor or --skip."
        )
    if args.answer:
        ballot = engine.judges.vote(experiment_id, args.answer, args.verdict, args.criteria)
    else:
        ballot = _read_votes(engine, experiment_id, args.criteria)
    print(f"{ballot.count} of {ballot.needed} answers judged.")
    left = ballot.answer.key if ballot.answer else ""
    return {"experiment": experiment_id, "votes": ballot.count, "needed": ballot.needed, "next": left}


def _read_votes(engine: Engine, experiment_id: str, criteria: str) -> Ballot:
    """Prints one answer after the other and reads what a person says, until the input ends."""
    ballot = engine.judges.draw(experiment_id, criteria)
    while ballot.answer is not None:
        _print_answer(ballot)
        line = sys.stdin.readline()
        letter = line.strip().lower()[:1]
        if not line or letter == "q":
            break
        if letter in KEYS:
            ballot = engine.judges.vote(experiment_id, ballot.answer.key, KEYS[letter], ballot.criteria)
    return ballot


def _print_answer(ballot: Ballot) -> None:
    shown = ballot.answer
    assert shown is not None
    parts = [("Question", shown.question), ("Reference answer", shown.reference)]
    parts += [(f"Passage {i}", text) for i, text in enumerate(shown.passages, 1)]
    parts += [("Answer", shown.answer or "(empty)")]
    print(f"\n{ballot.count} of {ballot.needed} · {shown.key} · {ballot.criteria}")
    for label, text in parts:
        if text.strip():
            print(f"{label}: {_make_plain(text)}")
    print("g (good), p (poor), s (skip), q (quit): ", end="", flush=True)


def _make_plain(text: str) -> str:
    """A text without control characters, which a terminal would obey."""
    return "".join(c if c == "\n" or c.isprintable() else " " for c in text)
