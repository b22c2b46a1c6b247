"""Runs side by side: their curves, their figures, what their settings differ in, and what of it is chance.

Knows the event logs of runs. Knows nothing of queues, grids on disk or pages.
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

SIGNIFICANCE = 2.0  # standard errors that a difference must be larger than, to be called one
POINT_LIMIT = 1000  # of a curve; more are thinned out


@dataclass(frozen=True)
class ValidationPoint:
    """One validation of a run.

    Attributes:
        loss: nats per token.
        rows: (nats, tokens) of every sequence, in their order; empty in logs that do not have them.
    """

    step: int
    loss: float
    rows: tuple[tuple[float, int], ...] = ()

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True)
class RunHistory:
    """What a run's log tells.

    Attributes:
        train, validation: (step, nats per token) in the order of steps; a step that was taken again counts once.
        final, best: the last validation, and the one with the lowest loss.
        seconds: all that it ran, over all its sessions.
        tokens_per_second: trained tokens over the time spent on them.
        sequences: training rows of the plan; 0 where it never began.
    """

    train: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    final: ValidationPoint | None = None
    best: ValidationPoint | None = None
    seconds: float = 0.0
    tokens_per_second: float = math.nan
    sequences: int = 0

    def validation_for(self, keep: str) -> ValidationPoint | None:
        """The validation of the adapter that is kept."""
        return self.best if keep == "best" else self.final


@dataclass(frozen=True)
class LossDifference:
    """How much lower one validation loss is than another, in nats per token.

    Attributes:
        error: its standard error over the rows; nan where the logs do not have them.
        paired: both were measured on the same rows, so that what makes a row hard cancels out.
    """

    nats: float
    error: float
    paired: bool

    @property
    def is_significant(self) -> bool:
        return self.nats > SIGNIFICANCE * self.error


@dataclass(frozen=True)
class SettingValues:
    """One setting of several runs."""

    name: str
    label: str
    values: tuple[Any, ...]

    @property
    def is_varied(self) -> bool:
        return any(v != self.values[0] for v in self.values)


def load_history(workspace: Workspace, run_id: str) -> RunHistory:
    """Reads a run's whole log."""
    return history_from_events(read_all(runs.events_path(workspace, run_id)))


def log_bytes(workspace: Workspace, run_id: str) -> int:
    """How much a run has told so far."""
    try:
        return runs.events_path(workspace, run_id).stat().st_size
    except OSError:
        return 0


def history_from_events(events: Sequence[Mapping[str, Any]]) -> RunHistory:
    """What events tell; losses that are no numbers are left out."""
    train: dict[int, float] = {}
    seen: dict[int, ValidationPoint] = {}
    tokens = busy = seconds = passed = 0.0
    before, sequences = 0, 0
    for e in events:
        if any(is_kind(e, t) for t in TRAINER_EVENTS):  # they share one clock a session
            if e.get("elapsed", 0.0) < passed:
                seconds, before = seconds + passed, 0
            passed = float(e.get("elapsed", 0.0))
        if is_kind(e, PlanEvent):
            sequences, before = int(e.get("train_rows", 0)), 0
        elif is_kind(e, StepEvent) and _finite(e.get("loss")):
            train[int(e["step"])] = float(e["loss"])
            rate, count = e.get("tokens_per_second"), e.get("tokens", 0)
            if _finite(rate) and rate and count > before:
                busy += (count - before) / rate
                tokens += count - before
            before = count
        elif is_kind(e, ValidationEvent) and _finite(e.get("loss")):
            rows = tuple((float(n), int(t)) for n, t in e.get("rows") or ())
            seen[int(e["step"])] = ValidationPoint(int(e["step"]), float(e["loss"]), rows)
    ordered = [seen[s] for s in sorted(seen)]
    return RunHistory(
        train=tuple(sorted(train.items())),
        validation=tuple((v.step, v.loss) for v in ordered),
        final=ordered[-1] if ordered else None,
        best=min(ordered, key=lambda v: v.loss, default=None),
        seconds=round(seconds + passed, 3),
        tokens_per_second=tokens / busy if busy else math.nan,
        sequences=sequences,
    )


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def thin_out(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINT_LIMIT of a curve's points, the last one among them."""
    every = math.ceil(len(points) / POINT_LIMIT) or 1
    kept = list(points[::every])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def compare_losses(lower: ValidationPoint, higher: ValidationPoint) -> LossDifference:
    """How far two validations are apart, and how much of that the choice of rows may have made.

    On the same rows, the error is that of a ratio of sums, over the rows' differences:
    sqrt(n / (n - 1) * sum((d_i - D t_i)^2)) / T, with d_i nats, t_i tokens, D the difference, T all tokens.
    Source: Cochran, Sampling Techniques, section 6.3.
    """
    nats = higher.loss - lower.loss
    if len(lower.rows) < 2 or len(higher.rows) < 2:
        return LossDifference(nats, math.nan, False)
    if [t for _, t in lower.rows] == [t for _, t in higher.rows]:
        apart = [(b - a, t) for (a, t), (b, _) in zip(lower.rows, higher.rows, strict=True)]
        return LossDifference(nats, _error(apart), True)
    return LossDifference(nats, math.hypot(_error(lower.rows), _error(higher.rows)), False)


def _error(rows: Sequence[tuple[float, int]]) -> float:
    total, n = sum(t for _, t in rows), len(rows)
    mean = sum(v for v, _ in rows) / total
    return math.sqrt(n / (n - 1) * sum((v - mean * t) ** 2 for v, t in rows)) / total


def compare_settings(given: Sequence[Run]) -> list[SettingValues]:
    """Every setting of the runs but their names, in the order of the description, with the base and the data that they had."""
    found = [
        SettingValues("base", "Base", tuple(r.base for r in given)),
        SettingValues("dataset_sha256", "Data (sha256)", tuple(r.dataset_sha256[:12] for r in given)),
    ]
    for f in fields(TrainSpec):
        if f.name != "name":
            found.append(SettingValues(f.name, label_of(f), tuple(getattr(r.spec, f.name) for r in given)))
    return found


def format_nats(value: float) -> str:
    """A difference of losses as people read it; a small one in its own power of ten."""
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.1e}"
