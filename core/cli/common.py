"""What the terminal's verbs share: settings as options, following a run, tables and progress bars."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from core.engine import Engine
from core.errors import StudioError
from core.progress import LineClock
from core.spec.mix import Mix
from core.spec.presets import PRESETS, preset_of_size, resolve
from core.spec.settings import label_of
from core.spec.training import TrainSpec
from core.store.events import (
    MachineEvent,
    NoteEvent,
    ResultEvent,
    SampleEvent,
    StatusEvent,
    StepEvent,
    ValidationEvent,
    is_kind,
)

Verb = Callable[[Engine, argparse.Namespace], Any]  # returns the value that --json prints
REFRESH_SECONDS = 0.1
CALIBRATION_SECONDS = 600.0  # that the end of a run waits for the calibration of its adapter
BAR_WIDTH, LINE_WIDTH = 30, 110  # characters


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a verb returns that ends with an exit code of its own.

    Attributes:
        value: what --json prints.
        exit_code: 0 is success, 1 an error; other codes are those that the help of the verb names.
    """

    value: Any
    exit_code: int


class AddVerb(Protocol):
    """Adds a verb to a group of the command line, and returns its parser for the verb's own options."""

    def __call__(
        self,
        group: Any,
        name: str,
        verb: Verb,
        help: str,
        *,
        needs_model: bool = False,
        needs_engine: bool = True,
        needs_workspace: bool = False,
    ) -> argparse.ArgumentParser:
        """Adds one verb.

        Args:
            group: the subparsers of the group.
            needs_model: load the base model before the verb runs.
            needs_engine: open an engine on the workspace; otherwise the verb receives None in its place.
            needs_workspace: add --workspace to a verb without an engine.
        """


# --- settings as options


def add_setting(p: argparse.ArgumentParser, f: dataclasses.Field[Any]) -> None:
    """Adds a field of a spec as an option; its help is the field's own sentence."""
    kind = str(f.type)
    option = "--" + f.name.replace("_", "-")
    text = f"{label_of(f)}: {f.metadata['help']}".replace("%", "%%")
    if kind == "bool":
        p.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    p.add_argument(
        option,
        type={"int": int, "float": float}.get(kind, str),
        nargs="*" if kind.startswith("tuple") else None,
        choices=f.metadata.get("choices"),
        help=text,
    )


def add_training_settings(p: argparse.ArgumentParser, preset_help: str) -> None:
    """Adds --preset and an option for every training setting."""
    p.add_argument("--preset", choices=tuple(PRESETS), help=preset_help)
    for f in dataclasses.fields(TrainSpec):
        if f.name != "kind":
            add_setting(p, f)


def read_settings(args: argparse.Namespace, spec: type) -> dict[str, Any]:
    """The fields of a spec that were given on the command line."""
    names = (f.name for f in dataclasses.fields(spec))
    return {n: getattr(args, n) for n in names if getattr(args, n, None) is not None}


def read_train_spec(engine: Engine, args: argparse.Namespace, default_name: str) -> TrainSpec:
    """The training settings of the command line, on top of the preset and of what suits the dataset.

    The settings that follow from the data are those of `core.spec.recommendation`, unless a preset or one of
    them is given. The parent adapter may be given by id or by name.

    Raises:
        SpecError, NotFound
    """
    preset = args.preset or ("embedded" if args.base == "embedded" else "standard")
    changes = {k: v for k, v in read_settings(args, TrainSpec).items() if k != "kind"}
    changes.setdefault("name", default_name)
    if "stack_on" in changes:
        changes["stack_on"] = engine.library.find_adapter(changes["stack_on"])
    spec = resolve(args.kind, preset, changes)  # refuses wrong values before the dataset is read
    if not args.preset and changes.get("dataset"):
        if not getattr(args, "launcher", ""):
            base = engine.bases.current(wait=True)  # its size counts
            if preset == "standard":
                preset = preset_of_size(base.parameters)
        advice = engine.runs.recommend(changes["dataset"], preset)
        changes = {**advice.choose(changes), **changes}
        print(advice.text)
        spec = resolve(args.kind, preset, changes)
    return spec


def read_mix(engine: Engine, text: str, name: str = "") -> Mix:
    """Parses a mix whose adapters are given by id or by name.

    Raises:
        SpecError: it cannot be parsed. NotFound: the library has no such adapter.
    """
    mix = Mix.parse(text, name)
    ids = {a: engine.library.find_adapter(a) for a in mix.weights}
    return Mix(
        name=name,
        weights={ids[a]: w for a, w in mix.weights.items()},
        tilt={ids[a]: t for a, t in mix.tilt.items()},
        auto={ids[a]: m for a, m in mix.auto.items()},
    )


# --- following a run


def follow(engine: Engine, run_id: str) -> Any:
    """Prints a run's events until it ends and its adapter is measured and calibrated, and returns the run.

    Raises:
        StudioError: the error that ended the run.
    """
    cursor, has_ended = 0, False
    while True:
        events, cursor = engine.runs.events(run_id, cursor)
        for e in events:
            _print_event(e)
        if has_ended and not events:
            break
        run = engine.runs.get(run_id)
        has_ended = not run.status.is_alive and not engine.runs.is_ending(run)
        engine.runs.check_base(run_id)
        time.sleep(REFRESH_SECONDS)
    run = engine.runs.get(run_id)
    if run.error:
        raise StudioError(run.error)
    status = engine.calibration.wait(run.adapter, CALIBRATION_SECONDS)
    if status is not None and (status.result or status.problem):
        text = status.result.text if status.result else f"not calibrated: {status.problem}"
        print(f"weight on Auto: {text}")
    return run


def _print_event(e: dict[str, Any]) -> None:
    if is_kind(e, StepEvent):
        print(
            f"step {e['step']}/{e.get('total_steps', '?')}  loss {_format_number(e.get('loss'), 4)}  "
            f"{_format_number(e.get('tokens_per_second'))} tokens/s  "
            f"{_format_number(e.get('eta_seconds'))} s left"
        )
    elif is_kind(e, ValidationEvent):
        loss, perplexity = _format_number(e.get("loss"), 4), _format_number(e.get("perplexity"), 3)
        line = f"validation at step {e['step']}: loss {loss}, perplexity {perplexity}"
        print(f"{line}  {e.get('overfitting', '')}".rstrip())
    elif is_kind(e, MachineEvent):
        print(f"machine: {e.get('text') or 'quiet again; the run trains at full speed.'}")
    elif is_kind(e, SampleEvent):
        print(f"sample at step {e.get('step', '?')}: {e.get('prompt', '')}")
        for answer in e.get("answers", [{"who": "In training", "text": e.get("text", "")}]):
            print(f"    {answer.get('who', '')}: {answer.get('text', '')}")
    elif any(is_kind(e, t) for t in (StatusEvent, NoteEvent, ResultEvent)):
        fields = ", ".join(f"{k} {v}" for k, v in e.items() if k not in ("kind", "time", "elapsed"))
        print(f"{e['kind']}: {fields}")


def _format_number(value: Any, digits: int = 0) -> str:
    """A number of an event, which may be missing, or written as text because it is not finite."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else str(value or "?")


def warn_of_damaged(engine: Engine, *kinds: str) -> None:
    """Prints a line on standard error for every damaged item of these kinds, which the lists leave out."""
    for d in engine.library.damaged(*kinds):
        print(f"damaged: {d.name} ({d.file}): {d.reason}", file=sys.stderr)


# --- tables and progress bars


class ProgressBar:
    """A progress bar on a terminal; where the output is a file or a pipe, a line every few seconds.

    There, a line also begins every activity.
    """

    def __init__(self) -> None:
        self._activity, self._clock = "", LineClock()
        self._is_terminal = sys.stdout.isatty()

    def show(self, share: float, text: str) -> None:
        """Draws the bar.

        Args:
            share: from 0 to 1.
            text: what is being done; the part before a colon names the activity.
        """
        filled = round(BAR_WIDTH * share)
        line = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share:4.0%}  {text}"[:LINE_WIDTH]
        activity = text.partition(":")[0]
        if self._is_terminal:
            print(f"\r{line:<{LINE_WIDTH}}", end="\n" if share == 1 else "", flush=True)
        elif activity != self._activity or share == 1 or self._clock.is_due():
            print(line, flush=True)
            self._clock.restart()
        self._activity = activity

    def print_line(self, text: str) -> None:
        """Prints a line in place of the bar."""
        print(f"\r{text:<{LINE_WIDTH}}".rstrip() if self._is_terminal else text, flush=True)


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Prints aligned columns: floats with five significant digits, None as a hyphen."""
    texts = [[_format_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    for row in texts:
        print("  ".join(f"{t:<{w}}" for t, w in zip(row, widths, strict=True)).rstrip())


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
