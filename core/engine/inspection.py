"""Inspections of datasets in the background: starting, following and cancelling them. `engine.inspection`.

Each runs in a process of its own (`core.data.inspection_job`), one at a time: a busy thread of this process
would make the model's thread wait for the interpreter at every operation. The result is kept in the dataset's
folder as inspection.json, under a key of everything that it depends on; deleting the file costs the time of
another inspection.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data import datasets
from core.data.inspection import Inspection
from core.data.inspection_job import Request, build_command
from core.data.token_checks import TokenizerOfBase
from core.engine.worker import BackgroundTask, Worker
from core.errors import BaseModelError, Busy, Cancelled, NotFound, StudioError
from core.spec.training import TrainSpec
from core.store.files import replace as rename_over
from core.store.json_text import parse_object
from core.store.record_types import check_type
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.model.resident import Resident

logger = logging.getLogger(__name__)

STATES = ("waiting", "running", "done", "failed", "cancelled")
FILE = "inspection.json"
VERSION = 1  # of the checks; another version does not use what this one kept
MAX_LENGTH = TrainSpec.max_length  # the default of the form
BASE_WAIT = 10.0  # seconds to wait for the model's thread with a copy of its tokenizer
POLL_SECONDS = 0.1
ENDED_LIMIT = 100  # ended inspections whose result is kept in memory


@dataclass(frozen=True)
class InspectionStatus:
    """One inspection, as the page and the terminal show it.

    Attributes:
        key: what `Inspections.start` returned.
        state: one of STATES; the last three are final.
        text: what it is doing now, such as "Counting tokens".
        done, total: of that, what is finished, and in all; mostly rows.
        problem: why it failed, for the user; else "".
    """

    key: str
    state: str = "waiting"
    text: str = "Waiting for another inspection"
    done: int = 0
    total: int = 0
    problem: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def share(self) -> float:
        """The finished share of what it is doing now, from 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass
class _Job:
    """An inspection.

    Attributes:
        content: what its result depends on; see `Inspections._describe`.
        request: None until the thread of the job has made it.
    """

    status: InspectionStatus
    content: str
    request: Request
    result: Inspection | None = None
    is_cancelled: bool = False
    process: subprocess.Popen[bytes] | None = None
    task: BackgroundTask | None = None


@dataclass(frozen=True)
class _BaseCopy:
    """A copy of a base's tokenizer, and the digest of what counts depend on."""

    base: TokenizerOfBase | None
    digest: str
    problem: str = ""


class Inspections:
    """Inspects datasets and files. Safe to call from any thread.

    Args:
        resident: returns the resident base; called on the model's thread only.
    """

    def __init__(self, workspace: Workspace, worker: Worker, resident: Callable[[], Resident]) -> None:
        self._workspace, self._worker, self._resident = workspace, worker, resident
        self._jobs: dict[str, _Job] = {}
        self._copy: tuple[object, _BaseCopy] | None = None
        self._is_closing = False

    def start(self, dataset_id: str, max_length: int = MAX_LENGTH) -> str:
        """Starts the inspection of a dataset, unless it is known already or runs; returns its key at once.

        Args:
            max_length: tokens of a training sequence, for the longer rows and the packed one.

        Returns:
            The id of the dataset, which `status`, `get` and `cancel` take.

        Raises:
            NotFound, StorageError
        """
        dataset = datasets.load_dataset(self._workspace, dataset_id)
        others = self._list_others(dataset)
        copy = self._copy_base()
        content = _digest(VERSION, dataset.sha256, dataset.split_sha256, max_length, copy.digest,
                          [(o.id, o.sha256, o.split_sha256, o.name) for o in others])  # fmt: skip
        request = Request(
            self._workspace.root,
            dataset_id,
            others=[o.id for o in others],
            max_length=max_length,
            base=copy.base,
            tokens_problem=copy.problem,
        )
        return self._start(dataset_id, content, request)

    def start_files(
        self,
        paths: Sequence[str | Path],
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        encoding: str = "utf-8",
        purpose: str = "training",
        max_length: int = MAX_LENGTH,
    ) -> str:
        """Starts the inspection of files before their import; the args are those of `datasets.preview`.

        Returns:
            A key for `status`, `get` and `cancel`. Errors of the files are in `InspectionStatus.problem`.
        """
        files = [Path(path).resolve() for path in paths]
        copy = self._copy_base()
        stats = [(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.exists()]
        content = _digest(VERSION, stats, kind, roles, encoding, purpose, max_length, copy.digest)
        others = [d.id for d in datasets.list_datasets(self._workspace) if kind in (None, d.kind)]
        request = Request(
            self._workspace.root,
            paths=files,
            kind=kind,
            roles=roles,
            encoding=encoding,
            purpose=purpose,
            others=others,
            max_length=max_length,
            base=copy.base,
            tokens_problem=copy.problem,
        )
        return self._start(f"files-{content[:16]}", content, request)

    def status(self, key: str) -> InspectionStatus:
        """The state of an inspection.

        Raises:
            NotFound: no inspection of this engine has this key.
        """
        return self._find(key).status

    def get(self, key: str) -> Inspection | None:
        """The result of an inspection; None while it runs, or where it failed.

        Raises:
            NotFound: no inspection of this engine has this key.
        """
        return self._find(key).result

    def cancel(self, key: str) -> None:
        """Cancels an inspection; its process ends at once, and nothing is left.

        Raises:
            NotFound: no inspection of this engine has this key.
        """
        job = self._find(key)
        job.is_cancelled = True
        if (process := job.process) is not None:
            process.kill()

    def wait(self, key: str, seconds: float | None = None) -> InspectionStatus:
        """Waits until an inspection has ended, at most so long, and returns its status.

        Raises:
            NotFound: no inspection of this engine has this key.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (status := self.status(key)).has_ended:
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        return status

    def close(self) -> None:
        """Cancels every inspection and waits until its process has ended."""
        self._is_closing = True
        for job in list(self._jobs.values()):
            if not job.status.has_ended:
                self.cancel(job.status.key)
                if job.task is not None:
                    job.task.join(10.0)

    # --- starting

    def _start(self, key: str, content: str, request: Request) -> str:
        job = self._jobs.get(key)
        if job is not None and job.content == content and job.status.state in ("waiting", "running", "done"):
            return key
        if job is not None and not job.status.has_ended:  # the base or another dataset has changed since
            self.cancel(key)
        job = _Job(InspectionStatus(key), content, request)
        if request.dataset_id:
            job.result = self._read_cache(request.dataset_id, content)
        if job.result is not None:
            job.status = replace(job.status, state="done", text="Done")
        self._forget_oldest()
        self._jobs[key] = job
        if job.result is None:
            job.task = BackgroundTask(lambda task: self._run(job), name=f"inspection {key}")
        return key

    def _list_others(self, dataset: datasets.Dataset) -> list[datasets.Dataset]:
        everything = datasets.list_datasets(self._workspace)
        return [other for other in everything if other.id != dataset.id and other.kind == dataset.kind]

    def _copy_base(self) -> _BaseCopy:
        """A copy of the tokenizer of the base that is loaded, made on the model's thread once a base."""

        def copy() -> _BaseCopy:
            base = self._resident().base
            if self._copy is None or self._copy[0] is not base:
                self._copy = (base, _copy_tokenizer(base))
            return self._copy[1]

        try:
            return self._worker.call(copy, BASE_WAIT)
        except BaseModelError:
            return _BaseCopy(None, "", "Tokens are not counted without a base model.")
        except Busy:
            return _BaseCopy(None, "", "The model was busy or still loading, so that tokens are not counted.")

    def _find(self, key: str) -> _Job:
        job = self._jobs.get(key)
        if job is None:
            raise NotFound(f"No inspection has the key {key!r}.", "Start it again.")
        return job

    def _forget_oldest(self) -> None:
        ended = [key for key, job in list(self._jobs.items()) if job.status.has_ended]
        for key in ended[: max(0, len(ended) - ENDED_LIMIT)]:
            del self._jobs[key]

    # --- on the job's thread

    def _run(self, job: _Job) -> None:
        try:
            self._wait_for_turn(job)
            job.status = replace(job.status, state="running", text="Starting")
            job.result = self._run_process(job)
            if job.request.dataset_id:
                self._write_cache(job.request.dataset_id, job.content, job.result)
            job.status = replace(job.status, state="done", text="Done")
        except Cancelled:
            job.status = replace(job.status, state="cancelled", text="Cancelled")
        except StudioError as e:
            job.status = replace(job.status, state="failed", text="Failed", problem=str(e))
        except Exception as e:  # a defect; the page must not wait without end
            logger.exception("an inspection failed")
            problem = f"The inspection failed: {type(e).__name__}: {e}"
            job.status = replace(job.status, state="failed", text="Failed", problem=problem)

    def _wait_for_turn(self, job: _Job) -> None:
        """Waits for the inspections that were started before."""
        while True:
            self._poll_cancel(job)
            before = [j for j in list(self._jobs.values()) if not j.status.has_ended]
            if not before or before[0] is job:
                return
            time.sleep(POLL_SECONDS)

    def _poll_cancel(self, job: _Job) -> None:
        if job.is_cancelled or self._is_closing:
            raise Cancelled("The inspection was cancelled.")

    def _run_process(self, job: _Job) -> Inspection:
        """Starts the child, follows its reports, and returns its result.

        Raises:
            StudioError: what the child reported, or its unexpected end. Cancelled
        """
        with subprocess.Popen(
            build_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            job.process = process
            try:
                assert process.stdin is not None and process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    pickle.dump(job.request, process.stdin)
                    process.stdin.close()
                for line in process.stdout:
                    self._poll_cancel(job)
                    message = json.loads(line)
                    if "inspection" in message:
                        return check_type(Inspection, message["inspection"])  # type: ignore[no-any-return]
                    if "error" in message:
                        raise StudioError(message["error"], message["fix"])
                    job.status = replace(job.status, **message)
            finally:
                job.process = None
                process.kill()
        self._poll_cancel(job)
        raise StudioError(
            f"The process of the inspection ended with code {process.returncode}.",
            "It may have run out of memory. Close other programs and inspect again.",
        )

    # --- the cache

    def _read_cache(self, dataset_id: str, content: str) -> Inspection | None:
        """The inspection that was kept for this content; None without one, or if it is damaged."""
        try:
            record = parse_object(self._workspace.path("datasets", dataset_id, FILE).read_bytes())
            if record["content"] != content:
                return None
            return check_type(Inspection, record["inspection"])  # type: ignore[no-any-return]
        except (OSError, ValueError, TypeError, LookupError, RecursionError, StudioError):
            return None

    def _write_cache(self, dataset_id: str, content: str, inspection: Inspection) -> None:
        """Keeps an inspection. Its folder is not created: the dataset may have been deleted meanwhile."""
        path = self._workspace.path("datasets", dataset_id, FILE)
        partial = path.with_name(f".{FILE}.{secrets.token_hex(4)}.partial")
        record: Mapping[str, Any] = {"content": content, "inspection": inspection.to_json()}
        try:
            partial.write_text(json.dumps(record), encoding="utf-8")
            rename_over(partial, path)
        except OSError as e:
            logger.info("the inspection of %s was not kept: %s", dataset_id, e)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(partial)


def _copy_tokenizer(base: Any) -> _BaseCopy:
    """Copies a tokenizer through pickle, which the child does as well."""
    copy = TokenizerOfBase(base.name, base.tokenizer, base.eos_ids, base.context)
    try:
        copy = pickle.loads(pickle.dumps(copy))
    except Exception as e:  # noqa: BLE001 (a tokenizer of a library that cannot be copied)
        logger.info("the tokenizer of %s cannot be copied: %s", base.name, e)
        return _BaseCopy(None, "", f"The tokenizer of {base.name} cannot be copied ({type(e).__name__}).")
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else ""
    template = str(base.tokenizer.chat_template)
    return _BaseCopy(copy, _digest(base.fingerprint, base.name, base.context, base.eos_ids, template, text))


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
