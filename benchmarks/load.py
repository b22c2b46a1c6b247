"""Many visitors of one studio: page actions, comparisons, a training run, and programs, at the same time.

    python -m benchmarks.load [--quick] [--json]

Starts the real studio with the embedded base in a process of its own, on loopback, with a login, and opens 30
pages at once. Then, for 10 minutes (60 s with --quick), 48 pages over HTTP (`benchmarks/page_client.py`) poll
and act as visitors do, each signed in by itself; 8 of them compare mixes again and again, two browsers click
through the tabs, 8 callers use the OpenAI API, and one training run is followed by 4 readers. A page action
is everything that a visitor waits for, except generated text. `lost_events` are those in the run's log that
a reader did not get. `memory_growth` compares the end with the time after the warm-up, which begins when the
run trains. The clients share the machine with the studio, so that its figures are an upper bound. Needs Linux
for the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.idle import find_free_port, read_memory
from benchmarks.page_client import Page, PageConfig, Record

ROOT = Path(__file__).resolve().parents[1]
LOGIN = ("visitor", "a-long-password")
PAGES, COMPARING, API_CALLERS, READERS, BROWSERS = 48, 8, 8, 4, 2
OPENED_AT_ONCE = 30
POLL_SECONDS = 1.5  # as the page does
THINK_SECONDS = 10.0  # between two actions of a visitor, on average
ANSWER_TOKENS = 24
ARRIVE_SECONDS = 20.0  # within which the visitors open their pages
SAMPLE_SECONDS = 2.0
WARM_UP = 0.3  # share of the time
CHROMIUM = "/usr/bin/chromium"
TABS = ("Train", "Runs", "Mix", "Compare", "Evaluate", "Library", "Base", "Data")
TARGETS = {
    "errors": 0.0,
    "lost_events": 0.0,
    "memory_growth": 0.05,
    "page_action_p95_s": 1.0,
    "lists_of_30_pages_p95_s": 2.0,
}
# Names of events, as Gradio numbers those of equal handlers, that a visitor fires.
EVENTS = ("show_dataset", "check", "watch_run", "compare_runs", "refresh", "describe_mix", "refresh_estimate")
ALIVE = ("queued", "running", "stopping")
ADDRESSES = ("/api/runs", "/api/adapters", "/api/datasets", "/api/mixes")


@asynccontextmanager
async def start_studio(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """The address and the process id of a studio with a login and an empty workspace."""
    port, logins, log = find_free_port(), folder / "logins", folder / "studio.log"
    logins.write_text(":".join(LOGIN), encoding="utf-8")
    command = [sys.executable, "launch.py", "--workspace", str(folder / "workspace"), "--base", "embedded"]
    command += ["--no-browser", "--auth-file", str(logins), "--port", str(port)]
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient() as http:
            end = time.monotonic() + 180
            while True:
                with suppress(httpx.HTTPError):
                    if (await http.get(f"{url}/health")).status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"The start failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
                await asyncio.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


@asynccontextmanager
async def session(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a login of its own, for the block."""
    http = await sign_in(url)
    try:
        yield http
    finally:
        await http.aclose()


async def sign_in(url: str) -> httpx.AsyncClient:
    """A client with a login of its own."""
    # The server closes connections that were idle for 5 seconds; a browser would send the request again.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
    http = httpx.AsyncClient(base_url=url, timeout=120, limits=limits)
    answer = await http.post("/login", data={"username": LOGIN[0], "password": LOGIN[1]})
    answer.raise_for_status()
    return http


class Studio:
    """What the visitors need to know of the studio, and what they report."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.record = Record()
        self.config: PageConfig
        self.run = ""
        self.adapters: list[str] = []
        self.answers: dict[str, int] = {}

    async def prepare(self) -> None:
        """Imports the sample data and trains two short adapters."""
        from core.data.samples import Samples

        samples, datasets = Samples(), {}
        http = await sign_in(self.url)
        self.config = PageConfig((await http.get("/")).text)
        await Page(http, self.config, self.record).poll()  # which loads the base
        for kind, files in (("domain", list(samples.domain)), ("task", [samples.task])):
            parts = [("files", (Path(f).name, Path(f).read_bytes())) for f in files]
            job = (await check(http.post("/api/datasets", files=parts, data={"kind": kind}))).json()
            while job["state"] != "done":
                if job["state"] == "failed":
                    raise SystemExit(f"The import failed: {job['problem']}")
                await asyncio.sleep(0.3)
                job = (await check(http.get(f"/api/imports/{job['id']}"))).json()
            datasets[kind] = job["dataset"]
            run = await self._start(http, kind, datasets[kind], max_steps=6)
            run = await self._wait(http, run["id"])
            if run["status"] != "finished":
                raise SystemExit(f"The run {run['name']} ended as {run['status']}: {run['error']}")
            self.adapters.append(run["adapter"])
        await http.aclose()

    async def start_training(self) -> None:
        """Starts the run that trains during the load."""
        async with session(self.url) as http:
            dataset = (await check(http.get("/api/datasets"))).json()[0]
            run = await self._start(http, dataset["kind"], dataset["id"], max_steps=1_000_000)
            self.run = run["id"]

    async def stop_training(self) -> None:
        """Stops it, and waits until it has ended."""
        async with session(self.url) as http:
            await check(http.post(f"/api/runs/{self.run}/stop"))
            await self._wait(http, self.run)

    async def _start(self, http: httpx.AsyncClient, kind: str, dataset: str, **settings: Any) -> Any:
        fields = {"name": f"{kind} {settings['max_steps']}", "dataset": dataset, **settings}
        fields |= {"eval_steps": 200, "save_steps": 200}
        return (await check(http.post("/api/runs", json={"kind": kind, "settings": fields}))).json()

    async def _wait(self, http: httpx.AsyncClient, run_id: str) -> Any:
        """The run, once it has ended."""
        while (run := (await check(http.get(f"/api/runs/{run_id}"))).json())["status"] in ALIVE:
            await asyncio.sleep(0.3)
        return run

    def count(self, what: str) -> None:
        """Counts an answer."""
        self.answers[what] = self.answers.get(what, 0) + 1


async def check(request: Awaitable[httpx.Response]) -> httpx.Response:
    """The response, which must be a success."""
    response = await request
    if not response.is_success:
        raise SystemExit(f"{response.request.url}: {response.status_code} {response.text[:500]}")
    return response


async def open_at_once(studio: Studio) -> list[float]:
    """Opens many pages at once; the seconds until each has its first lists."""
    before, studio.record = studio.record, Record()
    clients = [await sign_in(studio.url) for _ in range(OPENED_AT_ONCE)]
    pages = [Page(http, studio.config, studio.record) for http in clients]
    await asyncio.gather(*(page.open() for page in pages))
    for page, http in zip(pages, clients, strict=True):
        await page.close()
        await http.aclose()
    seconds = studio.record.seconds["open_lists"]
    before.errors += studio.record.errors
    studio.record = before
    return seconds


async def visit(studio: Studio, number: int, end: float) -> None:
    """One visitor: an open page that polls, and now and then an action, or comparison after comparison."""
    rng, http = random.Random(number), await sign_in(studio.url)
    await asyncio.sleep(rng.uniform(0, ARRIVE_SECONDS))
    page = Page(http, studio.config, studio.record)
    await page.open()
    acts = asyncio.create_task(
        compare(studio, page, end) if number < COMPARING else act(studio, page, rng, end)
    )
    while time.monotonic() < end:
        begin = time.monotonic()
        if await page.poll():
            await page.fire_on("guide", "library_change")
        await asyncio.sleep(max(0.0, POLL_SECONDS - (time.monotonic() - begin)))
    await acts
    await page.settle()
    await page.close()
    await http.aclose()


async def act(studio: Studio, page: Page, rng: random.Random, end: float) -> None:
    """Random actions of a visitor until the end."""
    while time.monotonic() < end:
        await asyncio.sleep(rng.expovariate(1 / THINK_SECONDS))
        action = rng.choice((*EVENTS, *ADDRESSES, "reload"))
        begin = time.perf_counter()
        if action == "reload":
            await page.reload()
            continue
        if action in EVENTS:
            await page.fire(studio.config.find(action))
        else:
            response = await page.http.get(action)
            if not response.is_success:
                studio.record.errors.append(f"{action}: {response.status_code} {response.text[:200]}")
        studio.record.add("action", time.perf_counter() - begin)


async def compare(studio: Studio, page: Page, end: float) -> None:
    """Compares mixes, one prompt after the other."""
    event = studio.config.find("stream_answers")
    prompt = studio.config.ids["compare-prompt"]
    while time.monotonic() < end:
        page.values[prompt] = "Where is the lamp?"
        message = await page.fire(event)
        if message.get("success"):
            studio.count("comparisons")
        await asyncio.sleep(1.0)


async def call_api(studio: Studio, number: int, end: float) -> None:
    """A program that asks one model after the other, half of the times as a stream."""
    models = ["base", *studio.adapters, f"mix:{studio.adapters[0]}=0.5,{studio.adapters[1]}=1"]
    headers = {"Authorization": f"Bearer {studio.key}"}
    limits = httpx.Limits(keepalive_expiry=2.0)
    async with httpx.AsyncClient(base_url=studio.url, timeout=300, headers=headers, limits=limits) as http:
        turn = number
        while time.monotonic() < end:
            turn += 1
            body = {
                "model": models[turn % len(models)],
                "messages": [{"role": "user", "content": "Where is the lamp?"}],
                "max_tokens": ANSWER_TOKENS,
                "stream": turn % 2 == 0,
            }
            response = await http.post("/v1/chat/completions", json=body)
            is_whole = response.is_success and (not body["stream"] or "data: [DONE]" in response.text)
            if is_whole:
                studio.count("api_answers")
            else:
                studio.record.errors.append(f"API: {response.status_code} {response.text[-300:]}")
            await asyncio.sleep(0.5)


async def read_run(studio: Studio) -> int:
    """Follows the training run to its end; returns the number of events that arrived."""
    seen, has_ended = 0, False
    async with (
        session(studio.url) as http,
        http.stream("GET", f"/api/runs/{studio.run}/stream", timeout=None) as response,
    ):
        async for line in response.aiter_lines():
            if line == "event: end":
                has_ended = True
            elif line.startswith("data:") and not has_ended:
                seen += 1
    if not has_ended:
        studio.record.cut_streams += 1
    return seen


async def browse(studio: Studio, end: float) -> int:
    """Two browsers that click through the tabs; returns how many there were."""
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        return 0
    if not Path(CHROMIUM).exists():
        return 0
    async with async_playwright() as p:
        chromium = await p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        await asyncio.gather(*(_browse(studio, chromium, end) for _ in range(BROWSERS)))
        await chromium.close()
    return BROWSERS


async def _browse(studio: Studio, chromium: Any, end: float) -> None:
    page = await (await chromium.new_context()).new_page()
    page.on("pageerror", lambda e: studio.record.errors.append(f"browser: {e}"))
    begin = time.perf_counter()
    await page.goto(f"{studio.url}/login")
    await page.fill("input[name=username]", LOGIN[0])
    await page.fill("input[name=password]", LOGIN[1])
    await page.press("input[name=password]", "Enter")
    await page.locator("#shelf .tree, .topbar").first.wait_for(timeout=60_000)
    studio.record.add("browser_open", time.perf_counter() - begin)
    while time.monotonic() < end:
        for tab in TABS:
            begin = time.perf_counter()
            await page.get_by_role("tab", name=tab, exact=True).first.click(timeout=60_000)
            await page.locator(f"button[role=tab][aria-selected=true]:has-text('{tab}')").first.wait_for()
            studio.record.add("browser_tab", time.perf_counter() - begin)
            await asyncio.sleep(2.0)
            if time.monotonic() >= end:
                return


async def sample_memory(pid: int, begin: float, end: float) -> list[tuple[float, float]]:
    """(share of the time, MiB) of the studio."""
    samples = []
    while (now := time.monotonic()) < end:
        samples.append(((now - begin) / (end - begin), read_memory(pid)[0] / 2**20))
        await asyncio.sleep(SAMPLE_SECONDS)
    return samples


def percentile(values: list[float], share: float) -> float:
    """A percentile; NaN without values."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else float("nan")


async def measure(seconds: float) -> dict[str, Any]:
    """Runs the whole load, and returns the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with start_studio(folder) as (url, pid):
            studio = Studio(url, make_key(folder / "workspace"))
            await studio.prepare()
            figures: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 1)}
            start_mib = read_memory(pid)[0] / 2**20
            await open_at_once(studio)  # the first pages load modules
            lists = await open_at_once(studio)
            await studio.start_training()
            readers = [asyncio.create_task(read_run(studio)) for _ in range(READERS)]
            begin = time.monotonic()
            end = begin + seconds
            memory, browsers, *_ = await asyncio.gather(
                sample_memory(pid, begin, end),
                browse(studio, end),
                *(visit(studio, number, end) for number in range(PAGES)),
                *(call_api(studio, number, end) for number in range(API_CALLERS)),
            )
            await studio.stop_training()
            seen = await asyncio.gather(*readers)
            log = folder / "workspace" / "runs" / studio.run / "events.jsonl"
            stored = len(log.read_text(encoding="utf-8").splitlines())
    record = studio.record
    warm = statistics.median(mib for share, mib in memory if WARM_UP <= share < WARM_UP + 0.15)
    last = statistics.median(mib for share, mib in memory if share >= 0.85)
    actions = [
        s for name in ("action", "poll", "open_lists", "browser_tab") for s in record.seconds.get(name, [])
    ]
    figures |= {
        "seconds": seconds,
        "errors": len(record.errors),
        "cut_streams": record.cut_streams,
        "run_events": stored,
        "lost_events": sum(stored - count for count in seen),
        "memory_start_mib": round(start_mib),
        "memory_warm_mib": round(warm),
        "memory_end_mib": round(last),
        "memory_growth": round(last / warm - 1, 3),
        "page_actions": len(actions),
        "page_action_p50_s": percentile(actions, 0.5),
        "page_action_p95_s": percentile(actions, 0.95),
        "lists_of_30_pages_p50_s": percentile(lists, 0.5),
        "lists_of_30_pages_p95_s": percentile(lists, 0.95),
        **{f"{name}_p95_s": percentile(s, 0.95) for name, s in sorted(record.seconds.items())},
        **studio.answers,
        "browsers": browsers,
        "load_after": round(os.getloadavg()[0], 1),
    }
    for error in list(dict.fromkeys(record.errors))[:10]:
        print(f"  error: {error}")
    return figures


def make_key(workspace: Path) -> str:
    """An API key of the studio's workspace, for the programs."""
    from core.spec.access import Role
    from core.store.api_keys import ApiKeys
    from core.store.workspace import Workspace

    return ApiKeys(Workspace(workspace)).create("load", Role.VIEWER.label)[1]


def main() -> int:
    """Measures, and compares the figures with the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="60 seconds of load in place of 10 minutes")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    figures = asyncio.run(measure(60.0 if args.quick else 600.0))
    for name, value in figures.items():
        limit = TARGETS.get(name)
        verdict = ""
        if limit is not None:
            verdict = f"({'met' if value <= limit else 'MISSED'}: target <= {limit:g})"
        print(f"  {name:28s} {value:10.4g}  {verdict}")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
