"""Adapters of other tools: examined, added to the library, and proven. `engine.adapter_imports`.

    path, zip file, Hub id ─ core.importing ─> Preflight ─ repairs ─> adapters/<id> ─> Proof

Files are read on the thread of the caller. The worker's thread only describes the base and answers a proof,
so that the resident model stays as it is, and answers go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.engine.resident_base import ResidentBase
from core.engine.worker import BackgroundTask, Worker
from core.errors import AdapterError
from core.progress import Progress
from core.store import adapters as adapter_store
from core.store import hub_adapters
from core.store.adapters import Adapter
from core.store.base_models import HUB_ID
from core.store.files import ensure_space, sha256_of, size_of
from core.store.gate_records import make_note
from core.store.workspace import Workspace, check_name, make_id

if TYPE_CHECKING:
    from core.importing.base_view import BaseView
    from core.importing.examination import Plan
    from core.importing.findings import Preflight, Proof
    from core.importing.foreign import ForeignAdapter

KINDS = ("task", "domain")
NAME_LIMIT = 80  # characters of a source in a sentence about its progress
TEXT_LIMIT = 300  # characters of a sentence that is kept with the adapter


@dataclass(frozen=True)
class _Examined:
    preflight: Preflight
    foreign: ForeignAdapter
    base: BaseView
    plan: Plan


class Reading:
    """An examination on a thread of its own, which a page follows: a Hub id or a large zip takes its time.

    Args:
        examine: receives a function that takes the folder which files are copied to, and examines.
    """

    def __init__(self, source: str, examine: Callable[[Callable[[Path], None]], Preflight]) -> None:
        self._source, self._folder = source, Path()
        self._preflight: Preflight | None = None
        self._error: BaseException | None = None

        def work(task: BackgroundTask) -> None:
            try:
                self._preflight = examine(lambda folder: setattr(self, "_folder", folder))
            except BaseException as e:  # noqa: BLE001 (raised again by `result`)
                self._error = e

        self._begun = time.monotonic()
        self._task = BackgroundTask(work, "examine")

    def wait(self, seconds: float) -> bool:
        """Waits for the end, for at most `seconds`; returns whether it was reached."""
        self._task.join(seconds)
        return not self._task.is_alive

    @property
    def progress(self) -> Progress:
        """Bytes that were downloaded or extracted so far, and what is done now."""
        size = 0
        with contextlib.suppress(OSError):  # files move while they are downloaded
            size = size_of(self._folder) if self._folder.name else 0
        seconds = int(time.monotonic() - self._begun)
        return Progress(size, 0, f"{self._source} is being read, for {seconds} s.")

    def result(self) -> Preflight:
        """What was found, after the end.

        Raises:
            what `AdapterImports.examine` raises.
        """
        if self._error is not None:
            raise self._error
        assert self._preflight is not None
        return self._preflight


class AdapterImports:
    """Imports adapters. Safe to call from any thread.

    Args:
        resident_base: the base in memory, which adapters are examined against.
    """

    def __init__(self, workspace: Workspace, worker: Worker, resident_base: ResidentBase) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base

    def examine(self, source: str, repairs: Collection[str] = ()) -> Preflight:
        """Reads a foreign adapter and compares it with the resident base; nothing is stored or loaded.

        Args:
            source: a folder, a file, a zip file, or a Hub id, which may end in "@revision".
            repairs: ids of `core.importing.findings.Repair`.

        Raises:
            NotFound, AdapterError, DataError: it cannot be read. BaseModelError: no base is loaded.
        """
        with self._open(source, repairs) as examined:
            return examined.preflight

    def start_examination(self, source: str, repairs: Collection[str] = ()) -> Reading:
        """Begins `examine` on a thread of its own.

        Args:
            source, repairs: as for `examine`.
        """

        def examine(watch: Callable[[Path], None]) -> Preflight:
            with self._open(source, repairs, watch) as examined:
                return examined.preflight

        return Reading(source.strip()[-NAME_LIMIT:], examine)

    def add(self, source: str, name: str = "", repairs: Collection[str] = (), kind: str = "task") -> Adapter:
        """Adds a foreign adapter to the library, complete or not at all.

        Args:
            source, repairs: as for `examine`.
            name: the display name; "" takes that of the source.
            kind: "task" or "domain".

        Raises:
            AdapterError: a finding blocks the import. Also what `examine` raises.
            StorageError, DiskFull: it could not be written; nothing of it is left.
        """
        with self._open(source, repairs) as examined:
            preflight = examined.preflight
            if blocking := preflight.open_findings:
                raise _refuse(blocking[0], len(blocking))
            from core.importing.conversion import convert

            clean = check_name(name or preflight.name.replace("/", " "))
            tensors, config = convert(examined.foreign, examined.base, examined.plan)
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            ensure_space(self._workspace.root, size)
            metadata = _describe_origin(examined, kind)

            def write(path: Path) -> None:
                from safetensors.torch import save_file

                save_file(tensors, path)

            return adapter_store.add(self._workspace, make_id(clean), clean, write, config, metadata)

    def prove(self, adapter_id: str, line: str, chat: bool = True) -> Proof:
        """Answers one line with the base and with an adapter; see `core.importing.proof`.

        Raises:
            NotFound, AdapterError, SpecError, BaseModelError
        """
        adapter = adapter_store.load(self._workspace, adapter_id)
        origin = adapter.metadata.get("imported")
        origin = origin if isinstance(origin, dict) else {}

        def work() -> Proof:
            from core.importing.proof import check_line, prove
            from core.importing.templates import render

            template = str(origin.get("template") or "")
            rendered = [("the template in its folder", text)] if (text := render(template, line)) else []
            resident = self._resident_base.get()
            with_forms = bool(origin.get("tries_forms"))
            return prove(resident, adapter_id, check_line(line), chat, rendered, with_forms)

        return self._worker.call(work)

    @contextlib.contextmanager
    def _open(
        self, source: str, repairs: Collection[str], watch: Callable[[Path], None] = lambda folder: None
    ) -> Iterator[_Examined]:
        """Examines an adapter; files that were extracted, downloaded or converted exist inside the block.

        Args:
            watch: receives the folder of these files.
        """
        with self._workspace.temporary_folder() as scratch:
            watch(scratch)
            path = self._find(source, scratch)
            base = self._worker.call(self._describe_base)
            from core.importing.examination import examine
            from core.importing.foreign import read_foreign
            from core.importing.sources import open_source

            with open_source(path, scratch) as files:
                foreign = read_foreign(files, scratch)
                preflight, plan = examine(foreign, base, repairs)
                yield _Examined(preflight, foreign, base, plan)

    def _find(self, source: str, scratch: Path) -> Path:
        """The path of a source; an adapter of the Hub is downloaded."""
        text = source.strip()
        name, _, revision = text.partition("@")
        if not Path(text).expanduser().exists() and HUB_ID.fullmatch(name):
            from core.importing.sources import is_read

            return hub_adapters.download(name, revision, scratch, is_read)
        return Path(text)

    def _describe_base(self) -> BaseView:
        from core.importing.base_view import describe_base

        return describe_base(self._resident_base.get())


def _refuse(finding: Any, count: int) -> AdapterError:
    """The error of an import that a finding blocks."""
    ways = " or ".join(f"{r.label} (repair {r.id})" for r in finding.repairs)
    more = f" {count - 1} other findings block it, too." if count > 1 else ""
    fix = f"{finding.follows} {'Choose: ' + ways + '.' if ways else ''}{more}".strip()
    return AdapterError(f"The adapter was not imported. {finding.what}", fix)


def _list_stop_tokens(examined: _Examined) -> list[str]:
    """The stop tokens that the user chose to add."""
    from core.importing.surroundings import ADD_STOP, read_stop_token

    is_added = ADD_STOP.id in examined.plan.repairs
    return [read_stop_token(examined.foreign.files.tokenizer)] if is_added else []


def _describe_origin(examined: _Examined, kind: str) -> dict[str, Any]:
    """The metadata of an imported adapter: where it comes from, what was found, and what was repaired."""
    preflight, files = examined.preflight, examined.foreign.files
    kept = [asdict(f) for f in preflight.findings]
    for finding in kept:
        for field in ("what", "follows"):
            finding[field] = str(finding[field])[:TEXT_LIMIT]
        del finding["repairs"]
    template = files.template if files.template.strip() != examined.base.template.strip() else ""
    return {
        "kind": kind if kind in KINDS else KINDS[0],
        "base": {"name": examined.base.name, "fingerprint": examined.base.fingerprint},
        "gate": make_note("it was imported, and its own data is not known"),
        "imported": {
            "tool": preflight.tool[:TEXT_LIMIT],
            "form": preflight.form[:TEXT_LIMIT],
            "source": preflight.source[:TEXT_LIMIT],
            "claimed_base": preflight.claimed_base[:TEXT_LIMIT],
            "file_sha256": sha256_of(files.weights),
            "repairs": sorted(examined.plan.repairs),
            "findings": kept,
            "template": template,
            "stop_tokens": _list_stop_tokens(examined),
            "stop_ids": list(examined.plan.stop_ids),
            "tries_forms": any(f.id == "prompt-form" for f in preflight.findings),
        },
    }
