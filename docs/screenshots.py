"""Makes the images of the README: a real studio, the sample data, real runs, a real browser.

    python docs/screenshots.py [--workspace FOLDER] [--out docs/images]

A workspace that already holds a domain and a task adapter is used as it is; otherwise both are trained
first, which takes a few minutes with the embedded base.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from core.engine import Engine  # noqa: E402
from studio import samples  # noqa: E402
from studio.app import serve  # noqa: E402
from studio.tabs import train  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
WINDOW, PHONE = (1440, 900), (390, 844)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def ready(engine: Engine) -> None:
    """Sample data, a domain adapter, and a task adapter on top of it."""
    engine.base(wait=True)
    samples.bring(engine)
    for kind in ("domain", "task"):
        if not any(a.kind == kind for a in engine.adapters()):
            run = engine.wait_run(engine.start_run(train.suggested(engine, kind)))
            if run.error:
                raise SystemExit(f"the {kind} run ended with: {run.error}")


def visit(browser: Browser, url: str, scheme: str, size: tuple[int, int]) -> Page:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=1.5)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(url)
    page.locator(".topbar").wait_for()
    return page


def settle(page: Page, gone: str = "") -> None:
    """Waits until the page has what it asked for."""
    if gone:
        page.wait_for_function(f"!document.querySelector({gone!r})")
    time.sleep(1.2)


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
    page.get_by_role("button", name="Answer with this mix").click()
    page.locator("#mix-answer .stamp").wait_for()
    settle(page, "#mix-answer .writing")


def comparing(page: Page) -> None:
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator(".board .col-body").nth(3).wait_for()
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


def shoot(browser: Browser, url: str, out: Path) -> None:
    """Every tab in light, the telling ones in dark, and the phone."""
    light: list[Any] = [data, training, mixing, comparing, measuring, library]
    for scheme, size, scenes in (("light", WINDOW, light), ("dark", WINDOW, [training, comparing]), ("light", PHONE, [mixing])):
        page = visit(browser, url, scheme, size)
        for scene in scenes:
            scene(page)
            name = scene.__name__ + ("" if scheme == "light" else "-dark") + ("-phone" if size == PHONE else "")
            page.screenshot(path=str(out / f"{name}.png"), full_page=size == PHONE or scene is measuring)
        page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workspace", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with Engine(args.workspace or tempfile.mkdtemp(prefix="adapter-studio-images-")) as engine:
        ready(engine)
        page = serve(engine, port=free_port(), block=False)
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            shoot(browser, page.local_url, args.out)
            browser.close()
        page.close(verbose=False)


if __name__ == "__main__":
    main()
