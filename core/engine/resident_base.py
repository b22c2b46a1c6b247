"""The one base model in memory: loads it, replaces it, and remembers which one was chosen.

Models are loaded on the worker's thread, which also imports torch, so that the page appears before torch is
loaded.
"""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.data.tokens.template_review import TemplateReview
from core.engine import base_files
from core.engine.fast_answers import FastAnswers
from core.engine.idle_memory import IdleMemory
from core.engine.worker import Worker
from core.errors import BaseModelError, DamagedRecord, StorageError, StudioError
from core.gguf.model_stores import ModelFolders
from core.store import base_models
from core.store.files import write_json
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.model.resident import Resident

logger = logging.getLogger(__name__)
DEFAULT_BASE = "embedded"


@dataclass(frozen=True)
class BaseInfo:
    """What the resident base is, or why none is loaded.

    Attributes:
        error: why no base is loaded; "" without an error.
        failed: why the base that was requested last could not be loaded; the previous base is resident then.
        parameters: number of weights. memory_bytes: size in memory. context: in tokens.
        chat_template: whether its own template is used. template: what is known about that template.
        targets: the module names that get an adapter by default.
        expert_weights: trainable weights per LoRA rank of an adapter on all experts; 0 without experts.
        thinks: whether the chat template writes thoughts, so that an answer can begin with one.
        answers: which weights answer in Mix and Compare, and why; "" is the base's own precision.
        progress: what is being done while the base is loading, such as a download; "" for loading itself.
    """

    name: str
    loading: bool = True
    error: str = ""
    failed: str = ""
    family: str = ""
    note: str = ""
    parameters: int = 0
    quantization: str = ""
    device: str = ""
    context: int = 0
    fingerprint: str = ""
    chat_template: bool = False
    template: TemplateReview = TemplateReview()
    targets: tuple[str, ...] = ()
    memory_bytes: int = 0
    expert_weights: int = 0
    thinks: bool = False
    progress: str = ""
    answers: str = ""


class BaseChoice(NamedTuple):
    """Which base is loaded, and how."""

    base: str
    quantization: str = "auto"
    device: str = "auto"


class ResidentBase:
    """Holds the base model. Any thread may call its methods, except `get`: only the worker's thread may.

    Args:
        base: "embedded", a local folder, a Hub id, or the name of a file that `base_files` converts; "" is
            the base chosen last in this workspace.
        quantization: one of `core.spec.training.QUANTIZATIONS`; with "auto", the base chosen last keeps the
            quantization that it was chosen with.
        device: "auto", "cpu" or "cuda".
        folders: where other programs keep their models.
        answers: one of `core.engine.fast_answers.ANSWERS`.

    Attributes:
        choice: the resident base, or the one that `load` will load.
        info: describes the resident base, or why none is loaded.
    """

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        base: str,
        quantization: str,
        device: str,
        folders: ModelFolders | None = None,
        answers: str = "exact",
    ) -> None:
        self._workspace, self._worker = workspace, worker
        self._answers = FastAnswers(workspace, worker, answers)
        self._memory = IdleMemory(workspace, worker)
        self._folders = folders or ModelFolders()
        self._is_closing = False
        self._resident: Resident | None = None
        self._requested = False
        self._missing_choice = ""  # why the base that was chosen last is not loaded
        if base:
            self.choice = BaseChoice(base, quantization, device)
        else:
            self.choice = self._read_choice(quantization, device)
        self.info = BaseInfo(name=self.choice.base, loading=False)

    def load(self) -> None:
        """Starts to load the base, once; returns immediately."""
        if not self._requested:
            self._requested = True
            self.info = BaseInfo(name=self.choice.base, loading=True)
            self._worker.post(self._load_first)

    def replace(self, base: str, quantization: str, is_chosen: bool = True) -> None:
        """Starts to replace the resident base by another one; returns immediately.

        Args:
            is_chosen: whether the next start of the studio loads it, too.
        """
        before, info = self.choice, self.info
        choice = before._replace(base=base, quantization=quantization)
        self._requested = True
        self.info = BaseInfo(name=base, loading=True)
        self._worker.post(lambda: self._replace(before, choice, info, is_chosen))

    def wait(self) -> BaseInfo:
        """Waits until the base is loaded and returns its description."""
        if self.info.loading:
            self._worker.call(lambda: None)
        return self.info

    def peek(self) -> Resident | None:
        """The base, to read its attributes from any thread; None while no base is loaded."""
        return self._resident

    def get(self) -> Resident:
        """The base, to compute with.

        Raises:
            BaseModelError: no base is loaded.
        """
        if self._resident is None:
            raise BaseModelError(
                self.info.error or "The base model is not loaded.",
                "Wait a moment, or start the studio with another base.",
            )
        return self._resident

    def close(self) -> None:
        """Stops the download or the conversion that precedes loading, and what follows it."""
        self._is_closing = True
        self._answers.stop()
        self._memory.stop()

    @property
    def file_bytes(self) -> int:
        """Bytes of the base that lie in a file: the system counts them as free, and training needs them."""
        return self._memory.file_bytes

    def release_memory(self) -> None:
        """Frees what a run has left; called on the worker's thread."""
        if self._resident is not None:
            self._memory.release()

    def _load_first(self) -> None:
        try:
            self.choice = self.choice._replace(base=self._prepare(self.choice.base))
        except StudioError as e:
            self.info = BaseInfo(name=self.choice.base, loading=False, error=str(e))
            return
        self.info = self._load(self.choice)
        self._choose_answers()

    def _choose_answers(self) -> None:
        """Decides which weights of the base that was just loaded answer."""
        resident = self._resident
        if resident is None:
            return

        def report(text: str) -> None:
            if self._resident is resident:
                self.info = replace(self.info, answers=text)

        self._answers.start(resident, report, lambda: self._memory.start(resident))

    def _prepare(self, name: str) -> str:
        """Downloads and converts a base from a file, on the worker's thread; returns what is loaded."""
        if not base_files.is_source(name, self._folders):
            return name
        log = base_files.make_logging_report(name)

        def report(text: str, done: int, total: int) -> None:
            share = f" ({done / total:.0%})" if total > 1 else ""
            self.info = replace(self.info, progress=f"{text}{share}")
            log(text, done, total)

        folder = base_files.prepare(self._workspace, name, self._folders, report, lambda: self._is_closing)
        self.info = BaseInfo(name=str(folder), loading=True)
        return str(folder)

    def _read_choice(self, quantization: str, device: str) -> BaseChoice:
        """The base chosen last, if it is complete on this machine; otherwise the embedded base."""
        default = BaseChoice(DEFAULT_BASE, quantization, device)
        try:
            choice = base_models.read_choice(self._workspace)
        except DamagedRecord as e:
            self._missing_choice = f"The base chosen last could not be read. {e.what}"
            return default
        if choice is None:
            return default
        name, stored_quantization = choice.base, choice.quantization
        try:
            source, is_local = base_models.locate(name)
            complete = is_local and (name == DEFAULT_BASE or not base_models.describe_defect(Path(source)))
        except (StudioError, OSError, RuntimeError, ValueError):
            complete = False  # the folder is gone, or on a mount that does not answer
        if complete:
            return BaseChoice(name, stored_quantization if quantization == "auto" else quantization, device)
        self._missing_choice = f"The base chosen last, {name!r}, is not complete on this machine any more."
        return default

    def _replace(self, before: BaseChoice, choice: BaseChoice, info: BaseInfo, is_chosen: bool) -> None:
        """Unloads the resident base, then loads the chosen one; reloads the old one if that fails."""
        self._missing_choice = ""
        resident = self._resident
        if resident is not None and resident.trainee_id:  # a run began after the change was requested
            self.info = info
            return
        self._worker.end_streams(
            BaseModelError(
                "The base model was changed while the answer was generated.", "Send the prompt again."
            )
        )
        self._answers.stop()
        self._memory.stop()
        self._resident = resident = None
        gc.collect()
        new = self._load(choice)
        if not new.error:
            self.choice = choice
            if is_chosen:
                self._store_choice()
        elif before != choice:
            old = self._load(before)
            new = old if old.error else replace(old, failed=new.error)
        self.info = new
        self._choose_answers()

    def _store_choice(self) -> None:
        choice = self.choice
        try:
            write_json(self._workspace.base_path, {"base": choice.base, "quantization": choice.quantization})
        except StorageError as e:
            logger.warning("the choice of a base was not stored: %s", e)

    def _load(self, choice: BaseChoice) -> BaseInfo:
        """Loads a base on the worker's thread; returns its description, or the error."""
        try:
            from core.data.tokens.rendering import renders_thoughts
            from core.model import experts
            from core.model.base import load_base
            from core.model.resident import Resident

            logger.info("Loading the base %s", choice.base)
            begin = time.monotonic()
            base = load_base(*choice, workspace=self._workspace)
            self._resident = Resident(base, self._workspace)
            logger.info("The base %s is loaded (%.1f s)", choice.base, time.monotonic() - begin)
            return BaseInfo(
                name=choice.base,
                loading=False,
                failed=self._missing_choice,
                family=base.family.label,
                note=base.family.note,
                parameters=base.parameters,
                quantization=base.quantization,
                device=str(base.device),
                context=base.context,
                fingerprint=base.fingerprint,
                chat_template=base.has_own_template,
                template=base.template,
                targets=base.family.targets,
                memory_bytes=int(base.model.get_memory_footprint()),
                expert_weights=experts.parameters_per_rank(base.model),
                thinks=renders_thoughts(base.tokenizer),
            )
        except StudioError as e:
            return BaseInfo(name=choice.base, loading=False, error=str(e))
        except Exception as e:
            logger.exception("the base model could not be loaded")
            what = f"{choice.base!r} could not be loaded ({type(e).__name__}: {e})."
            return BaseInfo(name=choice.base, loading=False, error=what)
