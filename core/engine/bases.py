"""The base models to choose from, and the change from one to another.

Knows what is on this machine, what is being fetched, and what a change would unload. Models are loaded
by whom it is told, on the worker's thread. `Engine.bases` is the one instance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from core.engine.worker import Errand, Worker
from core.errors import BaseModelError, Busy, SpecError, StudioError
from core.spec.training import QUANTIZATIONS
from core.store import adapters, base_models, runs
from core.store.base_models import Fetch, Offer
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.engine.resident_base import BaseInfo
    from core.model.resident import Resident

logger = logging.getLogger(__name__)


class Bases:
    """Verbs over bases. Safe to call from any thread.

    Args:
        base: what the resident base is; on any thread.
        loaded: the base itself, or None; on any thread, to be looked at only.
        load: begins to load another one in its place and returns at once.
    """

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        base: Callable[[], BaseInfo],
        loaded: Callable[[], Resident | None],
        load: Callable[[str, str], None],
    ) -> None:
        self._workspace, self._worker = workspace, worker
        self._base, self._loaded, self._load = base, loaded, load
        self._errand: Errand | None = None
        self._fetch: Fetch | None = None

    def offered(self) -> list[Offer]:
        """Bases on this machine: the embedded one, those in the Hub's cache, and folders beside the ones that are used or were trained on."""
        known = [
            self._base().name,
            *(adapters.load(self._workspace, a).base for a in self._workspace.ids("adapters")),
        ]
        return [Offer("embedded", "embedded", "llama"), *base_models.in_cache(), *base_models.beside(known)]

    # --- from the Hub

    def fetch(self, name: str) -> None:
        """Begins to download a model from the Hub; returns at once. What was cut off before goes on where it was.

        Raises:
            BaseModelError: it is no Hub id. Busy: another one is on its way.
        """
        name = name.strip()
        if not base_models.HUB_ID.fullmatch(name):
            raise BaseModelError(
                f"{name!r} is no Hub id.",
                'A Hub id has the form "owner/name", such as "Qwen/Qwen2.5-0.5B-Instruct".',
            )
        if self._errand is not None and self._errand.alive:
            raise Busy(
                f"{self._fetch.name if self._fetch else name!r} is being downloaded.",
                "Wait for it, or stop it.",
            )
        self._fetch = Fetch(name)
        self._errand = Errand(lambda errand: self._fetching(name, errand))

    def _fetching(self, name: str, errand: Errand) -> None:
        def tell(state: Fetch) -> None:
            self._fetch = state

        try:
            base_models.fetch(name, tell, lambda: errand.stopping)
            at = self._fetch or Fetch(name)
            self._fetch = Fetch(name, at.total, at.total, over=True)
        except StudioError as e:
            at = self._fetch or Fetch(name)
            self._fetch = Fetch(name, at.done, at.total, str(e), True)
        except BaseException as e:  # noqa: BLE001 (the page shows it; a thread has nobody to raise to)
            logger.exception("the download of %s ended in an error", name)
            self._fetch = Fetch(name, error=f"{type(e).__name__}: {e}", over=True)

    def fetching(self) -> Fetch | None:
        """The download under way, or the last one; None if there was none."""
        return self._fetch

    def stop_fetching(self) -> None:
        """Asks the download to end; what has come stays."""
        if self._errand is not None:
            self._errand.stop()

    def wait_fetched(self, seconds: float = 3600.0) -> Fetch:
        """Waits for the end of the download.

        Raises:
            BaseModelError: it ended in an error.
        """
        if self._errand is not None:
            self._errand.join(seconds)
        ended = self._fetch or Fetch("")
        if ended.error:
            raise BaseModelError(ended.error)
        return ended

    # --- another base

    def unloads(self) -> list[str]:
        """What leaves the memory when another base comes, a sentence each. Nothing on the disk is lost."""
        said, resident = [], self._loaded()
        if resident is not None and resident.digests:
            names = sorted(
                adapters.load(self._workspace, a).name
                for a in list(resident.digests)
                if a in self._workspace.ids("adapters")
            )
            stay = (
                "It stays in the library and fits" if len(names) == 1 else "They stay in the library and fit"
            )
            said.append(
                f"{_counted(len(names), 'adapter leaves', 'adapters leave')} the mixer: {', '.join(names)}. {stay} this base only."
            )
        if waiting := [
            r for r in self._runs() if r.resumable and r.base_fingerprint == self._base().fingerprint
        ]:
            said.append(
                f"{_counted(len(waiting), 'run', 'runs')} can be resumed only when this base is back: {', '.join(r.name for r in waiting)}."
            )
        if writing := self._worker.streams:
            said.append(f"{_counted(writing, 'answer', 'answers')} under way will end.")
        return said

    def switch(self, name: str, quantization: str = "auto", sure: bool = False) -> list[str]:
        """Changes the resident base.

        Args:
            sure: the person has read what is unloaded.

        Returns:
            what would be unloaded, if something is and they are not `sure`: nothing has happened then. Empty when it has begun.

        Raises:
            BaseModelError: there is no such base here. Busy: a run is training or waiting, or a base is being loaded.
        """
        name = name.strip()
        if quantization not in QUANTIZATIONS:
            raise SpecError(
                f"The quantization is {quantization!r}.", f"Choose one of: {', '.join(QUANTIZATIONS)}."
            )
        source, local = base_models.locate(name)
        if not local:
            raise BaseModelError(f"{name!r} is not on this machine, or not all of it.", "Download it first.")
        if name != "embedded" and (why := base_models.lacking(Path(source))):
            raise BaseModelError(f"{name!r} cannot be used. {why}", "Choose another folder.")
        if run := next((r for r in self._runs() if r.status.alive), None):
            raise Busy(
                f"The run {run.name!r} is {run.status.value} on the present base.",
                "Wait for its end, or stop it under Train; then change the base.",
            )
        if self._base().loading:
            raise Busy("A base is being loaded.", "Wait for it.")
        if not sure and (said := self.unloads()):
            return said
        self._load(
            name
            if name == "embedded" or base_models.HUB_ID.fullmatch(name) and not Path(name).is_dir()
            else source,
            quantization,
        )
        return []

    def _runs(self) -> list[runs.Run]:
        return [runs.load(self._workspace, i) for i in self._workspace.ids("runs")]


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
