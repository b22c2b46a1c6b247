"""Base models: listing, downloading from the Hub, and switching. `engine.bases`."""

from __future__ import annotations

import logging
from pathlib import Path

from core.engine.resident_base import DEFAULT_BASE, BaseInfo, ResidentBase
from core.engine.runs import Runs
from core.engine.worker import BackgroundTask, Worker
from core.errors import BaseModelError, Busy, SpecError, StudioError
from core.progress import LineClock
from core.spec.training import QUANTIZATIONS
from core.store import adapters, base_models, hub
from core.store.base_models import LocalBase
from core.store.hub import Download
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)


class Bases:
    """Lists, downloads and switches base models. Safe to call from any thread."""

    def __init__(self, workspace: Workspace, worker: Worker, resident_base: ResidentBase, runs: Runs) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._runs = runs
        self._task: BackgroundTask | None = None
        self._download: Download | None = None

    # --- the resident base

    def load(self) -> None:
        """Starts to load the base, once; returns immediately."""
        self._resident_base.load()

    def current(self, wait: bool = False) -> BaseInfo:
        """Describes the resident base.

        Args:
            wait: wait until it is loaded.
        """
        return self._resident_base.wait() if wait else self._resident_base.info

    def unload_warnings(self) -> list[str]:
        """What a change of the base would unload, one sentence each. Nothing on disk is deleted."""
        warnings, resident = [], self._resident_base.peek()
        if resident is not None and resident.digests:
            library = adapters.load_all(self._workspace)
            adapter_names = sorted(a.name for a in library if a.id in resident.digests)
            leave = _count(len(adapter_names), "adapter leaves", "adapters leave")
            stay = "It stays" if len(adapter_names) == 1 else "They stay"
            names = ", ".join(adapter_names)
            warnings.append(
                f"{leave} the mixer: {names}. {stay} in the library and can be mixed on this base only."
            )
        fingerprint = self.current().fingerprint
        if resumable := [r for r in self._runs.list() if r.resumable and r.base_fingerprint == fingerprint]:
            names = ", ".join(r.name for r in resumable)
            runs_ = _count(len(resumable), "run", "runs")
            warnings.append(f"{runs_} can be resumed only on this base: {names}.")
        if count := self._worker.open_streams:
            warnings.append(f"{_count(count, 'answer', 'answers')} in progress will be stopped.")
        return warnings

    def switch(self, name: str, quantization: str = "auto", confirmed: bool = False) -> list[str]:
        """Changes the resident base.

        Args:
            name: "embedded", a local folder, or a Hub id whose files are on this machine.
            confirmed: the user has read the warnings.

        Returns:
            An empty list once the change has started. The sentences of `unload_warnings`, if there are any
            and the change is not `confirmed`; the base stays then.

        Raises:
            BaseModelError: no such base on this machine. SpecError: unknown quantization. Busy: a run is
                training, queued or measured on the resident base, or a base is being loaded.
        """
        name = name.strip()
        if quantization not in QUANTIZATIONS:
            raise SpecError(
                f"Quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}.",
                "Choose one of them.",
            )
        source, is_local = base_models.locate(name)
        if not is_local:
            raise BaseModelError(f"{name!r} is not complete on this machine.", "Download it first.")
        if name != DEFAULT_BASE and (reason := base_models.describe_defect(Path(source))):
            raise BaseModelError(f"{name!r} cannot be used. {reason}", "Choose another folder.")
        alive = (r for r in self._runs.list() if r.status.is_alive)
        if run := next((r for r in alive if not self._runs.explain_wait(r.id)), None):
            raise Busy(
                f"The run {run.name!r} is {run.status.value} on the resident base.",
                "Wait until it ends, or stop it under Train; then change the base.",
            )
        if run := next((r for r in self._runs.list() if self._runs.is_ending(r)), None):
            raise Busy(
                f"The adapter of the run {run.name!r} is being measured on the resident base.",
                "Wait until the run shows what its adapter is worth; then change the base.",
            )
        if self.current().loading:
            raise Busy("A base is being loaded.", "Wait until it is loaded.")
        if not confirmed and (warnings := self.unload_warnings()):
            return warnings
        is_hub_id = base_models.HUB_ID.fullmatch(name) and not Path(name).is_dir()
        self._resident_base.replace(name if name == DEFAULT_BASE or is_hub_id else source, quantization)
        return []

    # --- on this machine

    def list(self) -> list[LocalBase]:
        """Bases on this machine: the embedded one, the Hub's cache, and folders beside known bases."""
        known = [
            self.current().name,
            *(a.base for a in adapters.load_all(self._workspace)),
        ]
        return [
            LocalBase(DEFAULT_BASE, DEFAULT_BASE, "llama"),
            *base_models.list_cache(),
            *base_models.list_nearby(known),
        ]

    # --- from the Hub

    def download(self, name: str) -> None:
        """Starts to download a model from the Hub; returns immediately. A partial download is resumed.

        Raises:
            BaseModelError: `name` is not a Hub id. Busy: another download is in progress.
        """
        name = name.strip()
        if not base_models.HUB_ID.fullmatch(name):
            raise BaseModelError(
                f'A Hub id must have the form "owner/name", got {name!r}.',
                'For example "Qwen/Qwen2.5-0.5B-Instruct".',
            )
        if self._task is not None and self._task.is_alive:
            current = self._download.name if self._download else name
            raise Busy(f"{current!r} is being downloaded.", "Wait until it is complete, or stop it.")
        self._download = Download(name)
        self._task = BackgroundTask(lambda task: self._run_download(name, task))

    def _run_download(self, name: str, task: BackgroundTask) -> None:
        clock = LineClock()

        def report(state: Download) -> None:
            self._download = state
            if clock.is_due():
                logger.info("%s: %.1f of %.1f MB downloaded", name, state.done / 1e6, state.total / 1e6)

        try:
            hub.download(name, report, lambda: task.stopping)
            last = self._download or Download(name)
            self._download = Download(name, last.total, last.total, over=True)
        except StudioError as e:
            last = self._download or Download(name)
            self._download = Download(name, last.done, last.total, str(e), True)
        except BaseException as e:  # noqa: BLE001 (a thread has no caller to raise to; the page shows the error)
            logger.exception("the download of %s failed", name)
            self._download = Download(name, error=f"{type(e).__name__}: {e}", over=True)

    def download_state(self) -> Download | None:
        """The download in progress, or the last one; None before the first."""
        return self._download

    def stop_download(self) -> None:
        """Asks the download to stop; what it has downloaded stays on disk."""
        if self._task is not None:
            self._task.stop()

    def wait_for_download(self, seconds: float = 3600.0) -> Download:
        """Waits until the download ends, for at most `seconds`, and returns its state.

        Raises:
            BaseModelError: it failed.
        """
        if self._task is not None:
            self._task.join(seconds)
        state = self._download or Download("")
        if state.error:
            raise BaseModelError(state.error)
        return state


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
