"""Weight searches: gradients, a planted optimum, bootstrap intervals, and a run in training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.analyze import weight_map
from core.analyze.search_results import Gain, SearchComparison, SearchResult, bootstrap_gain
from core.analyze.weight_optimizers import SearchState, WeightSearchSpec, compute_gradient, run_bfgs
from core.analyze.weight_search import search_weights
from core.data.tokens.collation import collate
from core.data.tokens.encoding import EncodedSequence
from core.engine import Engine
from core.errors import Busy, SpecError
from core.evaluate.sample import EncodedSample, RowLosses, RowMatches, Sample, encode_sample, load_sample
from core.model.base import load_base
from core.model.generate import generate
from core.model.resident import Resident
from core.model.scoring import score
from core.spec.mix import Mix, Sampling
from core.spec.training import RunStatus
from core.store.workspace import Workspace
from tests.conftest import SENTENCES
from tests.core.model.test_mixing import SHAPES, add_random_adapters
from tests.core.train.test_training import domain_spec, losses, wait_for

VALIDATION = Sample(
    "corpus", "Corpus", "domain", "sha-corpus", "val", tuple({"text": s} for s in SENTENCES[:12])
)
TEST = replace(VALIDATION, split="test", rows=tuple({"text": s} for s in SENTENCES[20:30]))
SPEC = WeightSearchSpec(("one", "two"), fixed={"three": 0.5})


@pytest.fixture(scope="module", params=["none", "nf4"])
def resident(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), request.param, "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(made, SHAPES)
    yield made


@pytest.fixture(scope="module")
def plain(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Resident:
    made = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(made, SHAPES)
    return made


def loss_of(resident: Resident, sequences: list[EncodedSequence], mix: Mix) -> float:
    return list(score(resident, sequences, [mix]))[-1][1][0].loss


@pytest.mark.parametrize("tilt", [{}, {"one": 1.0, "three": -0.5}])
def test_the_gradient_is_the_slope_of_the_loss(resident: Resident, tilt: dict[str, float]) -> None:
    spec = replace(SPEC, tilt=tilt)
    sequences = encode_sample(resident, VALIDATION, 512).sequences[:8]
    batch = collate([{"input_ids": e.ids, "loss_mask": e.loss_mask} for e in sequences], 0)
    at = [0.6, -0.4]
    nats, gradient = compute_gradient(resident, spec, batch, torch.tensor(at))
    tokens = sum(sum(e.loss_mask[1:]) for e in sequences)
    # bitsandbytes' 4-bit kernel on a CPU rounds activations to bf16 when no gradient flows
    exact = resident.base.quantization == "none"
    h = 0.01 if exact else 0.1
    assert nats == pytest.approx(
        tokens * loss_of(resident, sequences, spec.mix(at)), rel=1e-5 if exact else 1e-3
    )
    for i in range(2):
        up, down = ([w + s * h * (i == j) for j, w in enumerate(at)] for s in (1, -1))
        difference = (
            tokens
            * (loss_of(resident, sequences, spec.mix(up)) - loss_of(resident, sequences, spec.mix(down)))
            / (2 * h)
        )
        assert float(gradient[i]) == pytest.approx(
            difference, rel=2e-2 if exact else 0.2, abs=0.0 if exact else 2.0
        )


def test_a_search_leaves_no_gradients_flags_or_weights_behind(resident: Resident) -> None:
    assert resident.peft is not None
    steps = search_weights(resident, replace(SPEC, steps=2), VALIDATION, TEST)
    for _ in range(3):
        next(steps)
        assert resident.mixer.weights is None, "no mix is active between steps"
    steps.close()
    assert resident.mixer.weights is None
    assert not any(p.requires_grad or p.grad is not None for p in resident.peft.parameters())
    packs = [
        m.support_avx512bf16_for_cpu
        for m in resident.base.model.modules()
        if hasattr(m, "support_avx512bf16_for_cpu")
    ]
    assert len(set(packs)) == (1 if resident.base.quantization == "nf4" else 0), (
        "every layer is packed as before"
    )
    ids = torch.tensor([[5, 9, 40]])
    assert not resident.base.model(ids).logits.requires_grad


def test_a_planted_optimum_is_found_and_no_grid_point_is_better(tiny_base: Path, tmp_path: Path) -> None:
    """Texts sampled under known weights are likeliest under those weights, up to chance."""
    plain = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path))
    add_random_adapters(plain, SHAPES)
    with torch.no_grad():  # a random model is near uniform; a sharper one depends more on its weights
        plain.base.model.lm_head.weight.mul_(10.0)
    planted = Mix(weights={"one": 0.7, "two": 1.2})
    tokenizer = plain.base.tokenizer
    sequences = []
    for seed in range(2):
        prompts = [[tokenizer.eos_token_id, 5 + 7 * i] for i in range(32)]
        samplings = [Sampling(max_new_tokens=24, temperature=1.0, seed=100 * seed + i) for i in range(32)]
        states = list(generate(plain, prompts, [planted] * 32, samplings))[-1]
        sequences += [
            EncodedSequence([*p, *w.ids], [0] * 2 + [1] * len(w.ids))
            for p, w in zip(prompts, states)
            if w.ids
        ]
    encoded = EncodedSample(
        sequences,
        list(range(len(sequences))),
        torch.tensor([float(sum(e.loss_mask[1:])) for e in sequences], dtype=torch.float64),
    )
    spec = WeightSearchSpec(("one", "two"))
    search = SearchState("gradient")
    for _ in run_bfgs(plain, spec, encoded, search):
        pass
    assert search.weights == pytest.approx((0.7, 1.2), abs=0.1)
    grid = [spec.mix((x, y)) for x in weight_map.AXIS for y in weight_map.AXIS]
    measurement = RowLosses(plain, encoded, [spec.mix(search.weights), *grid, planted])
    list(measurement.compute())
    assert measurement.losses[0] <= min(measurement.losses) + 1e-6


def test_all_searches_are_compared_on_both_splits_by_the_scorer(plain: Resident) -> None:
    comparison = list(search_weights(plain, SPEC, VALIDATION, TEST))[-1].comparison
    assert comparison is not None
    assert [f.name for f in comparison.results] == [
        "gradient",
        "grid",
        "gradient-free",
        "sum",
        "base",
        "single",
    ]
    sequences = {
        s: encode_sample(plain, sample, 512).sequences
        for s, sample in (("validation", VALIDATION), ("test", TEST))
    }
    for result in comparison.results:
        mix = Mix(weights={**result.weights, "three": 0.5})
        assert result.validation_loss == pytest.approx(loss_of(plain, sequences["validation"], mix), rel=1e-5)
        assert result.test_loss == pytest.approx(loss_of(plain, sequences["test"], mix), rel=1e-5)
        assert all(abs(w) <= 2 for w in result.weights.values())
        for reference, gain in result.gains.items():
            assert (
                gain.nats
                == pytest.approx(comparison.result(reference).test_loss - result.test_loss, abs=1e-6)
                and gain.low <= gain.nats <= gain.high
            )
    gradient = comparison.result("gradient")
    assert (
        gradient.validation_loss
        <= min(comparison.result(n).validation_loss for n in ("sum", "single", "base")) + 1e-5
    )
    assert comparison.result("grid").note == "81 points"
    assert (
        gradient.forwards > 2 and gradient.seconds > 0 and comparison.result("gradient-free").forwards == 40
    )
    again = list(search_weights(plain, SPEC, VALIDATION, TEST))[-1].comparison
    assert again is not None and [(f.weights, f.gains) for f in again.results] == [
        (f.weights, f.gains) for f in comparison.results
    ]
    assert json.loads(json.dumps(comparison.to_json()))["summary"] == comparison.summary()


def test_a_map_of_the_same_rows_replaces_the_grid_and_others_do_not(plain: Resident) -> None:
    spec = replace(SPEC, steps=1)
    axes = {"xs": (0.0, 0.5, 1.0), "ys": (0.0, 1.0)}
    matching = list(
        weight_map.compute_map(
            plain, weight_map.WeightMapSpec("two", "one", fixed={"three": 0.5}, **axes), VALIDATION
        )
    )[-1].map
    other = list(
        weight_map.compute_map(
            plain, weight_map.WeightMapSpec("two", "one", fixed={"three": 0.5}, **axes), TEST
        )
    )[-1].map
    assert matching is not None and matching.best is not None
    comparison = list(search_weights(plain, spec, VALIDATION, TEST, matching))[-1].comparison
    assert comparison is not None
    assert (
        comparison.result("grid").note == "read from a map of 6 points"
        and comparison.result("grid").forwards == matching.forwards
    )
    assert comparison.result("grid").weights == {"one": matching.best.y, "two": matching.best.x}
    comparison = list(search_weights(plain, spec, VALIDATION, TEST, other))[-1].comparison
    assert comparison is not None and comparison.result("grid").note == "81 points"


def test_an_interval_is_wide_where_rows_disagree(plain: Resident) -> None:
    tokens = torch.full((50,), 10.0, dtype=torch.float64)
    measurement = RowLosses(plain, EncodedSample([], [], tokens), [Mix(), Mix(), Mix()])
    measurement.nats[0] = 20.0
    measurement.nats[1] = 19.0  # every row is better by a tenth of a nat per token
    measurement.nats[2] = 19.0 + 30.0 * torch.randn(
        50, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    sure, unsure = bootstrap_gain(measurement, None, 1, 0, 7), bootstrap_gain(measurement, None, 2, 0, 7)
    assert (sure.nats, sure.low, sure.high) == pytest.approx((0.1, 0.1, 0.1))
    assert unsure.low < 0 < unsure.high
    # by hand: the standard error of a mean of 50 rows
    spread = float((measurement.nats[0] - measurement.nats[2]).std()) / 10 / 50**0.5
    assert unsure.high - unsure.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    matches = RowMatches(plain, VALIDATION, [Mix(), Mix(), Mix()], 4)
    matches.exact = torch.zeros(3, 50, dtype=torch.float64)
    matches.exact[1, :25] = 1.0
    won = bootstrap_gain(measurement, matches, 1, 0, 7)
    assert (
        won.exact == 0.5
        and won.exact_low is not None
        and won.exact_high is not None
        and 0.3 < won.exact_low < 0.5 < won.exact_high < 0.7
    )


def test_the_summary_says_when_a_search_does_not_help() -> None:
    def summarise(gain: Gain) -> str:
        results = (
            SearchResult("gradient", {"d": 0.5, "t": 1.5}, 2.0, 10, 1.0, 1.0, gains={"sum": gain}),
            SearchResult("single", {"d": 0.0, "t": 1.0}, 0.0, 0, 1.0, 1.0),
        )
        return SearchComparison(
            ("d", "t"), {}, {}, "12 rows of 'C' (val)", "10 rows of 'C' (test)", "", "", 0, results
        ).summary({"d": "Domain", "t": "Task"})

    assert summarise(Gain(0.02, 0.01, 0.03)).startswith(
        "Gradient descent found Domain 0.50 + Task 1.50 in 2.0 s. "
        "It improves on the plain sum: +0.0200 nats per token"
    )
    assert "The data show no difference from the plain sum: +0.0200 nats" in summarise(
        Gain(0.02, -0.01, 0.03)
    ) and "which includes zero" in summarise(Gain(0.02, -0.01, 0.03))
    assert "It is worse than the plain sum: -0.0200" in summarise(Gain(-0.02, -0.03, -0.01))
    assert "It equals the plain sum, so nothing is gained." in summarise(Gain(0.0, 0.0, 0.0))
    assert "exact match +5.0 points (-1.0 to +9.0, which includes zero)" in summarise(
        Gain(0.02, 0.01, 0.03, 0.05, -0.01, 0.09)
    )


def test_an_invalid_search_spec_is_refused(plain: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[dict[str, Any]] = [
        {"adapters": ()},
        {"adapters": ("one", "one")},
        {"adapters": ("three",)},
        {"steps": 0},
        {"stride": 0.0},
    ]
    for change in wrong:
        with pytest.raises(SpecError):
            replace(SPEC, **change)
    with pytest.raises(SpecError, match="same rows"):
        next(search_weights(plain, SPEC, VALIDATION, replace(VALIDATION, split="test")))
    monkeypatch.setattr(plain, "trainee_id", "two")
    with pytest.raises(Busy, match="still in training"):
        next(search_weights(plain, SPEC, VALIDATION, TEST))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_searches_and_attributions_do_not_change_the_losses_of_a_run(
    quantization: str, tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    from core.analyze.attribution import attribute_answer

    with Engine(tmp_path / "ws", str(tiny_base), quantization, device="cpu") as engine:
        spec = domain_spec(engine, corpus, max_steps=30, name="Quiet", eval_steps=15)
        quiet = engine.runs.wait(engine.runs.start(spec))
        other = engine.runs.start(type(spec).from_json({**spec.to_json(), "name": "Disturbed"}))
        adapter = engine.runs.get(other).adapter
        wait_for(lambda: any(m.training and m.id == adapter for m in engine.library.mixable_adapters()))
        validation, test = (load_sample(engine.workspace, spec.dataset, s, 4) for s in ("val", "test"))
        forwards = 0

        def count_forwards(steps: Iterator[Any]) -> Iterator[Any]:
            nonlocal forwards
            for step in steps:
                resident = engine.resident_base.get()
                forwards += resident.trainee_id == adapter
                yield step

        while engine.runs.get(other).status.is_alive:
            works = [
                lambda: search_weights(
                    engine.resident_base.get(), WeightSearchSpec((quiet.adapter,), steps=6), validation, test
                ),
                lambda: attribute_answer(
                    engine.resident_base.get(),
                    "Where?",
                    Mix(weights={quiet.adapter: 1.0, adapter: 0.5}),
                    "The red lamp.",
                ),
            ]
            for stream in [engine.worker.stream(lambda work=work: count_forwards(work())) for work in works]:
                stream.last()
        assert engine.runs.get(other).status is RunStatus.DONE
        assert forwards >= 20, "the forwards ran while the run trained"
        calm, disturbed = losses(engine, quiet.id), losses(engine, other)
        assert len(calm) == 30 and calm == disturbed
