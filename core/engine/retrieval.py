"""Retrieval: indexing the documents of datasets in the background, and searching them. `engine.retrieval`.

    index ─> job in a process of its own ─> <dataset>/retrieval/<digest>.index ─ search ─> passages

The digest covers the rows of the dataset and the settings that the index depends on, so that a file is never
used for other content. Deleting a file, or the folder, costs the time of another indexing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data import datasets
from core.data.child_process import ChildProcess, Question
from core.data.dataset_records import Dataset
from core.engine.background_jobs import BackgroundJobs, Job, JobStatus
from core.engine.tokenizer_copies import compute_digest
from core.engine.worker import make_lock
from core.errors import SpecError, StorageError, StudioError
from core.retrieve.documents import check_has_texts
from core.retrieve.encoders import Encoder, load_encoder, name_encoder
from core.retrieve.extras import Extra, find_extra, list_extras
from core.retrieve.index import VERSION, ChunkIndex, Searcher, load_index
from core.retrieve.index_job import Request
from core.retrieve.passages import Passage
from core.spec.retrieval import PASSAGE_LIMIT, QUERY_LIMIT, RetrievalSettings
from core.store.files import storage_error
from core.store.workspace import Workspace

FOLDER = "retrieval"
SUFFIX = ".index"
KEEP = 3  # indexes of one dataset on the disk, the newest ones
OPEN = 4  # indexes in memory, the ones used last
ENDED_LIMIT = 50
DATASET_LIMIT = 16  # of one search


@dataclass(frozen=True)
class IndexStatus(JobStatus):
    """The indexing of a dataset, as the page and the terminal show it.

    Attributes:
        key: what `Retrieval.index` returned.
        dataset: id of the dataset.
        state: one of STATES; the last three are final.
        text: what it is doing now, such as "Encoding the chunks".
        done, total: of that, what is finished, and in all.
        chunks: of the index, at the end.
        encoder: the embeddings of the index, at the end; "" for words alone.
        problem: why it failed, for the user; else "".
        error: why it failed, as the error itself; else None.
    """

    key: str
    dataset: str
    state: str = "waiting"
    text: str = "Waiting for another index"
    done: int = 0
    total: int = 0
    chunks: int = 0
    encoder: str = ""
    problem: str = ""
    error: StudioError | None = None

    @property
    def share(self) -> float:
        """The finished share of what it is doing now, from 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(kw_only=True)
class IndexJob(Job):
    """The indexing of a dataset; `request` says of which, and where to."""

    status: IndexStatus
    request: Request


@dataclass(frozen=True)
class InstallStatus(JobStatus):
    """The installation of an extra; `key` is its name."""

    key: str
    state: str = "waiting"
    text: str = "Installing"
    problem: str = ""
    error: StudioError | None = None


@dataclass(kw_only=True)
class InstallJob(Job):
    """The installation of an extra."""

    status: InstallStatus
    extra: Extra


class Retrieval:
    """Indexes and searches the documents of datasets. Safe to call from any thread.

    Example:
        passages = engine.retrieval.search(dataset.id, "Where is the fog brush?", k=3)
        stream = engine.chat.stream("Where is the fog brush?", [Mix()], passages=[passages])
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._jobs: BackgroundJobs[IndexJob] = BackgroundJobs("index", ENDED_LIMIT)
        self._installs: BackgroundJobs[InstallJob] = BackgroundJobs("installation", ENDED_LIMIT)
        self._lock = make_lock()
        self._open: dict[str, ChunkIndex] = {}  # by the name of the file, the one used last at the end
        self._searchers: dict[tuple[str, RetrievalSettings], Searcher] = {}  # of open indexes
        self._encoders: dict[str, Encoder | None] = {}  # by name

    def index(self, dataset_id: str, settings: RetrievalSettings | None = None) -> str:
        """Starts the indexing of a dataset, unless its index exists or is being built; returns its key.

        Returns:
            A key for `status`, `wait` and `cancel`.

        Raises:
            NotFound, StorageError
            SpecError: the dataset holds no texts, or the package of the encoder is not installed.
        """
        settings = settings or RetrievalSettings()
        dataset = datasets.load_dataset(self._workspace, dataset_id)
        check_has_texts(dataset)
        key, path = self._place(dataset, settings)
        job = self._jobs.get(key)
        if job is not None and not job.status.has_ended:
            return key
        request = Request(self._workspace.root, dataset.id, settings, path)
        process = ChildProcess("core.retrieve.index_job", "index")
        new = IndexJob(
            key=key, status=IndexStatus(key, dataset.id), work=self._run, process=process, request=request
        )
        found = self._load(path)
        if found is None:
            self._jobs.start(new)
        else:
            new.set_status(state="done", text="Done", chunks=len(found.chunks), encoder=found.encoder)
            self._jobs.add(new)
        return key

    def status(self, key: str) -> IndexStatus:
        """The state of an indexing.

        Raises:
            NotFound: no indexing of this engine has this key.
        """
        return self._jobs.find(key).status

    def wait(self, key: str, seconds: float | None = None) -> IndexStatus:
        """Waits until an indexing has ended, at most so long, and returns its status.

        Raises:
            NotFound: no indexing of this engine has this key.
        """
        return self._jobs.wait(key, seconds).status

    def cancel(self, key: str) -> None:
        """Cancels an indexing; its process ends at once, and nothing is left.

        Raises:
            NotFound: no indexing of this engine has this key.
        """
        self._jobs.cancel(key)

    def search(
        self,
        dataset_ids: str | Sequence[str],
        query: str,
        k: int | None = None,
        settings: RetrievalSettings | None = None,
    ) -> list[Passage]:
        """The best passages of one or several datasets for a question; waits for indexes that are missing.

        Args:
            k: at most so many; None takes `settings.passages`.
            settings: None takes the defaults. Passages below its threshold are left out.

        Returns:
            The best first; an empty list means that nothing was found.

        Raises:
            SpecError: no dataset, no question, a dataset without texts, or a missing package.
            NotFound, StorageError, StudioError: the indexing failed.
        """
        settings = settings or RetrievalSettings()
        ids = [dataset_ids] if isinstance(dataset_ids, str) else list(dict.fromkeys(dataset_ids))
        count = settings.passages if k is None else k
        _check_search(ids, query, count)
        found = [
            p
            for one in ids
            for p in self._open_searcher(one, settings).search(query, count, settings.threshold)
        ]
        return sorted(found, key=lambda p: -p.score)[:count]  # stable: of equal scores the first dataset

    def list_documents(self) -> list[Dataset]:
        """The datasets that can be searched: those of texts, the newest first."""
        return [d for d in datasets.list_datasets(self._workspace) if d.kind == "domain"]

    # --- extras

    def extras(self) -> list[Extra]:
        """The optional packages, and whether each is installed."""
        return list_extras()

    def install(self, name: str) -> str:
        """Starts the installation of an optional package with pip; returns its key, which is its name.

        Raises:
            NotFound: no extra has this name.
        """
        extra = find_extra(name)
        job = self._installs.get(extra.name)
        if job is None or job.status.has_ended:
            process = ChildProcess("core.retrieve.extras", "installation")
            status = InstallStatus(extra.name)
            self._installs.start(
                InstallJob(key=extra.name, status=status, work=self._install, process=process, extra=extra)
            )
        return extra.name

    def install_status(self, key: str) -> InstallStatus:
        """The state of an installation.

        Raises:
            NotFound: it was not started.
        """
        return self._installs.find(key).status

    def wait_for_install(self, key: str, seconds: float | None = None) -> InstallStatus:
        """Waits until an installation has ended, at most so long, and returns its status.

        Raises:
            NotFound: it was not started.
        """
        return self._installs.wait(key, seconds).status

    def close(self) -> None:
        """Cancels every job and waits until its process has ended."""
        self._jobs.close()
        self._installs.close()

    # --- indexes

    def _place(self, dataset: Dataset, settings: RetrievalSettings) -> tuple[str, Path]:
        """The key of an index, and its file."""
        names = [file["name"] for file in dataset.files]
        cut = (settings.chunk_size, settings.overlap, name_encoder(settings.encoder))
        digest = compute_digest(VERSION, dataset.sha256, names, dataset.cuts, *cut)[:24]
        return f"{dataset.id}-{digest}", self._workspace.path(
            "datasets", dataset.id, FOLDER, f"{digest}{SUFFIX}"
        )

    def _load(self, path: Path) -> ChunkIndex | None:
        """The index in a file; None where it is missing or damaged. The ones used last stay in memory."""
        key = str(path)
        with self._lock:
            found = self._open.pop(key, None)
            if found is not None and path.exists():
                self._open[key] = found
                return found
        found = load_index(path)
        if found is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        with self._lock:
            self._open[key] = found
            while len(self._open) > OPEN:
                del self._open[next(iter(self._open))]
            self._searchers = {
                k: s for k, s in self._searchers.items() if any(s.index is i for i in self._open.values())
            }
        return found

    def _open_searcher(self, dataset_id: str, settings: RetrievalSettings) -> Searcher:
        """The searcher of a dataset; its index is built first where it is missing."""
        dataset = datasets.load_dataset(self._workspace, dataset_id)
        check_has_texts(dataset)
        _, path = self._place(dataset, settings)
        found = self._load(path)
        if found is None:
            status = self.wait(self.index(dataset_id, settings))
            if status.state != "done":
                raise status.error or StudioError("The indexing was cancelled.", "Start the search again.")
            found = self._load(path)
        if found is None:
            raise StorageError(
                f"The index of {dataset.name!r} cannot be read.", "Search again; it is then built again."
            )
        if not len(found.chunks):
            raise SpecError(
                f"The documents of {dataset.name!r} hold no text to search.", "Choose another dataset."
            )
        with self._lock:
            searcher = self._searchers.get((str(path), settings))
        if searcher is None or searcher.index is not found or searcher.dataset_name != dataset.name:
            encoder = self._get_encoder(settings.encoder) if found.encoder else None
            searcher = Searcher(found, settings, dataset.id, dataset.name, encoder)
            with self._lock:
                self._searchers[str(path), settings] = searcher
                while len(self._searchers) > 2 * OPEN:
                    del self._searchers[next(iter(self._searchers))]
        return searcher

    def _get_encoder(self, choice: str) -> Encoder | None:
        name = name_encoder(choice)
        with self._lock:
            if name not in self._encoders:
                self._encoders[name] = load_encoder(choice)
            return self._encoders[name]

    # --- on the threads of jobs

    def _run(self, job: IndexJob) -> dict[str, Any]:
        job.set_status(text="Starting")
        folder = job.request.path.parent
        try:
            folder.mkdir(exist_ok=True)  # never the dataset's own folder, which may have been deleted
        except OSError as e:
            raise storage_error(e, folder) from e

        def answer(question: Question) -> None:
            self._jobs.poll_cancel(job)
            progress = question["progress"]
            job.set_status(text=progress["text"], done=progress["done"], total=progress["total"])

        result = job.process.run(job.request, answer)
        _remove_old(folder)
        return {"chunks": int(result["chunks"]), "encoder": str(result["encoder"])}

    def _install(self, job: InstallJob) -> dict[str, Any]:
        job.process.run(job.extra)
        return {"text": f"{job.extra.package} is installed"}


def _check_search(ids: Sequence[str], query: str, count: int) -> None:
    if not 1 <= len(ids) <= DATASET_LIMIT:
        raise SpecError(
            f"A search must name 1 to {DATASET_LIMIT} datasets, got {len(ids)}.", "Choose datasets of texts."
        ).at("documents")
    if not query.strip() or len(query) > QUERY_LIMIT:
        raise SpecError(
            f"A question must have 1 to {QUERY_LIMIT:,} characters, got {len(query.strip()):,}.",
            "Write a shorter question." if query.strip() else "Write a question first.",
        )
    if not 1 <= count <= PASSAGE_LIMIT:
        raise SpecError(
            f"The number of passages must be between 1 and {PASSAGE_LIMIT}, got {count}.",
            "Choose a number in this range.",
        )


def _remove_old(folder: Path) -> None:
    """Removes all but the newest indexes of a dataset."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: p.stat().st_mtime, reverse=True)
        for file in files[KEEP:]:
            file.unlink(missing_ok=True)
