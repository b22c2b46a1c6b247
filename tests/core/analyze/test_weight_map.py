"""Weight maps: every point equals its mix measured alone, and nothing is measured twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.analyze import weight_map
from core.analyze.weight_map import WeightMap, WeightMapProgress, WeightMapSpec, compute_map
from core.data.tokens.encoding import encode_chat
from core.errors import Busy, NotFound, SpecError, StorageError
from core.evaluate.metrics import exact_match
from core.evaluate.sample import Sample, encode_sample, load_sample
from core.model.base import load_base
from core.model.generate import generate, inference_mode_for
from core.model.resident import Resident
from core.model.scoring import score, score_each
from core.spec.mix import Mix, Sampling
from core.store import weight_maps
from core.store.workspace import Workspace
from tests.conftest import SENTENCES
from tests.core.model.test_mixing import SHAPES, add_random_adapters

TEXTS = Sample(
    "corpus",
    "Corpus",
    "domain",
    "sha-corpus",
    "val",
    tuple({"text": s * (1 + i % 3)} for i, s in enumerate(SENTENCES[:7])),
)
PAIRS = Sample(
    "pairs",
    "Pairs",
    "task",
    "sha-pairs",
    "val",
    tuple(
        {
            "messages": [
                {"role": "user", "content": f"Where is the {s.split()[1]} {s.split()[2]}?"},
                {"role": "assistant", "content": s},
            ]
        }
        for s in SENTENCES[:5]
    ),
)
AXIS = (-0.5, 0.0, 1.0)
SPEC = WeightMapSpec("one", "two", fixed={"three": 0.5}, xs=AXIS, ys=(0.0, 1.0))


@pytest.fixture(scope="module", params=["none", "nf4"])
def resident(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), request.param, "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(made, SHAPES)
    yield made


@pytest.fixture(autouse=True)
def empty_cache(resident: Resident, tmp_path: Path) -> None:
    resident.workspace = Workspace(tmp_path / "fresh")


def test_a_map_of_tilted_adapters_has_its_own_key_and_values(resident: Resident) -> None:
    tilted = replace(SPEC, tilt={"one": 1.0, "two": -0.5})
    plain, result = measure_map(resident, SPEC, TEXTS), measure_map(resident, tilted, TEXTS)
    assert result.key != plain.key and result.tilt == {"one": 1.0, "two": -0.5} and plain.tilt == {}
    scored = list(
        score(
            resident,
            encode_sample(resident, TEXTS, 512).sequences,
            [tilted.mix(1.0, 1.0), SPEC.mix(1.0, 1.0)],
        )
    )[-1][1]
    limit = 1e-4 if resident.base.quantization == "none" else 5e-3
    assert result.value_at(1.0, 1.0) == pytest.approx(scored[0].perplexity, rel=limit)
    assert plain.value_at(1.0, 1.0) == pytest.approx(scored[1].perplexity, rel=limit)
    assert abs(scored[0].perplexity / scored[1].perplexity - 1) > 4 * limit
    assert WeightMap.from_json(json.loads(json.dumps(result.to_json()))) == result


def measure_map(resident: Resident, spec: WeightMapSpec, sample: Sample) -> WeightMap:
    last = list(compute_map(resident, spec, sample))[-1]
    assert last.map is not None and last.done == last.total
    return last.map


def one_at_a_time(resident: Resident, sample: Sample, weights: dict[str, float]) -> float:
    """Perplexity, one sequence a forward, without padding."""
    nats = tokens = 0.0
    for e in encode_sample(resident, sample, 512).sequences:
        with inference_mode_for(resident, resident.rows([Mix(weights=weights)])):
            picked = (
                resident.base.model(torch.tensor([e.ids]))
                .logits[0]
                .double()[:-1]
                .log_softmax(-1)[range(len(e.ids) - 1), e.ids[1:]]
            )
        nats -= float((picked * torch.tensor(e.loss_mask[1:])).sum())
        tokens += sum(e.loss_mask[1:])
    return float(torch.tensor(nats / tokens).exp())


@pytest.mark.parametrize("sample", [TEXTS, PAIRS], ids=["texts", "answers"])
def test_every_point_equals_the_mix_measured_alone(resident: Resident, sample: Sample) -> None:
    result = measure_map(resident, SPEC, sample)
    assert len(result.points) == 6 and result.complete and result.forwards >= 2 and result.seconds > 0
    # bitsandbytes' 4-bit kernel on a CPU rounds activations to bf16
    limit = 1e-4 if resident.base.quantization == "none" else 5e-3
    for point in result.points:
        assert point.value == pytest.approx(
            one_at_a_time(resident, sample, {"one": point.x, "two": point.y, "three": 0.5}), rel=limit
        )


def test_exact_match_points_equal_each_mix_answering_alone(resident: Resident) -> None:
    tokenizer = resident.base.tokenizer

    def answer(mix: Mix, row: dict[str, Any]) -> str:
        prompt = encode_chat(tokenizer, row["messages"][:-1], add_generation_prompt=True)
        return (
            list(generate(resident, [prompt], [mix], [Sampling(max_new_tokens=6)]))[-1][0]
            .column(tokenizer)
            .text
        )

    spec = replace(SPEC, metric="exact_match", max_new_tokens=6)
    # the answers at one point become the references, so that exact match is not zero
    rows = tuple(
        {"messages": [r["messages"][0], {"role": "assistant", "content": answer(spec.mix(1.0, 1.0), r)}]}
        for r in PAIRS.rows
    )
    sample = replace(PAIRS, rows=rows)
    result = measure_map(resident, spec, sample)
    assert result.value_at(1.0, 1.0) == 1.0 and result.best is not None and result.best.value == 1.0
    for point in result.points:
        alone = [
            exact_match(answer(spec.mix(point.x, point.y), r), r["messages"][-1]["content"]) for r in rows
        ]
        assert point.value == sum(alone) / len(alone)


def test_a_measured_map_is_read_without_a_forward_under_any_id(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure_map(resident, SPEC, TEXTS)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward")

    monkeypatch.setattr(type(resident.base.model), "forward", refuse)
    assert measure_map(resident, SPEC, TEXTS) == first
    assert (
        weight_maps.load_all(resident.workspace)
        == [first]
        == [weight_map.load_map(resident.workspace, first.key)]
    )
    others = {"max_length": 100, "fixed": {}, "xs": (0.0, 1.0)}
    for change in others.items():
        with pytest.raises(AssertionError, match="a forward"):
            measure_map(resident, replace(SPEC, **dict([change])), TEXTS)
    for sample in (
        replace(TEXTS, rows=TEXTS.rows[:6]),
        replace(TEXTS, sha256="other"),
        replace(TEXTS, split="test"),
    ):
        with pytest.raises(AssertionError, match="a forward"):
            measure_map(resident, SPEC, sample)
    monkeypatch.setitem(resident.digests, "one", "sha of other weights")
    with pytest.raises(AssertionError, match="a forward"):
        measure_map(resident, SPEC, TEXTS)


def test_a_stopped_map_deactivates_its_mix_and_continues_later(resident: Resident) -> None:
    steps = compute_map(resident, SPEC, TEXTS)
    part: WeightMapProgress = next(steps)
    assert resident.mixer.weights is None, "no mix is active between steps"
    while part.map is not None and not part.map.points:
        part = next(steps)
    steps.close()
    assert resident.mixer.weights is None
    assert part.map is not None and len(part.map.points) == 3 and not part.map.complete
    assert "3 of 6 points are measured" in part.map.summary()
    whole = list(compute_map(resident, SPEC, TEXTS))
    assert whole[0].done >= 3 and whole[-1].map is not None
    assert whole[-1].map.complete and whole[-1].map.values[0] == part.map.values[0]


def test_a_map_survives_json_and_a_damaged_one_is_refused(resident: Resident) -> None:
    result = measure_map(resident, SPEC, TEXTS)
    assert WeightMap.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert WeightMap.from_json({**result.to_json(), "extra": 1}) == result, "another version has more keys"
    for damage in ({"format": 99}, {"values": [[1.0]]}, {"xs": None}, {"rows": True}):
        with pytest.raises(StorageError, match="cannot be read"):
            WeightMap.from_json({**result.to_json(), **damage})
    with pytest.raises(NotFound):
        weight_map.load_map(resident.workspace, "0" * 64)


def test_the_summary_says_where_the_optimum_is(resident: Resident) -> None:
    blank = measure_map(
        resident,
        WeightMapSpec("one", "two", xs=(-0.5, 0.0, 0.5, 1.0, 1.5), ys=(-0.5, 0.0, 0.5, 1.0, 1.5)),
        TEXTS,
    )

    def summarise(x: float, y: float) -> str:
        values = tuple(tuple(2.0 + abs(a - x) + abs(b - y) for a in blank.xs) for b in blank.ys)
        return replace(blank, values=values).summary({"one": "Domain", "two": "Task"})

    assert (
        "text perplexity, 2, is at Domain 0.5 and Task 1 (inside the map). At the plain sum (1, 1) it is 2.5."
        in summarise(0.5, 1.0)
    )
    assert summarise(1.0, 1.0).startswith(
        "The lowest text perplexity, 2, is at Domain 1 and Task 1 (the plain sum). "
        "Measured on 7 rows of 'Corpus' (val)"
    )
    assert "(Domain is off)." in summarise(0.0, 1.0)
    assert "(Task is off)." in summarise(0.5, 0.0)
    assert "(both adapters are off)." in summarise(0.0, 0.0)
    assert "(at the edge of the map, so the optimum may lie beyond it)." in summarise(1.5, 0.5)
    assert "(Task is off; at the edge of the map" in summarise(1.5, 0.0)
    flat = replace(blank, metric="exact_match", values=((0.5,) * 5,) * 5)
    assert (
        "The highest exact match, 0.5, is at one 1 and two 1" in flat.summary()
        and "24 other points have the same value." in flat.summary()
    )


def test_an_invalid_map_spec_is_refused(resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (
        {"y": "one"},
        {"fixed": {"one": 1.0}},
        {"metric": "beauty"},
        {"xs": (0.0, 3.0)},
        {"ys": (1.0, 0.0)},
        {"xs": (1.0,)},
    ):
        with pytest.raises(SpecError):
            replace(SPEC, **wrong)
    with pytest.raises(SpecError, match="Exact match needs questions"):
        next(compute_map(resident, replace(SPEC, metric="exact_match"), TEXTS))
    monkeypatch.setattr(resident, "trainee_id", "two")
    with pytest.raises(Busy, match="'two' is still in training"):
        next(compute_map(resident, SPEC, TEXTS))


def test_scoring_in_batches_yields_every_pair_once(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.model import scoring

    monkeypatch.setattr(scoring, "BATCH_TOKENS_CPU", 64)
    sequences = encode_sample(resident, TEXTS, 512).sequences
    batches = list(
        score_each(resident, sequences, [Mix(), Mix(weights={"one": 1.0}), Mix(weights={"two": 1.0})])
    )
    pairs = [(c.mix, c.sequence) for cells in batches for c in cells]
    assert sorted(pairs) == [(m, i) for m in range(3) for i in range(len(sequences))]
    longest = [max(len(sequences[c.sequence].ids) for c in cells) * len(cells) for cells in batches]
    assert len(batches) > 3 and all(n <= 64 or len(cells) == 1 for n, cells in zip(longest, batches))


def test_a_sample_is_spread_evenly_over_its_split(tmp_path: Path, corpus: Path) -> None:
    from core.data.datasets import import_dataset, read_split

    workspace = Workspace(tmp_path / "ws")
    dataset = import_dataset(workspace, [corpus], "Corpus", "domain").id
    rows = read_split(workspace, dataset, "train")
    assert load_sample(workspace, dataset, "train").rows == tuple(rows)
    some = load_sample(workspace, dataset, "train", 4)
    assert (
        some.rows == tuple(rows[i * len(rows) // 4] for i in range(4))
        and some.digest != load_sample(workspace, dataset, "train").digest
    )
    with pytest.raises(SpecError, match="must not be negative, got -1"):
        load_sample(workspace, dataset, "train", -1)
