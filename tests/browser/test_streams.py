"""Questions and answers between page and server: each is answered, and then it is quiet."""

from __future__ import annotations

import re

import pytest

from tests.browser.test_path import tab, until

pytestmark = pytest.mark.slow

# The page hears of a closed stream late, as on a machine with too much to do: the last piece of each stream is held.
LATE = """
const plain = window.fetch;
window.fetch = async (...asked) => {
  const answer = await plain(...asked);
  const url = String(asked[0]?.url ?? asked[0]);
  if (!url.includes("queue/data")) return answer;
  const held = new TransformStream({
    async transform(piece, out) {
      const text = new TextDecoder().decode(piece);
      const at = text.lastIndexOf('data: {"msg":"close_stream"');
      if (at < 0) { out.enqueue(piece); return; }
      if (at > 0) out.enqueue(new TextEncoder().encode(text.slice(0, at)));
      await new Promise((run) => setTimeout(run, 1200));
      window.closedLate = (window.closedLate ?? 0) + 1;
      out.enqueue(new TextEncoder().encode(text.slice(at)));
    },
  });
  return new Response(answer.body.pipeThrough(held), { status: answer.status, headers: answer.headers });
};
"""


def test_a_click_whose_answer_has_no_stream_is_answered(visit) -> None:
    page = visit.page
    page.add_init_script(LATE)
    visit.reload()
    page.locator("button.spec").click()
    base = page.get_by_label("Base", exact=True)
    page.locator("#base-shelf .shelf-item").first.wait_for()
    page.wait_for_timeout(3000)  # what a fresh page asks is answered, and its stream is closed
    for name in ("no/first", "no/second"):
        base.fill(name)
        base.press("Enter")
        before = page.evaluate("window.closedLate ?? 0")
        page.get_by_role("button", name="Use this base").click()
        page.get_by_test_id("toast-body").get_by_text(
            re.compile(f"'{name}' is not on this machine")
        ).wait_for(timeout=15_000)
    assert before == page.evaluate("window.closedLate") - 1, (
        "the second was asked before the page knew that the stream is closed"
    )


def test_a_page_whose_form_and_lists_changed_in_quick_succession_comes_to_rest(visit, corpus) -> None:
    page, engine = visit.page, visit.engine
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if "queue/join" in r.url else None)
    data = engine.datasets.import_files([corpus], "Corpus", "domain")
    tab(page, "Train")
    name = page.get_by_label("Name", exact=True).first
    until(lambda: name.input_value() == "Corpus", 30, "the form")
    for i in range(5):
        name.press_sequentially(" and more", delay=5)
        engine.library.rename("datasets", data.id, f"Corpus {i}")
        page.evaluate("window.studio.refresh()")
    page.wait_for_timeout(5000)
    before = len(asked)
    page.wait_for_timeout(4000)
    assert len(asked) == before, "questions without end"
    assert name.input_value() == "Corpus" + 5 * " and more"
    assert page.locator("#start").inner_text() == "Start training"
    tab(page, "Data")
    until(
        lambda: page.get_by_label("Dataset", exact=True).first.input_value() == "Corpus 4",
        30,
        "the newest name of the dataset",
    )
