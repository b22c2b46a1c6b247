"""The one base in memory: loading it, putting another in its place, remembering which one was chosen.

Knows when a base comes and goes. Models are loaded on the worker's thread, where their rooms are
imported too, so that a page can be painted before torch is there.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.engine.worker import Worker
from core.errors import BaseModelError, StorageError, StudioError
from core.store import base_models
from core.store.workspace import Workspace, read_json, write_json

if TYPE_CHECKING:
    from core.model.resident import Resident

logger = logging.getLogger(__name__)
USUAL = "embedded"


@dataclass(frozen=True)
class BaseInfo:
    """What the resident base is, or why there is none yet."""

    name: str
    loading: bool = True
    error: str = ""
    failed: str = ""  # why another base that was asked for is not the resident one
    family: str = ""
    note: str = ""
    parameters: int = 0
    quantization: str = ""
    device: str = ""
    context: int = 0
    fingerprint: str = ""
    chat_template: bool = False
    targets: tuple[str, ...] = ()
    memory_bytes: int = 0
    expert_weights: int = 0  # numbers that one rank of an adapter on all experts has; 0 without experts


class Choice(NamedTuple):
    """Which base, and how it is loaded."""

    base: str
    quantization: str = "auto"
    device: str = "auto"


class Residence:
    """Where the base lives. `look`, `info` and the verbs from any thread; `resident` on the worker's only.

    Args:
        base: "embedded", a local folder, or a Hub id; "" is the one that was chosen last in this workspace.
        quantization: as `core.spec.QUANTIZATIONS`; "auto" is also how a base that is remembered was loaded.
    """

    def __init__(
        self, workspace: Workspace, worker: Worker, base: str, quantization: str, device: str
    ) -> None:
        self._workspace, self._worker = workspace, worker
        self._resident: Resident | None = None
        self._asked = False
        self._gone = ""
        self.choice = Choice(base, quantization, device) if base else self._remembered(quantization, device)
        self.info = BaseInfo(name=self.choice.base, loading=False)

    def load(self) -> None:
        """Begins to load the base, once; returns at once."""
        if not self._asked:
            self._asked = True
            self.info = BaseInfo(name=self.choice.base, loading=True)
            self._worker.post(self._load_first)

    def change(self, base: str, quantization: str) -> None:
        """Begins to load another base in the place of the present one; returns at once."""
        before, wanted, info = (
            self.choice,
            self.choice._replace(base=base, quantization=quantization),
            self.info,
        )
        self._asked = True
        self.info = BaseInfo(name=base, loading=True)
        self._worker.post(lambda: self._exchange(before, wanted, info))

    def wait(self) -> BaseInfo:
        """What the base is, after it is loaded."""
        if self.info.loading:
            self._worker.call(lambda: None)
        return self.info

    def look(self) -> Resident | None:
        """The base itself, or None; to be looked at only."""
        return self._resident

    def resident(self) -> Resident:
        """The base, to work with.

        Raises:
            BaseModelError: there is none.
        """
        if self._resident is None:
            raise BaseModelError(
                self.info.error or "The base model is not loaded.",
                "Wait a moment, or start the studio with another base.",
            )
        return self._resident

    def _load_first(self) -> None:
        self.info = self._load(self.choice)

    def _remembered(self, quantization: str, device: str) -> Choice:
        """What was chosen last, where it still lies on this machine and is whole; otherwise the embedded base."""
        usual, file = Choice(USUAL, quantization, device), self._workspace.base
        if not file.is_file():
            return usual
        try:
            kept = read_json(file)
            name, loaded = str(kept["base"]), str(kept["quantization"])
        except (StudioError, KeyError, TypeError):
            self._gone = f"Which base was chosen last cannot be read from {file.name}."
            return usual
        try:
            source, here = base_models.locate(name)
            here = here and (name == USUAL or not base_models.lacking(Path(source)))
        except (StudioError, OSError, RuntimeError):  # no such place any more, or one that does not answer
            here = False
        if here:
            return Choice(name, loaded if quantization == "auto" else quantization, device)
        self._gone = f"{name!r}, chosen last, is not on this machine any more, or not all of it."
        return usual

    def _exchange(self, before: Choice, wanted: Choice, info: BaseInfo) -> None:
        """On the worker's thread: the old base leaves before the new one comes, and is loaded again if that fails."""
        self._gone = ""
        resident = self._resident
        if resident is not None and resident.trainee_id:  # a run began since the change was asked for
            self.info = info
            return
        self._worker.end_streams(
            BaseModelError("The base model was changed while this was under way.", "Ask again.")
        )
        self._resident = resident = None
        gc.collect()
        found = self._load(wanted)
        if not found.error:
            self.choice = wanted
            try:
                write_json(self._workspace.base, {"base": wanted.base, "quantization": wanted.quantization})
            except StorageError as e:
                logger.warning("the choice of a base is not remembered: %s", e)
        elif before != wanted:
            back = self._load(before)
            found = back if back.error else replace(back, failed=found.error)
        self.info = found

    def _load(self, choice: Choice) -> BaseInfo:
        """On the worker's thread: loads a base and says what it is, or why it is none."""
        try:
            from core.model import experts
            from core.model.base import load_base
            from core.model.resident import Resident

            loaded = load_base(*choice)
            self._resident = Resident(loaded, self._workspace)
            return BaseInfo(
                name=choice.base,
                loading=False,
                failed=self._gone,
                family=loaded.family.label,
                note=loaded.family.note,
                parameters=loaded.parameters,
                quantization=loaded.quantization,
                device=str(loaded.device),
                context=loaded.context,
                fingerprint=loaded.fingerprint,
                chat_template=loaded.own_template,
                targets=loaded.family.targets,
                memory_bytes=int(loaded.model.get_memory_footprint()),
                expert_weights=experts.weights_a_rank(loaded.model),
            )
        except StudioError as e:
            return BaseInfo(name=choice.base, loading=False, error=str(e))
        except Exception as e:
            logger.exception("the base model could not be loaded")
            return BaseInfo(
                name=choice.base,
                loading=False,
                error=f"{choice.base!r} could not be loaded ({type(e).__name__}: {e}).",
            )
