"""A map of two adapters' weights: the metric at every pair of weights, and where the best pair lies.

The points of one row of the map are measured in one batch. After every row the map is written to
`maps/<key>/map.json`, where the key is a checksum of everything that determines the values. So a map is never
measured twice, and a stopped one continues at its next row.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from core.analyze.timing import StepTimer
from core.errors import NotFound, SpecError, StorageError
from core.evaluate.sample import RowLosses, RowMatches, Sample, encode_sample, load_stable_adapters
from core.model.resident import Resident
from core.progress import Progress
from core.spec.mix import WEIGHT_LIMIT, Mix
from core.store.files import read_json, write_json
from core.store.workspace import Workspace

FORMAT = 1
MAP_FILE = "map.json"
AXIS = tuple(-0.5 + 0.25 * i for i in range(9))  # includes 0 (off) and 1 (as trained)
AXIS_LIMIT = 33  # weights on one axis
METRICS = ("perplexity", "exact_match")


@dataclass(frozen=True)
class WeightMapSpec:
    """What a weight map measures.

    Attributes:
        x, y: ids of the two adapters whose weights vary.
        fixed: weights of the mix's other adapters. tilt: tilts of the mix's adapters, the same at every
            point.
        xs, ys: the weights on each axis, ascending.
        metric: "perplexity" (of the answers of task rows, otherwise of whole texts) or "exact_match".
        max_length: longest sequence, in tokens. max_new_tokens: longest generated answer, in tokens.

    Raises:
        SpecError: the axes, the metric or the weights are not allowed.
    """

    x: str
    y: str
    fixed: Mapping[str, float] = field(default_factory=dict)
    xs: tuple[float, ...] = AXIS
    ys: tuple[float, ...] = AXIS
    metric: str = "perplexity"
    max_length: int = 512
    max_new_tokens: int = 64
    tilt: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.x or not self.y or self.x == self.y or {self.x, self.y} & set(self.fixed):
            raise SpecError(
                "The axes must be two different adapters without a fixed weight, "
                f"got {self.x!r} and {self.y!r}.",
                "Choose another adapter for one of the axes.",
            )
        if self.metric not in METRICS:
            raise SpecError(
                f"The metric must be one of {', '.join(METRICS)}, got {self.metric!r}.", "Choose one of them."
            )
        for axis in (self.xs, self.ys):
            if (
                not 2 <= len(axis) <= AXIS_LIMIT
                or list(axis) != sorted(set(axis))
                or not all(abs(w) <= WEIGHT_LIMIT for w in axis)
            ):
                raise SpecError(
                    f"An axis must have 2 to {AXIS_LIMIT} ascending weights "
                    f"between {-WEIGHT_LIMIT:g} and {WEIGHT_LIMIT:g}, got {list(axis)}.",
                    "Change the weights of the axis.",
                )

    def mix(self, x: float, y: float) -> Mix:
        """The mix of one point."""
        return Mix(weights={**self.fixed, self.x: x, self.y: y}, tilt=dict(self.tilt))


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
    """

    key: str
    adapters: tuple[str, str]
    fixed: dict[str, float]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    metric: str
    values: tuple[tuple[float | None, ...], ...]
    digests: dict[str, str]
    base: str
    base_fingerprint: str
    quantization: str
    dataset: str
    dataset_name: str
    dataset_sha256: str
    split: str
    kind: str
    sample: str
    rows: int
    created: float
    seconds: float = 0.0
    forwards: int = 0
    tilt: dict[str, float] = field(default_factory=dict)

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
            return "exact match"
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
            if raw["format"] != FORMAT:
                raise ValueError(f"its format is {raw['format']!r}")
            plain = {k: v for k, v in raw.items() if k != "format"}
            tuples = {k: tuple(plain[k]) for k in ("adapters", "xs", "ys")}
            values = tuple(tuple(row) for row in plain["values"])
            weight_map = cls(**{**plain, **tuples, "values": values})
            if len(weight_map.adapters) != 2:
                raise ValueError(f"it has {len(weight_map.adapters)} adapters")
            if [len(row) for row in values] != [len(weight_map.xs)] * len(weight_map.ys):
                raise ValueError("its values do not match its axes")
            return weight_map
        except (TypeError, KeyError, ValueError) as e:
            raise StorageError(
                f"A stored weight map cannot be read: {e}.", "Delete it and measure it again."
            ) from e


@dataclass(frozen=True)
class WeightMapProgress(Progress):
    """Progress of a map, with everything measured so far; the last one holds the complete map."""

    map: WeightMap | None = None


def compute_map(resident: Resident, spec: WeightMapSpec, sample: Sample) -> Iterator[WeightMapProgress]:
    """Measures every point of a map on a sample, one row of the map per batch of mixes.

    Rows measured before with the same adapters, base and sample are read from the workspace.

    Yields:
        A WeightMapProgress after every forward.

    Raises:
        SpecError: exact match of a sample without questions.
        Busy: an adapter is still in training.
        NotFound, AdapterError: an adapter cannot be loaded.
    """
    if spec.metric == "exact_match" and sample.kind != "task":
        raise SpecError(
            "Exact match needs questions with answers.", "Choose a task dataset, or the metric perplexity."
        )
    digests = load_stable_adapters(resident, [*spec.fixed, spec.x, spec.y])
    empty = _make_empty_map(resident, spec, sample, digests)
    stored = load_map(resident.workspace, empty.key, missing=empty)
    # The stored map may have other adapter ids, since the key depends on contents only.
    current = replace(
        empty, values=stored.values, created=stored.created, seconds=stored.seconds, forwards=stored.forwards
    )
    total = len(spec.xs) * len(spec.ys)
    timer = StepTimer(current.seconds, current.forwards)
    encoded = None
    if spec.metric == "perplexity" and not current.complete:
        encoded = encode_sample(resident, sample, spec.max_length)
    for j, y in enumerate(spec.ys):
        if None not in current.values[j]:
            continue
        mixes = [spec.mix(x, y) for x in spec.xs]
        measurement: RowLosses | RowMatches
        if encoded is not None:
            measurement = RowLosses(resident, encoded, mixes)
        else:
            measurement = RowMatches(resident, sample, mixes, spec.max_new_tokens)
        before = len(current.points)
        for share in timer.iterate(measurement.compute()):
            done = before + int(share * len(mixes))
            yield WeightMapProgress(done, total, "Measuring the map", map=current)
        if isinstance(measurement, RowLosses):
            row = [math.exp(min(loss, 700.0)) for loss in measurement.losses]
        else:
            row = measurement.exact.mean(1).tolist()
        values = tuple(tuple(row) if i == j else old for i, old in enumerate(current.values))
        current = replace(current, values=values, seconds=round(timer.seconds, 3), forwards=timer.forwards)
        write_json(resident.workspace.path("maps", current.key, MAP_FILE), current.to_json())
    yield WeightMapProgress(total, total, "Done", map=current)


def _make_empty_map(
    resident: Resident, spec: WeightMapSpec, sample: Sample, digests: dict[str, str]
) -> WeightMap:
    """The map of a spec before anything is measured; its key does not depend on names and ids."""
    base = resident.base
    content = {
        "format": FORMAT,
        "base": [base.fingerprint, base.quantization],
        "axes": [[digests[spec.x], list(spec.xs)], [digests[spec.y], list(spec.ys)]],
        "fixed": sorted((digests[a], w) for a, w in spec.fixed.items()),
        "data": [sample.sha256, sample.split, len(sample.rows), sample.digest],
        "metric": [spec.metric, spec.max_length if spec.metric == "perplexity" else spec.max_new_tokens],
    }
    if spec.tilt:
        content["tilt"] = sorted((digests[a], t) for a, t in spec.tilt.items())
    return WeightMap(
        key=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        adapters=(spec.x, spec.y),
        fixed=dict(spec.fixed),
        xs=spec.xs,
        ys=spec.ys,
        metric=spec.metric,
        values=((None,) * len(spec.xs),) * len(spec.ys),
        digests=digests,
        base=base.name,
        base_fingerprint=base.fingerprint,
        quantization=base.quantization,
        dataset=sample.dataset,
        dataset_name=sample.name,
        dataset_sha256=sample.sha256,
        split=sample.split,
        kind=sample.kind,
        sample=sample.digest,
        rows=len(sample.rows),
        created=time.time(),
        tilt=dict(spec.tilt),
    )


def load_map(workspace: Workspace, key: str, missing: WeightMap | None = None) -> WeightMap:
    """Reads a stored map, complete or partly measured.

    Args:
        missing: returned when the map does not exist.

    Raises:
        NotFound: the map does not exist, and `missing` is None. StorageError: its file is damaged.
    """
    path = workspace.path("maps", key, MAP_FILE)
    if not path.exists():
        if missing is not None:
            return missing
        raise NotFound(f"The weight map {key!r} was not found.", "Measure it first.")
    return WeightMap.from_json(read_json(path))


def load_all(workspace: Workspace) -> list[WeightMap]:
    """Every stored map, newest first."""
    return sorted(
        (
            load_map(workspace, k)
            for k in workspace.ids("maps")
            if workspace.path("maps", k, MAP_FILE).exists()
        ),
        key=lambda m: -m.created,
    )
