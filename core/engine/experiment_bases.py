"""What the rows of an experiment need: a base, which is loaded in its turn, adapters of that base, and a key.

    resident base: its rows ─> another base: its rows ─> ... ─> the base that was resident before

Each base is loaded once, for as long as its rows take. The base that the user chose stays the choice on the
disk, so that a process that is killed in between starts with it again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from core.engine.bases import Bases
from core.engine.library import Library
from core.engine.resident_base import BaseChoice, ResidentBase
from core.errors import Busy, Closing, StudioError
from core.spec.experiment import ExperimentRow
from core.spec.mix import Mix
from core.store.experiments import Experiment

logger = logging.getLogger(__name__)
WAIT_SECONDS = 30.0  # that answers in progress, or the end of a run, are waited for
POLL_SECONDS = 0.1


class RowNeeds:
    """Says what a row needs, and what of it is missing. Safe to call from any thread.

    Args:
        read_variable: reads an environment variable, for the keys of addresses.
    """

    def __init__(
        self,
        library: Library,
        bases: Bases,
        resident_base: ResidentBase,
        read_variable: Callable[[str], str | None],
    ) -> None:
        self._library, self._bases, self._resident_base = library, bases, resident_base
        self._read_variable = read_variable
        self._fingerprints: dict[str, str] = {}  # of bases that are not resident, by their name

    def read_mix(self, text: str) -> Mix:
        """The mix of a row, with ids of adapters; a saved mix may be given by its id or name.

        Raises:
            SpecError, NotFound
        """
        for saved in self._library.mixes():
            if text and text in (saved.id, saved.name):
                return saved.mix
        mix = Mix.parse(text)
        ids = {a: self._library.find_adapter(a) for a in mix.weights}
        return Mix(
            weights={ids[a]: w for a, w in mix.weights.items()},
            tilt={ids[a]: t for a, t in mix.tilt.items()},
            auto={ids[a]: m for a, m in mix.auto.items()},
        )

    def explain_obstacle(self, experiment: Experiment, row: ExperimentRow, loads_bases: bool = True) -> str:
        """Why a row cannot be run now, as a clause; "" where it can.

        Args:
            loads_bases: whether its base may be loaded, where another one is resident.
        """
        if row.address:
            if row.key_variable and not self._read_variable(row.key_variable):
                return f"no key is in the environment variable {row.key_variable}, which the terminal reads"
            return ""
        fingerprint = self._find_fingerprint(experiment, row)
        if self.is_resident(experiment, row):
            fingerprint = self._resident_base.info.fingerprint
        elif reason := self._explain_base(row.base, fingerprint, loads_bases):
            return reason
        try:
            adapters = [self._library.adapter(a) for a in self.read_mix(row.mix).weights]
        except StudioError as e:
            return e.what.rstrip(".")
        for adapter in adapters:
            if fingerprint and adapter.base_fingerprint != fingerprint:
                return f"the adapter {adapter.name!r} was trained on another base"
        return ""

    def _explain_base(self, base: str, fingerprint: str, loads_bases: bool) -> str:
        """Why a base that is not resident cannot be loaded for its rows, as a clause; "" where it can."""
        info = self._resident_base.info
        if not loads_bases:
            loaded = f"{info.name!r} is loaded" if info.fingerprint else "no base is loaded"
            return f"it needs the base {base!r}, and {loaded}"
        try:
            self._bases.locate(base)
        except StudioError as e:
            return f"it needs the base {base!r}. {e.what.rstrip('.')}"
        if self._fingerprints.get(base, fingerprint) != fingerprint:
            return f"the base {base!r} has changed since the experiment was started"
        return ""

    def read_key(self, row: ExperimentRow) -> str:
        """The key for the address of a row; "" without one."""
        return (self._read_variable(row.key_variable) or "") if row.key_variable else ""

    def is_resident(self, experiment: Experiment, row: ExperimentRow) -> bool:
        """Whether the base of a row is the resident one."""
        info = self._resident_base.info
        if not info.fingerprint:
            return False
        if fingerprint := self._find_fingerprint(experiment, row):
            return fingerprint == info.fingerprint
        with contextlib.suppress(StudioError):
            return info.name in (row.base, self._bases.locate(row.base))
        return info.name == row.base

    def group_rows(self, experiment: Experiment, rows: Sequence[ExperimentRow]) -> list[list[ExperimentRow]]:
        """The rows of each base together; those of the resident base come first."""
        groups: dict[str, list[ExperimentRow]] = {}
        for row in rows:
            groups.setdefault(self._find_fingerprint(experiment, row) or row.base, []).append(row)
        return sorted(groups.values(), key=lambda group: not self.is_resident(experiment, group[0]))

    def identify_bases(self, rows: Sequence[ExperimentRow]) -> None:
        """Computes the fingerprints of the bases on this machine, so that adapters are compared with them."""
        for base in {row.base for row in rows if not row.address}:
            with contextlib.suppress(StudioError):  # `explain_obstacle` says it
                self._fingerprints[base] = self._bases.compute_fingerprint(base)

    def _find_fingerprint(self, experiment: Experiment, row: ExperimentRow) -> str:
        """The fingerprint of the base of a row, as far as it is known; else ""."""
        is_first = row.base == experiment.base  # the base that was loaded at the start
        known = experiment.base_fingerprint if is_first else ""
        return known or self._fingerprints.get(row.base, "")


class BaseTurns:
    """Loads the bases of one experiment in turn, on the thread of its job.

    Args:
        poll: raises Cancelled where the experiment is cancelled.
        report: says what is being done.
        is_closing: whether the studio is being stopped.
    """

    def __init__(
        self,
        bases: Bases,
        resident_base: ResidentBase,
        poll: Callable[[], None],
        report: Callable[[str], None],
        is_closing: Callable[[], bool],
    ) -> None:
        self._bases, self._resident_base = bases, resident_base
        self._poll, self._report, self._is_closing = poll, report, is_closing
        self._first = self._loaded = resident_base.choice
        self._had_base = resident_base.peek() is not None

    def load(self, base: str) -> None:
        """Loads a base, as soon as no answer and no run needs the resident one.

        Raises:
            Cancelled. Busy: the resident one is needed, or the user has changed it. BaseModelError: it is not
                on this machine, or could not be loaded; the base before is resident then.
        """
        choice = self._first._replace(base=self._bases.locate(base))
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            self._poll()
            if self._is_taken():
                raise Busy("The base was changed while the experiment ran.", "Continue the experiment.")
            if self._try(choice, is_last=time.monotonic() >= deadline):
                return

    def restore(self) -> str:
        """Loads the base again that was resident at first, unless the user has changed it meanwhile.

        Answers in progress are waited for, and then ended.

        Returns:
            why it is not loaded, as a sentence; "" where it is.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            while self._must_restore():
                is_last = time.monotonic() >= deadline
                self._try(self._first, is_last, ends_answers=is_last)
        except Closing:
            return ""
        except StudioError as e:
            logger.warning("the base %s was not loaded again: %s", self._first.base, e)
            return f"The base {self._first.base!r} is not loaded again. {e}"
        return ""

    def _must_restore(self) -> bool:
        if not self._had_base or self._is_taken() or self._is_closing():
            return False
        return self._loaded != self._first or self._resident_base.peek() is None

    def _is_taken(self) -> bool:
        return self._resident_base.choice != self._loaded

    def _try(self, choice: BaseChoice, is_last: bool, ends_answers: bool = False) -> bool:
        """Loads a base; False where it has to wait and this is not the last attempt."""
        name = Path(choice.base).name if Path(choice.base).is_absolute() else choice.base
        self._report(f"Loading {name}")
        try:
            self._bases.load_temporarily(choice, ends_answers)
        except Busy as e:
            if is_last:
                raise
            self._report(f"Waiting to load {name}. {e.what}")
            time.sleep(POLL_SECONDS)
            return False
        self._loaded = self._resident_base.choice
        return True
