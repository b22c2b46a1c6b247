"""One open page of the studio, over HTTP, as Gradio's client (6.31) in a browser opens and uses it.

A page polls the studio's state, fires events and reads their results from one stream. Results change its
values, and a changed value fires the events that are bound to it. JavaScript that only draws is left out.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

HEARTBEAT = "/gradio_api/heartbeat/{}"
CONFIG = "window.gradio_config = "
ENDS = ("process_completed", "unexpected_error", "server_stopped")
STREAM_END = "close_stream"
PATIENCE = 120.0  # seconds until a result is missing


@dataclass
class Record:
    """What the pages of a benchmark saw; one for all of them.

    Attributes:
        seconds: name of an action to how long each took.
        errors: what failed, one line each.
        cut_streams: event streams that ended without their end message.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    cut_streams: int = 0

    def add(self, action: str, seconds: float) -> None:
        """Adds the time of an action."""
        self.seconds.setdefault(action, []).append(seconds)


class PageConfig:
    """The components and events of the page, which are the same for every visitor."""

    def __init__(self, html: str) -> None:
        begin = html.index(CONFIG) + len(CONFIG)
        self.raw, _ = json.JSONDecoder().raw_decode(html, begin)
        components = self.raw["components"]
        self.values = {c["id"]: c.get("props", {}).get("value") for c in components}
        self.ids = {c["props"]["elem_id"]: c["id"] for c in components if c.get("props", {}).get("elem_id")}
        self.events = {d["id"]: d for d in self.raw["dependencies"]}
        self.bound: dict[tuple[int, str], list[int]] = {}
        self.after: dict[int, list[int]] = {}
        for event in self.events.values():
            if event["trigger_after"] is not None:
                self.after.setdefault(event["trigger_after"], []).append(event["id"])
            for target, name in event["targets"]:
                if target is not None:
                    self.bound.setdefault((target, name), []).append(event["id"])

    def find(self, name: str, occurrence: int = 0) -> int:
        """The id of the event whose handler has this name (Gradio numbers equal names)."""
        found = [i for i, e in self.events.items() if e["api_name"] == name]
        if not found:
            raise SystemExit(f"The page has no event {name!r}.")
        return found[occurrence]


class Page:
    """An open page.

    Args:
        http: a client with the cookie or key of its visitor.
        config: of the page.
        record: where times and errors go.
    """

    def __init__(self, http: httpx.AsyncClient, config: PageConfig, record: Record) -> None:
        self.http, self._config, self._record = http, config, record
        self._begin_session()
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._early: dict[str, dict[str, Any]] = {}  # ends of events whose join has not answered yet
        self._stream: asyncio.Task[None] | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._active: dict[int, int] = {}  # event -> how often it runs now
        self._again: set[int] = set()
        self._shown: dict[int, str] = {}  # event -> the carried result that it has shown

    def _begin_session(self) -> None:
        self.session = secrets.token_hex(6)
        self.values: dict[int, Any] = dict(self._config.values)
        self.revision = ""

    # --- what a visitor waits for

    async def open(self) -> None:
        """Opens the page: the document, its first poll, and the lists; then what the lists change."""
        begin = time.perf_counter()
        self._start_heartbeat()
        answer = await self.http.get("/")
        answer.raise_for_status()
        self._record.add("open_document", time.perf_counter() - begin)
        for event in self._config.bound.get((0, "load"), []):
            self.start(event)
        changed = await self.poll()
        if changed:
            await self.fire_on("guide", "library_change")
        self._record.add("open_lists", time.perf_counter() - begin)
        await self.settle()
        self._record.add("open_settled", time.perf_counter() - begin)

    async def reload(self) -> None:
        """Opens the page again, in a new session."""
        await self.settle()
        self._begin_session()
        await self.open()

    async def poll(self) -> bool:
        """Polls the state; returns whether a list on the page is out of date."""
        begin = time.perf_counter()
        answer = await self.call("guide", "poll", {})
        self._record.add("poll", time.perf_counter() - begin)
        changed = answer.get("revision") != self.revision
        self.revision = answer.get("revision", "")
        return changed

    async def call(self, elem_id: str, name: str, data: dict[str, Any]) -> dict[str, Any]:
        """Calls a server function of a component."""
        body = {
            "data": data,
            "component_id": self._config.ids[elem_id],
            "fn_name": name,
            "session_hash": self.session,
        }
        answer = await self.http.post("/gradio_api/component_server/", json=body)
        answer.raise_for_status()
        result: dict[str, Any] = answer.json()
        if "error" in result:
            self._record.errors.append(f"{name}: {result['error']}")
        return result

    async def fire_on(self, elem_id: str, name: str, data: Any = None) -> None:
        """Fires the events that are bound to a component, and waits for their results."""
        for event in self._config.bound[(self._config.ids[elem_id], name)]:
            await self.fire(event, data)

    async def fire(self, event: int, data: Any = None) -> dict[str, Any]:
        """Fires one event, waits for its result and applies it; returns Gradio's last message."""
        found = self._config.events[event]
        trigger = next((t for t, _ in found["targets"] if t is not None), None)
        body = {
            "data": self._read_inputs(found),
            "event_data": data,
            "fn_index": event,
            "trigger_id": trigger,
            "session_hash": self.session,
        }
        answer = await self.http.post("/gradio_api/queue/join?", json=body)
        if answer.status_code != 200:
            self._record.errors.append(f"{found['api_name']}: {answer.status_code} {answer.text[:200]}")
            return {}
        event_id = answer.json()["event_id"]
        end = self._waiting.setdefault(event_id, asyncio.get_running_loop().create_future())
        if event_id in self._early:
            end.set_result(self._early.pop(event_id))
        if self._stream is None or self._stream.done():
            self._stream = asyncio.create_task(self._read_stream())
        try:
            message = await asyncio.wait_for(end, PATIENCE)
        except TimeoutError:
            self._record.errors.append(f"{found['api_name']}: no result after {PATIENCE:g} s")
            return {}
        finally:
            self._waiting.pop(event_id, None)
        if not message.get("success", True):
            self._record.errors.append(f"{found['api_name']}: {message.get('output')}")
        # The last message of a stream of results holds differences, which only the browser needs.
        self._apply(found, {} if found["types"]["generator"] else message.get("output") or {})
        return message

    def start(self, event: int) -> None:
        """Fires an event without waiting, in Gradio's trigger mode of it."""
        mode = self._config.events[event]["trigger_mode"]
        if self._active.get(event) and mode != "multiple":
            if mode == "always_last":
                self._again.add(event)
            return
        found = self._config.events[event]
        if not found["backend_fn"]:
            self._apply(found, {"data": self._read_carrier(found)})
            return
        task = asyncio.create_task(self._run(event))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def settle(self) -> None:
        """Waits until no event runs."""
        while self._running:
            await asyncio.gather(*self._running)

    async def close(self) -> None:
        """Ends what still runs."""
        tasks = [*self._running, *(t for t in (self._stream, self._heartbeat) if t is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- events and their results

    async def _run(self, event: int) -> None:
        self._active[event] = self._active.get(event, 0) + 1
        try:
            await self.fire(event)
        except httpx.HTTPError as e:
            self._record.errors.append(f"{self._config.events[event]['api_name']}: {e!r}")
        finally:
            self._active[event] -= 1
        if event in self._again:
            self._again.discard(event)
            self.start(event)

    def _start_heartbeat(self) -> None:
        """Holds the stream by which the server knows that the page is open."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()

        async def hold(session: str) -> None:
            try:
                async with self.http.stream("GET", HEARTBEAT.format(session), timeout=None) as answer:
                    answer.raise_for_status()
                    async for _ in answer.aiter_raw():
                        pass
            except httpx.HTTPError as e:
                self._record.errors.append(f"heartbeat: {e!r}")

        self._heartbeat = asyncio.create_task(hold(self.session))

    def _read_inputs(self, event: dict[str, Any]) -> list[Any]:
        values = [self.values.get(i) for i in event["inputs"]]
        if "location.search" in str(event["js"]):  # its script puts the query of the URL first
            values[0] = ""
        return values

    def _read_carrier(self, event: dict[str, Any]) -> list[Any]:
        """What JavaScript shows of the results in a hidden carrier (`studio.late_results`)."""
        carried = self.values.get(event["inputs"][0]) if event["inputs"] else None
        if not isinstance(carried, dict) or carried.get("result") in (None, self._shown.get(event["id"])):
            return []
        self._shown[event["id"]] = carried["result"]
        fill = {i: value for part in carried["parts"] for i, value in part["fill"].items()}
        return [fill.get(str(i), {"__type__": "update"}) for i in event["outputs"]]

    def _apply(self, event: dict[str, Any], output: dict[str, Any]) -> None:
        """Takes over the values of a result, and starts the events that follow from it."""
        changed = []
        for target, value in zip(event["outputs"], output.get("data", []), strict=False):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" not in value:
                    continue
                value = value["value"]
            if self.values.get(target) != value:
                self.values[target] = value
                changed.append(target)
        self._start_after(event["id"])
        for target in changed:
            for bound in self._config.bound.get((target, "change"), []):
                self.start(bound)

    def _start_after(self, event: int) -> None:
        for following in self._config.after.get(event, []):
            self.start(following)

    async def _read_stream(self) -> None:
        """Reads the results of all events; opens the stream again while one is missing."""
        while self._waiting:
            is_complete = False
            try:
                async for message in self._messages():
                    kind = message["msg"]
                    is_complete = is_complete or kind == STREAM_END
                    if kind in ENDS:
                        self._end(message)
            except httpx.HTTPError as e:
                self._record.errors.append(f"stream: {e!r}")
            if not is_complete:
                self._record.cut_streams += 1
            await asyncio.sleep(0)

    def _end(self, message: dict[str, Any]) -> None:
        event_id = message.get("event_id")
        if event_id is None:  # the whole stream failed
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_result({"success": False, "output": {"error": message.get("message")}})
            return
        waiting_one = self._waiting.get(event_id)
        if waiting_one is None:
            self._early[event_id] = message
        elif not waiting_one.done():
            waiting_one.set_result(message)

    async def _messages(self) -> AsyncIterator[dict[str, Any]]:
        async with self.http.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])
