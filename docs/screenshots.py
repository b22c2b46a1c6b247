"""Makes the images of the README: a real studio, the sample data, real runs, a real browser.

    python docs/screenshots.py [--workspace FOLDER] [--out docs/images] [--only SCENE ...]

A workspace that already holds a domain and a task adapter is used as it is; otherwise both are trained
first, which takes a few minutes with the embedded base. A scene is a function that brings the page to
where its image is taken, and returns the part to take, or nothing for the window.
"""

from __future__ import annotations

import argparse
import io
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, Locator, Page, sync_playwright  # noqa: E402

from core.data.samples import Samples  # noqa: E402
from core.engine import Engine  # noqa: E402
from studio import samples  # noqa: E402
from studio.app import serve  # noqa: E402
from studio.tabs import suggestions, train  # noqa: E402

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
COLOURS = 256  # of an image; a page has few, and the files are half the size


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def ready(engine: Engine) -> None:
    """Sample data, a domain adapter, and a task adapter on top of it."""
    engine.bases.current(wait=True)
    samples.import_samples(engine)
    for kind in ("domain", "task"):
        if not any(a.kind == kind for a in engine.library.adapters()):
            run = engine.runs.wait(engine.runs.start(suggestions.suggest_run(engine, kind)))
            if run.error:
                raise SystemExit(f"the {kind} run ended with: {run.error}")


def visit(browser: Browser, url: str, scheme: str, size: tuple[int, int]) -> Page:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=1.5
    )
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(url)
    page.locator(".topbar").wait_for()
    return page


def settle(page: Page, gone: str = "") -> None:
    """Waits until the page has what it asked for, with the pointer out of the way."""
    if gone:
        page.wait_for_function(f"!document.querySelector({gone!r})")
    page.mouse.move(1, 1)
    page.evaluate("document.activeElement.blur()")
    time.sleep(1.2)


def asked(page: Page, prompt: str) -> None:
    """Waits for the sample question in a prompt."""
    page.wait_for_function(f"document.querySelector('{prompt} textarea').value")


def data(page: Page) -> None:
    page.get_by_role("tab", name="Data", exact=True).click()
    page.locator(".tok.trained").first.wait_for()
    settle(page)


def training(page: Page) -> None:
    page.get_by_role("tab", name="Train", exact=True).click()
    page.locator(".live-plot .main-svg").first.wait_for()
    settle(page)


def mixing(page: Page) -> None:
    page.get_by_role("tab", name="Mix", exact=True).click()
    asked(page, "#mix-prompt")
    page.get_by_role("button", name="Answer with this mix").click()
    page.locator("#mix-answer .stamp").wait_for()
    settle(page, "#mix-answer .writing")


def insight(page: Page, name: str, button: str) -> Locator:
    """The card below the mixer, with one of its tabs open and its button pressed."""
    page.get_by_role("tab", name="Mix", exact=True).click()
    page.get_by_role("tab", name=name, exact=True).click()
    page.get_by_role("button", name=button, exact=True).click()
    return page.locator("#analysis")


def mapping(page: Page) -> Locator:
    card = insight(page, "Weight map", "Draw the map")
    page.get_by_role("button", name="Use the best point").wait_for(timeout=300_000)
    page.get_by_role("button", name="Search the weights").click()
    page.get_by_role("button", name="Use the search result").wait_for(timeout=300_000)
    settle(page)
    return card


def explaining(page: Page) -> Locator:
    card = insight(page, "Attribution", "Explain the answer")
    page.locator("#attribution .word").first.wait_for()
    settle(page)
    return card


def meeting(page: Page) -> Locator:
    card = insight(page, "Interference", "Compare the adapters")
    page.locator("#cosines .main-svg").first.wait_for()
    settle(page)
    return card


def presenting(page: Page) -> None:
    page.get_by_role("tab", name="Mix", exact=True).click()
    asked(page, "#mix-prompt")
    page.get_by_role("button", name="Answer with this mix").click()
    page.locator("#mix-answer .stamp").wait_for()
    page.get_by_role("button", name="Present", exact=True).click()
    settle(page, "#mix-answer .writing")


def voting(page: Page) -> Locator:
    """After a vote for the right answer; `tidy` takes it back once the image is made."""
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator(".board .col-body").nth(3).wait_for()
    asked(page, "#compare-prompt")
    page.get_by_role("button", name="Blind test").click()
    page.get_by_role("button", name="is the best").nth(3).wait_for()
    told = [column.inner_text() for column in page.locator(".board .answer-text").all()]
    right = str(Samples().questions()[0]["messages"][-1]["content"])
    page.get_by_role("button", name="is the best").nth(told.index(right) if right in told else 0).click()
    page.locator(".board .letter-name").nth(3).wait_for()
    settle(page)
    return page.locator(".board")


def tidy(page: Page) -> None:
    """Leaves no vote and no view behind."""
    for name in ("Take my vote back", "Exit presentation"):
        button = page.get_by_role("button", name=name)
        if button.is_visible():
            button.click()


def comparing(page: Page) -> None:
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator(".board .col-body").nth(3).wait_for()
    asked(page, "#compare-prompt")
    page.get_by_role("button", name="Answer", exact=True).click()
    page.locator(".board .stamp").nth(3).wait_for()
    settle(page, ".board .writing")


def measuring(page: Page) -> None:
    page.get_by_role("tab", name="Evaluate", exact=True).click()
    page.get_by_label("Limit").fill("60")
    page.get_by_role("button", name="Measure").click()
    page.get_by_role("link", name="Download as CSV").first.wait_for(timeout=600_000)
    page.locator("#bars .js-plotly-plot").nth(2).wait_for()
    settle(page)


def library(page: Page) -> None:
    page.get_by_role("tab", name="Library", exact=True).click()
    page.locator(".shelf-item").first.click()
    settle(page)


def basing(page: Page) -> None:
    page.locator("button.spec").click()
    page.locator("#base-resident h2").wait_for()
    settle(page)


def gridding(page: Page) -> None:
    """Six short task runs, walked as on the page; their results, and the plot of all settings."""
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_role("button", name="Advanced settings").first.click()
    page.get_by_label("Max steps", exact=True).first.fill("60")
    page.get_by_role("tab", name="Runs", exact=True).click()
    page.get_by_role("tab", name="Grid", exact=True).click()
    page.get_by_label("Grid name").fill("Ranks and rates")
    for number, (field, values) in enumerate(
        (("Rank", "4, 16, 32"), ("Learning rate", "0.0003, 0.001")), start=1
    ):
        page.get_by_label(f"Vary {number}", exact=True).click()
        page.get_by_role("option", name=field, exact=True).first.click()
        page.get_by_label(f"Values {number}", exact=True).fill(values)
    page.get_by_role("button", name="Queue 6 runs").click(timeout=300_000)
    page.locator("#grid-results tbody tr").nth(5).wait_for()
    page.wait_for_function(
        "document.querySelectorAll('#grid-results .chip.good').length >= 6", timeout=900_000
    )
    page.locator("#parallel .parcoords").first.wait_for()
    settle(page)


def siding(page: Page) -> None:
    """Two of the grid's runs, side by side."""
    page.get_by_role("tab", name="Runs", exact=True).click()
    page.get_by_role("tab", name="Side by side", exact=True).click()
    page.locator("#curves .scatterlayer .trace").nth(1).wait_for()
    settle(page)


def keep(shot: bytes, path: Path) -> None:
    """Writes an image with a palette of its own, in which small marks keep their colours and a map shows no false steps."""
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    palette = image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=1)
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def shoot(browser: Browser, url: str, out: Path, only: list[str]) -> None:
    """Every view in light, the telling ones in dark, and the phone."""
    light: list[Any] = [
        data,
        training,
        mixing,
        mapping,
        explaining,
        meeting,
        presenting,
        comparing,
        voting,
        measuring,
        library,
        basing,
    ]
    last: list[Any] = [gridding, siding]  # they leave runs and adapters behind
    for scheme, size, scenes in (
        ("light", WINDOW, light),
        ("dark", WINDOW, [training, comparing]),
        ("light", PHONE, [mixing]),
        ("light", WINDOW, last),
    ):
        page = visit(browser, url, scheme, size)
        for scene in scenes:
            name = (
                scene.__name__ + ("" if scheme == "light" else "-dark") + ("-phone" if size == PHONE else "")
            )
            if only and name not in only:
                continue
            part = scene(page)
            whole = size == PHONE or scene in (measuring, gridding, siding)
            keep(
                part.screenshot() if part is not None else page.screenshot(full_page=whole),
                out / f"{name}.png",
            )
            tidy(page)
        page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workspace", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="SCENE",
        help="Names of images, without .png; all where none is given.",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with Engine(args.workspace or tempfile.mkdtemp(prefix="adapter-studio-images-")) as engine:
        ready(engine)
        page = serve(engine, port=free_port(), block=False)
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            shoot(browser, page.local_url, args.out, args.only)
            browser.close()
        page.close(verbose=False)


if __name__ == "__main__":
    main()
