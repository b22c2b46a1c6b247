"""A map of two adapters' weights: the metric at every pair of weights, and where the best pair lies.

The points of one row of the map are measured in one batch. After every row the map is written to
`maps/<key>/map.json`, where the key is a checksum of everything that decides the values: a map is never measured
twice, and a stopped one continues at its next row.
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
from core.evaluate.sample import RowLosses, RowMatches, Sample, encode_sample, load_finished
from core.model.resident import Resident
from core.progress import Progress
from core.spec.mix import WEIGHT_LIMIT, Mix
from core.store.workspace import Workspace, read_json, write_json

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
        fixed: weights of the mix's other adapters. tilt: tilts of the mix's adapters, the same at every point.
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
                f"The axes must be two different adapters without a fixed weight, got {self.x!r} and {self.y!r}.",
                "Choose another adapter for one of the axes.",
            )
        if self.metric not in METRICS:
            raise SpecError(f"The metric must be one of {', '.join(METRICS)}, got {self.metric!r}.")
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
        key: sha256 of everything that decides the values; also the map's id in the workspace.
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
        """The best point, its neighbours in value, and the data that the map was measured on.

        Args:
            names: adapter id to display name; ids are shown for missing names.
        """
        best = self.best
        if best is None:
            return "Nothing has been measured yet."
        x, y = ((names or {}).get(a, a) for a in self.adapters)
        extreme = "highest" if self.metric == "exact_match" else "lowest"
        said = (
            []
            if self.complete
            else [
                f"{len(self.points)} of {len(self.xs) * len(self.ys)} cells are measured, so this is only the best so far."
            ]
        )
        said.append(
            f"The {extreme} {self.metric_label}, {best.value:.3g}, is at {x} {best.x:g} and {y} {best.y:g}: {self._place(best, x, y)}."
        )
        equal = sum(c.value == best.value for c in self.points) - 1
        if equal:
            said.append(f"{equal} other point{'s do' if equal > 1 else ' does'} as well.")
        total = self.value_at(1.0, 1.0)
        if total is not None and (best.x, best.y) != (1.0, 1.0):
            said.append(f"The plain sum (1, 1) has {total:.3g}.")
        if self.tilt:
            said.append("Adapters lean to deep or shallow layers here as they did in the mixer.")
        said.append(
            f"Measured on {self.rows} rows of {self.dataset_name!r} ({self.split}), at the points of the grid only."
        )
        return " ".join(said)

    def _place(self, best: MapPoint, x: str, y: str) -> str:
        edge = best.x in (self.xs[0], self.xs[-1]) or best.y in (self.ys[0], self.ys[-1])
        if (best.x, best.y) == (1.0, 1.0):
            place = "the plain sum itself"
        elif best.x == best.y == 0.0:
            place = "with both of them off"
        elif best.x == 0.0:
            place = f"on an axis, {x} is off"
        elif best.y == 0.0:
            place = f"on an axis, {y} is off"
        else:
            place = "" if edge else "inside the map"
        if edge:
            place = f"{place}, and " if place else ""
            place += "at the edge of the map, so that the true optimum may lie beyond it"
        return place

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
            made = cls(**{**plain, **tuples, "values": tuple(tuple(row) for row in plain["values"])})
            if len(made.adapters) != 2 or [len(row) for row in made.values] != [len(made.xs)] * len(made.ys):
                raise ValueError("its cells do not fit its grid")
            return made
        except (TypeError, KeyError, ValueError) as e:
            raise StorageError(
                f"A stored weight map cannot be read: {e}.", "Delete it and draw it again."
            ) from e


@dataclass(frozen=True)
class WeightMapProgress(Progress):
    """Progress of a map, with all of it that is drawn so far; the last one has the complete map."""

    map: WeightMap | None = None


def compute_map(resident: Resident, plan: WeightMapSpec, sample: Sample) -> Iterator[WeightMapProgress]:
    """Measures every cell of the grid on a sample, a row of the grid at a time.

    What was measured before, with the same adapters, base and rows, is read from the workspace instead.

    Yields:
        A Drawing after every forward.

    Raises:
        SpecError: exact match of texts. Busy: an adapter is still in training. NotFound, AdapterError.
    """
    if plan.metric == "exact_match" and sample.kind != "task":
        raise SpecError(
            "Exact match needs questions with answers.", "Choose a task dataset, or the metric perplexity."
        )
    present = load_finished(resident, [*plan.fixed, plan.x, plan.y])
    blank = _blank(resident, plan, sample, present)
    kept = load_map(resident.workspace, blank.key, missing=blank)
    found = replace(
        blank, values=kept.values, created=kept.created, seconds=kept.seconds, forwards=kept.forwards
    )  # ids may differ, contents do not
    total = len(plan.xs) * len(plan.ys)
    watch = StepTimer(found.seconds, found.forwards)
    encoding = (
        encode_sample(resident, sample, plan.max_length)
        if plan.metric == "perplexity" and not found.complete
        else None
    )
    for j, y in enumerate(plan.ys):
        if None not in found.values[j]:
            continue
        mixes = [plan.mix(x, y) for x in plan.xs]
        work = (
            RowLosses(resident, encoding, mixes)
            if encoding is not None
            else RowMatches(resident, sample, mixes, plan.max_new_tokens)
        )
        before = len(found.points)
        for share in watch.over(work.compute()):
            yield WeightMapProgress(before + int(share * len(mixes)), total, f"Measuring weights at {y:g}", map=found)
        row = (
            [math.exp(min(loss, 700.0)) for loss in work.losses]
            if isinstance(work, RowLosses)
            else work.exact.mean(1).tolist()
        )
        values = tuple(tuple(row) if i == j else old for i, old in enumerate(found.values))
        found = replace(found, values=values, seconds=round(watch.seconds, 3), forwards=watch.forwards)
        write_json(resident.workspace.path("maps", found.key, MAP_FILE), found.to_json())
    yield WeightMapProgress(total, total, "Done", map=found)


def _blank(resident: Resident, plan: WeightMapSpec, sample: Sample, digests: dict[str, str]) -> WeightMap:
    """The empty map of a plan. Its key is made of contents only, so that no name or id matters."""
    base = resident.base
    content = {
        "format": FORMAT,
        "base": [base.fingerprint, base.quantization],
        "axes": [[digests[plan.x], list(plan.xs)], [digests[plan.y], list(plan.ys)]],
        "fixed": sorted((digests[a], w) for a, w in plan.fixed.items()),
        "data": [sample.sha256, sample.split, len(sample.rows), sample.digest],
        "metric": [plan.metric, plan.max_length if plan.metric == "perplexity" else plan.max_new_tokens],
    }
    if plan.tilt:
        content["tilt"] = sorted((digests[a], t) for a, t in plan.tilt.items())
    return WeightMap(
        key=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        adapters=(plan.x, plan.y),
        fixed=dict(plan.fixed),
        xs=plan.xs,
        ys=plan.ys,
        metric=plan.metric,
        values=((None,) * len(plan.xs),) * len(plan.ys),
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
        tilt=dict(plan.tilt),
    )


def load_map(workspace: Workspace, key: str, missing: WeightMap | None = None) -> WeightMap:
    """Reads a kept map, whole or partly drawn.

    Args:
        missing: what is returned where there is none.

    Raises:
        NotFound: there is none. StorageError: it is damaged.
    """
    path = workspace.path("maps", key, MAP_FILE)
    if not path.exists():
        if missing is not None:
            return missing
        raise NotFound(f"There is no map {key!r} here.", "Draw it first.")
    return WeightMap.from_json(read_json(path))


def load_all(workspace: Workspace) -> list[WeightMap]:
    """Every kept map, the newest first."""
    return sorted(
        (load_map(workspace, k) for k in workspace.ids("maps") if workspace.path("maps", k, MAP_FILE).exists()),
        key=lambda m: -m.created,
    )
