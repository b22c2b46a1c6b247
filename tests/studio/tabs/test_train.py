"""The Train form: what it fills in, what it keeps of what the user typed, and what it names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from benchmarks.gpu_worker import SimulatedSpaces
from core.engine import Engine
from core.engine.gpu_calls import GpuCalls
from core.errors import SpecError
from core.space.zero_gpu import ZeroGpu
from core.spec.presets import resolve
from studio import actions, labels
from studio.tabs import suggestions, train, train_form
from studio.tabs.train_form import Filled
from tests.core.train.test_short_runs import texts


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Two task datasets of different sizes, one for evaluation, and one of texts."""
    folder = tmp_path_factory.mktemp("files")
    for name, count in (("few", 20), ("many", 400), ("held", 12)):
        rows = [
            {"question": f"Where is {name} {i}?", "answer": f"In room {i} of {name}."} for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "text.txt").write_text(
        "\n\n---\n\n".join(f"Room {i} is cold." for i in range(30)), encoding="utf-8"
    )
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), device="cpu") as made:
        made.bases.current(wait=True)
        for name in ("few", "many"):
            made.datasets.import_files([folder / f"{name}.jsonl"], name, "task")
        made.datasets.import_files([folder / "held.jsonl"], "held", "task", purpose="evaluation")
        made.datasets.import_files([folder / "text.txt"], "text", "domain")
        yield made


@pytest.fixture
def tab(engine: Engine) -> train.TrainTab:
    with gr.Blocks():
        return train.build(engine)


def ids(engine: Engine) -> dict[str, str]:
    return {d.name: d.id for d in engine.datasets.list()}


def fill(engine: Engine, tab: train.TrainTab, kind: str = "task") -> dict[Any, Any]:
    """The values of the form after it was filled for a kind."""
    values = {c: c.value for c in tab.form | {tab.picker, tab.suggestion, tab.filled}}
    values[tab.kind] = kind
    return apply(values, train.refresh_form(engine, tab, values, new_kind=True))


def apply(values: dict[Any, Any], updates: dict[Any, Any]) -> dict[Any, Any]:
    plain = {
        c: v["value"] if isinstance(v, dict) else v
        for c, v in updates.items()
        if not isinstance(v, dict) or "value" in v
    }
    return {**values, **plain}


def test_the_form_is_filled_with_what_suits_the_dataset(engine: Engine, tab: train.TrainTab) -> None:
    values = fill(engine, tab)
    assert values[tab.dataset] == ids(engine)["many"] and values[tab.name] == "many"
    advice = engine.runs.recommend(values[tab.dataset], values[tab.preset])
    for name, value in advice.settings.items():
        assert values[tab.advanced[name]] == value
    text = texts(train_form.render_advice(engine, values[tab.preset], train.read_form(tab, values)))
    assert advice.text in text and "many is trained on many, over the base tiny-base" in text
    assert "Use the recommended values" not in text


def test_values_follow_another_dataset_but_typed_ones_stay(engine: Engine, tab: train.TrainTab) -> None:
    values = fill(engine, tab)
    few = {**values, tab.dataset: ids(engine)["few"]}
    followed = apply(few, train.follow_dataset(engine, tab, few))
    assert followed[tab.name] == "few"
    assert followed[tab.advanced["epochs"]] > values[tab.advanced["epochs"]]
    typed = {**few, tab.name: "Mine", tab.advanced["epochs"]: 7.0, tab.advanced["rank"]: 5}
    kept = apply(typed, train.follow_dataset(engine, tab, typed))
    assert (kept[tab.name], kept[tab.advanced["epochs"]], kept[tab.advanced["rank"]]) == ("Mine", 7.0, 5)
    assert kept[tab.advanced["batch_size"]] == followed[tab.advanced["batch_size"]], "the others follow"
    text = texts(train_form.render_advice(engine, kept[tab.preset], train.read_form(tab, kept)))
    assert "Use the recommended values" in text and "Recommended: Epochs" in text
    back = {**kept, tab.dataset: ids(engine)["many"]}
    again = apply(back, train.follow_dataset(engine, tab, back))
    assert (again[tab.name], again[tab.advanced["epochs"]]) == ("Mine", 7.0)


def test_another_kind_keeps_what_the_user_typed(engine: Engine, tab: train.TrainTab) -> None:
    values = {**fill(engine, tab), tab.name: "Mine"}
    values[tab.advanced["rank"]] = 5
    values[tab.kind] = "domain"
    other = apply(values, train.refresh_form(engine, tab, values, new_kind=True))
    assert other[tab.dataset] == ids(engine)["text"]
    assert (other[tab.name], other[tab.advanced["rank"]]) == ("Mine", 5)


def test_a_refresh_changes_nothing_that_the_user_sees(engine: Engine, tab: train.TrainTab) -> None:
    values = {**fill(engine, tab), tab.name: "Mine"}
    values[tab.advanced["learning_rate"]] = 0.01
    updates = train.refresh_form(engine, tab, values)
    assert tab.name not in updates and not set(updates) & set(tab.advanced.values())
    assert "value" not in updates[tab.dataset]


def test_evaluation_data_is_never_offered_nor_trained_on(engine: Engine, tab: train.TrainTab) -> None:
    offered = [d.name for d in suggestions.list_datasets(engine, "task")]
    assert offered == ["many", "few"]
    choices = train.refresh_form(engine, tab, fill(engine, tab))[tab.dataset]["choices"]
    assert ids(engine)["held"] not in [value for _, value in choices]
    spec = resolve("task", "standard", {"dataset": ids(engine)["held"], "name": "x", "max_length": 64})
    with pytest.raises(SpecError, match="for evaluation only") as refused:
        engine.runs.start(spec)
    assert refused.value.field == "dataset"


def test_errors_at_queueing_name_their_field(engine: Engine) -> None:
    few = ids(engine)["few"]
    for changes, field in (
        ({"dataset": few, "name": "x", "max_length": 600}, "max_length"),
        ({"name": "x"}, "dataset"),
        ({"dataset": few, "name": " "}, "name"),
    ):
        with pytest.raises(Exception) as refused:  # noqa: PT011 (two kinds of StudioError)
            engine.runs.start(resolve("task", "standard", changes))
        assert getattr(refused.value, "field", "") == field


def test_the_start_button_names_the_adapter(engine: Engine, tab: train.TrainTab) -> None:
    settings = train.read_form(tab, fill(engine, tab))
    assert train.update_start_button(engine, settings) == gr.update(
        value="Start training many", interactive=True
    )
    long = train.update_start_button(engine, {**settings, "name": 100 * "a"})["value"]
    assert len(long) == len("Start training ") + 40 and long.endswith("…")


def test_things_of_one_name_are_told_apart(engine: Engine) -> None:
    first, second, third = (dataclasses.replace(d, name="Notes") for d in engine.datasets.list()[:3])
    second = dataclasses.replace(second, created=first.created, rows=first.rows)
    named = labels.label_datasets([first, second, third])
    assert len(set(named.values())) == 3 and all(n.startswith("Notes (") for n in named.values())
    assert named[first.id].endswith("#1") and named[second.id].endswith("#2")
    assert f"{third.rows} rows" in named[third.id]
    assert labels.label_datasets([first]) == {first.id: "Notes"}


def test_train_on_is_one_button_of_a_finished_run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = resolve("domain", "standard", {"dataset": ids(engine)["text"], "name": "Short", "max_length": 64,
                                          "max_steps": 4, "eval_steps": 1, "rank": 4})  # fmt: skip
    run = engine.runs.wait(engine.runs.start(spec))
    asked: list[str] = []
    monkeypatch.setattr(engine.runs, "train_on", lambda run_id: asked.append(run_id) or run.id)
    event = gr.EventData(None, {"do": "train_on", "run": run.id})
    assert actions.run_action(engine, event)[2]["value"] == run.id and asked == [run.id]


def test_values_that_were_not_filled_in_are_not_called_changed() -> None:
    assert not Filled().is_changed("rank", 5)
    assert Filled({"rank": 4}).is_changed("rank", 5) and not Filled({"rank": 4}).is_changed("rank", 4)
    assert Filled({"rank": 4}).is_changed("rank", None), "a number that is being edited"


def test_on_zerogpu_the_form_says_the_gpu_time_before_the_start(tmp_path: Path, corpus: Path) -> None:
    calls = GpuCalls(ZeroGpu(SimulatedSpaces()))
    with Engine(tmp_path / "ws", load=False, gpu=calls) as engine:
        dataset = engine.datasets.import_files([corpus], "Corpus", "domain")
        form = {"kind": "domain", "name": "Notes", "dataset": dataset.id}
        shown = train.render_memory(engine, "standard", form)
        assert shown is not None and "ZeroGPU: about 15 s of your GPU time in 1 slice of at most 60 s" in str(
            shown
        )
        assert train.render_memory(engine, "standard", {**form, "dataset": ""}) is None
