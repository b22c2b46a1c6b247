"""Signing in with the link of the console, and the keys on the Base tab, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.store.api_keys import ApiKeys
from tests.browser.conftest import free_port, is_foreign


@pytest.fixture(scope="module")
def linked(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, str, list[str]]]:
    from studio.app import serve

    links: list[str] = []
    with Engine(
        tmp_path_factory.mktemp("w"), base=str(tiny_base), quantization="none", device="cpu", load=False
    ) as engine:
        announce: dict[str, Any] = {"announce": links.append, "announce_link": links.append}
        page = serve(engine, port=free_port(), link=True, block=False, **announce)
        yield engine, page.local_url, links
        page.close(verbose=False)


def test_the_link_opens_the_page_and_a_key_is_created_there(
    linked: tuple[Engine, str, list[str]], browser: Any
) -> None:
    engine, url, links = linked
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(60_000)
    page, console = context.new_page(), []
    assert page.goto(url).status == 401
    assert "console in which the studio was started" in page.locator("main").inner_text()
    page.on(
        "console",
        lambda m: (
            console.append(m.text) if m.type in ("error", "warning") and not is_foreign(m.text) else None
        ),
    )
    page.goto(f"{links[0]}&note=1")
    page.locator(".topbar").wait_for()
    assert page.url == f"{url}?note=1", "the token is not in the address bar, nor in the history"
    assert len(links) == 2 and page.evaluate("document.cookie") == "", "scripts cannot read the session"

    second = context.new_page()
    second.goto(url)
    second.locator(".topbar").wait_for()
    second.close()

    other = context.new_page()  # a page of another origin of this machine links to the studio
    other.route(
        "http://localhost:9/", lambda r: r.fulfill(content_type="text/html", body=f'<a href="{url}">x</a>')
    )
    other.goto("http://localhost:9/")
    other.get_by_text("x").click()
    other.locator(".topbar").wait_for()
    other.close()

    page.get_by_role("tab", name="Base", exact=True).click()
    panel = page.locator("#keys")
    panel.get_by_text("No keys yet.").wait_for()
    panel.get_by_label("Name").fill("ci")
    panel.get_by_text("Trainer", exact=True).click()
    panel.get_by_role("button", name="Create a key").click()
    secret = panel.locator("#keys-secret code")
    secret.wait_for()
    key = ApiKeys(engine.workspace).find(secret.inner_text())
    assert key is not None and (key.name, key.role) == ("ci", "trainer")
    panel.get_by_role("button", name="Revoke ci").click()
    panel.get_by_text("No keys yet.").wait_for()
    assert secret.count() == 0 and ApiKeys(engine.workspace).list() == ()
    context.close()
    assert console == []
