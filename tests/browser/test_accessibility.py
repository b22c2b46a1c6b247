"""Every tab in a real browser, light and dark, wide and narrow: names, contrast, targets, focus, keys, toasts."""

from __future__ import annotations

import dataclasses
import time

import pytest

from core.engine import Engine
from studio import samples
from studio.actions import TABS
from studio.tabs.suggestions import suggest_run
from tests.browser.test_path import until

axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = [pytest.mark.slow, pytest.mark.browser]
WINDOWS = [
    (1440, 900, "light"),
    (1440, 900, "dark"),
    (390, 844, "light"),
    (390, 844, "dark"),
]
WINDOW_NAMES = ["desktop-light", "desktop-dark", "phone-light", "phone-dark"]
PHONE_AND_DESKTOP = [(1440, 900, "light"), (390, 844, "dark")]
# Rules of axe-core that Gradio's frame around every application breaks, or that concern whole documents.
LEFT_OUT = {"region": {"enabled": False}, "landmark-one-main": {"enabled": False}}
SMALLEST_TARGET = 24  # pixels, success criterion 2.5.8 of WCAG 2.2
# Visible controls that are smaller than that, together with the label that also takes the click.
SMALL_TARGETS = """(smallest) => {
  const controls = "button, a[href], input, select, textarea, summary, [role=button], [role=tab], [role=option]";
  const small = [];
  for (const e of document.querySelectorAll(controls)) {
    const isShown = e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!isShown || e.type === "file" || e.closest("[aria-hidden=true]")) continue;
    const rects = [e, e.closest("label")].filter(Boolean).map((x) => x.getBoundingClientRect());
    const size = [Math.max(...rects.map((r) => r.width)), Math.max(...rects.map((r) => r.height))];
    const name = e.getAttribute("aria-label") || e.textContent.trim().slice(0, 40) || e.outerHTML.slice(0, 80);
    if (Math.min(...size) < smallest - 0.5) small.push(`${name}: ${size.map(Math.round).join(" x ")}`);
  }
  return small;
}"""
UNFOLD = """() => {
  const folds = [...document.querySelectorAll("button.label-wrap:not(.open)")].filter((e) => e.checkVisibility());
  folds.forEach((e) => e.click());
  document.querySelectorAll("details").forEach((e) => { e.open = true; });
}"""
# Whether the focused control, or the box around it, is marked.
FOCUS_MARK = """() => {
  let e = document.activeElement;
  const name = e.getAttribute("aria-label") || e.textContent.trim().slice(0, 40) || e.outerHTML.slice(0, 80);
  for (let depth = 0; e && depth < 5; depth += 1, e = e.parentElement) {
    const style = getComputedStyle(e);
    if (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2) return "";
  }
  return name;
}"""


@pytest.fixture(scope="module", autouse=True)
def adapters(studio) -> None:
    """A domain and a task adapter, a saved mix and a report, so that no list is empty."""
    engine, _ = studio
    prepare(engine)


def prepare(engine: Engine) -> None:
    samples.import_samples(engine)
    for kind in ("domain", "task"):
        spec = dataclasses.replace(
            suggest_run(engine, kind), max_steps=2, batch_size=2, accumulation=1, max_length=64, rank=4
        )
        engine.runs.wait(engine.runs.start(spec), 600)
    mixes = engine.library.default_mixes()
    engine.library.save_mix("Both", mixes[-1].weights)
    for _ in engine.evaluation.measure(mixes, samples.find_held_out(engine), "all", 2, max_new_tokens=8):
        pass


def open_tab(page, name: str) -> None:
    """Opens a tab, with everything that is folded on it."""
    page.locator(f"#tabs > .tab-wrapper [data-tab-id='{name}'][role=tab]").click()
    page.wait_for_timeout(400)
    if name == "library":
        page.locator(".shelf-item").first.click()
        page.wait_for_timeout(300)
    for _ in range(2):  # folds may lie in folds
        page.evaluate(UNFOLD)
        page.wait_for_timeout(300)


def find_violations(page) -> list[str]:
    """What axe-core finds, one line for each kind, with the first element."""
    response = axe_playwright.Axe().run(page, options={"rules": LEFT_OUT}).response
    return [
        f"{v['id']}: {n['html'][:140]} ({n['failureSummary'][-150:]})"
        for v in response["violations"]
        for n in v["nodes"][:4]
    ]


@pytest.mark.parametrize("visit", WINDOWS, indirect=True, ids=WINDOW_NAMES)
def test_every_tab_has_names_contrast_and_targets(visit):
    problems = []
    for name in TABS:
        open_tab(visit.page, name)
        problems += [f"{name}: {text}" for text in find_violations(visit.page)]
        small = visit.page.evaluate(SMALL_TARGETS, SMALLEST_TARGET)
        problems += [f"{name}: too small: {text}" for text in small]
    assert not problems, "\n".join(problems)
