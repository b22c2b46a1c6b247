"""Base models: listing, downloading, converting files, and switching. `engine.bases`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from core.engine import base_files
from core.engine.resident_base import DEFAULT_BASE, BaseChoice, BaseInfo, ResidentBase
from core.engine.runs import Runs
from core.engine.worker import BackgroundTask, Worker
from core.errors import BaseModelError, Busy, NotFound, SpecError, StudioError
from core.gguf import model_stores
from core.gguf.model_stores import ModelFolders
from core.progress import LineClock
from core.spec.training import QUANTIZATIONS
from core.store import accepted_templates, adapters, base_models, converted_bases, hub
from core.store.base_models import LocalBase
from core.store.converted_bases import KIND, ConvertedBase
from core.store.hub import Download
from core.store.known_bases import KNOWN_BASES
from core.store.trash import TrashedItem
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)


class Bases:
    """Lists, downloads and switches base models. Safe to call from any thread."""

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        resident_base: ResidentBase,
        runs: Runs,
        folders: ModelFolders | None = None,
    ) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._runs, self._folders = runs, folders or ModelFolders()
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
            name: "embedded", a local folder, a Hub id whose files are on this machine, or a file that
                `download` has converted.
            confirmed: the user has read the warnings.

        Returns:
            An empty list once the change has started. The sentences of `unload_warnings`, if there are any
            and the change is not `confirmed`; the base stays then.

        Raises:
            BaseModelError: no such base on this machine. SpecError: unknown quantization. Busy: a run is
                training, queued or measured on the resident base, or a base is being loaded.
        """
        if quantization not in QUANTIZATIONS:
            raise SpecError(
                f"Quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}.",
                "Choose one of them.",
            )
        source = self.locate(name)
        self._check_idle()
        if not confirmed and (warnings := self.unload_warnings()):
            return warnings
        self._resident_base.replace(source, quantization)
        return []

    def load_temporarily(self, choice: BaseChoice, ends_answers: bool = False) -> None:
        """Changes the resident base and waits until it is loaded; the next start loads the one before.

        Args:
            choice: of what `locate` returns.
            ends_answers: change it also while answers are in progress; they end with an error.

        Raises:
            BaseModelError: it could not be loaded; the base before is resident then. Busy: as for `switch`,
                or answers are in progress.
        """
        self._check_idle()
        if not ends_answers and (count := self._worker.open_streams):
            what = _count(count, "answer or measurement is", "answers or measurements are")
            raise Busy(f"{what} in progress.", "Wait until they end.")
        self._resident_base.replace(choice.base, choice.quantization, is_chosen=False)
        info = self._resident_base.wait()
        if reason := info.failed or info.error:
            raise BaseModelError(reason)
        if self._resident_base.choice != choice:
            raise Busy("A run began on the resident base.", "Wait until it ends.")

    def compute_fingerprint(self, name: str) -> str:
        """The fingerprint of a base on this machine, without loading it.

        Raises:
            BaseModelError: no such base on this machine, or its files cannot be read.
        """
        from core.model.base import fingerprint

        source, _ = base_models.locate(self.locate(name))
        try:
            return fingerprint(Path(source))
        except (OSError, ValueError) as e:
            raise BaseModelError(f"The files of {name!r} cannot be read: {e}.", "Download it again.") from e

    def locate(self, name: str) -> str:
        """What is loaded for a base: "embedded", a Hub id, or a folder.

        Raises:
            BaseModelError: no such base on this machine, or its folder is not complete.
        """
        name = self._resolve(name.strip())
        source, is_local = base_models.locate(name)
        if not is_local:
            raise BaseModelError(f"{name!r} is not complete on this machine.", "Download it first.")
        if name != DEFAULT_BASE and (reason := base_models.describe_defect(Path(source))):
            raise BaseModelError(f"{name!r} cannot be used. {reason}", "Choose another folder.")
        is_hub_id = base_models.HUB_ID.fullmatch(name) and not Path(name).is_dir()
        return name if name == DEFAULT_BASE or is_hub_id else source

    def _check_idle(self) -> None:
        """Checks that the resident base can be replaced now.

        Raises:
            Busy: a run is training, queued or measured on it, or a base is being loaded.
        """
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

    def accept_template(self, digest: str) -> None:
        """Uses the own chat template of the resident base from now on; loads the base again.

        Args:
            digest: of the template that the user has seen.

        Raises:
            SpecError: the resident base waits for no such acceptance. Busy: see `switch`. StorageError
        """
        base = self.current()
        is_asked = base.template.differs and not base.chat_template and not base.loading
        if not is_asked or digest != base.template.digest:
            raise SpecError(
                "The resident base has no chat template that waits to be accepted.",
                "Look at the Base tab, or at `bases template`, again.",
            )
        self._check_idle()
        accepted_templates.store(self._workspace, digest, accepted_templates.ACCEPTED)
        choice = self._resident_base.choice
        self._resident_base.replace(choice.base, choice.quantization)

    # --- on this machine

    def list(self) -> list[LocalBase]:
        """Bases on this machine.

        These are the embedded one, what was converted from files, the Hub's cache, folders beside known
        bases, and the models of Ollama and LM Studio, which are converted before they are used.
        """
        known = [
            self.current().name,
            *(a.base for a in adapters.load_all(self._workspace)),
        ]
        converted = self._list_own()
        own = {base.name for base in converted}
        nearby = [base for base in base_models.list_nearby(known) if base.name not in own]
        return [
            LocalBase(DEFAULT_BASE, DEFAULT_BASE, "llama"),
            *converted,
            *base_models.list_cache(),
            *nearby,
            *self._list_stores(),
        ]

    def _list_own(self) -> Sequence[LocalBase]:
        bases = []
        for base in converted_bases.load_all(self._workspace):
            folder = converted_bases.folder_of(self._workspace, base)
            found = base_models.describe_folder(folder)
            kind = f"{found.kind}, from {base.quantization}" if base.quantization else found.kind
            bases.append(replace(found, place="converted", kind=kind, label=base.name))
        return bases

    def _list_stores(self) -> Sequence[LocalBase]:
        bases = []
        for model in model_stores.list_models(self._folders):
            summary, why = (None, model.why) if model.why else base_files.summarize(model.path)
            parts = (summary.architecture, summary.quantization) if summary else ()
            kind = ", ".join(filter(None, parts))
            bases.append(LocalBase(model.name, model.store, kind, model.bytes, why, model.label))
        return bases

    def find_folder(self, name: str) -> str:
        """The folder of a converted base, given by its id, its name or its folder.

        Raises:
            NotFound: there is none, or several have this name.
        """
        return str(converted_bases.folder_of(self._workspace, self._find_own(name)))

    def _find_own(self, name: str) -> ConvertedBase:
        bases = converted_bases.load_all(self._workspace)
        found = [
            b for b in bases if name in (b.id, b.name, str(converted_bases.folder_of(self._workspace, b)))
        ]
        if len(found) != 1:
            problem = f"{len(found)} bases are called" if found else "No converted base is called"
            raise NotFound(f"{problem} {name!r}.", "See `bases list` for the folders.")
        return found[0]

    def remove(self, name: str) -> TrashedItem:
        """Moves a base that was converted from a file to the trash; the file itself stays.

        Args:
            name: its id, its name or its folder.

        Raises:
            NotFound: there is none, or several have this name. Busy: it is the resident base.
        """
        base = self._find_own(name)
        folder = str(converted_bases.folder_of(self._workspace, base))
        if self.current().name == folder and not self.current().error:
            raise Busy(f"{base.name!r} is the resident base.", "Change to another base first.")
        return self._workspace.remove(KIND, base.id, base.name)

    # --- from files

    def needs_preparation(self, name: str) -> bool:
        """Whether `download` has to download or convert a file before `switch` can use it."""
        name = name.strip()
        is_source = base_files.is_source(name, self._folders)
        return is_source and base_files.find_folder(self._workspace, name, self._folders) is None

    def _resolve(self, name: str) -> str:
        """The folder that a file was converted into; any other name as it is.

        Raises:
            BaseModelError: it is not converted.
        """
        if not base_files.is_source(name, self._folders):
            return name
        folder = base_files.find_folder(self._workspace, name, self._folders)
        if folder is None:
            how = "downloaded" if name in KNOWN_BASES else "converted"
            raise BaseModelError(f"{name!r} is not {how} yet.", f"`bases download {name}` does that.")
        return str(folder)

    def _run_preparation(self, name: str, task: BackgroundTask, use: bool, quantization: str) -> None:
        """Downloads and converts; then changes the base, if that unloads nothing."""
        log = base_files.make_logging_report(name, logger)

        def report(text: str, done: int, total: int) -> None:
            self._download = Download(name, done, total, text=text)
            log(text, done, total)

        folder = base_files.prepare(self._workspace, name, self._folders, report, lambda: task.stopping)
        size = sum(f.stat().st_size for f in folder.glob(base_models.WEIGHTS))
        text = "ready"
        if use:
            text = "waiting" if self.switch(str(folder), quantization) else "used"
        self._download = Download(name, size, size, over=True, text=text, base=str(folder))

    # --- from the Hub

    def download(self, name: str, use: bool = False, quantization: str = "auto") -> None:
        """Starts to download a base, or to convert a file into one; returns immediately.

        A partial download is continued.

        Args:
            name: a Hub id, "smollm2-135m", the path of a GGUF file, or a model of Ollama.
            use: change to a base that was made from a file, once it is ready, if that unloads nothing.
            quantization: of the change.

        Raises:
            BaseModelError: `name` is none of these. Busy: another download is in progress.
        """
        name = name.strip()
        is_source = base_files.is_source(name, self._folders)
        if not is_source and not base_models.HUB_ID.fullmatch(name):
            raise BaseModelError(
                f'A Hub id must have the form "owner/name", got {name!r}.',
                'For example "Qwen/Qwen2.5-0.5B-Instruct".',
            )
        if self._task is not None and self._task.is_alive:
            current = self._download.name if self._download else name
            raise Busy(f"{current!r} is being downloaded.", "Wait until it is complete, or stop it.")
        self._download = Download(name)

        def prepare(name: str, task: BackgroundTask) -> None:
            self._run_preparation(name, task, use, quantization)

        work = prepare if is_source else self._run_download
        self._task = BackgroundTask(lambda task: self._guard(name, task, work))

    def _run_download(self, name: str, task: BackgroundTask) -> None:
        clock = LineClock()

        def report(state: Download) -> None:
            self._download = state
            if clock.is_due():
                logger.info("%s: %.1f of %.1f MB downloaded", name, state.done / 1e6, state.total / 1e6)

        hub.download(name, report, lambda: task.stopping)
        last = self._download or Download(name)
        self._download = Download(name, last.total, last.total, over=True)

    def _guard(self, name: str, task: BackgroundTask, work: Callable[[str, BackgroundTask], None]) -> None:
        """Runs a download; its error becomes the state that the page shows."""
        try:
            work(name, task)
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
