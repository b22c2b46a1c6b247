"""Grids of runs and comparisons: starting the cells of a grid, and telling what came out.

Knows which runs belong to which cell and what is asked of their logs. Knows nothing of how a run is
queued or trained. `Engine.plan` is the one instance.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from core.engine.runs import Conductor
from core.errors import NotFound, SpecError
from core.spec.training import RunStatus, TrainSpec
from core.store import grids
from core.store.csv_tables import plain_csv
from core.store.grids import Axes, Cell, Grid
from core.store.runs import Run
from core.store.workspace import Workspace, check_name
from core.train import comparison
from core.train.comparison import Difference, History, Setting, Validation

CLICK_SECONDS = 2.0  # the same start twice within this time is one start
COMPARED = (2, 8)  # runs side by side
FIGURES = (
    "status",
    "final_loss",
    "best_loss",
    "final_perplexity",
    "best_perplexity",
    "steps",
    "seconds",
    "tokens_per_second",
    "adapter",
    "run",
)


@dataclass(frozen=True)
class Row:
    """A cell and what came out of it.

    Attributes:
        run: None where nobody has run it.
        adapter: its id in the library; "" while there is none.
        behind: how far its loss is above the best one's; None for the best, and where there is no loss.
    """

    cell: Cell
    run: Run | None
    history: History = field(default_factory=History)
    adapter: str = ""
    best: bool = False
    behind: Difference | None = None

    @property
    def loss(self) -> float:
        """Validation loss of the adapter that is kept, in nats a token; nan while there is none."""
        return self.counted.loss if self.counted else math.nan

    @property
    def counted(self) -> Validation | None:
        """The validation of the adapter that is kept."""
        return self.history.counted(self.cell.spec.keep)

    @property
    def ended(self) -> bool:
        """It has learned what it will, and its adapter was kept."""
        return self.run is not None and self.run.status in (RunStatus.DONE, RunStatus.STOPPED)

    def figures(self) -> dict[str, Any]:
        """Everything that the table says of it, by name; None where there is nothing."""
        final, best = self.history.final, self.history.best
        return {
            "status": self.run.status.value if self.run else "not run",
            "final_loss": final.loss if final else None,
            "best_loss": best.loss if best else None,
            "final_perplexity": final.perplexity if final else None,
            "best_perplexity": best.perplexity if best else None,
            "steps": self.history.train[-1][0] if self.history.train else 0,
            "seconds": self.history.seconds,
            "tokens_per_second": None
            if math.isnan(self.history.tokens_per_second)
            else round(self.history.tokens_per_second, 1),
            "adapter": self.adapter,
            "run": self.run.id if self.run else "",
        }


@dataclass(frozen=True)
class Results:
    """A grid as it stands: cells that have ended, the best first, then the others.

    Attributes:
        counts: status word -> cells.
        note: what the differences are worth, in a sentence or two; empty while there is nothing to compare.
    """

    grid: Grid
    rows: tuple[Row, ...]
    counts: dict[str, int]
    note: str = ""

    @property
    def alive(self) -> bool:
        return any(r.run is not None and r.run.status.alive for r in self.rows)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[Run, ...]
    histories: tuple[History, ...]
    settings: tuple[Setting, ...]


class Planner:
    """Verbs over grids and comparisons. Safe to call from any thread; nothing here needs the model."""

    def __init__(self, workspace: Workspace, conduct: Conductor) -> None:
        self._workspace, self._conduct = workspace, conduct
        self._last: tuple[float, Any, str] = (0.0, None, "")
        self._read: dict[str, tuple[int, History]] = {}  # run id -> (bytes of its log, what it told)

    # --- grids

    def start(self, base: TrainSpec, axes: Axes, name: str) -> Grid:
        """Queues one run for every cell, as one grid; a second click on the same start is the same grid.

        Raises:
            SpecError, NotFound, NameRefused, AdapterError, StorageError: nothing was queued where the description is at fault.
        """
        when, asked, grid_id = self._last
        wanted = (base, axes, name)
        if asked == wanted and time.monotonic() - when < CLICK_SECONDS:
            return self.grid(grid_id)
        cells = grids.cells(base, axes, check_name(name))
        self._conduct.room(len(cells))
        for cell in cells:
            self._conduct.check(cell.spec)
        grid = grids.create(self._workspace, base, axes, name)
        self._last = (
            math.inf,
            wanted,
            grid.id,
        )  # while its cells are queued, which takes a moment, it is this grid
        try:
            for cell in grid.cells:
                grid.runs[cell.index] = self._conduct.start_run(
                    cell.spec, {"grid": grid.id, "cell": cell.index}
                )
                grids.save(self._workspace, grid)  # a grid that dies halfway knows the runs it has
        finally:
            self._last = (time.monotonic(), wanted, grid.id)
        return grid

    def grids(self) -> list[Grid]:
        """All grids, newest first."""
        return grids.all_of(self._workspace)

    def grid(self, grid_id: str) -> Grid:
        return grids.load(self._workspace, grid_id)

    def cells(self, grid_id: str) -> list[Cell]:
        """The cells of a grid, to be run here or elsewhere; a cell's `key` is what its result is known by."""
        return self.grid(grid_id).cells

    def define(self, base: TrainSpec, axes: Axes, name: str) -> Grid:
        """Writes a grid down without queueing anything: its cells are run elsewhere, and `collect` finds what came back.

        Raises:
            SpecError, NotFound, NameRefused, AdapterError, StorageError
        """
        for cell in grids.cells(base, axes, check_name(name)):
            self._conduct.check(cell.spec)
        return grids.create(self._workspace, base, axes, name)

    def collect(self, grid_id: str) -> list[int]:
        """Takes runs of this workspace in that trained exactly what an open cell asks for; returns the cells' indices.

        A run is known by the checksum of its description without its name, so that it does not matter where it
        was trained. Of several, the newest that ended well is taken, else the newest.
        """
        grid = self.grid(grid_id)
        known = {r.id: r for r in reversed(self._conduct.runs())}
        found: dict[str, Run] = {}
        for run in known.values():
            key = grids.key_of(run.spec)
            if key not in found or run.status is RunStatus.DONE or found[key].status is not RunStatus.DONE:
                found[key] = run
        filled = []
        for cell in grid.cells:
            present, candidate = known.get(grid.runs[cell.index]), found.get(cell.key)
            failed = present is not None and not present.status.alive and present.status is not RunStatus.DONE
            if candidate is not None and (present is None or (failed and candidate.status is RunStatus.DONE)):
                grid.runs[cell.index] = candidate.id
                filled.append(cell.index)
        if filled:
            grids.save(self._workspace, grid)
        return filled

    def cancel_rest(self, grid_id: str) -> list[str]:
        """Takes the cells out of the queue that have not begun; what trains goes on. Returns their run ids."""
        mine = set(self.grid(grid_id).runs)
        waiting = [w.run.id for w in self._conduct.queue() if w.run.id in mine]
        gone: list[str] = []
        for run_id in reversed(waiting):
            if run_id not in gone:
                gone += self._conduct.cancel_run(run_id)
        return gone

    def results(self, grid_id: str) -> Results:
        """What came out so far, the lowest validation loss first."""
        grid = self.grid(grid_id)
        kept = set(self._workspace.ids("adapters"))
        rows = [self._row(cell, grid.runs[cell.index], kept) for cell in grid.cells]
        ended = sorted((r for r in rows if r.ended and not math.isnan(r.loss)), key=lambda r: r.loss)
        others = [r for r in rows if not r.ended or math.isnan(r.loss)]
        if ended:
            first = ended[0].counted
            assert first is not None
            behind = [
                dataclasses.replace(r, behind=comparison.difference(first, v))
                for r in ended[1:]
                if (v := r.counted)
            ]
            ended = [dataclasses.replace(ended[0], best=True), *behind]
        counts = Counter(r.run.status.value if r.run else "not run" for r in rows)
        return Results(grid, (*ended, *others), dict(counts), _note(ended, grid))

    def _row(self, cell: Cell, run_id: str, kept: set[str]) -> Row:
        try:
            run = self._conduct.run(run_id) if run_id else None
        except NotFound:  # it was deleted
            run = None
        if run is None:
            return Row(cell, None)
        return Row(cell, run, self.history(run.id), run.adapter if run.adapter in kept else "")

    def csv(self, grid_id: str) -> str:
        """The results as CSV, the best first."""
        results = self.results(grid_id)
        names = list(results.grid.axes)
        lines = [
            [
                *[grids.shown(r.cell.values[n]) for n in names],
                *[_bare(r.figures()[f]) for f in FIGURES],
                "best" if r.best else "",
            ]
            for r in results.rows
        ]
        return plain_csv([[*names, *FIGURES, "mark"], *lines])

    def remove(self, grid_id: str) -> None:
        """Forgets a grid; its runs and adapters stay."""
        self._workspace.remove("grids", grid_id)

    def estimate(self, base: TrainSpec, axes: Axes, base_model: str) -> float | None:
        """Seconds that a grid would take, by the newest run that did the like; None where there is none.

        A run is comparable when it finished on the same base and data, of the same kind and sequence length:
        its time a sequence is taken, and the sequences of every cell are counted.
        """
        cells = grids.cells(base, axes)
        total = 0.0
        ended = [r for r in self._conduct.runs() if r.status is RunStatus.DONE and r.base == base_model]
        for cell in cells:
            like = next(
                (r for r in ended if _alike(r.spec, cell.spec) and self.history(r.id).sequences), None
            )
            if like is None:
                return None
            history = self.history(like.id)
            total += (
                history.seconds
                * _sequences(cell.spec, history.sequences)
                / max(1, _sequences(like.spec, history.sequences))
            )
        return total

    # --- comparing

    def history(self, run_id: str) -> History:
        """What a run's log tells; read again only when the log has grown."""
        size = comparison.log_bytes(self._workspace, run_id)
        before = self._read.get(run_id)
        if before is None or before[0] != size:
            before = (size, comparison.history(self._workspace, run_id))
            self._read = {**{k: v for k, v in self._read.items() if k != run_id}, run_id: before}
        return before[1]

    def compare(self, run_ids: Sequence[str]) -> Comparison:
        """Runs side by side: curves, figures and settings.

        Raises:
            SpecError: fewer than two, or more than eight. NotFound: one is gone.
        """
        low, high = COMPARED
        if not low <= len(set(run_ids)) <= high:
            raise SpecError(
                f"{len(set(run_ids))} run{'s were' if len(set(run_ids)) != 1 else ' was'} chosen.",
                f"Choose {low} to {high}.",
            )
        given = tuple(self._conduct.run(i) for i in dict.fromkeys(run_ids))
        return Comparison(given, tuple(self.history(r.id) for r in given), tuple(comparison.settings(given)))


def _alike(done: TrainSpec, asked: TrainSpec) -> bool:
    return (done.dataset, done.kind, done.max_length, bool(done.stack_on)) == (
        asked.dataset,
        asked.kind,
        asked.max_length,
        bool(asked.stack_on),
    )


def _sequences(spec: TrainSpec, rows: int) -> int:
    """Training sequences that a run reads, given the rows of its training split."""
    steps = spec.max_steps or math.ceil(math.ceil(rows / spec.batch_size) / spec.accumulation * spec.epochs)
    return max(1, steps) * min(spec.effective_batch, rows)


def _bare(value: Any) -> Any:
    return "" if value is None else value


def _note(rows: Sequence[Row], grid: Grid) -> str:
    """What the order of the table is worth."""
    rest = rows[1:]
    if not rest:
        return ""
    seeds = len(grid.axes.get("seed", ()))
    one = (
        "Each cell is one seed, and another seed may order them differently: to know, vary the seed too."
        if seeds < 2
        else ""
    )
    unknown = [r for r in rest if r.behind is not None and math.isnan(r.behind.error)]
    if unknown:
        return " ".join(
            filter(
                None,
                [
                    "The logs do not hold single validation rows, so that chance cannot be told from a difference.",
                    one,
                ],
            )
        )
    level = [r for r in rest if r.behind is not None and not r.behind.clear]
    nearest = rest[0].behind
    assert nearest is not None
    on = "the same validation rows" if nearest.paired else "their validation rows"
    apart = "The next has the very same loss as the best."
    if nearest.nats:
        error = f"with a standard error of {comparison.nats(nearest.error)} over {on}"
        apart = f"The next is {comparison.nats(nearest.nats)} nats a token behind the best, {error}."
    if not level:
        return " ".join(filter(None, [f"{apart} That is more than chance of the rows.", one]))
    count = f"{len(level)} of the others are" if len(level) > 1 else "One of the others is"
    return " ".join(
        filter(
            None,
            [
                apart,
                f"{count} within {comparison.CLEAR:g} standard errors of the best: these rows cannot tell them apart.",
                one,
            ],
        )
    )
