"""The schema of all events on disk: their kinds, their fields, and typed readers.

Every event has `kind`, `time` (Unix seconds) and `elapsed` (seconds since its log was opened).
`core.store.event_log` writes and reads the lines; a reader selects events by their type (`of_kind`,
`is_kind`, `latest`) and does not compare kinds.

    kind          type              appended by            meaning
    --- runs/<id>/events.jsonl
    status        StatusEvent       core.store.runs        the run changed its status; `error` where it failed
    note          NoteEvent         core.train, engine     a sentence for the user
    data          DataEvent         core.train             what the training rows hold (`PackingStats`)
    plan          PlanEvent         core.train             sizes and steps of the run, before the first step
    memory        MemoryEvent       core.train             "probe": a measured step, "smaller": a new batch
    machine       MachineEvent      core.train             other processes slow the run down, or no longer do
    step          StepEvent         core.train             an optimizer step
    validation    ValidationEvent   core.train             a validation
    sample        SampleEvent       core.train             answers to a sample prompt
    checkpoint    CheckpointEvent   core.train             a checkpoint is committed
    result        ResultEvent       core.train             the adapter is in the library
    --- mixes/votes.jsonl
    vote          VoteEvent         core.store.votes       a vote of a blind test
    withdrawn     WithdrawnEvent    core.store.votes       a vote that no longer counts
    --- answers/<day>.jsonl
    answer        AnswerEvent       core.engine            an answer has ended; its text is not kept
    rating        RatingEvent       core.engine            a person judged an answer
    --- never written
    unreadable    UnreadableEvent   -                      returned for a line that is not an event

A number that is not finite is written as a string, because JSON has none. Logs of older versions, and logs
from other machines, may lack fields, so readers use `get` for every field that they do not check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypedDict, TypeGuard, TypeVar

from core.store.record_types import Between, Count, Mismatch, Time, check_event


class Event(TypedDict):
    """The fields of every event."""

    kind: str
    time: Time
    elapsed: float


class _Status(Event):
    status: str  # a value of RunStatus


class StatusEvent(_Status, total=False):
    """The run changed its status."""

    error: str


class NoteEvent(Event):
    """A sentence for the user."""

    text: str


class DataEvent(Event):
    """What the training rows hold; the fields are those of `core.data.packing.PackingStats`."""

    rows: int
    sequences: int
    tokens: int
    trained: int
    fill: Annotated[float, Between(0, 1)]
    width: int
    packed: bool
    cut: int
    lost: int
    lost_answer: int
    lost_question: int
    lost_system: int
    windows: int


class PlanEvent(Event):
    """Sizes and steps of a run; again after every resume."""

    step: Count
    total_steps: Count
    train_rows: Count
    validation_rows: int
    effective_batch: int
    trainable_parameters: int
    total_parameters: int
    processes: int
    parameters_here: int  # parameters in the memory of rank 0


class _Memory(Event):
    what: str  # "probe" or "smaller"


class MemoryEvent(_Memory, total=False):
    """A measured step (`what` is "probe"), or a smaller micro-batch after memory ran out ("smaller")."""

    rows: int
    length: int
    estimated_step: int  # bytes
    measured_step: int  # bytes
    measured_as: str
    ratio: float | None  # measured by estimated; None if the measurement says too little
    free: int | None  # bytes
    error: str
    batch_size: int
    accumulation: int
    from_step: int


class MachineEvent(Event):
    """Other processes began to slow the run down, or no longer do."""

    step: int
    threads: int  # of the run from now on
    most_threads: int  # that it uses on a quiet machine
    cores: int  # that it may use
    others: float | None  # cores that other processes use; None if the system does not say
    text: str  # a sentence, or "" on a quiet machine


class StepEvent(Event):
    """An optimizer step."""

    step: Count
    total_steps: Count
    epoch: float
    loss: float  # nats per token
    learning_rate: float
    grad_norm: float
    tokens: Count  # since the run began
    tokens_per_second: float
    eta_seconds: float


class ValidationEvent(Event):
    """A validation of the adapter in training."""

    step: Count
    loss: float  # nats per token
    perplexity: float
    tokens: int
    training_loss: float
    gap: float  # validation loss minus training loss
    best_step: int
    best_loss: float
    overfitting: str  # a sentence, or ""
    rows: list[tuple[float, Count]]  # [nats, tokens] of each row


class SampleEvent(Event):
    """What the model answers to a sample prompt, with and without the adapter in training."""

    step: Count
    prompt: str
    text: str  # the answer of the adapter in training
    answers: list[dict[str, str]]  # {"who", "text"}, the adapter in training last


class CheckpointEvent(Event):
    """A checkpoint is committed."""

    step: Count


class _Result(Event):
    adapter: str


class ResultEvent(_Result, total=False):
    """The adapter is in the library, with these results."""

    train_loss: float
    steps: int
    kept_step: int
    validation_loss: float
    validation_perplexity: float
    validation_perplexity_at_start: float
    best_validation_loss: float
    best_step: int
    last_validation_loss: float
    stopped_early: bool
    equals_base: bool  # the adapter has no effect


class VoteEvent(Event):
    """A vote of a blind test; the fields are those of `core.store.votes.Vote`."""

    id: str
    prompt: str
    base: str
    base_fingerprint: str
    quantization: str
    sampling: dict[str, Any]
    shown: list[dict[str, Any]]
    chosen: int | None


class WithdrawnEvent(Event):
    """A vote that no longer counts."""

    vote: str


class UnreadableEvent(TypedDict):
    """A line that is not an event."""

    kind: str


class _Answer(Event):
    answer: str  # its id
    mix: str  # ids and weights; "" is the base
    name: str
    base: str
    tokens: Count
    seconds: Annotated[float, Between(0, 10**9)]
    reason: str
    is_empty: bool


class AnswerEvent(_Answer, total=False):
    """An answer has ended."""

    fallback: str  # why the base answered in place of the mix


class RatingEvent(Event):
    """A person judged an answer."""

    answer: str
    good: bool


EVENT_KINDS: dict[type, str] = {
    StatusEvent: "status",
    NoteEvent: "note",
    DataEvent: "data",
    PlanEvent: "plan",
    MemoryEvent: "memory",
    MachineEvent: "machine",
    StepEvent: "step",
    ValidationEvent: "validation",
    SampleEvent: "sample",
    CheckpointEvent: "checkpoint",
    ResultEvent: "result",
    VoteEvent: "vote",
    WithdrawnEvent: "withdrawn",
    AnswerEvent: "answer",
    RatingEvent: "rating",
    UnreadableEvent: "unreadable",
}
# Keys that readers use without a default.
REQUIRED_KEYS: dict[type, tuple[str, ...]] = {
    StatusEvent: ("status",),
    StepEvent: ("step",),
    ValidationEvent: ("step",),
    CheckpointEvent: ("step",),
    WithdrawnEvent: ("vote",),
    AnswerEvent: ("answer", "mix", "name", "base", "tokens", "seconds", "reason", "is_empty"),
    RatingEvent: ("answer", "good"),
    DataEvent: ("rows", "sequences", "trained", "fill", "width", "packed", "cut", "lost"),
}
TRAINER_EVENTS = (PlanEvent, StepEvent, ValidationEvent, SampleEvent, CheckpointEvent, ResultEvent)
AnyEvent = Mapping[str, Any]  # an event as it was read: its kind is not known yet
E = TypeVar("E")


def is_kind(event: AnyEvent, event_type: type[E]) -> TypeGuard[E]:
    """Whether an event has the kind of `event_type`."""
    return event.get("kind") == EVENT_KINDS[event_type]


def of_kind(events: Iterable[AnyEvent], event_type: type[E]) -> list[E]:
    """The events of one kind, in order.

    Example:
        >>> losses = [e["loss"] for e in of_kind(engine.runs.events(run_id)[0], StepEvent)]
    """
    return [e for e in events if is_kind(e, event_type)]


def latest(events: Iterable[AnyEvent], event_type: type[E]) -> E | None:
    """The last event of one kind, or None."""
    matches = of_kind(events, event_type)
    return matches[-1] if matches else None


def latest_by_kind(events: Iterable[AnyEvent], event_types: Iterable[type]) -> dict[str, AnyEvent]:
    """Kind -> the last event of that kind, for the kinds that occur."""
    kinds = {EVENT_KINDS[t] for t in event_types}
    return {str(e["kind"]): e for e in events if e.get("kind") in kinds}


def is_damaged(event: AnyEvent) -> bool:
    """Whether an event lacks what every version writes, or a field of its kind has another type.

    Kinds of other versions are not damaged: their fields are not known here.
    """
    kind = event.get("kind")
    event_type = next((t for t, name in EVENT_KINDS.items() if name == kind), None)
    if not isinstance(kind, str):
        return True
    if event_type is None:
        return False
    if any(key not in event for key in REQUIRED_KEYS.get(event_type, ())):
        return True
    try:
        check_event(event_type, event)
    except Mismatch:
        return True
    return False


def is_event(line: AnyEvent) -> bool:
    """Whether a line that was read is an event: it has a kind, and was not torn."""
    return isinstance(line.get("kind"), str) and not is_kind(line, UnreadableEvent)
