"""What a trainer needs of the process that runs it: event log, waiting requests, stop requests, group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.store.event_log import EventLog
from core.train.distributed import SINGLE_PROCESS, ProcessGroup
from core.train.threads import ThreadControl

YIELD_SECONDS = 0.12  # longest time for which training yields to requests between two steps


@dataclass
class TrainerContext:
    """The surroundings of a `StudioTrainer`.

    Attributes:
        log: receives the events of the run.
        yield_to_requests: serves waiting requests on the model, for at most the given number of seconds.
        poll_stop: "" to go on; any other value ends the run after the current step, with a checkpoint.
        group: the processes that train the run together.
        threads: chooses the number of threads of a run on the CPU; None leaves it alone.
    """

    log: EventLog
    yield_to_requests: Callable[[float], None]
    poll_stop: Callable[[], str]
    group: ProcessGroup = SINGLE_PROCESS
    threads: ThreadControl | None = None
