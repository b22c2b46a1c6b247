"""What a process does on SIGTERM. Imports the standard library only, so that entrances can call it early."""

from __future__ import annotations

import signal
from collections.abc import Callable


def exit_on_sigterm() -> Callable[[], None]:
    """Makes SIGTERM end this process in order: a run saves a checkpoint first and can be resumed.

    The handler raises SystemExit in the main thread; closing the engine then asks its run to save and end. A
    second SIGTERM is ignored, so that it does not interrupt the saving. Outside the main thread, where Python
    allows no signal handlers, nothing changes.

    Returns:
        A function that puts the previous handler back.
    """

    def raise_exit(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    try:
        previous = signal.signal(signal.SIGTERM, raise_exit)
    except ValueError:  # not in the main thread
        previous = None

    def restore() -> None:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)

    return restore
