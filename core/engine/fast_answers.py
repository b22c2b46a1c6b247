"""Prepares faster answers of the resident base, in the background: 8-bit weights beside its own precision.

```
base loaded ─ a background thread: pack, compile ─ the model's thread: probe, once per base ─ base.packed
```

Until then, and where it does not pay, answers come from the base's own precision, as all measurements do.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.engine.worker import BackgroundTask, Worker
from core.errors import StorageError, StudioError
from core.store.files import read_json, write_json
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.model.fast_choice import Probe
    from core.model.resident import Resident

logger = logging.getLogger(__name__)
ANSWERS = ("auto", "fast", "exact")
OWN_PRECISION = "the base's own precision"


class FastAnswers:
    """Decides which weights answer, and prepares them.

    Args:
        mode: "auto" (8-bit weights where a probe shows that they pay), "fast" (wherever they are possible),
            or "exact" (never).
    """

    def __init__(self, workspace: Workspace, worker: Worker, mode: str) -> None:
        self._workspace, self._worker, self.mode = workspace, worker, mode
        self._task: BackgroundTask | None = None

    def start(self, resident: Resident, report: Callable[[str], None], end: Callable[[], None]) -> None:
        """Decides for a base that was just loaded; called on the model's thread.

        Args:
            report: receives a sentence on what answers, now and when that changes.
            end: is called on the model's thread, once nothing is prepared any more.
        """
        from core.model import fast_choice

        self.stop()
        if self.mode == "exact":
            report("")
            end()
            return
        is_auto = self.mode == "auto"
        reason = fast_choice.exact_reason(resident.base, forced=not is_auto)
        probe = fast_choice.read_probe(self._read_records().get(resident.base.fingerprint))
        if not reason and is_auto and probe is not None and not probe.is_worth_it:
            reason = describe_probe(probe)
        report(f"{OWN_PRECISION} ({reason})" if reason else f"{OWN_PRECISION}; 8-bit weights are prepared")
        if reason:
            end()
        else:
            self._task = BackgroundTask(lambda task: self._pack(task, resident, probe, report, end), "pack")

    def stop(self) -> None:
        """Ends the preparation for a base that is being replaced."""
        if self._task is not None:
            self._task.stop()
            self._task = None

    def _pack(
        self,
        task: BackgroundTask,
        resident: Resident,
        probe: Probe | None,
        report: Callable[[str], None],
        end: Callable[[], None],
    ) -> None:
        """Packs on the background thread, then hands the result to the model's thread."""
        from core.model import fast_choice

        try:
            packed = fast_choice.pack_for_answers(resident.base, lambda: task.stopping)
            if packed is not None:
                self._worker.post(lambda: self._install(task, resident, packed, probe, report))
        except StudioError as e:
            logger.warning("answers stay in %s: %s", OWN_PRECISION, e)
            report(f"{OWN_PRECISION} ({e})")
        except Exception as e:
            logger.exception("the base could not be packed")
            report(f"{OWN_PRECISION} (packing failed: {type(e).__name__})")
        with contextlib.suppress(StudioError):  # the studio is closing
            self._worker.post(lambda: None if task.stopping else end())

    def _install(
        self,
        task: BackgroundTask,
        resident: Resident,
        packed: Any,
        probe: Probe | None,
        report: Callable[[str], None],
    ) -> None:
        from core.model import fast_choice

        if task.stopping:
            return
        if probe is None:
            probe = fast_choice.measure(resident.base, packed, resident.mixer)
            self._write_record(resident.base.fingerprint, probe)
        if self.mode == "fast" or probe.is_worth_it:
            resident.base.packed = packed
            report(f"8-bit weights ({describe_probe(probe)})")
        else:
            report(f"{OWN_PRECISION} ({describe_probe(probe)})")

    def _read_records(self) -> dict[str, Any]:
        """Base fingerprint -> probe; a damaged file counts as empty, as probes can be repeated."""
        try:
            records = read_json(self._workspace.probes_path)
        except StorageError:
            return {}
        return records if isinstance(records, dict) else {}

    def _write_record(self, fingerprint: str, probe: Probe) -> None:
        try:
            write_json(self._workspace.probes_path, {**self._read_records(), fingerprint: probe.to_json()})
        except StorageError as e:
            logger.warning("the probe of the base was not stored: %s", e)


def describe_probe(probe: Probe) -> str:
    """What the 8-bit weights gain and cost."""
    return f"{probe.speedup:.1f} times as fast, the same next word in {probe.agreement:.0%} of a text"
