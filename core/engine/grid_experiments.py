"""Experiments that grids end in: started once, when the last cell of a grid has ended.

    grids/<id>.json: questions ─ every cell has ended ─> experiment "Grid <id>" ─> grids/<id>.json: follow_up

The intention is stored with the grid, so it outlives the process. The name of the experiment is made from the
id of the grid: a process that was killed between the two writes leaves an experiment that the next one finds
by its name, and continues. A cell whose run is paused or interrupted has not ended: it can be resumed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from core.engine.datasets import Datasets
from core.engine.experiment_questions import read_questions
from core.engine.experiments import Experiments
from core.engine.library import Library
from core.engine.resident_base import ResidentBase
from core.engine.retrieval import Retrieval
from core.engine.runs import Runs
from core.engine.worker import BackgroundTask, make_lock
from core.errors import BaseModelError, Busy, DamagedRecord, InvalidName, NotFound, SpecError, StudioError
from core.spec.experiment import OFF, ON, ExperimentRow, ExperimentSpec
from core.spec.grid_questions import GridQuestions
from core.spec.mix import Mix
from core.spec.training import RunStatus
from core.store import grids
from core.store.grids import Cell, FollowUp, Grid
from core.store.runs import Run
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0
NAME_LENGTH = 100  # characters of a row's name, beside " + documents"
RESUMABLE = (RunStatus.PAUSED, RunStatus.INTERRUPTED)
BASE = "base"
DELETED = "its run was deleted, or cannot be read"


class GridExperiments:
    """Starts the experiments that grids end in. Safe to call from any thread. `engine.grids.experiments`."""

    def __init__(
        self,
        workspace: Workspace,
        resident_base: ResidentBase,
        runs: Runs,
        library: Library,
        datasets: Datasets,
        retrieval: Retrieval,
        experiments: Experiments,
    ) -> None:
        self._workspace, self._resident_base, self._runs = workspace, resident_base, runs
        self._library, self._datasets, self._retrieval = library, datasets, retrieval
        self._experiments = experiments
        self._lock = make_lock()  # guards the fields below
        self._task: BackgroundTask | None = None
        self._is_closing = False

    def check(self, questions: GridQuestions, cells: int) -> None:
        """Checks before the first run that the experiment can be started at the end.

        Args:
            cells: of the grid.

        Raises:
            NotFound: a dataset. SpecError: it has no questions, the workspace no documents to answer from,
                or the experiment would have too many rows.
        """
        questions.check_cells(cells)
        read_questions(self._datasets, _make_spec("Grid", questions, [ExperimentRow(name=BASE)]))
        for source in questions.sources:
            if self._datasets.get(source).kind != "domain":
                raise SpecError(f"The dataset {source!r} holds no documents.", "Choose texts.").at("sources")
        if questions.has_documents and not self._has_documents(questions):
            raise SpecError(
                "The workspace has no documents to answer from.", 'Import texts, or set documents to "off".'
            ).at("documents")

    def watch(self) -> None:
        """Starts the experiments of grids in the background, as each ends; a second call changes nothing.

        The entrances call it once when they serve, and a grid with questions when it starts.
        """
        with self._lock:
            if self._task is None and not self._is_closing and self._list_open_grids():
                self._task = BackgroundTask(self._watch, name="experiments of grids")

    def start_due(self) -> list[Grid]:
        """Starts the experiment of every grid whose last cell has ended; returns those grids."""
        found = []
        for grid in self._list_open_grids():
            try:
                if self._find_open(grid):
                    continue
                self._resident_base.load()  # where no page has done so
                if not self._resident_base.wait().fingerprint:
                    continue
                found.append(grids.end_with(self._workspace, grid.id, self._start))
            except (Busy, NotFound):  # another process is at it, or the grid was deleted
                continue
        return found

    def wait(self, grid_id: str) -> Grid:
        """Waits until the experiment of a grid has been started, or cannot be; at once while a cell is open.

        Raises:
            NotFound, DamagedRecord. BaseModelError: no base is loaded that could answer.
        """
        grid = grids.load(self._workspace, grid_id)
        while grid.is_pending and not self._find_open(grid):
            info = self._resident_base.wait()
            if not info.fingerprint:
                raise BaseModelError(info.error or "No base is loaded.", "Choose another base.")
            self.start_due()
            time.sleep(POLL_SECONDS / 10)
            grid = grids.load(self._workspace, grid_id)
        return grid

    def close(self) -> None:
        """Ends the work in the background; what has not ended is started by the next process."""
        with self._lock:
            self._is_closing = True
            task = self._task
        if task is not None:
            task.stop()
            task.join(5 * POLL_SECONDS)

    # --- on the task's thread

    def _watch(self, task: BackgroundTask) -> None:
        while not task.stopping:
            try:
                self.start_due()
                with self._lock:
                    if not self._list_open_grids():
                        self._task = None
                        return
            except Exception:  # a full disk, a defect; the grids wait, and the next round tries again
                logger.exception("The experiments of the grids could not be started")
            time.sleep(POLL_SECONDS)

    # --- what has ended

    def _list_open_grids(self) -> list[Grid]:
        return [grid for grid in reversed(grids.load_all(self._workspace)) if grid.is_pending]

    def _find_open(self, grid: Grid) -> list[Cell]:
        """The cells that have not ended."""
        found = []
        for cell, run_id in zip(grid.cells, grid.runs, strict=True):
            run = self._find_run(run_id)
            if not run_id or (run and (run.status.is_alive or run.status in RESUMABLE)):
                found.append(cell)
        return found

    def _find_run(self, run_id: str) -> Run | None:
        """A run; None where it was deleted, or its record is damaged."""
        try:
            return self._runs.get(run_id) if run_id else None
        except (NotFound, InvalidName, DamagedRecord):
            return None

    # --- the experiment

    def _start(self, grid: Grid) -> FollowUp:
        """Starts the experiment of a grid, or continues the one that a killed process left."""
        questions, name = GridQuestions.from_json(grid.questions or {}), name_experiment(grid)
        rows, left_out = self._make_rows(grid, questions)
        if len(left_out) == len(grid.runs):
            problem = "No cell ended with an adapter, so nothing can be asked."
            return FollowUp(problem=problem, left_out=tuple(left_out))
        try:
            known = next((e for e in self._experiments.list() if e.name == name), None)
            if known is None:
                started = self._experiments.start(_make_spec(name, questions, rows))
            else:
                started = known.id
                if self._experiments.status(started) is None:
                    self._experiments.resume(started)
        except Busy:
            raise
        except StudioError as e:
            return FollowUp(problem=str(e), left_out=tuple(left_out))
        return FollowUp(experiment=started, left_out=tuple(left_out))

    def _make_rows(self, grid: Grid, questions: GridQuestions) -> tuple[list[ExperimentRow], list[str]]:
        """The rows of the experiment, and the cells that are left out, with the reason of each."""
        rows, left_out, base = [], [], ""
        for cell, run_id in zip(grid.cells, grid.runs, strict=True):
            name, run = name_cell(cell), self._find_run(run_id)
            mix = self._make_mix(run) if run else DELETED
            if isinstance(mix, str):
                left_out.append(f"{name}: {mix}")
                continue
            assert run is not None
            base = run.base if run.base_fingerprint != self._resident_base.info.fingerprint else ""
            rows.append(ExperimentRow(name=name, mix=str(mix), base=base))
        both = questions.documents if questions.has_documents else ON
        has_documents = self._has_documents(questions)
        first = [ExperimentRow(name=BASE, base=base)]
        first += [_add_documents(first[0], both)] if has_documents else []
        for row in rows:
            first += [row, _add_documents(row, both)] if questions.has_documents else [row]
        return first, left_out

    def _make_mix(self, run: Run) -> Mix | str:
        """The mix that a cell's adapter answers in: with its parent adapter, if it has one; or why not."""
        if run.status not in (RunStatus.DONE, RunStatus.STOPPED):
            return str(run.status.value)
        try:
            adapter = self._library.adapter(run.adapter)
            if adapter.stacked_on:
                self._library.adapter(adapter.stacked_on)
        except StudioError as e:
            return "it was cancelled" if run.extra.cancelled else str(e.what).rstrip(".")
        parents = {adapter.stacked_on: 1.0} if adapter.stacked_on else {}
        return Mix(weights={**parents, adapter.id: 1.0})

    def _has_documents(self, questions: GridQuestions) -> bool:
        return bool(questions.sources or self._retrieval.list_documents())


def name_experiment(grid: Grid) -> str:
    """The name of the experiment that a grid ends in: no other grid has it, and renaming keeps it."""
    return f"Grid {grid.id}"


def name_cell(cell: Cell) -> str:
    """The name of a cell's row: what varies, or its number where that is too long."""
    text = ", ".join(
        f"{field.replace('_', ' ')} {grids.format_value(value)}" for field, value in cell.values.items()
    )
    return text if len(text) <= NAME_LENGTH else f"cell {cell.index + 1}"


def _add_documents(row: ExperimentRow, documents: str) -> ExperimentRow:
    return replace(row, name=f"{row.name} + documents", documents=documents)


def _make_spec(name: str, questions: GridQuestions, rows: Sequence[ExperimentRow]) -> ExperimentSpec:
    return ExperimentSpec(
        name=name,
        dataset=questions.dataset,
        split=questions.split,
        limit=questions.limit,
        sources=questions.sources,
        documents=(OFF,),
        rows=tuple(rows),
    )
