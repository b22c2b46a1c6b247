"""What the verbs of the terminal share: settings as options, following a run, tables and bars.

Knows arguments and printing. Knows no verb.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from core.engine import Engine
from core.errors import StudioError
from core.spec.settings import label_of
from core.store.events import (
    NoteEvent,
    ResultEvent,
    SampleEvent,
    StatusEvent,
    StepEvent,
    ValidationEvent,
    is_kind,
)

Verb = Callable[[Engine, argparse.Namespace], Any]
Add = Callable[
    [Any, str, Verb, str], argparse.ArgumentParser
]  # a verb under a group: its name, what it does, its help
SAMPLE_PRINT_SECONDS = 0.1


def add_setting(p: argparse.ArgumentParser, f: dataclasses.Field[Any]) -> None:
    kind = str(f.type)
    many = kind.startswith("tuple")
    if kind == "bool":
        text = f"{label_of(f)}: {f.metadata['help']}".replace("%", "%%")
        p.add_argument(
            "--" + f.name.replace("_", "-"), action=argparse.BooleanOptionalAction, default=None, help=text
        )
        return
    p.add_argument(
        "--" + f.name.replace("_", "-"),
        type={"int": int, "float": float}.get(kind, str),
        nargs="*" if many else None,
        choices=f.metadata.get("choices"),
        help=f"{label_of(f)}: {f.metadata['help']}".replace("%", "%%"),
    )


def given(args: argparse.Namespace, spec: type) -> dict[str, Any]:
    """The settings that were typed."""
    named = (f.name for f in dataclasses.fields(spec))
    return {n: getattr(args, n) for n in named if getattr(args, n, None) is not None}


def follow(engine: Engine, run_id: str) -> Any:
    """Prints a run's events until it ends; the run's own error becomes ours."""
    cursor, over = 0, False
    while True:
        events, cursor = engine.runs.events(run_id, cursor)
        for e in events:
            _print_event(e)
        if over and not events:
            break
        over = not engine.runs.get(run_id).status.is_alive
        time.sleep(SAMPLE_PRINT_SECONDS)
    run = engine.runs.get(run_id)
    if run.error:
        raise StudioError(run.error)
    return run


def _print_event(e: dict[str, Any]) -> None:
    if is_kind(e, StepEvent):
        print(
            f"step {e['step']}/{e['total_steps']}  loss {e['loss']:.4f}  {e['tokens_per_second']:.0f} tokens/s  {e['eta_seconds']:.0f} s left"
        )
    elif is_kind(e, ValidationEvent):
        print(
            f"validation at step {e['step']}: loss {e['loss']:.4f}, perplexity {e['perplexity']:.3f}  {e.get('overfitting', '')}".rstrip()
        )
    elif is_kind(e, SampleEvent):
        print(f"sample at step {e['step']}: {e['prompt']}")
        for answer in e.get("answers", [{"who": "In training", "text": e.get("text", "")}]):
            print(f"    {answer['who']}: {answer['text']}")
    elif any(is_kind(e, t) for t in (StatusEvent, NoteEvent, ResultEvent)):
        fields = ", ".join(f"{k} {v}" for k, v in e.items() if k not in ("kind", "time", "elapsed"))
        print(f"{e['kind']}: {fields}")


class Bar:
    """A progress bar on a terminal; a line for every new activity elsewhere."""

    def __init__(self) -> None:
        self._activity = ""
        self._live = sys.stdout.isatty()

    def show(self, share: float, text: str) -> None:
        filled = round(30 * share)
        line = f"[{'#' * filled}{'.' * (30 - filled)}] {share:4.0%}  {text}"[:110]
        activity = text.partition(":")[0]
        if self._live:
            print(f"\r{line:<110}", end="\n" if share == 1 else "", flush=True)
        elif activity != self._activity:
            print(line, flush=True)
        self._activity = activity

    def line(self, text: str) -> None:
        print(f"\r{text:<110}".rstrip() if self._live else text, flush=True)


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell; numbers with five digits, and a dash where there is nothing."""
    texts = [
        ["-" if v is None else f"{v:.5g}" if isinstance(v, float) else str(v) for v in row] for row in rows
    ]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    for row in texts:
        print("  ".join(f"{t:<{w}}" for t, w in zip(row, widths, strict=True)).rstrip())
