"""Events between page and server: each gets its result, and then no more events are sent."""

from __future__ import annotations

import re

import pytest

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
