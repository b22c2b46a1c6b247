"""A real studio on a real port with a tiny model, and a real browser that opens it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.data.samples import FOLDER, Samples
from core.engine import Engine

CHROMIUM = "/usr/bin/chromium"
# Gradio logs the first at the end of every upload. It logs the second on a busy machine, when the last event
# of a session ends while its stream is being opened: Gradio 6.31 then drops the messages of the session
# (`sse_stream` in routes.py). A missing file of the studio's would log "Failed to load resource".
GRADIO_MESSAGES = ("Method not implemented.", "Unexpected error 404: Not Found")
CHROMIUM_MESSAGE = "GPU stall due to ReadPixels"  # WebGL without a GPU
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


DESCRIBE_PAGE = """() => {
  const visible = (e) => e.checkVisibility?.() ?? true;
  const label = (e) => e.closest("label, .block")?.innerText.split("\\n")[0];
  const named = (e) => e.getAttribute("aria-label") || label(e) || e.id;
  const fields = [...document.querySelectorAll("input, textarea, select")].filter(visible);
  const values = fields.map((e) => `${named(e)}: ${/radio|checkbox/.test(e.type) ? e.checked : e.value}`);
  const events = performance.getEntriesByType("resource").slice(-40);
  const time = (e) => `${Math.round(e.startTime)}+${Math.round(e.duration)} ${e.name.split("/").pop()}`;
  const now = `now ${Math.round(performance.now())}`;
  return [location.search, document.body.innerText, ...values, now, ...events.map(time)].join("\\n");
}"""


def small_samples(folder: Path) -> Samples:
    """The sample data, shortened so that every run takes a few steps."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    for file in (folder / "domain").iterdir():
        documents = file.read_text(encoding="utf-8").split("\n---\n")
        file.write_text("\n---\n".join(documents[:14]), encoding="utf-8")
    for name, lines in (("task.jsonl", 64), ("heldout_questions.jsonl", 8)):
        rows = (folder / name).read_text(encoding="utf-8").splitlines()[:lines]
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    general = folder / "general_heldout.txt"
    general.write_text(
        "\n\n---\n\n".join(general.read_text(encoding="utf-8").split("\n\n---\n\n")[:6])[:4000],
        encoding="utf-8",
    )
    return Samples(folder)


def is_foreign(text: str) -> bool:
    """Whether a line of the console comes from Gradio or Chromium, so that the studio cannot prevent it."""
    return text in GRADIO_MESSAGES or CHROMIUM_MESSAGE in text


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Visit:
    """A page, the warnings and errors of its console, and its requests to other hosts."""

    page: object
    url: str
    engine: Engine
    console: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def reload(self) -> None:
        """Reloads the page."""
        self.go(self.page.evaluate("location.search"))

    def go(self, query: str) -> None:
        """Opens another URL of the studio; ignores what the old document logs about its cancelled streams."""
        before = len(self.console)
        self.page.goto(self.url + query)
        self.page.locator(".topbar").wait_for()
        self.console[before:] = [
            c for c in self.console[before:] if "AbortError" not in c and "Connection errored out" not in c
        ]


@pytest.fixture(scope="module")
def studio(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    import torch

    from studio.app import serve

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is fastest on one thread, especially beside a browser
    with Engine(
        tmp_path_factory.mktemp("workspace"), base=str(tiny_base), quantization="none", device="cpu"
    ) as engine:
        engine.samples = small_samples(tmp_path_factory.mktemp("samples"))
        page = serve(engine, port=free_port(), block=False)
        yield engine, page.local_url
        page.close(verbose=False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Adds to the report of a failed test what its page showed."""
    report = yield
    page = getattr(item.funcargs.get("visit"), "page", None) if hasattr(item, "funcargs") else None
    if report.when == "call" and report.failed and page is not None:
        report.sections.append(("page", describe_page(page)))
    return report


def describe_page(page: object) -> str:
    """The text of a page, the values of its fields, and its last events."""
    from playwright.sync_api import Error

    try:
        return str(page.evaluate(DESCRIBE_PAGE))[:12_000]
    except Error as e:  # it is closed, or busy
        return f"not readable: {e}"


@pytest.fixture
def visit(studio, browser, request) -> Iterator[Visit]:
    """A page at the size and theme of `@pytest.mark.parametrize("visit", [...], indirect=True)`."""
    engine, url = studio
    width, height, scheme = getattr(request, "param", (1440, 900, "light"))
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
    )
    context.set_default_timeout(60_000)
    current = Visit(context.new_page(), url, engine)
    current.page.on(
        "console",
        lambda m: (
            current.console.append(m.text)
            if m.type in ("error", "warning") and not is_foreign(m.text)
            else None
        ),
    )
    current.page.on("pageerror", lambda e: current.console.append(str(e)))
    current.page.on(
        "request",
        lambda r: current.outside.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None,
    )
    current.page.goto(url)
    current.page.locator(".topbar").wait_for()
    yield current
    context.close()
    assert current.console == [], "the console is not empty:\n" + "\n".join(current.console)
    assert current.outside == [], "no request goes to another host"
