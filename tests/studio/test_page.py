"""The short way of the page's values shows the same as Gradio's own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio import utils
from gradio.components.base import _Keywords
from gradio.context import LocalContext
from gradio.exceptions import InvalidPathError
from gradio.state_holder import SessionState

from core.engine import Engine
from studio import page as page_module
from studio.app import build
from studio.page import Page
from studio.server.page_states import PageState, install


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Engine(tmp_path_factory.mktemp("page"), base="embedded", quantization="none", load=False) as engine:
        made = build(engine)
        assert isinstance(made, Page)
        made.engine = engine
        yield made


def find_event(page: Page, name: str, at_least: int) -> Any:
    return next(f for f in page.fns.values() if f.api_name == name and len(f.outputs) >= at_least)


def show_both(page: Page, event: Any, result: Any) -> tuple[list[Any], list[Any]]:
    """What is sent for a result: our way, and Gradio's."""
    own = asyncio.run(page.postprocess_data(event, result, PageState(page)))
    theirs = asyncio.run(gr.Blocks.postprocess_data(page, event, result, SessionState(page)))
    return simplify(own), simplify(theirs)


def simplify(output: list[Any]) -> list[Any]:
    """As it is sent; without a property that Gradio's update of an HTML component always holds."""
    values = json.loads(json.dumps(output, default=lambda value: type(value).__name__))
    for value in values:
        if isinstance(value, dict) and value.get("props") == {"__type__": "update"}:
            del value["props"]
    return values


def test_the_first_lists_are_shown_as_gradio_shows_them(page):
    group = find_event(page, "_run", 40)
    values = [getattr(c, "value", None) for c in group.inputs]
    arguments = dict(zip(group.inputs, values, strict=True))
    result = group.fn(arguments)
    assert len(result) >= 40, "the lists of every tab"
    own, theirs = show_both(page, group, result)
    assert own == theirs


def test_values_and_updates_of_each_form_are_shown_as_gradio_shows_them(page):
    with Page() as small:
        choice, number, text, column = gr.Dropdown(["a"]), gr.Number(precision=0), gr.Textbox(), gr.Column()
        html, state = gr.HTML(), gr.State(1)
        gr.on(None, lambda: None, None, [choice, number, text, column, html, state])
    event = small.fns[0]
    update = [
        gr.update(choices=[("A", "a"), ("B", "b")], value="b"), 2.0, gr.update(value=3),
        gr.update(visible=False), {"tag": "p", "kids": ["x"]}, gr.update(value=5),
    ]  # fmt: skip
    for result in (
        update,
        {choice: "a", text: None},
        {number: gr.Number(7, maximum=9), html: gr.update(value=None, visible=True)},
        gr.skip(),
        [None, None, "x", gr.skip(), None, 2],
        [_Keywords.FINISHED_ITERATING] * 6,
    ):
        own, theirs = show_both(small, event, result)
        assert own == theirs, result


def test_new_choices_are_known_when_the_next_event_sends_one(page):
    with Page() as small:
        choice, number = gr.Dropdown(["a"]), gr.Number(precision=0, maximum=9)
        gr.on(None, lambda c, n: (c, n), [choice, number], [choice, number])
    event, state = small.fns[0], PageState(small)
    with pytest.raises(gr.Error, match="not in the list of choices"):
        asyncio.run(small.preprocess_data(event, ["b", 1], state))
    asyncio.run(small.postprocess_data(event, [gr.update(choices=["a", "b"]), gr.skip()], state))
    assert asyncio.run(small.preprocess_data(event, ["b", 4.0], state)) == ["b", 4]
    with pytest.raises(gr.Error, match="greater than maximum"):
        asyncio.run(small.preprocess_data(event, ["b", 10], state))
    other = PageState(small)
    with pytest.raises(gr.Error, match="not in the list of choices"):
        asyncio.run(small.preprocess_data(event, ["b", 1], other))


def test_a_value_that_names_a_file_of_the_machine_is_refused(page, tmp_path, monkeypatch):
    with Page() as small:
        html = gr.HTML()
        gr.on(None, lambda v: v, [html], [html])
    monkeypatch.setattr(small, "has_launched", True)
    monkeypatch.setattr(LocalContext, "blocks", SimpleNamespace(get=lambda default=None: small))
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    named = {"path": str(tmp_path / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(InvalidPathError, match="not uploaded by a user"):
        asyncio.run(small.preprocess_data(small.fns[0], [named], PageState(small)))


def test_a_state_belongs_to_one_page_and_keeps_no_configurations(page):
    one, two = PageState(page), PageState(page)
    key = next(i for i, block in page.blocks.items() if isinstance(block, gr.State) and block.value == "")
    one[key] = "picked"
    assert (one[key], two[key]) == ("picked", "")
    component = next(i for i, block in page.blocks.items() if isinstance(block, gr.Textbox))
    one[component] = gr.Textbox("x", render=False)
    one._update_value_in_config(component, "y")
    one._update_config(component)
    assert two[component] is page.blocks[component] is not one[component]
    assert (list(one.components), list(two.components)) == ([], [])


def test_a_waiting_event_reads_its_place_once_and_not_whenever_another_begins(page):
    """Thirty pages that open at once would otherwise send a message for each pair of waiting events."""
    assert not page._queue.live_updates and page._queue.update_intervals >= 60


def test_an_event_does_not_look_for_matplotlib(page):
    """Gradio would, twice for every event: in all folders of packages, where it is not installed."""
    looked: list[str] = []

    class Witness:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            looked.append(name)

    install(SimpleNamespace(get_blocks=lambda: page))
    witness = Witness()
    sys.meta_path.insert(0, witness)
    try:
        with utils.MatplotlibBackendMananger():
            pass
    finally:
        sys.meta_path.remove(witness)
    assert "matplotlib" not in looked


def test_what_follows_from_lists_waits_until_every_page_has_its_lists(page, monkeypatch):
    queue = page._queue
    lists = next(f for f in page.fns.values() if f.api_name == "_run")
    follows = find_event(page, "compare_runs", 1)
    asked = next(f for f in page.fns.values() if [name for _, name in f.targets] == ["click"])
    for fn in (follows, asked, *[lists] * 4):
        queue.create_event_queue_for_fn(fn)
        queue.event_queue_per_concurrency_id[fn.concurrency_id].queue.append(SimpleNamespace(fn=fn))
    making = queue.event_queue_per_concurrency_id[lists.concurrency_id]
    try:
        taken = []
        while event := queue.get_events():
            taken.append(event[0][0].fn)
            making.current_concurrency += event[0][0].fn is lists
        assert taken == [*[lists] * 4, asked], "what follows waits while many lists are made"
        making.current_concurrency = 3
        assert queue.get_events()[0][0].fn is follows
        queue.event_queue_per_concurrency_id[follows.concurrency_id].queue.append(SimpleNamespace(fn=follows))
        making.current_concurrency = 4
        assert queue.get_events() is None
        monkeypatch.setattr(page_module, "LISTS_SECONDS", 0.0)
        assert queue.get_events()[0][0].fn is follows, "not for ever"
    finally:
        making.current_concurrency = 0
        assert len(queue) == 0 and queue.get_events() is None
