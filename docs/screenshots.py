"""Takes the images of the README in a real browser: a running studio, the sample data, real runs.

    python docs/screenshots.py [--workspace FOLDER] [--out docs/images] [--only IMAGE ...]
    python docs/screenshots.py --every-tab FOLDER     every tab, light and dark, wide and narrow, to look at

A workspace that holds a domain and a task adapter is used as it is; otherwise both are trained first, which
takes a few minutes with the embedded base. A scene is a function that operates the page, and returns the part
of it to take, or None for the window.
"""

from __future__ import annotations

import argparse
import io
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, Locator, Page, sync_playwright  # noqa: E402

from core.data.samples import Samples  # noqa: E402
from core.engine import Engine  # noqa: E402
from studio import samples  # noqa: E402
from studio.app import serve  # noqa: E402
from studio.tabs.suggestions import suggest_run  # noqa: E402

Scene = Callable[[Page], Locator | None]
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
WINDOW, PHONE = (1440, 900), (390, 844)
COLORS = 256  # of an image; the page has few colors, and a palette halves the files


# --- the studio and the page


def find_free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def prepare_workspace(engine: Engine) -> None:
    """Imports the sample data, and trains a domain adapter and a task adapter on top of it."""
    engine.bases.current(wait=True)
    samples.import_samples(engine)
    for kind in ("domain", "task"):
        if not any(a.kind == kind for a in engine.library.adapters()):
            run = engine.runs.wait(engine.runs.start(suggest_run(engine, kind)))
            if run.error:
                raise SystemExit(f"The {kind} run failed: {run.error}")


def measure_once(engine: Engine) -> None:
    """Measures the default mixes, unless there is a report."""
    if not engine.evaluation.reports():
        engine.evaluation.measure(
            engine.library.default_mixes(), samples.list_held_out(engine)[0], "all", 20
        ).last()


def open_page(browser: Browser, url: str, scheme: str, size: tuple[int, int]) -> Page:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=1.5
    )
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(url)
    page.locator(".topbar").wait_for()
    return page


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def wait_until_still(page: Page, selector: str = "") -> None:
    """Waits until nothing matches `selector` and transitions have ended; moves pointer and focus away."""
    if selector:
        page.wait_for_function(f"!document.querySelector({selector!r})")
    page.mouse.move(1, 1)
    page.evaluate("document.activeElement.blur()")
    time.sleep(1.2)


def wait_for_question(page: Page, prompt: str) -> None:
    """Waits for the sample question in a prompt."""
    page.wait_for_function(f"document.querySelector('{prompt} textarea').value")


# --- scenes


def show_data(page: Page) -> None:
    open_tab(page, "Data")
    page.locator(".tok.trained").first.wait_for()
    page.locator(".checklist").wait_for()
    wait_until_still(page)


def show_training(page: Page) -> None:
    open_tab(page, "Train")
    page.locator(".live-plot .main-svg").first.wait_for()
    wait_until_still(page)


def show_mix(page: Page) -> None:
    open_tab(page, "Mix")
    wait_for_question(page, "#mix-prompt")
    press(page, "Answer with this mix")
    page.locator("#mix-answer .stamp").wait_for()
    wait_until_still(page, "#mix-answer .writing")


def run_analysis(page: Page, tab: str, button: str) -> Locator:
    """Runs an analysis below the mixer; returns its card."""
    open_tab(page, "Mix")
    open_tab(page, tab)
    press(page, button)
    return page.locator("#analysis")


def show_weight_map(page: Page) -> Locator:
    card = run_analysis(page, "Weight map", "Draw the map")
    page.get_by_role("button", name="Use the best point").wait_for(timeout=300_000)
    press(page, "Search for weights")
    page.get_by_role("button", name="Use the search result").wait_for(timeout=300_000)
    wait_until_still(page)
    return card


def show_attribution(page: Page) -> Locator:
    card = run_analysis(page, "Attribution", "Explain the answer")
    page.locator("#attribution .word").first.wait_for()
    wait_until_still(page)
    return card


def show_interference(page: Page) -> Locator:
    card = run_analysis(page, "Interference", "Compare the adapters")
    page.locator("#cosines .main-svg").first.wait_for()
    wait_until_still(page)
    return card


def show_presentation(page: Page) -> None:
    show_mix(page)
    press(page, "Present")
    wait_until_still(page)


def show_blind_test(page: Page) -> Locator:
    """A blind test after a vote for the right answer; `reset_page` withdraws the vote."""
    open_tab(page, "Compare")
    page.locator(".board .col-body").nth(3).wait_for()
    wait_for_question(page, "#compare-prompt")
    press(page, "Blind test")
    page.get_by_role("button", name="is best").nth(3).wait_for()
    answers = [column.inner_text() for column in page.locator(".board .answer-text").all()]
    reference = str(Samples().questions()[0]["messages"][-1]["content"])
    chosen = answers.index(reference) if reference in answers else 0
    page.get_by_role("button", name="is best").nth(chosen).click()
    page.locator(".board .letter-name").nth(3).wait_for()
    wait_until_still(page)
    return page.locator(".board")


def show_comparison(page: Page) -> None:
    open_tab(page, "Compare")
    page.locator(".board .col-body").nth(3).wait_for()
    wait_for_question(page, "#compare-prompt")
    press(page, "Answer")
    page.locator(".board .stamp").nth(3).wait_for()
    wait_until_still(page, ".board .writing")


def show_evaluation(page: Page) -> None:
    open_tab(page, "Evaluate")
    page.get_by_label("Limit").fill("60")
    press(page, "Measure")
    page.get_by_role("link", name="Download as CSV").first.wait_for(timeout=600_000)
    page.locator("#bars .js-plotly-plot").nth(2).wait_for()
    wait_until_still(page)


def show_library(page: Page) -> None:
    open_tab(page, "Library")
    page.locator(".shelf-item").first.click()
    wait_until_still(page)


def show_base(page: Page) -> None:
    page.locator("button.spec").click()
    page.locator("#base-resident h2").wait_for()
    wait_until_still(page)


def show_grid(page: Page) -> None:
    """A grid of six short task runs, its results, and the plot of all settings."""
    open_tab(page, "Train")
    page.get_by_role("button", name="Advanced settings").first.click()
    page.get_by_label("Max steps", exact=True).first.fill("60")
    open_tab(page, "Runs")
    open_tab(page, "Grid")
    page.get_by_label("Grid name").fill("Ranks and rates")
    axes = (("Rank", "4, 16, 32"), ("Learning rate", "0.0003, 0.001"))
    for number, (field, values) in enumerate(axes, start=1):
        page.get_by_label(f"Vary {number}", exact=True).click()
        page.get_by_role("option", name=field, exact=True).first.click()
        page.get_by_label(f"Values {number}", exact=True).fill(values)
    page.get_by_role("button", name="Queue 6 runs").click(timeout=300_000)
    page.locator("#grid-results tbody tr").nth(5).wait_for()
    page.wait_for_function(
        "document.querySelectorAll('#grid-results .chip.good').length >= 6", timeout=900_000
    )
    page.locator("#parallel .parcoords").first.wait_for()
    wait_until_still(page)


def show_runs(page: Page) -> None:
    open_tab(page, "Runs")
    wait_until_still(page)


def show_last_report(page: Page) -> None:
    """The report that an opened page shows first."""
    open_tab(page, "Evaluate")
    page.locator("#bars .js-plotly-plot").nth(2).wait_for()
    wait_until_still(page)


def show_side_by_side(page: Page) -> None:
    """Two runs of the grid side by side."""
    open_tab(page, "Runs")
    open_tab(page, "Side by side")
    page.locator("#curves .scatterlayer .trace").nth(1).wait_for()
    wait_until_still(page)


def reset_page(page: Page) -> None:
    """Withdraws the vote and leaves the presentation, if there is one."""
    for name in ("Take my vote back", "Exit presentation"):
        button = page.get_by_role("button", name=name)
        if button.is_visible():
            button.click()


# --- images

LIGHT: dict[str, Scene] = {
    "data": show_data,
    "train": show_training,
    "mix": show_mix,
    "weight-map": show_weight_map,
    "attribution": show_attribution,
    "interference": show_interference,
    "presentation": show_presentation,
    "compare": show_comparison,
    "blind-test": show_blind_test,
    "evaluate": show_evaluation,
    "library": show_library,
    "base": show_base,
}
DARK: dict[str, Scene] = {"train-dark": show_training, "compare-dark": show_comparison}
SMALL: dict[str, Scene] = {"mix-phone": show_mix}
LAST: dict[str, Scene] = {"grid": show_grid, "side-by-side": show_side_by_side}  # they add runs and adapters
# The order matters: a tab that is opened later finds the report of an earlier one.
EVERY_TAB: dict[str, Scene] = {
    "data": show_data,
    "train": show_training,
    "runs": show_runs,
    "mix": show_mix,
    "compare": show_comparison,
    "evaluate": show_last_report,
    "library": show_library,
    "base": show_base,
}
FULL_PAGE = ("evaluate", "mix-phone", "grid", "side-by-side")  # the whole page, not the window only


def take_images(browser: Browser, url: str, out: Path, only: list[str]) -> None:
    """Takes every scene in light, two in dark, and one on a phone.

    Args:
        only: the names of the images to take; empty takes all.
    """
    for scheme, size, scenes in (
        ("light", WINDOW, LIGHT),
        ("dark", WINDOW, DARK),
        ("light", PHONE, SMALL),
        ("light", WINDOW, LAST),
    ):
        chosen = {name: scene for name, scene in scenes.items() if not only or name in only}
        page = open_page(browser, url, scheme, size)
        for name, scene in chosen.items():
            part = scene(page)
            image = page.screenshot(full_page=name in FULL_PAGE) if part is None else part.screenshot()
            save_image(image, out / f"{name}.png")
            reset_page(page)
        page.context.close()


def take_every_tab(browser: Browser, url: str, out: Path) -> None:
    """Takes every tab as a whole page, light and dark, in a wide and in a narrow window."""
    for size in (WINDOW, PHONE):
        for scheme in ("light", "dark"):
            page = open_page(browser, url, scheme, size)
            for name, scene in EVERY_TAB.items():
                scene(page)
                save_image(page.screenshot(full_page=True), out / f"{name}-{scheme}-{size[0]}.png")
            page.context.close()


def save_image(png: bytes, path: Path) -> None:
    """Writes an image with its own palette; dithering avoids visible steps in a weight map."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    palette = image.quantize(COLORS, Image.Quantize.MAXCOVERAGE, kmeans=1)
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main() -> None:
    """Starts a studio and a browser, and takes the images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workspace", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="IMAGE",
        help="Names of images without .png. Default: all.",
    )
    parser.add_argument(
        "--every-tab", type=Path, metavar="FOLDER", help="Take every tab in every window into this folder."
    )
    args = parser.parse_args()
    (args.every_tab or args.out).mkdir(parents=True, exist_ok=True)
    with Engine(args.workspace or tempfile.mkdtemp(prefix="adapter-studio-images-")) as engine:
        prepare_workspace(engine)
        page = serve(engine, port=find_free_port(), block=False)
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            if args.every_tab:
                measure_once(engine)
                take_every_tab(browser, page.local_url, args.every_tab)
            else:
                take_images(browser, page.local_url, args.out, args.only)
            browser.close()
        page.close(verbose=False)


if __name__ == "__main__":
    main()
