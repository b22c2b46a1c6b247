"""Grids (sweeps): training settings with some fields varied; every combination of values is a cell.

grids/<id>.json holds the common settings, the axes, and the run of each cell. `core.engine.grids` starts the
runs and reads their results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError, StudioError
from core.spec.settings import label_of
from core.spec.training import TrainSpec
from core.store.files import read_json, write_json
from core.store.workspace import NAME_LIMIT, Workspace, check_name, make_id

CELL_LIMIT = 64
NOT_VARIED = ("kind", "name", "report_to", "sample_prompts")  # they do not change the training
FIELDS = {f.name: f for f in dataclasses.fields(TrainSpec) if f.name not in NOT_VARIED}
BOOLEAN_WORDS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
GRID_PRESETS: dict[str, dict[str, list[Any]]] = {
    "rank x rate x epochs": {"rank": [16, 32], "learning_rate": [1e-4, 5e-5], "epochs": [2.0, 3.0]},
}
Axes = dict[str, list[Any]]


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
class Grid:
    """A grid on disk.

    Attributes:
        created: Unix seconds.
        base: the settings that its cells have in common, as JSON.
        axes: field -> values.
        runs: a run id for each cell, or "".
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
    """A checksum of all settings but the name: equal for runs that train the same on the same data."""
    settings = {k: v for k, v in spec.to_json().items() if k != "name"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


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


def create(workspace: Workspace, base: TrainSpec, axes: Axes, name: str) -> Grid:
    """Creates a grid without runs.

    Raises:
        SpecError: see `make_cells`. InvalidName, StorageError.
    """
    grid = Grid(
        make_id(check_name(name)),
        name.strip(),
        time.time(),
        base.to_json(),
        {f: list(v) for f, v in axes.items()},
        [],
    )
    grid = dataclasses.replace(grid, runs=[""] * len(grid.cells))
    save(workspace, grid)
    return grid


def save(workspace: Workspace, grid: Grid) -> None:
    """Writes a grid."""
    # The axes have an order, and `write_json` sorts the keys of objects. So they are written as pairs.
    pairs = [[f, list(v)] for f, v in grid.axes.items()]
    write_json(workspace.path("grids", grid.id), {**grid.__dict__, "axes": pairs})


def load(workspace: Workspace, grid_id: str) -> Grid:
    """Reads a grid. Raises NotFound or StorageError."""
    raw = read_json(workspace.find("grids", grid_id))
    return Grid(**{**{f.name: raw[f.name] for f in dataclasses.fields(Grid)}, "axes": dict(raw["axes"])})


def load_all(workspace: Workspace) -> list[Grid]:
    """All grids, newest first."""
    return sorted((load(workspace, i) for i in workspace.ids("grids")), key=lambda g: -g.created)
