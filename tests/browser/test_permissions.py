"""A visitor of a Space in a real browser: what is disabled and why, signing in, and signing out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.spec.access import Role
from studio.server.access import Login
from tests.browser.conftest import free_port

pytestmark = [pytest.mark.slow, pytest.mark.browser]
REFUSED = """() => [...document.querySelectorAll('[data-needs]')].filter((e) => e.checkVisibility())
  .map((e) => `${(e.textContent || e.type).trim()}: ${e.dataset.needs}`)"""


@pytest.fixture(scope="module")
def space(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from studio.app import serve

    workspace = tmp_path_factory.mktemp("w")
    logins = [Login("tess", "t", Role.TRAINER), Login("ann", "a")]
    with Engine(workspace, base=str(tiny_base), quantization="none", device="cpu", load=False) as engine:
        page = serve(engine, port=free_port(), space_host="127.0.0.1", logins=logins, block=False)
        yield page.local_url
        page.close(verbose=False)


def test_a_viewer_sees_what_needs_a_role_and_signs_in_for_more(space: str, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(space)
    sample = page.locator(".empty button[data-needs='2']", has_text="Use the sample data")
    sample.wait_for()
    assert page.locator(".guide .note", has_text="You are a viewer: you can prompt, mix").count() == 1
    assert {"Choose files: 2", "Choose a folder: 2"} <= set(page.evaluate(REFUSED))
    assert sample.get_attribute("aria-disabled") == "true"
    sample.click(force=True)
    why = "This needs the role trainer, and you are viewer. Sign in for more."
    page.locator(".snackbar", has_text=why).wait_for()
    assert sample.get_attribute("title") == why

    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Name").fill("tess")
    page.get_by_label("Password").fill("t")
    page.get_by_role("button", name="Sign in").click()
    page.locator(".guide .note", has_text="You are a trainer:").wait_for()
    page.get_by_role("tab", name="Base", exact=True).click()
    page.locator("#keys button[data-needs='3']", has_text="Create a key").wait_for()
    assert not [text for text in page.evaluate(REFUSED) if text.endswith(": 2")]

    page.get_by_role("button", name="Sign out").click()
    page.locator(".guide .note", has_text="You are a viewer:").wait_for()
    context.close()


def test_the_owner_may_use_everything(space: str, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(f"{space}login")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("a")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()
    page.get_by_text("Use the sample data").first.wait_for()
    assert page.evaluate(REFUSED) == [] and page.get_by_text("You are a").count() == 0
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "the bar at the top does not widen the page"
    context.close()
