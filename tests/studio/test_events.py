"""How the page's events are bound."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import SimpleNamespace

import gradio as gr
from gradio.context import LocalContext

from core.engine import Engine
from studio import events
from studio.app import build


def test_hidden_progress_of_all_events_is_borne_by_one_component(tmp_path) -> None:
    with Engine(tmp_path, base="embedded", quantization="none", load=False) as engine:
        config = build(engine).get_config_file()
    # The named endpoints are for programs: the page never fires them.
    bound = [d for d in config["dependencies"] if d["backend_fn"] and d["api_visibility"] == "private"]
    assert len(bound) > 100 and all(d["show_progress"] == "hidden" for d in bound)
    (bearers,) = {tuple(d["show_progress_on"]) for d in bound}
    assert len(bearers) == 1

    def list_ids(node: dict) -> list[int]:
        return [node["id"], *(i for child in node.get("children", []) for i in list_ids(child))]

    assert list_ids(config["layout"]).index(bearers[0]) < 5, "it is found from the root at once"


def test_a_result_older_than_what_its_page_shows_is_dropped() -> None:
    begun, may_end = threading.Event(), threading.Event()
    with gr.Blocks():
        box = gr.Textbox()

    def answer(engine: object, value: str) -> str:
        if value == "old":
            begun.set()
            assert may_end.wait(60)
        return value

    group = events.EventGroup()
    group.add(answer, [box], [box])

    def run(page: str, value: str) -> object:
        def run_for_page() -> object:
            LocalContext.request.set(SimpleNamespace(session_hash=page))
            return group._run(None, {box: value})

        return copy_context().run(run_for_page)

    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(run, "a", "old")
        assert begun.wait(60)
        assert run("a", "new") == {box: "new"}
        assert run("b", "other") == {box: "other"}, "pages do not wait for each other"
        may_end.set()
        assert old.result(60) == gr.skip()
    assert run("a", "newest") == {box: "newest"}


def test_a_page_that_opens_checks_the_training_form_once(tmp_path) -> None:
    with Engine(tmp_path, base="embedded", quantization="none", load=False) as engine:
        page = build(engine)
    checks = [f for f in page.fns.values() if f.api_name.startswith("check") and len(f.outputs) == 4]
    lists = next(f for f in page.fns.values() if f.api_name == "_run" and len(f.outputs) > 40)

    def first_of(event):  # of the events that follow each other
        while event.trigger_after is not None and event is not lists:
            event = page.fns[event.trigger_after]
        return event

    assert [first_of(f) for f in checks].count(lists) == 1
    # A field that the lists fill fires `change`; one that the user edits fires `input`.
    assert {event for f in checks for _, event in f.targets} == {"input", "select", "then"}
    assert {f.concurrency_id for f in checks} == {"train-form"}
