"""Stored weight maps: maps/<key>/map.json holds a metric over pairs of two adapters' weights.

The key is a checksum of everything that determines the values. `core.analyze.weight_map` measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from core.errors import NotFound, StorageError
from core.spec.metric_rules import FIRST_RULE, label_metric
from core.store.record_types import Count, Figure, Kind, OneOf, Seconds, Time, check_type
from core.store.records import load_items, read_object, report_damage
from core.store.workspace import Workspace

FORMAT = 1
MAP_FILE = "map.json"
METRICS = ("perplexity", "exact_match")


@dataclass(frozen=True)
class MapPoint:
    """A measured point of a map: two weights and the value of the metric."""

    x: float
    y: float
    value: float


@dataclass(frozen=True)
class WeightMap:
    """A weight map, complete or partly measured.

    Attributes:
        key: sha256 of everything that determines the values; also the map's id in the workspace.
        adapters: ids on the x and the y axis. digests: sha256 of every adapter's weights.
        values: values[j][i] belongs to (xs[i], ys[j]); None means not measured yet.
        kind: of the dataset, "domain" or "task". sample: sha256 of the measured rows. rows: their number.
        seconds, forwards: the cost of measuring, without the work that it was interleaved with.
        max_new_tokens: longest answer, in tokens; 0 where no answers were generated, or not recorded.
        rule: by which answers were compared (`core.spec.metric_rules`).
        note: on the rows that were cut or left out.
    """

    key: str
    adapters: tuple[str, str]
    fixed: dict[str, float]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    metric: Annotated[str, OneOf(METRICS)]
    values: tuple[tuple[Figure | None, ...], ...]
    digests: dict[str, str]
    base: str
    base_fingerprint: str
    quantization: str
    dataset: str
    dataset_name: str
    dataset_sha256: str
    split: str
    kind: Kind
    sample: str
    rows: Count
    created: Time
    seconds: Seconds = 0.0
    forwards: Count = 0
    tilt: dict[str, float] = field(default_factory=dict)
    max_new_tokens: Count = 0
    rule: str = FIRST_RULE
    note: str = ""

    @property
    def points(self) -> list[MapPoint]:
        """The measured points."""
        return [
            MapPoint(x, y, v)
            for y, row in zip(self.ys, self.values, strict=True)
            for x, v in zip(self.xs, row, strict=True)
            if v is not None
        ]

    @property
    def complete(self) -> bool:
        """Whether every point is measured."""
        return len(self.points) == len(self.xs) * len(self.ys)

    @property
    def best(self) -> MapPoint | None:
        """The best point; of equal points, the one nearest to the plain sum (1, 1)."""
        sign = 1.0 if self.metric == "perplexity" else -1.0
        finite = [c for c in self.points if math.isfinite(c.value)]
        return min(finite, key=lambda c: (sign * c.value, math.hypot(c.x - 1, c.y - 1)), default=None)

    def value_at(self, x: float, y: float) -> float | None:
        """The value at a pair of weights; None where nothing is measured."""
        return next((c.value for c in self.points if c.x == x and c.y == y), None)

    @property
    def metric_label(self) -> str:
        """The metric's name for users."""
        if self.metric == "exact_match":
            return label_metric("exact match", self.rule)
        return "answer perplexity" if self.kind == "task" else "text perplexity"

    def summary(self, names: Mapping[str, str] | None = None) -> str:
        """The best point, how it compares with the plain sum, and the data that the map was measured on.

        Args:
            names: adapter id to display name; ids are shown for missing names.
        """
        best = self.best
        if best is None:
            return "Nothing has been measured yet."
        x, y = ((names or {}).get(a, a) for a in self.adapters)
        extreme = "highest" if self.metric == "exact_match" else "lowest"
        sentences = []
        if not self.complete:
            count = f"{len(self.points)} of {len(self.xs) * len(self.ys)} points are measured"
            sentences.append(f"{count}, so this is only the best so far.")
        sentences.append(
            f"The {extreme} {self.metric_label}, {best.value:.3g}, is at {x} {best.x:g} and {y} {best.y:g} "
            f"({self._describe_place(best, x, y)})."
        )
        ties = sum(c.value == best.value for c in self.points) - 1
        if ties:
            sentences.append(f"{ties} other point{'s have' if ties > 1 else ' has'} the same value.")
        plain_sum = self.value_at(1.0, 1.0)
        if plain_sum is not None and (best.x, best.y) != (1.0, 1.0):
            sentences.append(f"At the plain sum (1, 1) it is {plain_sum:.3g}.")
        if self.tilt:
            sentences.append("The adapters keep the tilts that they had in the mixer.")
        source = f"{self.rows} rows of {self.dataset_name!r} ({self.split})"
        sentences.append(f"Measured on {source}, at the points of the map only.")
        if self.max_new_tokens:
            sentences.append(f"Answers were cut at {self.max_new_tokens} tokens.")
        sentences += [self.note] if self.note else []
        return " ".join(sentences)

    def _describe_place(self, best: MapPoint, x: str, y: str) -> str:
        edge = best.x in (self.xs[0], self.xs[-1]) or best.y in (self.ys[0], self.ys[-1])
        places = []
        if (best.x, best.y) == (1.0, 1.0):
            places.append("the plain sum")
        elif best.x == best.y == 0.0:
            places.append("both adapters are off")
        elif best.x == 0.0:
            places.append(f"{x} is off")
        elif best.y == 0.0:
            places.append(f"{y} is off")
        elif not edge:
            places.append("inside the map")
        if edge:
            places.append("at the edge of the map, so the optimum may lie beyond it")
        return "; ".join(places)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> WeightMap:
        """Reads what `to_json` wrote.

        Raises:
            StorageError: it is not a map of this format.
        """
        try:
            if check_type(int, raw.get("format")) != FORMAT:
                raise ValueError(f"its format is {raw.get('format')!r}, and must be {FORMAT}")
            weight_map: WeightMap = check_type(cls, raw)
            if [len(row) for row in weight_map.values] != [len(weight_map.xs)] * len(weight_map.ys):
                raise ValueError("its values do not match its axes")
            return weight_map
        except ValueError as e:
            raise StorageError(
                f"A stored weight map cannot be read: {e}.", "Delete it and measure it again."
            ) from e


def load_map(workspace: Workspace, key: str, missing: WeightMap | None = None) -> WeightMap:
    """Reads a stored map, complete or partly measured.

    Args:
        missing: returned when the map does not exist.

    Raises:
        NotFound: the map does not exist, and `missing` is None. DamagedRecord: it cannot be read.
    """
    path = workspace.path("maps", key, MAP_FILE)
    if not path.parent.exists():
        if missing is not None:
            return missing
        raise NotFound(f"The weight map {key!r} was not found.", "Measure it first.")
    raw = read_object(path)
    with report_damage(path):
        weight_map = WeightMap.from_json(raw)
        if weight_map.key != key:
            raise ValueError(f"it is the map {weight_map.key!r}")
    return weight_map


def load_all(workspace: Workspace) -> list[WeightMap]:
    """Every stored map that can be read, newest first."""
    return sorted(load_items(workspace, "maps", load_map)[0], key=lambda m: -m.created)
