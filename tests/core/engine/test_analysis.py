"""The analyses and baking, end to end through the worker: results, refusals, and no effect on other work."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.analyze import weight_map
from core.engine import Engine
from core.engine.analysis import WeightAxis
from core.engine.worker import Stream
from core.errors import AdapterError, NotFound, SpecError
from core.evaluate.sample import RowLosses, encode_sample
from core.merge.methods import BakeSpec
from core.spec.mix import Mix, Sampling
from core.spec.training import RunStatus, TrainSpec
from tests.conftest import SENTENCES
from tests.core.train.test_training import FAST, wait_for

pytestmark = pytest.mark.slow
AXIS = WeightAxis(0.0, 1.0, 3)
PROMPT = "Where is the red lamp?"


def question_file(path: Path, sentences: list[str]) -> Path:
    path.write_text(
        "".join(
            json.dumps({"question": f"Where is the {s.split()[1]} {s.split()[2]}?", "answer": s}) + "\n"
            for s in sentences
        )
    )
    return path


@pytest.fixture(scope="module")
def here(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine, the ids of its domain and task adapter, and of its data: training texts and pairs, unseen
    pairs.
    """
    files = tmp_path_factory.mktemp("files")
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), "none", device="cpu") as engine:
        texts = files / "corpus.txt"
        texts.write_text("\n\n---\n\n".join(SENTENCES[:48]))
        corpus = engine.datasets.import_files([texts], "Corpus", "domain").id
        pairs = engine.datasets.import_files(
            [question_file(files / "pairs.jsonl", SENTENCES[:48])], "Pairs", "task"
        ).id
        other = [s.replace("kept", "found").replace("room", "hall") for s in SENTENCES]
        unseen = engine.datasets.import_files(
            [question_file(files / "unseen.jsonl", other)], "Unseen", "task"
        ).id
        made = {}
        for kind, data in (("domain", corpus), ("task", pairs)):
            spec = TrainSpec(
                kind=kind,
                name=kind.title(),
                dataset=data,
                max_steps=40,
                **{**FAST, "rank": 4 if kind == "domain" else 2},
            )
            made[kind] = engine.runs.wait(engine.runs.start(spec), 300).adapter
        yield SimpleNamespace(engine=engine, **made, corpus=corpus, pairs=pairs, unseen=unseen, files=files)


def mix_of(here: Any, domain: float = 1.0, task: float = 1.0, tilt: dict[str, float] | None = None) -> Mix:
    return Mix(weights={here.domain: domain, here.task: task}, tilt=tilt or {})


def quiet(engine: Engine, *streams: Stream) -> None:
    """Waits until the streams have left the worker, and checks that no mix is active."""
    wait_for(lambda: not set(streams) & engine.worker._open)
    assert engine.worker.call(lambda: engine.resident_base.get().mixer.weights) is None


@pytest.fixture
def held(here: Any, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until this is set, every stream waits after a value for which `until` is true, so that slow readers
    see it.
    """
    go, real = threading.Event(), here.engine.worker.stream

    def stream(start: Callable[[], Any]) -> Stream:
        def steps() -> Iterator[Any]:
            for part in start():
                yield part
                if getattr(go, "until", lambda part: True)(part):
                    assert go.wait(60)

        return real(steps)

    monkeypatch.setattr(here.engine.worker, "stream", stream)
    return go


# --- axes


@pytest.mark.parametrize(
    "wrong", [(1.0, 0.0, 5), (0.5, 0.5, 5), (0.0, 1.0, 1), (0.0, 1.0, 34), (math.nan, 1.0, 5)]
)
def test_an_axis_with_bad_limits_is_refused(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(SpecError, match="2 to 33 points"):
        WeightAxis(*wrong)


def test_the_default_axis_contains_weights_0_and_1_exactly() -> None:
    assert WeightAxis().weights == weight_map.AXIS and {0.0, 1.0} <= set(WeightAxis().weights)
    assert (
        WeightAxis(0.0, 1.0, 11).weights == tuple(i / 10 for i in range(11))
        and len(WeightAxis(-2, 2, 33).weights) == 33
    )


# --- rows to choose weights on, rows to evaluate them on


def contents(sample: Any) -> list[str]:
    return [json.dumps(r, sort_keys=True) for r in sample.rows]


@pytest.mark.parametrize("limit", [0, 3])
def test_only_held_out_rows_of_training_data_are_read(here: Any, limit: int) -> None:
    first, second = here.engine.analysis.choose_samples(here.pairs, limit)
    splits = here.engine.datasets.get(here.pairs).splits
    assert (first.split, second.split) == ("val", "test")
    assert (len(first.rows), len(second.rows)) == ((splits["val"], splits["test"]) if not limit else (3, 6))
    assert not set(contents(first)) & set(contents(second))
    learned_from = {
        json.dumps(r, sort_keys=True) for r in here.engine.datasets.rows(here.pairs, "train", 1000)
    }
    assert not learned_from & {*contents(first), *contents(second)}


@pytest.mark.parametrize("limit", [0, 3])
def test_unseen_data_uses_its_larger_split_for_choosing_weights(here: Any, limit: int) -> None:
    first, second = here.engine.analysis.choose_samples(here.unseen, limit)
    splits = here.engine.datasets.get(here.unseen).splits
    assert (first.split, second.split) == ("train", "val + test")
    assert (len(first.rows), len(second.rows)) == (
        (splits["train"], splits["val"] + splits["test"]) if not limit else (3, 6)
    )
    assert len({*contents(first), *contents(second)}) == len(first.rows) + len(second.rows), (
        "no row is in both"
    )


def test_a_second_import_of_training_data_counts_as_training_data(here: Any) -> None:
    again = here.engine.datasets.import_files([here.files / "pairs.jsonl"], "Pairs again", "task").id
    assert again != here.pairs
    first, second = here.engine.analysis.choose_samples(again, 0)
    assert (first.split, second.split) == ("val", "test")
    here.engine.library.delete("datasets", again)


def test_training_data_of_a_baked_adapters_parts_is_not_unseen(here: Any) -> None:
    engine = here.engine
    baked = engine.library.bake(Mix(weights={here.task: 0.5}), BakeSpec(name="Half")).last().adapter.id
    assert engine.library.adapter(baked).training_data >= {here.pairs, engine.datasets.get(here.pairs).sha256}
    assert here.unseen not in engine.library.adapter(baked).training_data
    engine.library.delete("adapters", baked)


def test_replayed_data_counts_as_training_data(here: Any) -> None:
    engine, file = here.engine, here.files / "general.txt"
    file.write_text(
        "\n\n---\n\n".join(
            f"On day {i} it rained in the {s.split()[-2]} town." for i, s in enumerate(SENTENCES[:24])
        )
    )
    general = engine.datasets.import_files([file], "General", "domain").id
    assert engine.analysis.choose_samples(general, 0)[0].split == "train"
    spec = TrainSpec(
        kind="domain",
        name="Replaying",
        dataset=here.corpus,
        replay_dataset=general,
        replay_share=0.5,
        max_steps=2,
        **FAST,
    )
    run = engine.runs.wait(engine.runs.start(spec), 300)
    assert engine.analysis.choose_samples(general, 0)[0].split == "val"
    engine.library.delete("adapters", run.adapter)


# --- maps


def test_a_map_equals_scoring_its_mixes_one_at_a_time(here: Any) -> None:
    engine = here.engine
    found = engine.analysis.weight_map(here.domain, here.task, here.pairs, 5, axis=AXIS).last().map
    assert found.complete and len(found.points) == 9 and found.adapters == (here.domain, here.task)
    assert (found.split, found.rows, found.kind, found.metric) == ("val", 5, "task", "perplexity")

    def alone(mix: Mix) -> float:
        resident = engine.resident_base.get()
        reading = RowLosses(
            resident, encode_sample(resident, engine.analysis.choose_samples(here.pairs, 5)[0], 512), [mix]
        )
        list(reading.compute())
        return math.exp(reading.losses[0])

    for cell in found.points:
        assert cell.value == pytest.approx(
            engine.worker.call(lambda cell=cell: alone(mix_of(here, cell.x, cell.y))), rel=1e-5
        )
    assert len({c.value for c in found.points}) == 9, "the adapters change the metric"
    assert found.best.value == min(c.value for c in found.points)
    quiet(engine)


def test_a_complete_map_is_read_from_the_workspace(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = lambda: here.engine.analysis.weight_map(here.domain, here.task, here.unseen, 4, axis=AXIS).last()  # noqa: E731
    first = asked().map
    monkeypatch.setattr(
        type(here.engine.resident_base.get().base.model), "forward", lambda *a, **k: pytest.fail("a forward")
    )
    assert asked().map == first and first.split == "train"


def test_a_map_closed_halfway_is_stored_and_continued(here: Any, held: threading.Event) -> None:
    engine = here.engine
    held.until = lambda part: bool(part.map.points)  # type: ignore[attr-defined]
    stream = engine.analysis.weight_map(here.domain, here.task, here.corpus, 4, axis=AXIS)
    part = next(p for p in stream if p.map.points)
    stream.close()
    held.set()
    quiet(engine, stream)
    kept = weight_map.load_map(engine.workspace, part.map.key)
    assert not kept.complete and 3 <= len(kept.points) <= 6
    parts = list(engine.analysis.weight_map(here.domain, here.task, here.corpus, 4, axis=AXIS))
    whole = parts[-1].map
    assert whole.complete and whole.values[0] == kept.values[0] and whole.key == kept.key
    assert all(p.done >= len(kept.points) for p in parts) and kept.forwards < whole.forwards


def test_exact_match_is_mapped_for_questions_and_refused_for_texts(here: Any) -> None:
    analysis = here.engine.analysis
    found = (
        analysis.weight_map(
            here.domain, here.task, here.unseen, 2, metric="exact_match", axis=WeightAxis(0.0, 1.0, 2)
        )
        .last()
        .map
    )
    assert (
        found.complete
        and all(c.value in (0.0, 0.5, 1.0) for c in found.points)
        and found.metric_label == "exact match"
    )
    with pytest.raises(SpecError, match="Exact match needs questions"):
        analysis.weight_map(here.domain, here.task, here.corpus, 2, metric="exact_match", axis=AXIS).last()


def test_reading_the_stream_of_an_impossible_map_raises(here: Any) -> None:
    analysis = here.engine.analysis
    with pytest.raises(SpecError, match="two different adapters"):
        analysis.weight_map(here.domain, here.domain, here.pairs).last()
    with pytest.raises(NotFound):
        analysis.weight_map(here.domain, here.task, "nowhere").last()
    with pytest.raises(NotFound):
        analysis.weight_map(here.domain, "unknown-0001", here.pairs).last()
    with pytest.raises(SpecError, match="weights"):
        analysis.weight_map(here.domain, here.task, here.pairs, axis=WeightAxis(-3, 3, 5)).last()
    quiet(here.engine)


# --- searched weights


def test_searched_weights_are_compared_with_references_on_other_rows(here: Any) -> None:
    engine = here.engine
    found = (
        engine.analysis.search_weights([here.domain, here.task], here.unseen, 6, exact=False)
        .last()
        .comparison
    )
    assert [f.name for f in found.results] == ["gradient", "grid", "gradient-free", "sum", "base", "single"]
    assert found.result("sum").weights == {here.domain: 1.0, here.task: 1.0} and sorted(
        found.result("single").weights.values()
    ) == [0.0, 1.0]
    assert "(train)" in found.validation and "(val + test)" in found.test
    halves = engine.analysis.choose_samples(here.unseen, 6)
    assert (found.validation_digest, found.test_digest) == tuple(s.digest for s in halves)
    assert not set(contents(halves[0])) & set(contents(halves[1]))
    assert (
        found.result("gradient").validation_loss
        <= min(found.result(w).validation_loss for w in ("sum", "single", "base")) + 1e-6
    )
    assert (
        set(found.result("gradient").gains) == {"sum", "single"}
        and found.result("gradient").exact_match is None
    )
    quiet(engine)


def test_a_map_of_the_same_rows_replaces_the_grid_search(here: Any) -> None:
    analysis = here.engine.analysis
    drawn = analysis.weight_map(here.domain, here.task, here.pairs, 5, axis=AXIS).last().map
    found = (
        analysis.search_weights([here.domain, here.task], here.pairs, 5, known_map=drawn).last().comparison
    )
    grid = found.result("grid")
    assert grid.note == "read from a map of 9 points" and grid.weights == {
        here.domain: drawn.best.x,
        here.task: drawn.best.y,
    }
    assert (
        math.exp(grid.validation_loss) == pytest.approx(drawn.best.value, rel=1e-5)
        and grid.exact_match is not None
    )
    others = (
        analysis.search_weights([here.domain, here.task], here.pairs, 4, known_map=drawn, exact=False)
        .last()
        .comparison
    )
    assert others.result("grid").note == "81 points", "a map of other rows does not replace the grid"


# --- interference


def test_two_adapters_are_compared_by_weights_and_on_a_prompt(here: Any) -> None:
    parts = list(here.engine.analysis.interference(mix_of(here, 0.5, -1.0), [PROMPT, "  "]))
    (pair,) = parts[-1].pairs
    assert (
        pair.ids == (here.domain, here.task)
        and pair.names == ("Domain", "Task")
        and pair.modules
        and pair.layers
    )
    outputs = parts[-1].outputs
    assert outputs.ids == pair.ids and outputs.prompts == 1 and outputs.divergence_from_base > 0
    silent = here.engine.analysis.interference(mix_of(here)).last()
    assert silent.pairs and silent.outputs is None
    quiet(here.engine)


def test_interference_needs_at_least_two_adapters(here: Any) -> None:
    for mix in (Mix(), Mix(name="Alone", weights={here.domain: 1.0})):
        with pytest.raises(SpecError, match="needs at least two adapters, got . in"):
            here.engine.analysis.interference(mix, [PROMPT]).last()
    quiet(here.engine)


# --- attribution


def answer(engine: Engine, mixes: list[Mix], **sampling: Any) -> list[str]:
    return [c.text for c in engine.chat.stream(PROMPT, mixes, Sampling(**sampling)).last().columns]


def test_the_tokens_of_an_attribution_are_the_answer(here: Any) -> None:
    mix = mix_of(here, 1.0, 0.5)
    found = (
        here.engine.analysis.attribution(PROMPT, mix, sampling=Sampling(max_new_tokens=12)).last().attribution
    )
    assert found.answer.strip() == answer(here.engine, [mix], max_new_tokens=12)[
        0
    ].strip() and found.answer == "".join(found.tokens)
    assert set(found.by_adapter) == {here.domain, here.task} and any(map(abs, found.joint))
    given = here.engine.analysis.attribution(PROMPT, mix, SENTENCES[0]).last().attribution
    assert given.answer == SENTENCES[0]
    quiet(here.engine)


def test_attribution_removes_a_tilted_adapter_as_it_was_weighted(here: Any) -> None:
    mix = mix_of(here, 1.0, 1.0, {here.domain: 1.0, here.task: -1.0})
    found = here.engine.analysis.attribution(PROMPT, mix, SENTENCES[0]).last().attribution
    for left, stays in ((here.domain, here.task), (here.task, here.domain)):
        alone = Mix(weights={stays: 1.0}, tilt={stays: mix.tilt[stays]})
        said = here.engine.analysis.attribution(PROMPT, alone, SENTENCES[0]).last().attribution
        assert found.without[left] == pytest.approx(said.full, abs=1e-4)


# --- baking


def test_a_baked_mix_answers_like_the_live_one_and_can_be_mixed_again(here: Any) -> None:
    engine, mix = here.engine, mix_of(here, 1.0, 0.5, {here.domain: 1.0})
    baked = engine.library.bake(mix, BakeSpec(name="Both", method="concat")).last()
    assert engine.library.adapter(baked.adapter.id).kind == "mix" and any(
        a.id == baked.adapter.id and a.fits for a in engine.library.mixable_adapters()
    )
    live, again = answer(engine, [mix, Mix(weights={baked.adapter.id: 1.0})], max_new_tokens=24)
    assert live == again and live != answer(engine, [Mix()], max_new_tokens=24)[0]
    half = answer(engine, [Mix(weights={baked.adapter.id: 0.5, here.task: 1.0})], max_new_tokens=8)
    assert half[0] and engine.library.verify(baked.adapter.id)
    engine.library.delete("adapters", baked.adapter.id)
    quiet(engine)


def test_an_empty_mix_and_an_invalid_name_are_not_baked(here: Any) -> None:
    from core.errors import InvalidName

    before = here.engine.workspace.ids("adapters")
    with pytest.raises(AdapterError, match="The mix is empty"):
        here.engine.library.bake(Mix(), BakeSpec(name="Nothing")).last()
    with pytest.raises(InvalidName):
        here.engine.library.bake(mix_of(here), BakeSpec(name=" ")).last()
    assert here.engine.workspace.ids("adapters") == before


# --- interleaving


def works(here: Any) -> dict[str, Callable[[], Stream]]:
    """Every analysis, of something that is not in the workspace yet."""
    analysis, mix = here.engine.analysis, mix_of(here, 0.75, 1.25)
    return {
        "map": lambda: analysis.weight_map(
            here.domain, here.task, here.pairs, 3, axis=WeightAxis(-0.25, 1.25, 4)
        ),
        "learn": lambda: analysis.search_weights([here.domain, here.task], here.pairs, 3, exact=False),
        "interference": lambda: analysis.interference(mix, [PROMPT]),
        "contribution": lambda: analysis.attribution(PROMPT, mix, sampling=Sampling(max_new_tokens=6)),
        "bake": lambda: here.engine.library.bake(mix, BakeSpec(name="Halfway", method="svd")),
    }


@pytest.mark.parametrize("verb", ["map", "learn", "interference", "contribution", "bake"])
def test_closing_a_stream_deactivates_its_mix(here: Any, held: threading.Event, verb: str) -> None:
    before = here.engine.workspace.ids("adapters")
    stream = works(here)[verb]()
    assert next(iter(stream)) is not None
    stream.close()
    held.set()
    quiet(here.engine, stream)
    assert here.engine.workspace.ids("adapters") == before, "a partial adapter is removed"


def test_every_analysis_works_while_a_run_trains(here: Any) -> None:
    engine = here.engine
    spec = TrainSpec(
        kind="domain",
        name="Meanwhile",
        dataset=here.corpus,
        max_steps=5000,
        eval_steps=5000,
        save_steps=5000,
        **FAST,
    )
    run = engine.runs.start(spec)
    wait_for(lambda: any(a.training for a in engine.library.mixable_adapters()) and engine.runs.get(run).step)
    trainee = engine.runs.get(run).adapter
    steps = [engine.runs.get(run).step]
    for verb, ask in works(here).items():
        last = ask().last()
        assert engine.runs.get(run).status is RunStatus.RUNNING, "the stream ended while the run trained"
        if verb == "map":
            assert last.map.complete
        elif verb == "learn":
            assert last.comparison is not None
        elif verb == "bake":
            engine.library.delete("adapters", last.adapter.id)
        elif verb == "contribution":
            assert last.attribution.tokens
        else:
            assert last.pairs and last.outputs is not None
        steps.append(engine.runs.get(run).step)
    assert steps[-1] > steps[0], "the run trained meanwhile"
    learning = Mix(weights={here.domain: 1.0, trainee: 1.0})
    assert engine.analysis.interference(learning).last().pairs, "an adapter in training can be compared"
    for refused in (
        engine.library.bake(learning, BakeSpec(name="Unfinished")),
        engine.analysis.weight_map(here.domain, trainee, here.pairs, 3, axis=AXIS),
    ):
        with pytest.raises(Exception, match="still in training"):
            refused.last()
    engine.runs.stop(run)
    assert engine.runs.wait(run, 120).status is RunStatus.STOPPED
    engine.library.delete("adapters", trainee)
    quiet(engine)
