"""Events between page and server: each gets its result, and then no more events are sent."""

from __future__ import annotations

import re
import threading

import pytest

from studio.tabs import train
from tests.browser.test_path import tab, until

pytestmark = pytest.mark.slow

# Delays the close message of every stream, so that the page learns of it as late as on a busy machine.
DELAY_CLOSE = """
const originalFetch = window.fetch;
window.fetch = async (...request) => {
  const response = await originalFetch(...request);
  const url = String(request[0]?.url ?? request[0]);
  if (!url.includes("queue/data")) return response;
  const delay = new TransformStream({
    async transform(chunk, out) {
      const text = new TextDecoder().decode(chunk);
      const at = text.lastIndexOf('data: {"msg":"close_stream"');
      if (at < 0) { out.enqueue(chunk); return; }
      if (at > 0) out.enqueue(new TextEncoder().encode(text.slice(0, at)));
      await new Promise((resolve) => setTimeout(resolve, 1200));
      window.closedLate = (window.closedLate ?? 0) + 1;
      out.enqueue(new TextEncoder().encode(text.slice(at)));
    },
  });
  const { status, headers } = response;
  return new Response(response.body.pipeThrough(delay), { status, headers });
};
"""


def test_an_event_without_an_open_stream_gets_its_result(visit) -> None:
    page = visit.page
    page.add_init_script(DELAY_CLOSE)
    visit.reload()
    page.locator("button.spec").click()
    base = page.get_by_label("Base", exact=True)
    page.locator("#base-shelf .shelf-item").first.wait_for()
    page.wait_for_timeout(3000)  # the events of a fresh page have their results, and the stream is closed
    for name in ("no/first", "no/second"):
        base.fill(name)
        base.press("Enter")
        before = page.evaluate("window.closedLate ?? 0")
        page.get_by_role("button", name="Use this base").click()
        page.get_by_role("alert").get_by_text(
            re.compile(f"'{name}' is not complete on this machine")
        ).wait_for(timeout=15_000)
    assert before == page.evaluate("window.closedLate") - 1, (
        "the second event was sent before the page knew that the stream is closed"
    )


def test_a_page_is_quiet_after_quick_changes_of_form_and_lists(visit, corpus) -> None:
    page, engine = visit.page, visit.engine
    joins: list[str] = []
    page.on("request", lambda r: joins.append(r.url) if "queue/join" in r.url else None)
    data = engine.datasets.import_files([corpus], "Corpus", "domain")
    tab(page, "Train")
    name = page.get_by_label("Name", exact=True).first
    until(lambda: name.input_value() == "Corpus", 30, "the form")
    for i in range(5):
        name.press_sequentially(" and more", delay=5)
        engine.library.rename("datasets", data.id, f"Corpus {i}")
        page.evaluate("window.studio.refresh()")
    page.wait_for_timeout(5000)
    before = len(joins)
    page.wait_for_timeout(4000)
    assert len(joins) == before, "events without end"
    assert name.input_value() == "Corpus" + 5 * " and more"
    assert page.locator("#start").inner_text().startswith("Start training Corpus and more")
    tab(page, "Data")
    until(
        lambda: page.get_by_label("Dataset", exact=True).first.input_value() == "Corpus 4",
        30,
        "the newest name of the dataset",
    )


def test_a_late_result_leaves_what_was_typed_and_chosen_since(visit, corpus, tmp_path, monkeypatch) -> None:
    page, engine = visit.page, visit.engine
    engine.datasets.import_files([corpus], "Late corpus", "domain")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"question": "Where is {i}?", "answer": "Here."}}\n' for i in range(20)))
    questions = engine.datasets.import_files([pairs], "Late pairs", "task")
    visit.reload()
    tab(page, "Train")
    name = page.get_by_label("Name", exact=True).first
    until(lambda: name.input_value() == "Late corpus", 30, "the form")
    late, go, make = threading.Event(), threading.Event(), train.refresh_form

    def refresh_form(engine, tab, values, new_kind=False):
        made = make(engine, tab, values, new_kind)
        if not new_kind and not late.is_set():  # the first list since is late
            late.set()
            go.wait(60)
        return made

    monkeypatch.setattr(train, "refresh_form", refresh_form)
    engine.library.rename("datasets", questions.id, "Later pairs")
    page.evaluate("window.studio.refresh()")
    until(late.is_set, 30, "a result that is made and not shown")
    page.get_by_label("Task", exact=True).check()
    until(lambda: name.input_value() == "Later pairs", 30, "the result of the change")
    name.fill("Mine")
    page.get_by_role("button", name="Advanced settings").click()
    steps = page.get_by_label(re.compile("^Max steps")).first
    steps.fill("7")
    asked = "performance.getEntriesByType('resource').filter((e) => e.name.includes('queue/join')).length"
    before = page.evaluate(asked)
    go.set()
    until(lambda: page.evaluate(asked) > before, 30, "the page to ask for its lists again")
    page.wait_for_timeout(2000)
    assert (name.input_value(), steps.input_value()) == ("Mine", "7")
    assert page.get_by_label("Task", exact=True).is_checked()
    assert page.locator("[id^=field-dataset] input:visible").first.input_value() == "Later pairs"
    page.get_by_role("button", name="Start training Mine", exact=True).wait_for()
