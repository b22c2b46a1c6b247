"""The answers that the studio gave, without their texts (answers/<day>.jsonl), and figures of each mix.

An answer is an `AnswerEvent`, a judgement of one a `RatingEvent` (`core.store.events`). A day is one of UTC.
Prompts and answers are not kept. A mix is known by the ids and weights that were asked for, and by the base.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.errors import SpecError
from core.store.event_log import EventLog, read_all
from core.store.events import AnswerEvent, AnyEvent, RatingEvent, is_kind
from core.store.files import delete
from core.store.workspace import Workspace

DAY_SECONDS = 86_400
KEPT_DAYS = 90  # older files are deleted
DAYS = 7  # that a summary covers, by default
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class MixFigures:
    """What the answers of one mix on one base were like.

    Attributes:
        mix: ids and weights, as `core.spec.mix.Mix.parse` reads them; "" is the base.
        name: the newest name of the mix, or "".
        answers: how many.
        per_day: day -> how many, the oldest day first; each day of the summary is there.
        tokens_per_second: of all answers together; None where no answer has a token.
        p50_seconds, p95_seconds: of a whole answer.
        empty: answers without text.
        too_long: answers that ended because they reached the longest length.
        fallbacks: answers that the base gave, because an adapter could not be used.
        good, poor: judgements.
    """

    mix: str
    name: str
    base: str
    answers: int
    per_day: dict[str, int] = field(default_factory=dict)
    tokens_per_second: float | None = None
    p50_seconds: float = 0.0
    p95_seconds: float = 0.0
    empty: int = 0
    too_long: int = 0
    fallbacks: int = 0
    good: int = 0
    poor: int = 0


class AnswerLog:
    """Appends answers and judgements. Safe to use from several threads of one process."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._log: EventLog | None = None

    def append(self, kind: str, **fields: object) -> None:
        """Appends an event of today.

        Raises:
            StorageError: the line could not be written.
        """
        path = self._workspace.answers_path(name_day(time.time()))
        log = self._log
        if log is None or log.path != path:
            self._log = log = EventLog(path)
            remove_old_days(self._workspace)
        log.append(kind, **fields)


def name_day(seconds: float) -> str:
    """The day of a Unix time, such as "2026-11-29", in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def remove_old_days(workspace: Workspace) -> None:
    """Deletes the files of days that are KEPT_DAYS old."""
    oldest = name_day(time.time() - KEPT_DAYS * DAY_SECONDS)
    for path in workspace.answers_path("").parent.glob("*.jsonl"):
        if _DAY.fullmatch(path.stem) and path.stem < oldest:
            delete(path)


def summarize(workspace: Workspace, days: int = DAYS) -> list[MixFigures]:
    """The figures of every mix that has answered in the last days, today included; the most used first.

    Raises:
        SpecError: not between 1 and KEPT_DAYS days. DamagedRecord: a file cannot be read.
    """
    if not 1 <= days <= KEPT_DAYS:
        raise SpecError(f"The number of days must be between 1 and {KEPT_DAYS}, got {days}.").at("days")
    now = time.time()
    names = [name_day(now - n * DAY_SECONDS) for n in reversed(range(days))]
    events = [event for day in names for event in read_all(workspace.answers_path(day))]
    ratings = {e["answer"]: e["good"] for e in events if is_kind(e, RatingEvent)}  # the newest one counts
    groups: dict[tuple[str, str], list[AnswerEvent]] = {}
    for event in events:
        if is_kind(event, AnswerEvent):
            groups.setdefault((event["base"], event["mix"]), []).append(event)
    found = [_summarize_mix(group, names, ratings) for group in groups.values()]
    return sorted(found, key=lambda figures: -figures.answers)


def _summarize_mix(
    events: Sequence[AnswerEvent], days: Sequence[str], ratings: dict[str, bool]
) -> MixFigures:
    seconds = [e["seconds"] for e in events]
    tokens, total = sum(e["tokens"] for e in events), sum(seconds)
    judged = [ratings[e["answer"]] for e in events if e["answer"] in ratings]
    written = [name_day(e["time"]) for e in events]
    return MixFigures(
        mix=events[0]["mix"],
        name=next((e["name"] for e in reversed(events) if e["name"]), ""),
        base=events[0]["base"],
        answers=len(events),
        per_day={day: written.count(day) for day in days},
        tokens_per_second=tokens / total if tokens and total else None,
        p50_seconds=find_percentile(seconds, 0.5),
        p95_seconds=find_percentile(seconds, 0.95),
        empty=sum(e["is_empty"] for e in events),
        too_long=sum(e["reason"] == "length" for e in events),
        fallbacks=sum(bool(e.get("fallback")) for e in events),
        good=sum(judged),
        poor=len(judged) - sum(judged),
    )


def find_percentile(seconds: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank), or NaN."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def find_answer(events: Iterable[AnyEvent], answer: str) -> AnswerEvent | None:
    """The event of an answer, or None."""
    return next((e for e in events if is_kind(e, AnswerEvent) and e["answer"] == answer), None)
