"""The terminal's verb `answers`: what the answers of the last days were like."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from core.cli.common import AddVerb
from core.engine import Engine
from core.store.answer_log import DAYS, KEPT_DAYS


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the verb."""
    p = add(group, "answers", show_answers, "Show what the answers of the last days were like, mix by mix.")
    p.add_argument("--days", type=int, default=DAYS, help=f"1 to {KEPT_DAYS}; today counts. Default: {DAYS}.")


def show_answers(engine: Engine, args: argparse.Namespace) -> Any:
    figures = engine.answer_quality.summarize(args.days)
    if not figures:
        print("No answers in these days.")
    for one in figures:
        rate = "" if one.tokens_per_second is None else f", {one.tokens_per_second:.0f} tokens/s"
        print(
            f"{one.name or one.mix or 'base'} ({one.base}): {one.answers} answers, half within "
            f"{one.p50_seconds:.2f} s, 95 % within {one.p95_seconds:.2f} s{rate}, {one.empty} empty, "
            f"{one.fallbacks} by the base in its place, {one.good} good, {one.poor} poor"
        )
    return [asdict(one) for one in figures]
