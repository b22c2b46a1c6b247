"""Every tab in a browser, light and dark, wide and narrow: names, contrast, targets, focus, keys, toasts."""

from __future__ import annotations

import dataclasses

import pytest

from core.engine import Engine
from core.errors import Busy
from studio import samples
from studio.actions import TABS
from studio.tabs.suggestions import suggest_run
from tests.browser.test_path import until
from tests.studio.exported import FAILED, put_export

axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = [pytest.mark.slow, pytest.mark.browser]
WINDOWS = [(width, height, dark) for width, height in ((1440, 900), (390, 844)) for dark in (False, True)]
CONTRAST_WINDOWS = [(390, True)]  # beside the first; all of WINDOWS take a minute more
PHONE_AND_DESKTOP = [(1440, 900, "light"), (390, 844, "dark")]
# Rules of axe-core that Gradio's frame around every application breaks, or that concern whole documents.
LEFT_OUT = {"region": {"enabled": False}, "landmark-one-main": {"enabled": False}}
SMALLEST_TARGET = 24  # pixels, success criterion 2.5.8 of WCAG 2.2
# Visible controls that are smaller than that, together with the label that also takes the click.
SMALL_TARGETS = """(smallest) => {
  const controls = "button, a[href], input, select, textarea, summary, [role=button], [role=tab]";
  const small = [];
  for (const e of document.querySelectorAll(controls)) {
    const isShown = e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!isShown || e.type === "file" || e.closest("[aria-hidden=true]")) continue;
    const rects = [e, e.closest("label")].filter(Boolean).map((x) => x.getBoundingClientRect());
    const size = [Math.max(...rects.map((r) => r.width)), Math.max(...rects.map((r) => r.height))];
    const name = e.getAttribute("aria-label") || e.textContent.trim().slice(0, 40) || e.outerHTML;
    if (Math.min(...size) < smallest - 0.5) small.push(`${name}: ${size.map(Math.round).join(" x ")}`);
  }
  return small;
}"""
UNFOLD = """() => {
  const folds = [...document.querySelectorAll("button.label-wrap:not(.open)")];
  folds.filter((e) => e.checkVisibility()).forEach((e) => e.click());
  document.querySelectorAll("details").forEach((e) => { e.open = true; });
}"""
# Whether the focused control, or the box around it, is marked.
FOCUS_MARK = """() => {
  let e = document.activeElement;
  if (e === document.body) return ""; // after the last control
  const name = e.getAttribute("aria-label") || e.textContent.trim().slice(0, 40) || e.outerHTML.slice(0, 80);
  for (let depth = 0; e && depth < 5; depth += 1, e = e.parentElement) {
    const style = getComputedStyle(e);
    if (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2) return "";
  }
  return name;
}"""


@pytest.fixture(scope="module", autouse=True)
def adapters(studio) -> None:
    """A domain and a task adapter, a saved mix, a report and exports, so that no list is empty."""
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
    put_export(engine, files={"adapter_model.safetensors": b"weights", "ollama/answers/Modelfile": b"FROM"})
    put_export(engine, "failed-0000", files={"a.gguf": b"x"}, certificate=FAILED, form="gguf")
    put_export(engine, "interrupted-0000")
    for _ in engine.evaluation.measure(mixes, samples.list_held_out(engine)[0], "all", 2, max_new_tokens=8):
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


def find_violations(page, only_contrast: bool) -> list[str]:
    """What axe-core finds: each kind with its first elements."""
    options = {"rules": LEFT_OUT}
    if only_contrast:
        options = {"runOnly": ["color-contrast"]}
    return [
        f"{v['id']}: {n['html'][:140]} ({n['failureSummary'][-150:]})"
        for v in axe_playwright.Axe().run(page, options=options).response["violations"]
        for n in v["nodes"][:4]
    ]


def test_every_tab_has_names_contrast_and_targets_in_every_window(visit):
    page, problems = visit.page, []
    for name in TABS:
        open_tab(page, name)
        for width, height, dark in WINDOWS:
            where = f"{name}, {width} px, {'dark' if dark else 'light'}"
            page.set_viewport_size({"width": width, "height": height})
            page.evaluate("(dark) => window.studio.setTheme(dark ? 'dark' : 'light')", dark)
            page.wait_for_timeout(150)
            if (width, dark) == (1440, False):  # names and roles do not depend on window and theme
                problems += [f"{where}: {text}" for text in find_violations(page, only_contrast=False)]
            elif (width, dark) in CONTRAST_WINDOWS:
                problems += [f"{where}: {text}" for text in find_violations(page, only_contrast=True)]
            small = page.evaluate(SMALL_TARGETS, SMALLEST_TARGET)
            problems += [f"{where}: too small: {text}" for text in small]
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            problems += [f"{where}: {wide} px wider than the window"] if wide > 0 else []
        page.set_viewport_size({"width": 1440, "height": 900})
    assert not problems, "\n".join(problems)


def test_arrow_keys_move_between_tabs(visit):
    page = visit.page
    bar = page.get_by_role("tablist", name="Parts of the studio")
    bar.get_by_role("tab", name="Data", exact=True).focus()
    for name in ("Train", "Runs", "Mix"):
        page.keyboard.press("ArrowRight")
        until(lambda name=name: bar.get_by_role("tab", name=name, selected=True).count(), 10, name)
    page.keyboard.press("End")
    until(lambda: bar.get_by_role("tab", name="Base", selected=True).count(), 10, "the last tab")
    page.keyboard.press("ArrowRight")
    until(lambda: bar.get_by_role("tab", name="Data", selected=True).count(), 10, "the first tab again")
    assert page.evaluate("document.activeElement.textContent") == "Data"
    stops = bar.locator("[role=tab][tabindex='0']")
    until(lambda: stops.all_text_contents() == ["Data"], 10, "the bar is drawn")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") != "tab", "one stop of the Tab key"
    open_tab(page, "mix")
    inner = page.get_by_role("tablist", name="Analyze this mix")
    inner.get_by_role("tab", name="Weight map").focus()
    page.keyboard.press("ArrowRight")
    until(lambda: inner.get_by_role("tab", name="Attribution", selected=True).count(), 10, "an inner tab")


DRAW_AGAIN = """(group) => {  // the names that Gradio gives; all in the moment before the key
  group.querySelectorAll("input").forEach((radio, i) => { radio.name = "drawn-" + i; });
  const press = new KeyboardEvent("keydown", { key: "Shift", bubbles: true });
  document.activeElement.dispatchEvent(press);
  window.names = new Set([...group.querySelectorAll("input")].map((radio) => radio.name)).size;
}"""


def test_arrow_keys_move_between_radio_buttons_and_tab_closes_menus(visit):
    page = visit.page
    page.locator("#tabs > .tab-wrapper [data-tab-id='evaluate'][role=tab]").click()
    group = page.get_by_role("radiogroup", name="Split")
    until(group.get_by_label("Everything").is_checked, 30, "the suggestion for held-out data")
    group.get_by_label("Test", exact=True).focus()
    page.keyboard.press("ArrowRight")
    until(group.get_by_label("Validation", exact=True).is_checked, 10, "the next button")
    until(lambda: page.evaluate("window.studio.splitIsChosen"), 10, "the page to take the choice")
    group.evaluate(DRAW_AGAIN)
    page.keyboard.press("ArrowLeft")
    until(group.get_by_label("Test", exact=True).is_checked, 10, "the previous button")
    assert page.evaluate("window.names") == 1, "one group at any moment"
    dataset = page.locator("input[role=combobox][aria-label='Dataset']:visible")
    dataset.click()
    page.get_by_role("listbox").wait_for()
    page.keyboard.press("Tab")
    page.get_by_role("listbox").wait_for(state="detached")
    remove = page.get_by_role("button", name="Remove Base", exact=True)
    assert remove.count() == 1, "the button says what it removes"


def test_the_focus_is_visible_on_every_control(visit):
    page, unmarked = visit.page, set()
    for name in TABS:
        page.locator(f"#tabs > .tab-wrapper [data-tab-id='{name}'][role=tab]").click()
        page.wait_for_timeout(300)
        page.locator(f"#tabs > .tab-wrapper [data-tab-id='{name}'][role=tab]").focus()
        for _ in range(8):
            page.keyboard.press("Tab")
            unmarked.add(page.evaluate(FOCUS_MARK))
    assert unmarked <= {""}


@pytest.mark.parametrize("visit", PHONE_AND_DESKTOP, indirect=True, ids=["desktop", "phone"])
def test_a_toast_covers_no_main_button(visit, monkeypatch):
    page, engine = visit.page, visit.engine

    def fail(*values, **named):
        raise Busy("A base is being loaded.", "Wait until it is loaded.")

    monkeypatch.setattr(engine.bases, "switch", fail)
    covers = """() => {
      const toast = document.querySelector(".toast-wrap").getBoundingClientRect();
      const meets = (r) => r.left < toast.right && r.right > toast.left && r.top < toast.bottom
        && r.bottom > toast.top;
      return [...document.querySelectorAll("button.primary, .btn.primary")]
        .filter((e) => e.checkVisibility() && meets(e.getBoundingClientRect())).map((e) => e.textContent);
    }"""
    open_tab(page, "base")
    page.get_by_role("button", name="Use this base").click()
    page.get_by_test_id("toast-body").wait_for()
    keep = "(item) => { const wrap = item.parentElement; wrap.append(item.cloneNode(true)); }"
    page.locator(".toast-item").evaluate(keep)  # a copy, which does not disappear after ten seconds
    page.wait_for_timeout(400)
    for name in ("base", "train", "mix"):
        page.locator(f"#tabs > .tab-wrapper [data-tab-id='{name}'][role=tab]").click()
        page.wait_for_timeout(300)
        assert page.evaluate(covers) == [], name


SIZES = """() => {
  const sizes = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const e = text.parentElement;
    if (text.data.trim() && e.checkVisibility() && !e.closest("svg, script, style, [aria-hidden=true]"))
      sizes.add(parseFloat(getComputedStyle(e).fontSize));
  }
  return [...sizes].sort((a, b) => a - b);
}"""


def test_typeface_sizes_and_spinners_are_the_same_in_both_themes(visit):
    page, found = visit.page, {}
    for name in TABS:
        page.locator(f"#tabs > .tab-wrapper [data-tab-id='{name}'][role=tab]").click()
        page.wait_for_timeout(300)
        for theme in ("light", "dark"):
            page.evaluate("(theme) => window.studio.setTheme(theme)", theme)
            found[name, theme] = page.evaluate(SIZES)
        assert found[name, "light"] == found[name, "dark"], name
    assert {size for sizes in found.values() for size in sizes} <= {12, 14, 16, 20, 28}, found
    number = page.locator("#tabs input[type=number]").last
    assert number.evaluate("(e) => getComputedStyle(e).colorScheme") == "dark", "its arrows are dark, too"
    loaded = page.evaluate("[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family)")
    assert "Inter Variable" in [name.strip('"') for name in loaded]


def test_a_chosen_split_is_not_overwritten_by_a_suggestion(visit):
    """The lists of the page are refreshed while the user chooses: the choice stays."""
    page = visit.page
    page.locator("#tabs > .tab-wrapper [data-tab-id='evaluate'][role=tab]").click()
    group = page.get_by_role("radiogroup", name="Split")
    until(lambda: group.get_by_label("Everything").is_checked(), 30, "the suggestion for held-out data")
    group.get_by_label("Test", exact=True).check()
    visit.engine.library.save_mix("Another", {})  # the lists are refreshed
    until(lambda: page.evaluate("window.studio.splitIsChosen") is True, 5, "the choice")
    page.wait_for_timeout(3000)
    assert group.get_by_label("Test", exact=True).is_checked()


def test_a_deletion_in_the_library_names_its_users(visit):
    page = visit.page
    page.locator("#tabs > .tab-wrapper [data-tab-id='library'][role=tab]").click()
    page.locator(".shelf-item", has_text="Sample task").first.click()
    page.get_by_role("button", name="Delete", exact=True).last.click()
    question = page.locator("#delete-question")
    question.get_by_text("the saved mix 'Both'").wait_for()
    page.get_by_role("button", name="Keep it").click()
    question.get_by_text("the saved mix 'Both'").wait_for(state="hidden")


def test_an_error_stands_at_its_field_until_the_value_is_right(visit):
    page = visit.page
    page.locator("#tabs > .tab-wrapper [data-tab-id='evaluate'][role=tab]").click()
    limit, error = page.get_by_label("Limit", exact=True), page.locator(".field-error")
    dataset = page.locator("input[role=combobox][aria-label='Dataset']:visible")
    until(dataset.input_value, 60, "the suggested dataset")
    limit.fill("-3")
    page.get_by_role("button", name="Measure").click()
    error.filter(has_text="between 0 and 1,000,000, got -3").wait_for()
    assert limit.get_attribute("aria-invalid") == "true"
    limit.fill("-4")
    error.filter(has_text="got -4").wait_for()
    limit.fill("2")
    error.wait_for(state="detached")
    assert limit.get_attribute("aria-invalid") is None
    assert page.get_by_test_id("toast-body").count() == 0
