"""A workspace that version 0.1.0 wrote still opens, lists what it contains, and resumes from its checkpoints.

The workspace lies in tests/data/old_workspace; tests/data/README.md says what is in it and how it was made.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.data import datasets
from core.engine import Engine
from core.engine.analysis import WeightAxis
from core.remote.collect import collect
from core.remote.run_bundle import run_bundle
from core.spec.mix import Mix, Sampling
from core.spec.training import RunStatus
from core.store.bundles import list_bundles
from core.train import checkpoints

STORED = Path(__file__).parent / "data" / "old_workspace"
REPORTS, QUESTIONS = "water-works-reports-be55", "water-works-questions-fea5"
DOMAIN, TASK, CELL = "water-works-b087", "answers-dd31", "ranks-rank-2-442e"
KILLED, PAUSED, GRID = "killed-df78", "paused-a2d6", "ranks-91dd"
PACKED, PACKED_ADAPTER = "ranks-rank-4-ef69", "ranks-rank-4-9161"
CHECKPOINT_STEP = 6  # of both runs that have not ended
FINGERPRINT = "ea76f6ffb73a3d0c612c1983336b160f265317999092a89d228181e66493db77"
DATA_SHA256 = {
    REPORTS: "50ab6eae6fe2578320e579a66d99fc9e644354740e84811500459bdfeec22fbe",
    QUESTIONS: "0a7019188061012cc31b2c1da56932878096e6a5a9fefa597ce790017d3cec8b",
}
SHA256 = {
    DOMAIN: "cca67fcb4df2107bfd9429eb3934be2538de4d52e07fc0fc196575f70a8d07d1",
    TASK: "b3aad8799e376ad49c693c86bd72ca331741f759fd1f12b5ed05847558316835",
    CELL: "c6cbba4e44eccdee381290bd7353ab78a620ecf7f697c795b98156ef91dc1b93",
}
MAP = "5c9f23bfc806814ceedc91c622809168cdc93aeaa7ad0edea1e470185e520ccf"

# Relative difference of perplexities. Another instruction set changes the nats per token by about 1e-6; other
# weights, another adapter or another tokenization change a perplexity by percents.
PERPLEXITY_TOLERANCE = 1e-3
# Relative difference of the B factors on a processor that rounds differently from the one that wrote the
# checkpoint. Measured at the last step: 6e-3 with SSE instead of AVX instructions (Adam turns the rounding of
# a gradient near zero into a whole step), but 1.3e-1 or more without the optimizer's state.
WEIGHT_TOLERANCE = 5e-2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The old workspace, opened on the base that it names; tests that use it only read or add a report."""
    root = tmp_path_factory.mktemp("old") / "ws"
    shutil.copytree(STORED, root)
    with Engine(root, base="", device="cpu") as made:
        assert not made.bases.current(wait=True).error
        yield made


@pytest.fixture
def changed(tmp_path: Path) -> Iterator[Engine]:
    """The old workspace in a copy of its own, for tests that train in it."""
    shutil.copytree(STORED, tmp_path / "ws")
    with Engine(tmp_path / "ws", base="", device="cpu") as made:
        assert not made.bases.current(wait=True).error
        yield made


# ------------------------------------------------------------ what is listed


def test_the_base_of_an_old_workspace_is_the_one_it_names(engine: Engine) -> None:
    info = engine.bases.current()
    assert (info.name, info.quantization, info.fingerprint) == ("embedded", "none", FINGERPRINT)


def test_old_datasets_are_listed_and_their_files_verify(engine: Engine) -> None:
    found = {d.id: d for d in engine.datasets.list()}
    assert {i: d.sha256 for i, d in found.items()} == DATA_SHA256
    assert [(found[i].name, found[i].kind) for i in (REPORTS, QUESTIONS)] == [
        ("Water works reports", "domain"),
        ("Water works questions", "task"),
    ]
    for dataset in found.values():
        assert dataset.rows == 36 and dataset.splits == {"train": 25, "val": 6, "test": 5}
        datasets.verify_dataset(engine.workspace, dataset.id)
        sizes = {s: len(engine.datasets.rows(dataset.id, s, 99)) for s in ("train", "val", "test")}
        assert sizes == dataset.splits
    assert engine.datasets.rows(REPORTS, "val")[0]["text"].startswith("Report 6 of the water works.")
    question, answer = engine.datasets.rows(QUESTIONS, "test")[0]["messages"]
    assert question["content"].startswith("Where was the") and answer["content"].startswith("On day")


def test_old_adapters_are_listed_and_verify(engine: Engine) -> None:
    found = {a.id: a for a in engine.library.adapters()}
    assert {i: a.sha256 for i, a in found.items()} == SHA256
    assert [a.id for a in engine.library.adapters()] == [CELL, TASK, DOMAIN], "the newest comes first"
    about = {i: (a.name, a.kind, a.rank, a.alpha, a.stacked_on, a.dataset) for i, a in found.items()}
    assert about == {
        DOMAIN: ("Water works", "domain", 2, 4.0, "", REPORTS),
        TASK: ("Answers", "task", 2, 4.0, DOMAIN, QUESTIONS),
        CELL: ("Ranks: rank 2", "domain", 2, 4.0, "", REPORTS),
    }
    losses = {i: a.results["validation_loss"] for i, a in found.items()}
    assert losses == {DOMAIN: 8.017273381244705, TASK: 5.965788284150681, CELL: 9.379420700992446}
    assert all(a.base_fingerprint == FINGERPRINT and a.base == "embedded" for a in found.values())
    for adapter_id in found:
        assert len(engine.library.verify(adapter_id)) == 3


def test_old_runs_are_listed_with_status_and_progress(engine: Engine) -> None:
    found = [
        (r.id, r.name, r.status, r.step, r.total_steps, r.resumable, r.adapter) for r in engine.runs.list()
    ]
    assert found == [
        ("ranks-rank-2-c13c", "Ranks: rank 2", RunStatus.DONE, 4, 4, False, CELL),
        (PAUSED, "Paused", RunStatus.PAUSED, 6, 24, True, "paused-bfb3"),
        (KILLED, "Killed", RunStatus.INTERRUPTED, 7, 12, True, "killed-1690"),
        ("answers-b7c3", "Answers", RunStatus.DONE, 12, 12, False, TASK),
        ("water-works-b1ea", "Water works", RunStatus.DONE, 12, 12, False, DOMAIN),
    ]
    spec = engine.runs.get(KILLED).spec
    assert (spec.stack_on, spec.dataset, spec.target_modules) == (DOMAIN, QUESTIONS, ("q_proj", "v_proj"))
    assert (spec.seed, spec.rank, spec.max_length, spec.learning_rate) == (7, 2, 64, 3e-3)


def test_the_events_of_every_old_run_can_be_read(engine: Engine) -> None:
    counts = {r.id: Counter(e["kind"] for e in engine.runs.events(r.id)[0]) for r in engine.runs.list()}
    begun = {"data": 1, "plan": 1, "memory": 1}
    twelve = {"status": 3, "validation": 3, "sample": 3, "step": 12, "checkpoint": 2, "result": 1}
    assert counts == {
        "water-works-b1ea": {**begun, **twelve},
        "answers-b7c3": {**begun, **twelve},
        KILLED: {**begun, "status": 2, "validation": 2, "sample": 2, "step": 7, "checkpoint": 3},
        PAUSED: {**begun, "status": 4, "validation": 1, "sample": 1, "step": 6, "checkpoint": 1},
        "ranks-rank-2-c13c": {
            **begun,
            "status": 3,
            "validation": 2,
            "sample": 2,
            "step": 4,
            "checkpoint": 1,
            "result": 1,
        },
    }
    history = engine.runs.history("answers-b7c3")
    assert history.final is not None and history.final.loss == 5.965788284150681


@pytest.mark.parametrize("run_id", [KILLED, PAUSED])
def test_the_checkpoint_of_an_old_run_verifies(engine: Engine, run_id: str) -> None:
    newest = checkpoints.find_newest(engine.workspace.path("runs", run_id, "checkpoints"), run_id)
    assert newest is not None and checkpoints.step_of(newest) == CHECKPOINT_STEP
    best = {KILLED: 4, PAUSED: 0}[run_id]
    assert checkpoints.step_of(checkpoints.best_checkpoint(newest)) == best
    assert not best or checkpoints.is_intact(checkpoints.best_checkpoint(newest), run_id)


def test_old_mixes_keep_weights_tilt_and_digests(engine: Engine) -> None:
    found = {m.id: m for m in engine.library.mixes()}
    assert {i: (m.name, m.weights, m.tilt) for i, m in found.items()} == {
        "both-058c": ("Both", {DOMAIN: 1.0, TASK: 1.0}, {}),
        "deep-and-shallow-05cf": (
            "Deep and shallow",
            {DOMAIN: 0.75, TASK: 1.25},
            {DOMAIN: 1.0, TASK: -0.5},
        ),
    }
    for mix in found.values():
        assert mix.adapters == {DOMAIN: SHA256[DOMAIN], TASK: SHA256[TASK]} and mix.warnings == []


def test_old_votes_are_counted_and_the_withdrawn_one_is_not(engine: Engine) -> None:
    tally = {s.name: (s.weights, s.votes, s.wins, s.ties) for s in engine.votes.tally()}
    assert tally == {
        "Both": ({DOMAIN: 1.0, TASK: 1.0}, 4, 2, 1),
        "Reports": ({DOMAIN: 1.0}, 4, 1, 1),
        "Base": ({}, 4, 0, 1),
    }
    assert engine.workspace.votes_path.read_text(encoding="utf-8").count('"kind": "vote"') == 5
    assert len(engine.votes.csv().splitlines()) == 1 + 4 * 3


def test_the_results_of_an_old_grid_are_shown(engine: Engine) -> None:
    assert [(g.id, g.name, g.axes) for g in engine.grids.list()] == [(GRID, "Ranks", {"rank": [2, 4]})]
    results = engine.grids.results(GRID)
    assert results.counts == {"finished": 1, "not run": 1}
    first, second = results.rows
    assert (first.adapter, first.best, first.loss) == (CELL, True, 9.379420700992446)
    assert (second.run, second.cell.values, second.cell.spec.name) == (None, {"rank": 4}, "Ranks: rank 4")
    lines = engine.grids.csv(GRID).splitlines()
    assert lines[0].startswith("rank,status,final_loss,best_loss") and len(lines) == 3
    assert lines[1].startswith("2,finished,9.379420700992446,9.379420700992446,11842.15261950385")


def test_old_reports_and_their_csv_are_shown(engine: Engine) -> None:
    found = {r.id: r for r in engine.evaluation.reports()}
    domain, task = found["water-works-reports-test-0d5b"], found["water-works-questions-test-a8d0"]
    assert (domain.dataset, domain.split, domain.base) == (REPORTS, "test", "embedded")
    assert [(r["name"], r["perplexity"]) for r in domain.rows] == [
        ("Base", 13508.838427938272),
        ("Reports", 2992.528848339698),
        ("Both", 2721.3196754018068),
    ]
    assert [r["perplexity"] for r in task.rows] == [940.525085782425, 860.8250338172892, 196.34558838475292]
    assert all(len(r["examples"]) == r["questions"] == 5 for r in task.rows)
    lines = engine.evaluation.report_csv(domain.id).read_text(encoding="utf-8").splitlines()
    assert lines[:2] == [
        "name,mix,perplexity,nats,tokens",
        "Base,base,13508.838427938272,3214.7516136169434,338",
    ]
    lines = engine.evaluation.report_csv(task.id).read_text(encoding="utf-8").splitlines()
    assert lines[3].startswith(f"Both,{DOMAIN} + {TASK},196.34558838475292,0.0,")


# ------------------------------------------------------------ what is measured again


@pytest.mark.parametrize("report_id", ["water-works-reports-test-0d5b", "water-works-questions-test-a8d0"])
def test_the_perplexities_of_an_old_report_are_measured_again(engine: Engine, report_id: str) -> None:
    old = engine.evaluation.report(report_id)
    mixes = [Mix(name=r["name"], weights=r["weights"]) for r in old.rows]
    last = engine.evaluation.measure(mixes, old.dataset, old.split, general=False, max_length=64).last()
    new = engine.evaluation.report(last.report)
    assert [r["tokens"] for r in new.rows] == [r["tokens"] for r in old.rows]
    expected = [r["perplexity"] for r in old.rows]
    assert [r["perplexity"] for r in new.rows] == pytest.approx(expected, rel=PERPLEXITY_TOLERANCE)
    engine.library.delete("reports", new.id)


def test_an_old_weight_map_is_read_and_not_measured_again(engine: Engine) -> None:
    file = engine.workspace.path("maps", MAP, "map.json")
    before = file.read_bytes()
    axis = WeightAxis(0.0, 1.0, 3)
    drawn = engine.analysis.weight_map(DOMAIN, TASK, QUESTIONS, limit=4, axis=axis).last().map
    assert drawn.key == MAP and drawn.complete and drawn.forwards == 3 and file.read_bytes() == before
    assert drawn.value_at(0.0, 0.0) == 2556.9532118808643 and drawn.value_at(1.0, 1.0) == 486.18116012721083
    wider = (
        engine.analysis.weight_map(DOMAIN, TASK, QUESTIONS, limit=4, axis=WeightAxis(0.0, 1.0, 2)).last().map
    )
    assert wider.key != MAP
    for spot in wider.points:
        assert spot.value == pytest.approx(drawn.value_at(spot.x, spot.y), rel=PERPLEXITY_TOLERANCE)


def test_old_mixes_answer_with_the_weights_that_they_name(engine: Engine) -> None:
    saved = sorted(engine.library.mixes(), key=lambda m: m.name)
    mixes = [Mix(name="Base"), *(m.mix for m in saved)]
    columns = (
        engine.chat.stream("Where was the north pump?", mixes, Sampling(max_new_tokens=6)).last().columns
    )
    assert all(c.done and c.tokens for c in columns)
    for column, mix in zip(columns, mixes, strict=True):
        assert column.stamp["base_fingerprint"] == FINGERPRINT
        assert column.stamp["weights"] == pytest.approx(mix.weights)
        assert {a: t for a, t in column.stamp["tilt"].items() if t} == pytest.approx(mix.tilt)
        assert column.stamp["adapters"] == {a: SHA256[a] for a in mix.weights}


# ------------------------------------------------------------ what is trained on


def compare(one: Path, other: Path) -> tuple[bool, float]:
    """Compares two files of adapter weights.

    Returns:
        (all tensors are equal to the bit, the relative difference of the B factors, which start at zero).
    """
    import torch
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    assert set(first) == set(second)
    equal = all(torch.equal(first[n], second[n]) for n in second)
    names = [n for n in second if "lora_B" in n]
    apart = sum(float((first[n] - second[n]).double().square().sum()) for n in names)
    size = sum(float(second[n].double().square().sum()) for n in names)
    return equal, float((apart / size) ** 0.5)


def read_losses(engine: Engine, run_id: str) -> dict[int, float]:
    """The loss of every step; of a step that was taken twice, the later one."""
    return {e["step"]: e["loss"] for e in engine.runs.events(run_id)[0] if e["kind"] == "step"}


@pytest.mark.parametrize("run_id", [KILLED, PAUSED])
def test_an_old_run_resumes_and_ends_like_a_straight_run(
    changed: Engine, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The straight run has the same settings, except that it writes a checkpoint at the stored one's step."""
    name = f"checkpoint-{CHECKPOINT_STEP}"
    stored = STORED / "runs" / run_id / "checkpoints" / name / "adapter_model.safetensors"
    copied = tmp_path / "straight.safetensors"
    commit = checkpoints.commit

    def copy_and_commit(folder: Path, owner: str, processes: int = 1) -> None:
        commit(folder, owner, processes)
        if folder.name == name:
            shutil.copyfile(folder / stored.name, copied)

    old = changed.runs.get(run_id)
    spec = dataclasses.replace(old.spec, name="Straight", save_steps=CHECKPOINT_STEP)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "commit", copy_and_commit)
        straight = changed.runs.wait(changed.runs.start(spec))
    assert straight.status is RunStatus.DONE, straight.error
    same_rounding, apart = compare(copied, stored)
    assert apart <= WEIGHT_TOLERANCE, "the first steps give the stored checkpoint"

    _, cursor = changed.runs.events(run_id)
    changed.runs.resume(run_id)
    ended = changed.runs.wait(run_id)
    assert ended.status is RunStatus.DONE and ended.step == ended.total_steps == old.total_steps, ended.error
    events, _ = changed.runs.events(run_id, cursor)
    notes = [e["text"] for e in events if e["kind"] == "note"]
    verdicts = [n for n in notes if n.startswith("It was still learning")]  # of so few steps, it may be
    assert [n for n in notes if n not in verdicts] == [f"Resumed from step {CHECKPOINT_STEP}."]
    steps = [e["step"] for e in events if e["kind"] == "step"]
    assert steps == list(range(CHECKPOINT_STEP + 1, old.total_steps + 1))

    one, other = (changed.library.adapter(a) for a in (ended.adapter, straight.adapter))
    files = [changed.workspace.path("adapters", a.id, stored.name) for a in (one, other)]
    assert compare(files[0], stored)[1] > 2 * WEIGHT_TOLERANCE, "the weights changed after the checkpoint"
    assert compare(*files)[1] <= WEIGHT_TOLERANCE
    if same_rounding:
        assert one.sha256 == other.sha256
        assert read_losses(changed, run_id) == read_losses(changed, straight.id)
        assert one.results["kept_step"] == other.results["kept_step"]


def test_an_old_bundle_runs_and_its_result_fills_its_cell(changed: Engine, tmp_path: Path) -> None:
    assert [(b.run_id, b.adapter_id, b.data_sha256) for b in list_bundles(changed.workspace)] == [
        (PACKED, PACKED_ADAPTER, {REPORTS: DATA_SHA256[REPORTS]})
    ]
    bundle, result = changed.workspace.path("exports", PACKED, "bundle.zip"), tmp_path / "result.zip"
    assert run_bundle(bundle, result).status is RunStatus.DONE
    taken = collect(changed, result)
    assert (taken.id, taken.status, taken.adapter) == (PACKED, RunStatus.DONE, PACKED_ADAPTER)
    assert changed.library.adapter(PACKED_ADAPTER).rank == 4 and changed.library.verify(PACKED_ADAPTER)
    results = changed.grids.results(GRID)
    assert results.counts == {"finished": 2} and {r.adapter for r in results.rows} == {CELL, PACKED_ADAPTER}
