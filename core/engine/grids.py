"""Grids of runs: starting cells, collecting runs that were trained elsewhere, the table. `engine.grids`.

A grid is a training spec and some axes. A cell is one combination of the axes' values, with a checksum of its
spec without the name (`core/store/grids.py`). `start` queues one run per cell. `define` only stores the grid;
`collect` fills its open cells with runs of the workspace that have the same checksum. A grid with questions
ends in an experiment (`core/engine/grid_experiments.py`).

Validation events hold the nats and tokens of each sequence, so two runs that scored the same rows are
compared row by row (`core/train/comparison.py`). The standard error covers the choice of rows only, not the
seed; the table says so unless the seed is an axis.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from core.engine.grid_experiments import GridExperiments
from core.engine.queue import RunQueue
from core.engine.runs import DOUBLE_CLICK_SECONDS, Runs
from core.engine.worker import make_lock
from core.errors import DamagedRecord, InvalidName, NotFound, StudioError
from core.spec.grid_questions import GridQuestions
from core.spec.training import RunStatus, TrainSpec
from core.store import grids
from core.store.csv_tables import format_csv
from core.store.grids import Axes, Cell, Grid
from core.store.runs import Run, RunExtra
from core.store.workspace import Workspace, check_name
from core.train import comparison
from core.train.comparison import LossDifference, RunHistory, ValidationPoint

logger = logging.getLogger(__name__)

FIGURES = (
    "status", "final_loss", "best_loss", "final_perplexity", "best_perplexity", "steps", "seconds",
    "tokens_per_second", "adapter", "run",
)  # fmt: skip


@dataclass(frozen=True)
class CellResult:
    """A cell and its run.

    Attributes:
        run: None while the cell has no run.
        adapter: its id in the library; "" while there is none.
        behind: its loss minus the best loss; None for the best cell, and without a loss.
        is_damaged: it has a run, whose record cannot be read.
    """

    cell: Cell
    run: Run | None
    history: RunHistory = field(default_factory=RunHistory)
    adapter: str = ""
    best: bool = False
    behind: LossDifference | None = None
    is_damaged: bool = False

    @property
    def status(self) -> str:
        """The status of its run, in words."""
        if self.run:
            return self.run.status.value
        return "damaged" if self.is_damaged else "not run"

    @property
    def loss(self) -> float:
        """Validation loss of the adapter that is kept, in nats per token; NaN without one."""
        return self.validation.loss if self.validation else math.nan

    @property
    def validation(self) -> ValidationPoint | None:
        """The validation of the adapter that is kept."""
        return self.history.validation_for(self.cell.spec.keep)

    @property
    def has_ended(self) -> bool:
        """Whether its run ended with an adapter."""
        return self.run is not None and self.run.status in (RunStatus.DONE, RunStatus.STOPPED)

    def figures(self) -> dict[str, Any]:
        """The figures of its row in the table, by FIGURES; None without a value."""
        final, best = self.history.final, self.history.best
        speed = self.history.tokens_per_second
        return {
            "status": self.status,
            "final_loss": final.loss if final else None,
            "best_loss": best.loss if best else None,
            "final_perplexity": final.perplexity if final else None,
            "best_perplexity": best.perplexity if best else None,
            "steps": self.history.train[-1][0] if self.history.train else 0,
            "seconds": self.history.seconds,
            "tokens_per_second": None if math.isnan(speed) else round(speed, 1),
            "adapter": self.adapter,
            "run": self.run.id if self.run else "",
        }


@dataclass(frozen=True)
class GridResults:
    """The table of a grid: the cells that have ended, best first, then the others.

    Attributes:
        counts: status to number of cells.
        note: whether the differences are significant, in a sentence or two; "" with less than two losses.
    """

    grid: Grid
    rows: tuple[CellResult, ...]
    counts: dict[str, int]
    note: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether a run of the grid is queued or training."""
        return any(r.run is not None and r.run.status.is_alive for r in self.rows)


class Grids:
    """Starts and reads grids. Safe to call from any thread; nothing here needs the model.

    Attributes:
        experiments: the experiments that grids end in.
    """

    def __init__(
        self, workspace: Workspace, runs: Runs, queue: RunQueue, experiments: GridExperiments
    ) -> None:
        self._workspace, self._runs, self._queue = workspace, runs, queue
        self.experiments = experiments
        self._starting = make_lock()  # a second click waits until the first one has its grid
        self._last_start: tuple[float, Any, str] = (0.0, None, "")

    def list(self) -> Sequence[Grid]:
        """All grids, newest first."""
        return grids.load_all(self._workspace)

    def get(self, grid_id: str) -> Grid:
        """One grid.

        Raises:
            NotFound, StorageError
        """
        return grids.load(self._workspace, grid_id)

    def start(self, base: TrainSpec, axes: Axes, name: str, questions: GridQuestions | None = None) -> Grid:
        """Queues one run for every cell; a second click on the same start returns the same grid.

        Args:
            questions: what an experiment asks its adapters, once the last cell has ended.

        Raises:
            SpecError, NotFound, InvalidName, AdapterError: a cell cannot be trained, or the questions cannot
                be asked; no cell was queued.
            Busy: the queue is full. StorageError
        """
        request = (base, {f: list(values) for f, values in axes.items()}, name, questions)
        with self._starting:
            when, last_request, grid_id = self._last_start
            if last_request == request and time.monotonic() - when < DOUBLE_CLICK_SECONDS:
                with contextlib.suppress(StudioError):  # it was deleted meanwhile
                    return self.get(grid_id)
            cells = grids.make_cells(base, axes, check_name(name))
            if questions:
                self.experiments.check(questions, len(cells))
            self._queue.check_room(len(cells))
            for cell in cells:
                self._runs.check(cell.spec)
            grid = grids.create(self._workspace, base, axes, name, questions)
            try:
                for cell in grid.cells:
                    run_id = self._runs.start(cell.spec, extra=RunExtra(grid=grid.id, cell=cell.index))
                    grid.runs[cell.index] = run_id
                    # After each run, so that a crash loses none.
                    grids.set_runs(self._workspace, grid.id, {cell.index: run_id})
            except BaseException:
                self._withdraw(grid)
                raise
            self._last_start = (time.monotonic(), request, grid.id)
            self.experiments.watch()
            return grid

    def _withdraw(self, grid: Grid) -> None:
        """Removes a grid that could not be queued whole, with its queued runs. It stays if a run began."""
        has_begun = False
        for run_id in filter(None, grid.runs):
            try:
                self._queue.cancel(run_id)
                self._workspace.delete("runs", run_id)
            except (StudioError, OSError):
                logger.exception("the run %s of an incomplete grid stays", run_id)
                has_begun = True
        if not has_begun:
            with contextlib.suppress(StudioError, OSError):
                self._workspace.delete("grids", grid.id)

    def define(self, base: TrainSpec, axes: Axes, name: str, questions: GridQuestions | None = None) -> Grid:
        """Stores a grid without queueing its cells: they run elsewhere, and `collect` adds the results.

        Args:
            questions: as in `start`.

        Raises:
            SpecError, NotFound, InvalidName, AdapterError, StorageError
        """
        cells = grids.make_cells(base, axes, check_name(name))
        for cell in cells:
            self._runs.check(cell.spec)
        if questions:
            self.experiments.check(questions, len(cells))
        return grids.create(self._workspace, base, axes, name, questions)

    def collect(self, grid_id: str) -> Sequence[int]:
        """Fills open cells with runs of this workspace that have the same spec, wherever they were trained.

        Specs are compared by a checksum that leaves out the name. Of several runs, the newest one that is
        DONE is taken, or else the newest one.

        Returns:
            indices of the filled cells.
        """
        grid = self.get(grid_id)
        known = {r.id: r for r in reversed(self._runs.list())}
        by_checksum: dict[str, Run] = {}
        for run in known.values():
            key = grids.spec_checksum(run.spec)
            other = by_checksum.get(key)
            if other is None or run.status is RunStatus.DONE or other.status is not RunStatus.DONE:
                by_checksum[key] = run
        filled = []
        for cell in grid.cells:
            present, candidate = known.get(grid.runs[cell.index]), by_checksum.get(cell.key)
            if candidate is not None and _should_replace(present, candidate):
                grid.runs[cell.index] = candidate.id
                filled.append(cell.index)
        if filled:
            grids.set_runs(self._workspace, grid_id, {i: grid.runs[i] for i in filled})
        return filled

    def cancel_open_cells(self, grid_id: str) -> Sequence[str]:
        """Cancels the cells that are still queued, and returns their run ids."""
        own = set(self.get(grid_id).runs)
        waiting = [w.run.id for w in self._queue.list() if w.run.id in own]
        cancelled: list[str] = []
        for run_id in reversed(waiting):
            if run_id not in cancelled:
                cancelled += self._queue.cancel(run_id)
        return cancelled

    def results(self, grid_id: str) -> GridResults:
        """The table so far, the lowest validation loss first."""
        grid = self.get(grid_id)
        library = set(self._workspace.ids("adapters"))
        rows = [self._read_cell(cell, grid.runs[cell.index], library) for cell in grid.cells]
        ended = sorted((r for r in rows if r.has_ended and not math.isnan(r.loss)), key=lambda r: r.loss)
        others = [r for r in rows if not r.has_ended or math.isnan(r.loss)]
        if ended:
            best = ended[0].validation
            assert best is not None
            behind = [
                dataclasses.replace(r, behind=comparison.compare_losses(best, r.validation))
                for r in ended[1:]
                if r.validation
            ]
            ended = [dataclasses.replace(ended[0], best=True), *behind]
        counts = Counter(r.status for r in rows)
        return GridResults(grid, (*ended, *others), dict(counts), describe_significance(ended, grid))

    def _read_cell(self, cell: Cell, run_id: str, library: set[str]) -> CellResult:
        try:
            run = self._runs.get(run_id) if run_id else None
        except (NotFound, InvalidName):  # it was deleted
            run = None
        except DamagedRecord:
            return CellResult(cell, None, is_damaged=True)
        if run is None:
            return CellResult(cell, None)
        adapter = run.adapter if run.adapter in library else ""
        return CellResult(cell, run, self._runs.history(run.id), adapter)

    def csv(self, grid_id: str) -> str:
        """The table as CSV, the best cell first."""
        results = self.results(grid_id)
        names = list(results.grid.axes)
        lines = []
        for row in results.rows:
            values = [grids.format_value(row.cell.values[n]) for n in names]
            figures = row.figures()
            cells = ["" if figures[f] is None else figures[f] for f in FIGURES]
            lines.append([*values, *cells, "best" if row.best else ""])
        return format_csv([[*names, *FIGURES, "mark"], *lines])

    def estimate_seconds(self, base: TrainSpec, axes: Axes, base_model: str) -> float | None:
        """Estimates how many seconds a grid would take, from comparable runs; None if a cell has none.

        A run is comparable if it is DONE and has the same base, dataset, kind and maximum length, and a
        parent adapter if the cell has one. The time per sequence of the newest one is multiplied by the
        number of sequences of the cell.
        """
        total = 0.0
        done = [r for r in self._runs.list() if r.status is RunStatus.DONE and r.base == base_model]
        for cell in grids.make_cells(base, axes):
            run = next(
                (r for r in done if _is_comparable(r.spec, cell.spec) and self._runs.history(r.id).sequences),
                None,
            )
            if run is None:
                return None
            history = self._runs.history(run.id)
            share = _count_sequences(cell.spec, history.sequences) / _count_sequences(
                run.spec, history.sequences
            )
            total += history.seconds * share
        return total


def _should_replace(present: Run | None, candidate: Run) -> bool:
    """Whether a cell takes a candidate: it has no run, or one that failed while the candidate is DONE."""
    if present is None:
        return True
    failed = not present.status.is_alive and present.status is not RunStatus.DONE
    return failed and candidate.status is RunStatus.DONE


def _is_comparable(done: TrainSpec, planned: TrainSpec) -> bool:
    def key(spec: TrainSpec) -> tuple[Any, ...]:
        return (spec.dataset, spec.kind, spec.max_length, bool(spec.stack_on))

    return key(done) == key(planned)


def _count_sequences(spec: TrainSpec, rows: int) -> int:
    """Training sequences that a run reads in all its steps, at least 1.

    Args:
        rows: number of rows of its training split.
    """
    steps = spec.max_steps or math.ceil(math.ceil(rows / spec.batch_size) / spec.accumulation * spec.epochs)
    return max(1, steps) * min(spec.effective_batch, rows)


def describe_significance(rows: Sequence[CellResult], grid: Grid) -> str:
    """Says whether the order of the table is more than chance, in a sentence or two.

    Args:
        rows: cells with a loss, the best first.
    """
    rest = rows[1:]
    if not rest:
        return ""
    one_seed = ""
    if len(grid.axes.get("seed", ())) < 2:
        one_seed = "Each cell has one seed, and another seed may order them differently: vary the seed too."
    if any(r.behind is not None and math.isnan(r.behind.error) for r in rest):
        unknown = "The logs do not hold the losses of single validation rows, so chance cannot be estimated."
        return " ".join(filter(None, [unknown, one_seed]))
    ties = [r for r in rest if r.behind is not None and not r.behind.is_significant]
    nearest = rest[0].behind
    assert nearest is not None
    gap = "The second best has exactly the loss of the best."
    if nearest.nats:
        rows_text = "the same validation rows" if nearest.paired else "their validation rows"
        error = f"with a standard error of {comparison.format_nats(nearest.error)} over {rows_text}"
        nats = comparison.format_nats(nearest.nats)
        gap = f"The second best is {nats} nats per token behind the best, {error}."
    if not ties:
        return " ".join(filter(None, [f"{gap} The choice of rows does not explain that.", one_seed]))
    count = f"{len(ties)} of the others are" if len(ties) > 1 else "One of the others is"
    tie = (
        f"{count} within {comparison.SIGNIFICANCE:g} standard errors of the best: "
        "these rows cannot tell them apart."
    )
    return " ".join(filter(None, [gap, tie, one_seed]))
