"""A real studio on a real port, with a small real engine, and a real browser to visit it."""

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
# A warning at the end of every upload; and the stream of a session whose last event ended while it was being opened, on a busy machine
# (gradio 6.31 forgets the session's messages then, routes.py, sse_stream). A missing file of ours would read "Failed to load resource".
GRADIO_S_OWN = ("Method not implemented.", "Unexpected error 404: Not Found")
CHROMIUM_S_OWN = "GPU stall due to ReadPixels"  # where WebGL is drawn without a GPU
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def small_samples(folder: Path) -> Samples:
    """The sample data, cut down so that every run takes a few steps."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    for file in (folder / "domain").iterdir():
        documents = file.read_text(encoding="utf-8").split("\n---\n")
        file.write_text("\n---\n".join(documents[:14]), encoding="utf-8")
    for name, lines in (("task.jsonl", 64), ("heldout_questions.jsonl", 8)):
        kept = (folder / name).read_text(encoding="utf-8").splitlines()[:lines]
        (folder / name).write_text("\n".join(kept) + "\n", encoding="utf-8")
    general = folder / "general_heldout.txt"
    general.write_text(
        "\n\n---\n\n".join(general.read_text(encoding="utf-8").split("\n\n---\n\n")[:6])[:4000],
        encoding="utf-8",
    )
    return Samples(folder)


def others_own(text: str) -> bool:
    """Whether a line of the console is none that we could mend."""
    return text in GRADIO_S_OWN or CHROMIUM_S_OWN in text


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Visit:
    """A page, and everything it said or asked for that it should not have."""

    page: object
    url: str
    engine: Engine
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def reload(self) -> None:
        """Loads the page anew."""
        self.go(self.page.evaluate("location.search"))

    def go(self, query: str) -> None:
        """Leaves for another address of the studio. Gradio's old document complains of the streams that this cuts off; those are its last words."""
        before = len(self.complaints)
        self.page.goto(self.url + query)
        self.page.locator(".topbar").wait_for()
        self.complaints[before:] = [
            c for c in self.complaints[before:] if "AbortError" not in c and "Connection errored out" not in c
        ]


@pytest.fixture(scope="module")
def studio(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    import torch

    from studio.app import serve

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is quickest on one, above all beside a browser
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
        pytest.skip(f"there is no {CHROMIUM}")
    with api.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(studio, browser, request) -> Iterator[Visit]:
    """A visit at the size and theme that the test asks for by `@pytest.mark.parametrize("visit", [...], indirect=True)`."""
    engine, url = studio
    width, height, scheme = getattr(request, "param", (1440, 900, "light"))
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
    )
    context.set_default_timeout(60_000)
    made = Visit(context.new_page(), url, engine)
    made.page.on(
        "console",
        lambda m: (
            made.complaints.append(m.text)
            if m.type in ("error", "warning") and not others_own(m.text)
            else None
        ),
    )
    made.page.on("pageerror", lambda e: made.complaints.append(str(e)))
    made.page.on(
        "request",
        lambda r: made.outside.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None,
    )
    made.page.goto(url)
    made.page.locator(".topbar").wait_for()
    yield made
    context.close()
    assert made.complaints == [], "the console is not empty:\n" + "\n".join(made.complaints)
    assert made.outside == [], "no request goes to another host"
