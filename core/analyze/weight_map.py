"""A map of two adapters' weights: the metric at every pair of weights, and where the best pair lies.

The points of one row of the map are measured in one batch. After every row the map is written to
`maps/<key>/map.json`, where the key is a checksum of everything that determines the values. So a map is never
measured twice, and a stopped one continues at its next row.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from core.analyze.timing import StepTimer
from core.errors import DamagedRecord, SpecError
from core.evaluate.rows import choose_answer_length, describe_notes
from core.evaluate.sample import RowLosses, RowMatches, Sample, encode_sample, load_stable_adapters
from core.model.resident import Resident
from core.progress import Progress
from core.spec.metric_rules import RULE
from core.spec.mix import WEIGHT_LIMIT, Mix
from core.store.files import write_json
from core.store.weight_maps import FORMAT, MAP_FILE, METRICS, WeightMap, load_map

logger = logging.getLogger(__name__)

AXIS = tuple(-0.5 + 0.25 * i for i in range(9))  # includes 0 (off) and 1 (as trained)
AXIS_LIMIT = 33  # weights on one axis


@dataclass(frozen=True)
class WeightMapSpec:
    """What a weight map measures.

    Attributes:
        x, y: ids of the two adapters whose weights vary.
        fixed: weights of the mix's other adapters. tilt: tilts of the mix's adapters, the same at every
            point.
        xs, ys: the weights on each axis, ascending.
        metric: "perplexity" (of the answers of task rows, otherwise of whole texts) or "exact_match".
        max_length: longest sequence, in tokens. max_new_tokens: longest generated answer, in tokens; 0 takes
            the longest reference answer.

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
    max_new_tokens: int = 0
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
    if spec.metric == "exact_match" and not spec.max_new_tokens:
        spec = replace(spec, max_new_tokens=choose_answer_length(resident.base, sample.rows))
    empty = _make_empty_map(resident, spec, sample, digests)
    stored = _read_partial_map(resident, empty)
    # The stored map may have other adapter ids, since the key depends on contents only.
    current = replace(
        empty,
        values=stored.values,
        created=stored.created,
        seconds=stored.seconds,
        forwards=stored.forwards,
        note=stored.note,
    )
    total = len(spec.xs) * len(spec.ys)
    timer = StepTimer(current.seconds, current.forwards)
    encoded = None
    if spec.metric == "perplexity" and not current.complete:
        encoded = encode_sample(resident, sample, spec.max_length)
        current = replace(current, note=describe_notes(encoded.notes))
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
            row = measurement.shares
            current = replace(current, note=describe_notes(measurement.notes))
        values = tuple(tuple(row) if i == j else old for i, old in enumerate(current.values))
        current = replace(current, values=values, seconds=round(timer.seconds, 3), forwards=timer.forwards)
        write_json(resident.workspace.path("maps", current.key, MAP_FILE), current.to_json())
    yield WeightMapProgress(total, total, "Done", map=current)


def _read_partial_map(resident: Resident, empty: WeightMap) -> WeightMap:
    """The stored map with the key of `empty`; a damaged one is measured again, like a missing one."""
    try:
        return load_map(resident.workspace, empty.key, missing=empty)
    except DamagedRecord as e:
        logger.warning("a weight map is measured again: %s", e.what)
        return empty


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
        "metric": [spec.metric, spec.max_length],
    }
    if spec.metric == "exact_match":
        content["metric"] = [spec.metric, spec.max_new_tokens, RULE]
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
        max_new_tokens=spec.max_new_tokens if spec.metric == "exact_match" else 0,
        rule=RULE,
    )
