"""Frees memory of the resident base while nothing uses it: its own weights move into a file.

```
answers are chosen ─ a background thread: write the weights ─ the model's thread: map them, release them
a run has ended ──── the model's thread: release them again
```

`core.model.mapped_weights` says why this changes no result.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from core.engine.worker import BackgroundTask, Worker
from core.errors import StudioError
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.model.mapped_weights import MappedWeights
    from core.model.resident import Resident

logger = logging.getLogger(__name__)


class IdleMemory:
    """Moves the weights of a base into a file, and releases them."""

    def __init__(self, workspace: Workspace, worker: Worker) -> None:
        self._workspace, self._worker = workspace, worker
        self._task: BackgroundTask | None = None
        self._mapped: MappedWeights | None = None

    @property
    def file_bytes(self) -> int:
        """Bytes of weights that the system counts as free memory, although training needs them."""
        return self._mapped.bytes if self._mapped else 0

    def start(self, resident: Resident) -> None:
        """Begins to move the weights; called on the model's thread, once nothing else prepares the base."""
        from core.model.mapped_weights import choose_weights, trim_heap

        self.stop()
        weights = choose_weights(resident.base)
        if weights:
            self._task = BackgroundTask(lambda task: self._write(task, weights), "idle memory")
        else:
            trim_heap()

    def stop(self) -> None:
        """Ends it for a base that is being replaced."""
        if self._task is not None:
            self._task.stop()
        self._task = self._mapped = None

    def release(self) -> None:
        """Frees what a run has left; called on the model's thread."""
        from core.model.mapped_weights import trim_heap

        if self._mapped:
            self._mapped.release()
        trim_heap()

    def _write(self, task: BackgroundTask, weights: list[Any]) -> None:
        from core.model.mapped_weights import MappedWeights

        def install() -> None:
            if not task.stopping:
                mapped.install()
                self._mapped = mapped
                self.release()

        try:
            mapped = MappedWeights(weights, self._workspace.root, lambda: task.stopping)
            if not task.stopping:
                self._worker.post(install)
        except StudioError as e:
            logger.info("the weights of the base stay in memory: %s", e)
        except Exception:
            logger.exception("the weights of the base could not be moved into a file")
