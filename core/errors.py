"""Every error that the user can see, in one tree.

An error says what was given, what is allowed, and what to do. The page (`studio.events`) and the terminal
(`core.cli`) each show it in their own form.

    StudioError
    ├── DataError            a file or row that cannot be read (with file and line)
    │   ├── UnknownEncoding  a text file whose encoding the user has to choose
    │   └── UnconfirmedRoles roles of columns that the user has to confirm
    ├── SpecError            a setting outside its limits
    ├── NotFound             an id or name that is not in the workspace
    ├── InvalidName          a name or path that is not allowed
    ├── StorageError         a file that cannot be written, or is damaged
    │   ├── DiskFull         the disk is full
    │   └── DamagedRecord    a record that cannot be read (with file and reason)
    ├── BaseModelError       a base model that cannot be loaded or is not supported
    ├── AdapterError         an adapter that is damaged, foreign or does not fit the base
    ├── RunError             a run that cannot start, stop or resume
    │   ├── Diverged         the loss became NaN or infinite
    │   └── OutOfMemory      a training step does not fit in memory, even with one row
    ├── GpuError             a call on a GPU that was refused, or ended from outside
    │   └── GpuQuota         the GPU time of a visitor is used up
    ├── AccessError          something that the role of the caller does not allow
    ├── Busy                 a resource that is in use
    ├── Closing              the studio is being stopped
    └── Cancelled            work that the user cancelled
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

E = TypeVar("E", bound="StudioError")


class StudioError(Exception):
    """Base class of all errors for the user.

    Args:
        what: what happened, or what is allowed and what was given; one sentence.
        fix: what to do, one sentence; empty where `what` says it already.

    Attributes:
        field: the name of the setting that caused it, so that a form shows the error there; "" for none.
    """

    field = ""

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what} {fix}".strip())

    def at(self: E, field: str) -> E:
        """Names the setting that caused the error; returns the error: `raise SpecError(...).at("rank")`."""
        self.field = field
        return self


class DataError(StudioError):
    """A file or row that cannot be read.

    Args:
        file: the name of the file.
        line: the line, counted from 1.
    """

    def __init__(self, what: str, fix: str = "", *, file: str = "", line: int | None = None) -> None:
        self.file = file
        self.line = line
        place = file + (f", line {line}" if line is not None else "")
        super().__init__(f"{place}: {what}" if place else what, fix)


class UnknownEncoding(DataError):
    """A text file is not UTF-8, and the user has to choose its encoding.

    Args:
        candidates: `core.data.text_encodings.Candidate`s, the most plausible first.
    """

    def __init__(
        self, what: str, fix: str, *, file: str, line: int | None, candidates: Sequence[Any]
    ) -> None:
        self.candidates = candidates
        super().__init__(what, fix, file=file, line=line)


class UnconfirmedRoles(DataError):
    """The roles of the columns are proposed from their content, and the user has to confirm them.

    Args:
        kind: "domain" or "task".
        roles: role to column.
    """

    def __init__(self, what: str, fix: str, *, kind: str, roles: dict[str, str]) -> None:
        self.kind, self.roles = kind, roles
        super().__init__(what, fix)


class SpecError(StudioError):
    """A setting outside its limits."""


class NotFound(StudioError):
    """An id or a name that is not in the workspace."""


class InvalidName(StudioError):
    """A name or a path that is not allowed."""


class StorageError(StudioError):
    """A file cannot be written, or is damaged."""


class DiskFull(StorageError):
    """The disk is full."""


class DamagedRecord(StorageError):
    """A record of the workspace that cannot be read.

    Args:
        file: its file, with the last folder: "notes-1f3a/run.json".
        reason: what is wrong with it, as a clause without a full stop.
    """

    def __init__(self, file: str, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(
            f"{file} cannot be read: {reason}.",
            "Delete the item under Library, or restore the file from a backup.",
        )


class BaseModelError(StudioError):
    """A base model that cannot be loaded or is not supported."""


class AdapterError(StudioError):
    """An adapter that is damaged, foreign, or does not fit the base model."""


class RunError(StudioError):
    """A run that cannot start, stop or resume."""


class Diverged(RunError):
    """The training loss became NaN or infinite."""


class OutOfMemory(RunError):
    """A training step does not fit in memory, even with one row."""


class GpuError(StudioError):
    """A call in a process with a GPU was refused, or the process was ended from outside."""


class GpuQuota(GpuError):
    """The GPU time that a visitor may use is used up.

    Args:
        left_seconds: what is left of it; None where that is not known.
    """

    def __init__(self, what: str, fix: str = "", *, left_seconds: int | None = None) -> None:
        self.left_seconds = left_seconds
        super().__init__(what, fix)


class AccessError(StudioError):
    """Something that the role of the caller does not allow."""


class Busy(StudioError):
    """A resource is in use."""


class Closing(StudioError):
    """The studio is being stopped, and accepts no further work."""


class Cancelled(StudioError):
    """The user cancelled the work; nothing of it is left."""
