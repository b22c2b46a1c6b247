"""Grids: one training description with some settings varied, every combination a cell.

Knows which settings can be varied, how typed values become cells, and grids/<id>.json. Knows nothing of
runs, models or results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError, StudioError
from core.spec.settings import label_of
from core.spec.training import TrainSpec
from core.store.workspace import NAME_LIMIT, Workspace, check_name, make_id, read_json, write_json

CELL_LIMIT = 64
FIXED = ("kind", "name", "report_to", "sample_prompts")  # what makes no other training is not varied
FIELDS = {f.name: f for f in dataclasses.fields(TrainSpec) if f.name not in FIXED}
WORDS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
GRID_PRESETS: dict[str, dict[str, list[Any]]] = {
    "rank x rate x epochs": {"rank": [16, 32], "learning_rate": [1e-4, 5e-5], "epochs": [2.0, 3.0]},
}
Axes = dict[str, list[Any]]


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        index: its place in the grid, the last axis changing fastest.
        values: setting -> value, of the varied ones.
        key: a checksum of everything that the cell trains with but its name; see `spec_checksum`.
    """

    index: int
    values: dict[str, Any]
    spec: TrainSpec
    key: str


@dataclass(frozen=True)
class Grid:
    """A grid that was started.

    Attributes:
        base: the description that its cells share, as JSON.
        axes: setting -> values.
        runs: a run id for each cell, "" where none is known yet.
    """

    id: str
    name: str
    created: float
    base: dict[str, Any]
    axes: Axes
    runs: list[str]

    @property
    def cells(self) -> list[Cell]:
        return make_cells(TrainSpec.from_json(self.base), self.axes, self.name)


def spec_checksum(spec: TrainSpec) -> str:
    """A checksum of a description without its name: equal for what trains the same on the same data."""
    settings = {k: v for k, v in spec.to_json().items() if k != "name"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def parse_axis(field: str, text: str) -> list[Any]:
    """The values of an axis as people type them: `16, 32`; `on, off`; lists as `a + b, c`.

    Raises:
        SpecError: the field cannot be varied, no value was given, one twice, or one outside its limits.
    """
    if field not in FIELDS:
        raise SpecError(f"{field!r} cannot be varied.", f"Choose one of: {', '.join(FIELDS)}.")
    kind, label = str(FIELDS[field].type), label_of(FIELDS[field])
    values = [
        _value(kind, part.strip())
        for part in text.replace(";", ",").replace("\n", ",").split(",")
        if part.strip()
    ]
    return _checked(field, values, label)


def _value(kind: str, text: str) -> Any:
    """A typed value as the field's type; what cannot be read stays text, and the spec refuses it with the limits."""
    if kind == "bool":
        return WORDS.get(text.lower(), text)
    if kind.startswith("tuple"):
        return tuple(p for p in text.replace("+", " ").split() if p)
    if kind in ("int", "float"):
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _checked(field: str, values: Sequence[Any], label: str) -> list[Any]:
    if not values:
        raise SpecError(f"{label} has no values.", "Give at least one, separated by commas.")
    found = [getattr(TrainSpec(**{field: v}), field) for v in values]
    for i, value in enumerate(found):
        if value in found[:i]:
            raise SpecError(f"{label} has {format_value(value)} twice.", "Give every value once.")
    return found


def make_cells(base: TrainSpec, axes: Mapping[str, Sequence[Any]], name: str = "") -> list[Cell]:
    """Every combination of the axes' values, as a training description each.

    Args:
        base: what the cells share.
        name: what the cells' names begin with; the base's own if empty.

    Raises:
        SpecError: no axes, one that cannot be varied, a value outside its limits, or too many cells.
    """
    if not axes:
        raise SpecError("Nothing is varied.", "Choose a setting and give it at least one value.")
    if unknown := [f for f in axes if f not in FIELDS]:
        raise SpecError(f"{', '.join(unknown)} cannot be varied.", f"Choose from: {', '.join(FIELDS)}.")
    checked = {f: _checked(f, list(values), label_of(FIELDS[f])) for f, values in axes.items()}
    count = 1
    for given in checked.values():
        count *= len(given)
    if count > CELL_LIMIT:
        raise SpecError(
            f"The grid has {count} cells.", f"Give at most {CELL_LIMIT}: fewer values, or fewer settings."
        )
    made = []
    for index, combination in enumerate(itertools.product(*checked.values())):
        values = dict(zip(checked, combination, strict=True))
        spec = dataclasses.replace(base, **values, name=_name(name or base.name, index, values))
        made.append(Cell(index, values, spec, spec_checksum(spec)))
    return made


def _name(name: str, index: int, values: dict[str, Any]) -> str:
    """A cell's name says its settings, as far as they fit and may stand in a name."""
    full = f"{name}: " + ", ".join(f"{_within(label_of(FIELDS[f]))} {format_value(v)}" for f, v in values.items())
    try:
        return check_name(full)
    except StudioError:
        return f"{name[: NAME_LIMIT - 12]}: cell {index + 1}"


def _within(label: str) -> str:
    """A label inside a sentence: `LoRA dropout` stays what it is, `Learning rate` loses its capital."""
    return label[0].lower() + label[1:] if label.split()[0][1:].islower() else label


def format_value(value: Any) -> str:
    """A value as people read it, and as `axis` reads it again."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return " + ".join(value) or "the usual"
    return f"{value:g}" if isinstance(value, (int, float)) and float(f"{value:g}") == value else str(value)


def create(workspace: Workspace, base: TrainSpec, axes: Axes, name: str) -> Grid:
    """Writes a new grid down, with no runs yet.

    Raises:
        SpecError, InvalidName, StorageError
    """
    grid = Grid(
        make_id(check_name(name)),
        name.strip(),
        time.time(),
        base.to_json(),
        {f: list(v) for f, v in axes.items()},
        [],
    )
    made = dataclasses.replace(grid, runs=[""] * len(grid.cells))
    save(workspace, made)
    return made


def save(workspace: Workspace, grid: Grid) -> None:
    pairs = [
        [f, list(v)] for f, v in grid.axes.items()
    ]  # JSON objects of ours are sorted by name, and the axes have an order
    write_json(workspace.path("grids", grid.id), {**grid.__dict__, "axes": pairs})


def load(workspace: Workspace, grid_id: str) -> Grid:
    """Reads a grid. Raises NotFound or StorageError."""
    raw = read_json(workspace.find("grids", grid_id))
    return Grid(**{**{f.name: raw[f.name] for f in dataclasses.fields(Grid)}, "axes": dict(raw["axes"])})


def load_all(workspace: Workspace) -> list[Grid]:
    """All grids, newest first."""
    return sorted((load(workspace, i) for i in workspace.ids("grids")), key=lambda g: -g.created)
