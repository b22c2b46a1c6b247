"""Grids (sweeps): training settings with some fields varied; every combination of values is a cell.

grids/<id>.json holds the common settings, the axes, and the run of each cell. `core.engine.grids` starts the
runs and reads their results.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import SpecError, StudioError
from core.spec.experiment import ON
from core.spec.grid_questions import GridQuestions
from core.spec.settings import label_of
from core.spec.training import TrainSpec
from core.store.record_types import Time
from core.store.records import load_items, read_record, report_damage, write_record
from core.store.workspace import NAME_LIMIT, Workspace, check_name, make_id

CELL_LIMIT = 64
NOT_VARIED = ("kind", "name", "report_to", "sample_prompts", "rules", "continue_from")  # not axes of a grid
# The settings of the first version. `spec_checksum` always counts these, and a later one only where it
# differs from its default, so that the checksums in bundles and grids of earlier versions still match.
FIRST_SETTINGS = frozenset((
    "accumulation", "alpha", "batch_size", "dataset", "domain_dropout", "dropout", "early_stopping",
    "epochs", "eval_steps", "experts", "gradient_checkpointing", "initialisation", "keep", "kind",
    "learning_rate", "lora_plus_ratio", "max_length", "max_steps", "neftune_alpha", "optimizer", "overlap",
    "packing", "rank", "replay_dataset", "replay_share", "report_to", "sample_prompts", "save_steps",
    "schedule", "seed", "stack_on", "target_modules", "use_dora", "use_rslora", "warmup_ratio",
    "weight_decay",
))  # fmt: skip
FIELDS = {f.name: f for f in dataclasses.fields(TrainSpec) if f.name not in NOT_VARIED}
BOOLEAN_WORDS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
Axes = dict[str, list[Any]]


@dataclass(frozen=True)
class GridPreset:
    """A grid that is often useful.

    Attributes:
        axes: the settings that vary, and their values.
        settings: what all its cells have in common, beside what the user sets.
        help: what is chosen here, and why; "" where the name says it.
        documents: whether its experiment also asks with documents, as `GridQuestions.documents`; "" for a
            grid that is not meant to end in one.
    """

    axes: Axes
    settings: dict[str, Any] = field(default_factory=dict)
    help: str = ""
    documents: str = ""


_RANK_RATE_EPOCHS: Axes = {"rank": [16, 32], "learning_rate": [1e-4, 5e-5], "epochs": [2.0, 3.0]}
# Groups of layers, which the model family translates into its names.
_TARGETS = {"target_modules": ("attention", "down")}
GRID_PRESETS: dict[str, GridPreset] = {
    "rank x rate x epochs": GridPreset(_RANK_RATE_EPOCHS),
    "portfolio, 64 sequences": GridPreset(
        _RANK_RATE_EPOCHS,
        {"batch_size": 4, "accumulation": 16, **_TARGETS},
        "Attention and down projections; 64 sequences per optimizer step (4 x 16 by accumulation). The "
        'portfolio asks for "64 tokens effective", which this reads as an effective batch of 64.',
        ON,
    ),
    "portfolio, 64 tokens": GridPreset(
        _RANK_RATE_EPOCHS,
        {"batch_size": 1, "accumulation": 1, "max_length": 64, **_TARGETS},
        'Attention and down projections; "64 tokens effective" by the letter: one packed sequence of 64 '
        "tokens per optimizer step. Longer rows are cut, and steps are noisy.",
        ON,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One combination of values.

    Attributes:
        index: position in the grid; the last axis changes fastest.
        values: field -> value, of the varied fields.
        key: `spec_checksum` of its settings.
    """

    index: int
    values: dict[str, Any]
    spec: TrainSpec
    key: str


@dataclass(frozen=True)
class FollowUp:
    """The experiment that a grid ended in; exactly one of the first two is there.

    Attributes:
        experiment: its id.
        problem: why it could not be started, for the user.
        left_out: cells without an adapter, with the reason of each.
    """

    experiment: str = ""
    problem: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A grid on disk.

    Attributes:
        created: Unix seconds.
        base: the settings that its cells have in common, as JSON.
        axes: field -> values.
        runs: a run id for each cell, or "".
        questions: `GridQuestions` as JSON: what the experiment asks that it ends in; None without one.
        follow_up: that experiment, once the last cell has ended; None before.
    """

    id: str
    name: str
    created: Time
    base: dict[str, Any]
    axes: Axes
    runs: list[str]
    questions: dict[str, Any] | None = None
    follow_up: FollowUp | None = None

    @property
    def is_pending(self) -> bool:
        """Whether its experiment has yet to be started."""
        return self.questions is not None and self.follow_up is None

    @property
    def cells(self) -> list[Cell]:
        return make_cells(TrainSpec.from_record(self.base), self.axes, self.name)


@dataclass(frozen=True)
class _Record:
    """The content of grids/<id>.json. The axes are pairs, because the keys of an object have no order."""

    id: str
    name: str
    created: Time
    base: dict[str, Any]
    axes: list[tuple[str, list[Any]]]
    runs: list[str]
    questions: dict[str, Any] | None = None
    follow_up: FollowUp | None = None


def spec_checksum(spec: TrainSpec) -> str:
    """A checksum of all settings but the name: equal for runs that train the same on the same data.

    The rules are not a part of it: the same settings in a run of an earlier version fill the same cell.
    """
    defaults = type(spec)().to_json()
    settings = {
        k: v
        for k, v in spec.to_json().items()
        if k in FIRST_SETTINGS or (k not in ("name", "rules") and v != defaults[k])
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_complete(settings: Mapping[str, Any]) -> None:
    """Checks that stored settings have those that every version writes; another default would replace them.

    Raises:
        SpecError: one is missing.
    """
    if missing := sorted(FIRST_SETTINGS - set(settings)):
        raise SpecError(f"The setting {missing[0]} is missing.", "Restore the file from a backup.")


def parse_axis(field: str, text: str) -> list[Any]:
    """Parses the values of an axis from text.

    Args:
        field: the name of a field of TrainSpec.
        text: values that are separated by commas: `16, 32`; `on, off`; lists as `q_proj + v_proj, q_proj`.

    Raises:
        SpecError: the field cannot be varied, the text has no value, or a value occurs twice or is outside
            its limits.
    """
    if field not in FIELDS:
        raise SpecError(f"The setting {field!r} cannot be varied.", f"Choose one of: {', '.join(FIELDS)}.")
    kind, label = str(FIELDS[field].type), label_of(FIELDS[field])
    values = [
        _parse_value(kind, part.strip())
        for part in text.replace(";", ",").replace("\n", ",").split(",")
        if part.strip()
    ]
    return _check_values(field, values, label)


def _parse_value(kind: str, text: str) -> Any:
    """Converts text to the type of a field. Invalid text stays text, and TrainSpec then refuses it."""
    if kind == "bool":
        return BOOLEAN_WORDS.get(text.lower(), text)
    if kind.startswith("tuple"):
        return tuple(p for p in text.replace("+", " ").split() if p)
    if kind in ("int", "float"):
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _check_values(field: str, values: Sequence[Any], label: str) -> list[Any]:
    if not values:
        raise SpecError(f"{label} must have at least one value, got none.", "Separate values by commas.")
    checked = [getattr(TrainSpec(**{field: v}), field) for v in values]
    for i, value in enumerate(checked):
        if value in checked[:i]:
            raise SpecError(
                f"The values of {label} must differ, got {format_value(value)} twice.", "Remove one of them."
            )
    return checked


def make_cells(base: TrainSpec, axes: Mapping[str, Sequence[Any]], name: str = "") -> list[Cell]:
    """Creates a cell for every combination of values.

    Args:
        base: the settings that the cells have in common.
        axes: field -> values.
        name: start of the names of the cells; by default the name of `base`.

    Raises:
        SpecError: no axes, a field that cannot be varied, a value outside its limits, or too many cells.
    """
    if not axes:
        raise SpecError("The grid varies no setting.", "Choose a setting and enter at least one value.")
    if unknown := [f for f in axes if f not in FIELDS]:
        raise SpecError(
            f"These settings cannot be varied: {', '.join(unknown)}.", f"Choose from: {', '.join(FIELDS)}."
        )
    checked = {f: _check_values(f, list(values), label_of(FIELDS[f])) for f, values in axes.items()}
    count = math.prod(len(values) for values in checked.values())
    if count > CELL_LIMIT:
        raise SpecError(
            f"A grid must have at most {CELL_LIMIT} cells, got {count}.",
            "Vary fewer settings, or fewer values.",
        )
    cells = []
    for index, combination in enumerate(itertools.product(*checked.values())):
        values = dict(zip(checked, combination, strict=True))
        spec = dataclasses.replace(base, **values, name=_name_cell(name or base.name, index, values))
        cells.append(Cell(index, values, spec, spec_checksum(spec)))
    return cells


def _name_cell(name: str, index: int, values: dict[str, Any]) -> str:
    """The name of a cell: its values, or its number where they are too long or not allowed in a name."""
    full = f"{name}: " + ", ".join(
        f"{_lower_label(label_of(FIELDS[f]))} {format_value(v)}" for f, v in values.items()
    )
    try:
        return check_name(full)
    except StudioError:
        return f"{name[: NAME_LIMIT - 12]}: cell {index + 1}"


def _lower_label(label: str) -> str:
    """A label inside a sentence: `Learning rate` becomes `learning rate`, `LoRA dropout` stays."""
    return label[0].lower() + label[1:] if label.split()[0][1:].islower() else label


def format_value(value: Any) -> str:
    """A value as people write it; `parse_axis` reads it back."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return " + ".join(value) or "the usual"
    return f"{value:g}" if isinstance(value, (int, float)) and float(f"{value:g}") == value else str(value)


def create(
    workspace: Workspace, base: TrainSpec, axes: Axes, name: str, questions: GridQuestions | None = None
) -> Grid:
    """Creates a grid without runs.

    Args:
        questions: that its adapters answer at the end.

    Raises:
        SpecError: see `make_cells`. InvalidName, StorageError.
    """
    clean = check_name(name)
    grid = Grid("", clean, time.time(), base.to_json(), {f: list(v) for f, v in axes.items()}, [])
    grid = dataclasses.replace(grid, questions=questions.to_json() if questions else None)
    runs = [""] * len(grid.cells)
    with workspace.lock("grids"):
        grid_id = make_id(clean)
        while workspace.path("grids", grid_id).exists():
            grid_id = make_id(clean)
        grid = dataclasses.replace(grid, id=grid_id, runs=runs)
        _write(workspace, grid)
    return grid


def set_runs(workspace: Workspace, grid_id: str, runs: Mapping[int, str]) -> Grid:
    """Records the runs of cells; the runs of the other cells stay.

    Args:
        runs: index of a cell -> run id.

    Raises:
        NotFound, DamagedRecord, StorageError. Busy: another process changes the grid.
    """
    with workspace.lock("grids", grid_id):
        grid = load(workspace, grid_id)
        for index, run_id in runs.items():
            grid.runs[index] = run_id
        _write(workspace, grid)
    return grid


def end_with(workspace: Workspace, grid_id: str, start: Callable[[Grid], FollowUp]) -> Grid:
    """Starts the experiment of a grid and records it, unless that has been done: also by another process.

    Args:
        start: starts it, or finds the one that a killed process started; called under the grid's lock.

    Raises:
        NotFound, DamagedRecord, StorageError. Busy: another process changes the grid. What `start` raises.
    """
    with workspace.lock("grids", grid_id):
        grid = load(workspace, grid_id)
        if grid.is_pending:
            grid = dataclasses.replace(grid, follow_up=start(grid))
            _write(workspace, grid)
    return grid


def rename(workspace: Workspace, grid_id: str, name: str) -> Grid:
    """Changes the display name of a grid; its runs keep theirs.

    Raises:
        InvalidName, NotFound, DamagedRecord, StorageError. Busy: another process changes the grid.
    """
    clean = check_name(name)
    with workspace.lock("grids", grid_id):
        grid = dataclasses.replace(load(workspace, grid_id), name=clean)
        _write(workspace, grid)
    return grid


def _write(workspace: Workspace, grid: Grid) -> None:
    # The axes have an order, and `write_json` sorts the keys of objects. So they are written as pairs.
    pairs = [[f, list(v)] for f, v in grid.axes.items()]
    ending = dataclasses.asdict(grid.follow_up) if grid.follow_up else None
    record = {**grid.__dict__, "axes": pairs, "follow_up": ending}
    write_record(workspace.path("grids", grid.id), {k: v for k, v in record.items() if v is not None})


def load(workspace: Workspace, grid_id: str) -> Grid:
    """Reads a grid. Raises NotFound or DamagedRecord."""
    path = workspace.find("grids", grid_id)
    record = read_record(path, _Record, grid_id)
    with report_damage(path):
        cells = _count_cells(json.dumps([record.base, record.axes]))
        if len(record.runs) != cells:
            raise ValueError(f"it names {len(record.runs)} runs for {cells} cells")
        if record.questions is not None:
            GridQuestions.from_json(record.questions)
    return Grid(**{**record.__dict__, "axes": dict(record.axes)})


@functools.lru_cache(maxsize=256)
def _count_cells(text: str) -> int:
    """The number of cells of a stored grid. The page reads grids often, and making their cells is slow.

    Args:
        text: JSON of the common settings and the axes.

    Raises:
        SpecError: they are not valid settings.
    """
    base, axes = json.loads(text)
    check_complete(base)
    return len(make_cells(TrainSpec.from_record(base), dict(axes)))


def load_all(workspace: Workspace) -> list[Grid]:
    """Every grid that can be read, newest first."""
    return sorted(load_items(workspace, "grids", load)[0], key=lambda g: -g.created)
