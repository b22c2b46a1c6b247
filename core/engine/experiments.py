"""Experiments: a matrix of mixes and documents on the same questions, cell by cell. `engine.experiments`.

    start ─> experiments/<id>/experiment.json ─ job ─> cells of the resident base, all in one batch
                                                   └─> cells at addresses, one after the other
    results ─> figures with intervals, differences inside a group, the gate

The bases of the rows are loaded in turn (`core.engine.experiment_bases`), where the caller may change the
base. A row whose base, adapter or key is not there is not run, with the reason; `resume` runs it when it can.
Nothing that is answered is answered again: a complete cell of any experiment answers for the same cell of
another.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.data.samples import Samples
from core.engine.background_jobs import BackgroundJobs, InProcessJob, JobStatus
from core.engine.bases import Bases
from core.engine.callers import current_caller
from core.engine.datasets import Datasets
from core.engine.experiment_bases import RowNeeds
from core.engine.experiment_questions import Search, list_sources, read_questions
from core.engine.experiment_results import ExperimentResults, make_results
from core.engine.experiment_work import DONE, ExperimentParts, ExperimentWork
from core.engine.library import Library
from core.engine.resident_base import ResidentBase
from core.engine.worker import Worker
from core.errors import Busy, NotFound, StudioError
from core.evaluate.answer_figures import choose_metrics
from core.spec.experiment import ExperimentRow, ExperimentSpec, list_rows
from core.spec.mix import Mix
from core.store import experiments as store
from core.store.experiments import KIND, Cell, Experiment
from core.store.trash import TrashedItem
from core.store.workspace import Workspace

ENDED_LIMIT = 50  # ended jobs whose status is kept


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


@dataclass(kw_only=True)
class ExperimentJob(InProcessJob):
    """The work on an experiment."""

    status: ExperimentStatus


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
        bases: Bases,
    ) -> None:
        self._workspace, self._resident_base = workspace, resident_base
        self._datasets, self._library = datasets, library
        self._jobs: BackgroundJobs[ExperimentJob] = BackgroundJobs("experiment", ENDED_LIMIT)
        self._is_closing = False
        self.read_variable: Callable[[str], str | None] = lambda name: None
        self._needs = RowNeeds(library, bases, resident_base, lambda name: self.read_variable(name))
        self._parts = ExperimentParts(
            workspace, worker, resident_base, datasets, library, search, samples, bases, self._needs
        )

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

        Bases are loaded for rows that need another one, unless the caller may not change the base: a caller
        with a limit (`core.engine.callers`).

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
            list_sources(self._datasets, self._parts.search, spec)
        info = self._resident_base.wait()
        experiment = store.create(self._workspace, spec, info.name, info.fingerprint, is_fresh)
        self._start_job(experiment)
        return experiment.id

    def resume(self, experiment_id: str) -> None:
        """Continues an experiment: rows that are not complete, and those that can be run now. See `start`.

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
        self._is_closing = True
        self._jobs.close()

    # --- what a row needs

    def read_mix(self, text: str) -> Mix:
        """The mix of a row, with ids of adapters; a saved mix may be given by its id or name.

        Raises:
            SpecError, NotFound
        """
        return self._needs.read_mix(text)

    def explain_obstacle(self, experiment: Experiment, row: ExperimentRow) -> str:
        """Why a row cannot be run now, as a clause; "" where it can. A base that can be loaded is none."""
        return self._needs.explain_obstacle(experiment, row)

    def _start_job(self, experiment: Experiment) -> None:
        caller = current_caller()
        may_load = caller is None or not caller.is_limited

        def work(job: ExperimentJob) -> dict[str, Any]:
            ExperimentWork(
                self._parts,
                experiment,
                may_load,
                job.set_status,
                lambda: self._jobs.poll_cancel(job),
                lambda: self._is_closing,
            ).run()
            return {"share": 1.0}

        status = ExperimentStatus(experiment.id, experiment.name)
        self._jobs.start(ExperimentJob(key=experiment.id, status=status, work=work))
