"""Every error that a user may meet, in one tree.

Knows how to say what was given, what is allowed and what to do. Knows nothing of who shows it:
the page (`studio/guard.py`), the terminal (`core/cli.py`) each turn it into their language once.

    StudioError
    ├── DataError            a file or row that cannot be read      (file, line, what, how to fix)
    ├── SpecError            a setting outside its limits
    ├── NotFound             an id or name that the workspace does not hold
    ├── InvalidName          a name or path that cannot be used
    ├── StorageError         the disk: full, read-only, damaged
    │   └── DiskFull         it takes no more
    ├── BaseModelError       a base model that cannot be loaded or is not supported
    ├── AdapterError         an adapter that is damaged, foreign or does not fit
    ├── RunError             a run that cannot start, stop, or resume
    │   ├── Diverged         the loss became NaN or infinite
    │   └── OutOfMemory      a step does not fit the device, even in its smallest batch
    └── Busy                 something else is using what was asked for
"""

from __future__ import annotations


class StudioError(Exception):
    """Base of all errors that are meant for the user.

    Args:
        what: what was given or what happened, in one sentence.
        fix: what is allowed and what to do about it, in one sentence.
    """

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what} {fix}".strip())


class DataError(StudioError):
    """A file or row that cannot be read; names the file and, where it has one, the line (from 1)."""

    def __init__(self, what: str, fix: str = "", *, file: str = "", line: int | None = None) -> None:
        self.file = file
        self.line = line
        place = file + (f", line {line}" if line is not None else "")
        super().__init__(f"{place}: {what}" if place else what, fix)


class SpecError(StudioError):
    """A setting outside its limits."""


class NotFound(StudioError):
    """An id or a name that the workspace does not hold."""


class InvalidName(StudioError):
    """A name or a path that cannot be used."""


class StorageError(StudioError):
    """The disk is full, read-only, or holds something damaged."""


class DiskFull(StorageError):
    """The disk takes no more."""


class BaseModelError(StudioError):
    """A base model that cannot be loaded, or an architecture without a row in the families table."""


class AdapterError(StudioError):
    """An adapter that is damaged, comes from elsewhere, or does not fit the base model."""


class RunError(StudioError):
    """A run that cannot start, stop or resume."""


class Diverged(RunError):
    """The training loss became NaN or infinite."""


class OutOfMemory(RunError):
    """A training step does not fit the device, even one row at a time."""


class Busy(StudioError):
    """Something else is using what was asked for."""
