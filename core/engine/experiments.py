"""Experiments: a matrix of mixes and documents on the same questions, cell by cell. `engine.experiments`.

    start ─> experiments/<id>/experiment.json ─ job ─> cells of the resident base, all in one batch
                                                   └─> cells at addresses, one after the other
    results ─> figures with intervals, differences inside a group, the gate

A row that needs another base, an adapter that is not there, or a key is not run, with the reason; `resume`
runs it when it can. Nothing that is answered is answered again: a complete cell of any experiment answers for
the same cell of another.
"""

from __future__ import annotations

import builtins
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from core.data.samples import Samples
from core.engine.background_jobs import BackgroundJobs, Job, JobStatus
from core.engine.base_files import find_folder
from core.engine.datasets import Datasets
from core.engine.experiment_address import ask_address
from core.engine.experiment_cells import CellWork, OpenCell, ResidentCells, make_key
from core.engine.experiment_questions import (
    AskedQuestion,
    Search,
    describe_passages,
    find_passages,
    hash_questions,
    make_writer,
    read_general,
    read_questions,
)
from core.engine.experiment_results import ExperimentResults, make_results
from core.engine.library import Library
from core.engine.resident_base import ResidentBase
from core.engine.worker import Worker
from core.errors import Busy, Cancelled, NotFound, SpecError, StudioError
from core.evaluate.answer_figures import choose_metrics
from core.gguf.model_stores import ModelFolders
from core.retrieve.prompt import INSTRUCTION
from core.spec.answer_metrics import FACT_RULE
from core.spec.experiment import ExperimentRow, ExperimentSpec, list_rows, read_documents
from core.spec.metric_rules import RULE
from core.spec.mix import Mix
from core.store import experiments as store
from core.store.experiments import KIND, Cell, CellAnswer, CellLog, Experiment, TimedAnswer, find_cell
from core.store.trash import TrashedItem
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)
VERSION = 1  # of what an answer depends on in this code; another one measures cells again
ENDED_LIMIT = 50  # ended jobs whose status is kept
EXTRA_TOKENS = 24  # of an answer beyond the longest reference, for citations
ADDRESS_TOKENS = 256  # longest answer of an address, where the experiment does not say
LIBRARIES = ("torch", "transformers", "peft")
DONE, WAITING, RUNNING = "done", "waiting", "running"


@dataclass(frozen=True)
class ExperimentStatus(JobStatus):
    """The work on an experiment.

    Attributes:
        experiment_id, name: of the experiment.
        share: the finished part of the work, from 0 to 1.
        rows: what is known about each row: "done", "waiting", "running", "not run: ..." or "failed: ...".
        state, text, problem, error: as in `JobStatus`.
    """

    experiment_id: str
    name: str
    state: str = "waiting"
    text: str = "Waiting for another experiment"
    share: float = 0.0
    rows: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    error: StudioError | None = None


class _Nothing:
    """Stands in for the child process of a job: an experiment ends between two answers."""

    def end(self) -> None:
        """Does nothing."""


@dataclass(kw_only=True)
class ExperimentJob(Job):
    """The work on an experiment."""

    status: ExperimentStatus
    process: Any = field(default_factory=_Nothing)
    done: int = 0
    total: int = 1


class Experiments:
    """Starts, continues and lists experiments. Safe to call from any thread.

    Attributes:
        read_variable: reads an environment variable, for the keys of addresses; set by the entrances, because
            only they read the environment.
    """

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        resident_base: ResidentBase,
        datasets: Datasets,
        library: Library,
        search: Search,
        samples: Callable[[], Samples],
        folders: ModelFolders,
    ) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._datasets, self._library, self._search = datasets, library, search
        self._samples, self._folders = samples, folders
        self._jobs: BackgroundJobs[ExperimentJob] = BackgroundJobs("experiment", ENDED_LIMIT)
        self.read_variable: Callable[[str], str | None] = lambda name: None

    # --- what is stored

    def list(self) -> builtins.list[Experiment]:
        """Every experiment, the newest first."""
        return store.load_all(self._workspace)

    def get(self, experiment_id: str) -> Experiment:
        """Reads an experiment.

        Raises:
            NotFound, DamagedRecord
        """
        return store.load(self._workspace, experiment_id)

    def find(self, text: str) -> Experiment:
        """The experiment with this id or name; of several of one name, the newest.

        Raises:
            NotFound
        """
        for experiment in self.list():
            if text in (experiment.id, experiment.name):
                return experiment
        raise NotFound(
            f"The workspace has no experiment {text!r}.", "`experiment list` shows all experiments."
        )

    def cells(self, experiment_id: str) -> dict[str, Cell]:
        """The complete cells of an experiment, by the name of their row."""
        return store.read_cells(self._workspace, self.get(experiment_id).id)

    def states(self, experiment_id: str) -> dict[str, str]:
        """What is known about each row: "done", "running", "waiting", "not run: ..." or "failed: ..."."""
        experiment, cells = self.get(experiment_id), self.cells(experiment_id)
        status = self.status(experiment_id)
        known = status.rows if status else {}
        found = {}
        for row in experiment.rows:
            if row.name in cells:
                found[row.name] = DONE
            elif row.name in known:
                found[row.name] = known[row.name]
            else:
                obstacle = self.explain_obstacle(experiment, row)
                found[row.name] = (
                    f"not run: {obstacle}" if obstacle else "not run: the experiment was stopped"
                )
        return found

    def results(self, experiment_id: str) -> ExperimentResults:
        """The table so far.

        Raises:
            NotFound, DamagedRecord
        """
        cells = self.cells(experiment_id)
        return make_results(self.get(experiment_id), cells, self.states(experiment_id))

    def delete(self, experiment_id: str) -> TrashedItem:
        """Moves an experiment to the trash.

        Raises:
            Busy: it is running. NotFound
        """
        status = self.status(experiment_id)
        if status and not status.has_ended:
            raise Busy(f"The experiment {status.name!r} is running.", "Stop it first.")
        return self._library.delete(KIND, experiment_id)

    # --- the work

    def start(self, spec: ExperimentSpec, is_fresh: bool = False) -> str:
        """Stores an experiment and starts it; returns its id at once.

        Args:
            is_fresh: measure every cell, also where another experiment has it.

        Raises:
            SpecError: it has no questions, or a metric needs reference answers that are missing.
            NotFound: the dataset. InvalidName, StorageError
        """
        questions = read_questions(self._datasets, spec)
        choose_metrics(spec.metrics, any(q.reference for q in questions))
        rows = list_rows(spec)
        if any(row.passages for row in rows):
            self._list_sources(spec)
        info = self._resident_base.wait()
        experiment = store.create(self._workspace, spec, info.name, info.fingerprint, is_fresh)
        self._start_job(experiment)
        return experiment.id

    def resume(self, experiment_id: str) -> None:
        """Continues an experiment: rows that are not complete, and those that can be run now.

        Raises:
            NotFound, DamagedRecord. Busy: it is running.
        """
        experiment = self.get(experiment_id)
        status = self.status(experiment_id)
        if status and not status.has_ended:
            raise Busy(f"The experiment {experiment.name!r} is running.", "Wait until it ends, or stop it.")
        self._start_job(experiment)

    def status(self, experiment_id: str) -> ExperimentStatus | None:
        """The work on an experiment; None where there was none since the engine was opened."""
        job = self._jobs.get(experiment_id)
        return job.status if job else None

    def cancel(self, experiment_id: str) -> None:
        """Stops the work; what is answered stays, and `resume` continues there.

        Raises:
            NotFound
        """
        self._jobs.cancel(experiment_id)

    def wait(self, experiment_id: str, seconds: float | None = None) -> ExperimentStatus:
        """Waits until the work has ended, at most so long.

        Raises:
            NotFound
        """
        return self._jobs.wait(experiment_id, seconds).status

    def close(self) -> None:
        """Stops every experiment."""
        self._jobs.close()

    # --- what a row needs

    def read_mix(self, text: str) -> Mix:
        """The mix of a row, with ids of adapters; a saved mix may be given by its id or name.

        Raises:
            SpecError, NotFound
        """
        for saved in self._library.mixes():
            if text and text in (saved.id, saved.name):
                return saved.mix
        mix = Mix.parse(text)
        ids = {a: self._library.find_adapter(a) for a in mix.weights}
        return Mix(
            weights={ids[a]: w for a, w in mix.weights.items()},
            tilt={ids[a]: t for a, t in mix.tilt.items()},
            auto={ids[a]: m for a, m in mix.auto.items()},
        )

    def explain_obstacle(self, experiment: Experiment, row: ExperimentRow) -> str:
        """Why a row cannot be run now, as a clause; "" where it can."""
        if row.address:
            if row.key_variable and not self.read_variable(row.key_variable):
                return f"no key is in the environment variable {row.key_variable}, which the terminal reads"
            return ""
        info = self._resident_base.info
        if not info.fingerprint:
            return "no base is loaded"
        is_first = row.base == experiment.base  # the base that was loaded at the start
        if not self._is_loaded(row.base, experiment.base_fingerprint if is_first else ""):
            return f"it needs the base {row.base!r}, and {info.name!r} is loaded"
        try:
            mix = self.read_mix(row.mix)
        except StudioError as e:
            return e.what.rstrip(".")
        for adapter_id in mix.weights:
            adapter = self._library.adapter(adapter_id)
            if adapter.base_fingerprint != info.fingerprint:
                return f"the adapter {adapter.name!r} was trained on another base"
        return ""

    def _is_loaded(self, name: str, fingerprint: str) -> bool:
        info = self._resident_base.info
        if fingerprint:
            return fingerprint == info.fingerprint
        folder = find_folder(self._workspace, name, self._folders)
        return info.name in (name, str(folder))

    def _list_sources(self, spec: ExperimentSpec) -> builtins.list[str]:
        """The datasets whose documents are searched.

        Raises:
            SpecError: none has documents. NotFound
        """
        if spec.sources:
            return [self._datasets.get(source).id for source in spec.sources]
        found = [d.id for d in self._search.list_documents()]
        if not found:
            raise SpecError(
                "A row reads documents, and the workspace has no dataset of texts.",
                'Import documents, or set documents to "off".',
            ).at("sources")
        return found

    def _start_job(self, experiment: Experiment) -> None:
        self._jobs.start(
            ExperimentJob(
                key=experiment.id,
                status=ExperimentStatus(experiment.id, experiment.name),
                work=lambda job: self._run(job, experiment),
            )
        )

    # --- on the job's thread

    def _run(self, job: ExperimentJob, experiment: Experiment) -> dict[str, Any]:
        spec = experiment.settings
        job.set_status(text="Preparing the questions")
        questions = read_questions(self._datasets, spec)
        complete = self.cells(experiment.id)
        rows = [row for row in experiment.rows if row.name not in complete]
        obstacles = {row.name: self.explain_obstacle(experiment, row) for row in rows}
        states = dict.fromkeys(complete, DONE)
        states |= {name: f"not run: {why}" if why else WAITING for name, why in obstacles.items()}
        job.set_status(rows=states)
        open_rows = [row for row in rows if not obstacles[row.name]]
        job.total = max(1, len(open_rows) * len(questions))
        sources = self._list_sources(spec) if any(row.passages for row in open_rows) else []
        problems = self._run_resident(
            job, experiment, [r for r in open_rows if not r.address], questions, sources
        )
        for row in open_rows:
            if row.address:
                try:
                    self._run_address(job, experiment, row, questions, sources)
                except Cancelled:
                    raise
                except StudioError as e:
                    problems.append(f"{row.name}: {e}")
                    self._set_row(job, row, f"failed: {e.what}")
        if problems:
            raise StudioError(" ".join(problems))
        return {"share": 1.0}

    def _set_row(self, job: ExperimentJob, row: ExperimentRow, state: str) -> None:
        job.set_status(rows={**job.status.rows, row.name: state})

    def _report(self, job: ExperimentJob) -> Callable[[int, str], None]:
        def report(count: int, text: str) -> None:
            job.done += count
            job.set_status(text=text, share=min(0.99, job.done / job.total))

        return report

    def _run_resident(
        self,
        job: ExperimentJob,
        experiment: Experiment,
        rows: Sequence[ExperimentRow],
        questions: Sequence[AskedQuestion],
        sources: builtins.list[str],
    ) -> builtins.list[str]:
        """Runs the cells of the resident base; returns what went wrong."""
        if not rows:
            return []
        spec = experiment.settings
        limit = spec.max_new_tokens or self._choose_length(spec)
        general = read_general(self._samples(), self._resident_base.info.name, spec.general_questions)
        cells = []
        for row in rows:
            mix = self.read_mix(row.mix)
            conditions = self._describe_conditions(spec, row, mix, questions, general, sources, limit)
            cell = self._open_cell(experiment, row, mix, conditions)
            if cell is None:
                self._set_row(job, row, DONE)
            else:
                self._set_row(job, row, RUNNING)
                cells.append(cell)
        timed = min(spec.timed_questions, len(questions))
        job.total += len(cells) * (len(general) + timed)
        work = CellWork(
            questions,
            general,
            timed,
            limit,
            sources,
            self._search,
            lambda: self._jobs.poll_cancel(job),
            self._report(job),
        )
        try:
            memory = ResidentCells(self._worker, self._resident_base.get, work).run(cells) if cells else 0
        except Cancelled:
            raise
        except StudioError as e:
            for cell in cells:
                self._set_row(job, cell.row, f"failed: {e.what}")
            return [str(e)]
        for cell in cells:
            cell.save(self._workspace, experiment.id, memory)
            self._set_row(job, cell.row, DONE)
        return []

    def _open_cell(
        self, experiment: Experiment, row: ExperimentRow, mix: Mix, conditions: dict[str, Any]
    ) -> OpenCell | None:
        """The cell of a row; None where a complete cell of another experiment answers for it."""
        key = make_key(conditions)
        cell = OpenCell(row, mix, conditions, CellLog(self._workspace, experiment.id, key))
        found = None if experiment.is_fresh else find_cell(self._workspace, key)
        if found is not None:
            copied = Cell(**{**found.__dict__, "row": row.to_json()})
            store.save_cell(self._workspace, experiment.id, copied)
            return None
        cell.resume()
        return cell

    def _choose_length(self, spec: ExperimentSpec) -> int:
        """The longest answer, in tokens: the longest reference and some more, in a quarter of the context."""
        rows = self._datasets.rows(spec.dataset, spec.split, spec.limit)

        def choose() -> int:
            from core.evaluate.rows import choose_answer_length

            base = self._resident_base.get().base
            longest = choose_answer_length(base, rows) + EXTRA_TOKENS
            return max(1, min(longest, base.context // 4))

        return self._worker.call(choose)

    def _describe_conditions(
        self,
        spec: ExperimentSpec,
        row: ExperimentRow,
        mix: Mix,
        questions: Sequence[AskedQuestion],
        general: Sequence[AskedQuestion],
        sources: Sequence[str],
        limit: int,
    ) -> dict[str, Any]:
        """Everything that the answers of a cell depend on."""
        info = self._resident_base.info
        settings = read_documents(row.documents)
        documents: dict[str, Any] = {}
        if settings is not None:
            digests = [self._datasets.get(source).sha256 for source in sources]
            documents = {"settings": settings.to_json(), "datasets": digests, "prompt": INSTRUCTION}
        base = {"fingerprint": info.fingerprint, "name": info.name, "quantization": info.quantization}
        return {
            "version": VERSION,
            "rules": [RULE, FACT_RULE],
            "base": {"address": row.address, "model": row.model} if row.address else base,
            "mix": [] if row.address else self._describe_mix(mix),
            "documents": documents,
            "questions": hash_questions(questions),
            "general": "" if row.address else hash_questions(general),
            "timed": spec.timed_questions,
            "max_new_tokens": limit,
            "versions": _list_versions(),
        }

    def _describe_mix(self, mix: Mix) -> builtins.list[Any]:
        """A mix by the sha256 of its adapters, so that a renamed adapter is the same one."""
        parts = []
        for adapter_id, weight in mix.weights.items():
            adapter = self._library.adapter(adapter_id)
            gate = adapter.metadata.get("gate") if adapter_id in mix.auto else None
            auto = mix.auto.get(adapter_id, "")
            parts.append([adapter.sha256, weight, mix.tilt.get(adapter_id, 0.0), auto, gate])
        return sorted(parts, key=str)

    def _run_address(
        self,
        job: ExperimentJob,
        experiment: Experiment,
        row: ExperimentRow,
        questions: Sequence[AskedQuestion],
        sources: builtins.list[str],
    ) -> None:
        """Answers the questions of a row at its address, one after the other.

        Raises:
            AddressError: the address is down; the answers so far are kept.
        """
        spec = experiment.settings
        limit = spec.max_new_tokens or ADDRESS_TOKENS
        conditions = self._describe_conditions(spec, row, Mix(), questions, [], sources, limit)
        cell = self._open_cell(experiment, row, Mix(), conditions)
        if cell is None:
            self._set_row(job, row, DONE)
            return
        self._set_row(job, row, RUNNING)
        key, report = (
            self.read_variable(row.key_variable) or "" if row.key_variable else "",
            self._report(job),
        )
        for question in questions:
            if question.index in cell.answers:
                continue
            self._jobs.poll_cancel(job)
            found = find_passages(self._search, sources, question, cell.settings)
            text, prompt = make_writer(question, found)(None)
            answer = ask_address(row, key, [*question.history, {"role": "user", "content": text}], limit)
            seconds = answer.seconds + (found.seconds if found else 0.0)
            if len(cell.timed) < spec.timed_questions:
                cell.add_latency(TimedAnswer(question.index, seconds, answer.tokens))
            cell.add_answer(
                question,
                CellAnswer(
                    question.index,
                    question.text,
                    answer.text,
                    question.reference,
                    passages=describe_passages(prompt),
                    reason=answer.reason,
                    tokens=answer.tokens,
                    seconds=answer.seconds,
                ),
            )
            report(1, f"Asking {row.model}")
        cell.save(self._workspace, experiment.id, 0)
        self._set_row(job, row, DONE)


def _list_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that compute answers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
