"""Pages over HTTP, as the load benchmark opens them: the lists and the changes of other visitors arrive."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from benchmarks.page_client import Page, PageConfig, Record
from core.engine import Engine
from studio.app import serve
from studio.server.page_states import PageState
from tests.browser.conftest import free_port


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with Engine(folder / "workspace", load=False) as engine:
        engine.bases.load = lambda: None  # the pages poll, and no base is needed
        page = serve(engine, port=free_port(), block=False)
        yield engine, page
        page.close(verbose=False)


def test_pages_that_open_at_once_get_their_lists_and_the_changes_of_others(studio, pairs):
    engine, served = studio

    async def run() -> None:
        async with httpx.AsyncClient(base_url=served.local_url, timeout=60) as http:
            config, record = PageConfig((await http.get("/")).text), Record()
            pages = [Page(http, config, record) for _ in range(4)]
            await asyncio.gather(*(page.open() for page in pages))
            assert (record.errors, record.cut_streams) == ([], 0)
            assert len(record.seconds["open_lists"]) == 4
            picker = next(
                c["id"] for c in config.raw["components"] if c["props"].get("label") == "Dataset"
            )  # of the Data tab, the first one
            assert [page.values[picker] for page in pages] == [None] * 4
            assert not await pages[0].poll()
            made = engine.datasets.import_files([pairs], "Pairs", "task")
            for page in pages:
                assert await page.poll(), "the revision has changed"
                await page.fire_on("guide", "library_change")
                await page.settle()
                await page.close()
            assert [page.values[picker] for page in pages] == [made.id] * 4
            assert record.errors == []
        states = served.app.state_holder.session_data
        assert {page.session for page in pages} <= set(states)
        assert all(type(state) is PageState for state in states.values())
        assert served._queue.cached_event_analytics_summary == {"functions": {}}, "it is never computed"
        assert len(served._queue.event_analytics) == 1

    asyncio.run(run())
