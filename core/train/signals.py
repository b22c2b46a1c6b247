"""What a process does on SIGTERM. Imports the standard library only, so that entrances can call it early.

Windows sends SIGBREAK when a console is closed or Ctrl+Break is pressed; it is handled in the same way.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from typing import Any

SIGNALS = ("SIGTERM", "SIGBREAK")  # those that the system has


def exit_on_sigterm() -> Callable[[], None]:
    """Makes SIGTERM end this process in order: a run saves a checkpoint first and can be resumed.

    The handler raises SystemExit in the main thread; closing the engine then asks its run to save and end. A
    second SIGTERM is ignored, so that it does not interrupt the saving. Outside the main thread, where Python
    allows no signal handlers, nothing changes.

    Returns:
        A function that puts the previous handler back.
    """

    def raise_exit(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    previous: dict[int, Any] = {}
    for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
        with contextlib.suppress(ValueError):  # not in the main thread
            previous[number] = signal.signal(number, raise_exit)

    def restore() -> None:
        for number, handler in previous.items():
            if handler is not None:  # None: it was not installed from Python
                signal.signal(number, handler)

    return restore
