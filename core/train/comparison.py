"""Runs side by side: their loss curves, results and settings, and whether a difference is more than chance.

Reads the event logs of runs. Two runs that scored the same validation rows are compared row by row, which
removes what makes a row hard for both. The standard error accounts for the choice of rows only, not for the
seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from core.spec.settings import label_of
from core.spec.training import TrainSpec
from core.store import runs
from core.store.event_log import read_all
from core.store.events import TRAINER_EVENTS, PlanEvent, StepEvent, ValidationEvent, is_kind
from core.store.runs import Run
from core.store.workspace import Workspace

SIGNIFICANCE = 2.0  # a difference counts when it is larger than this many standard errors
POINT_LIMIT = 1000  # points of a curve on the page; longer curves are thinned out


@dataclass(frozen=True)
class ValidationPoint:
    """One validation of a run.

    Attributes:
        loss: nats per token.
        rows: (nats, tokens) of every sequence, in their order; empty in logs of older versions.
    """

    step: int
    loss: float
    rows: tuple[tuple[float, int], ...] = ()

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True)
class RunHistory:
    """The curves and results of a run, read from its log.

    Attributes:
        train, validation: (step, nats per token) in the order of steps; a step that was repeated after a
            resume counts once.
        final, best: the last validation, and the one with the lowest loss.
        seconds: running time over all sessions.
        tokens_per_second: trained tokens over the time spent on them.
        sequences: number of training rows; 0 if the run never started.
    """

    train: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    final: ValidationPoint | None = None
    best: ValidationPoint | None = None
    seconds: float = 0.0
    tokens_per_second: float = math.nan
    sequences: int = 0

    def validation_for(self, keep: str) -> ValidationPoint | None:
        """The validation of the adapter that the run keeps, "best" or "last"."""
        return self.best if keep == "best" else self.final


@dataclass(frozen=True)
class LossDifference:
    """How much lower one validation loss is than another, in nats per token.

    Attributes:
        error: standard error over the rows; NaN if the logs hold no rows.
        paired: both losses were measured on the same rows.
    """

    nats: float
    error: float
    paired: bool

    @property
    def is_significant(self) -> bool:
        return self.nats > SIGNIFICANCE * self.error


@dataclass(frozen=True)
class SettingValues:
    """The values of one setting in several runs."""

    name: str
    label: str
    values: tuple[Any, ...]

    @property
    def is_varied(self) -> bool:
        return any(v != self.values[0] for v in self.values)


def load_history(workspace: Workspace, run_id: str) -> RunHistory:
    """Reads the whole log of a run."""
    return history_from_events(read_all(runs.events_path(workspace, run_id)))


def log_bytes(workspace: Workspace, run_id: str) -> int:
    """Size of a run's log in bytes; 0 without a log."""
    try:
        return runs.events_path(workspace, run_id).stat().st_size
    except OSError:
        return 0


def history_from_events(events: Sequence[Mapping[str, Any]]) -> RunHistory:
    """The history that events describe, without losses that are not finite."""
    losses: dict[int, float] = {}
    validations = _validations(events)
    tokens = busy = finished_seconds = session_seconds = 0.0
    tokens_before, sequences = 0, 0
    for e in events:
        if any(is_kind(e, t) for t in TRAINER_EVENTS):  # they share one clock in a session
            elapsed = float(e.get("elapsed", 0.0))
            if elapsed < session_seconds:  # a new session
                finished_seconds, tokens_before = finished_seconds + session_seconds, 0
            session_seconds = elapsed
        if is_kind(e, PlanEvent):
            sequences, tokens_before = int(e.get("train_rows", 0)), 0
        elif is_kind(e, StepEvent) and _is_finite(e.get("loss")):
            losses[int(e["step"])] = float(e["loss"])
            rate, count = e.get("tokens_per_second"), e.get("tokens", 0)
            if _is_finite(rate) and rate and count > tokens_before:
                busy += (count - tokens_before) / rate
                tokens += count - tokens_before
            tokens_before = count
    ordered = [validations[s] for s in sorted(validations)]
    return RunHistory(
        train=tuple(sorted(losses.items())),
        validation=tuple((v.step, v.loss) for v in ordered),
        final=ordered[-1] if ordered else None,
        best=min(ordered, key=lambda v: v.loss, default=None),
        seconds=round(finished_seconds + session_seconds, 3),
        tokens_per_second=tokens / busy if busy else math.nan,
        sequences=sequences,
    )


def _validations(events: Sequence[Mapping[str, Any]]) -> dict[int, ValidationPoint]:
    """Step -> the last validation at that step, of those with a finite loss."""
    found: dict[int, ValidationPoint] = {}
    for e in events:
        if is_kind(e, ValidationEvent) and _is_finite(e.get("loss")):
            rows = tuple((float(n), int(t)) for n, t in e.get("rows") or ())
            found[int(e["step"])] = ValidationPoint(int(e["step"]), float(e["loss"]), rows)
    return found


def load_validations(workspace: Workspace, run_id: str) -> list[ValidationPoint]:
    """The validations in a run's log, in the order of steps."""
    found = _validations(read_all(runs.events_path(workspace, run_id)))
    return [found[step] for step in sorted(found)]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def thin_out(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """About POINT_LIMIT points of a curve, evenly spaced, with the last one."""
    stride = math.ceil(len(points) / POINT_LIMIT) or 1
    thinned = list(points[::stride])
    if points and thinned[-1] != points[-1]:
        thinned.append(points[-1])
    return thinned


def compare_losses(lower: ValidationPoint, higher: ValidationPoint) -> LossDifference:
    """The difference of two validation losses, and its standard error over the choice of rows.

    On the same rows, the error is that of a ratio of sums, over the rows' differences:
    sqrt(n / (n - 1) * sum((d_i - D t_i)^2)) / T, with d_i nats, t_i tokens, D the difference, T all tokens.

    Source: Cochran, Sampling Techniques, section 6.3.
    """
    nats = higher.loss - lower.loss
    if len(lower.rows) < 2 or len(higher.rows) < 2:
        return LossDifference(nats, math.nan, False)
    if [t for _, t in lower.rows] == [t for _, t in higher.rows]:
        differences = [(b - a, t) for (a, t), (b, _) in zip(lower.rows, higher.rows, strict=True)]
        return LossDifference(nats, _standard_error(differences), True)
    error = math.hypot(_standard_error(lower.rows), _standard_error(higher.rows))
    return LossDifference(nats, error, False)


def _standard_error(rows: Sequence[tuple[float, int]]) -> float:
    """Standard error of sum(nats) / sum(tokens) over rows of (nats, tokens)."""
    total, n = sum(t for _, t in rows), len(rows)
    if not total:
        return math.nan
    mean = sum(v for v, _ in rows) / total
    errors = [v - mean * t for v, t in rows]
    return math.sqrt(n / (n - 1) * sum(e * e for e in errors)) / total


def compare_settings(compared: Sequence[Run]) -> list[SettingValues]:
    """Base, data and every setting but the name of several runs, in the order of TrainSpec."""
    settings = [
        SettingValues("base", "Base", tuple(r.base for r in compared)),
        SettingValues("dataset_sha256", "Data (sha256)", tuple(r.dataset_sha256[:12] for r in compared)),
    ]
    for f in fields(TrainSpec):
        if f.name != "name":
            values = tuple(getattr(r.spec, f.name) for r in compared)
            settings.append(SettingValues(f.name, label_of(f), values))
    return settings


def format_nats(value: float) -> str:
    """A difference of losses as text; a small one with its own power of ten."""
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.1e}"
