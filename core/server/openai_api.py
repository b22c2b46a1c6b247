"""OpenAI's API: models, chat completions and completions, under any mix.

The response begins with the first token. Until then an error has its own HTTP status, and the header
X-Adapter-Studio-Mix can say what is active in the tensors, not what was requested.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from core.engine import Engine
from core.engine.serving import Completion, Progress
from core.engine.serving import Request as EngineRequest
from core.errors import StudioError
from core.server.access import Principal, Role, require
from core.server.metrics import Metrics
from core.server.model_names import Model, find_answering_model, list_answering_models
from core.server.openai_documents import choose_documents, search_documents
from core.server.openai_requests import ChatRequest, CompletionRequest, StrictRoute
from core.server.openai_responses import Answer, name_all_active
from core.server.problems import Problem
from core.server.streams import CLIENT_LEFT, follow, wait_for_value

logger = logging.getLogger(__name__)
router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])
Viewer = Annotated[Principal, Depends(require(Role.VIEWER))]
MIX_HEADER = "X-Adapter-Studio-Mix"
FALLBACK_HEADER = "X-Adapter-Studio-Fallback"
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": f"The answer. The header {MIX_HEADER} names the mix that was active. Where an "
        f"adapter of a saved mix is missing or damaged, the base answers, and {FALLBACK_HEADER} says why. "
        "The `documents` of a choice are the passages of its prompt, and say which it cites; they are there "
        "for an answer from documents only, and empty where nothing was found.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


@router.get("/v1/models", summary="List the models")
def list_all(request: Request, principal: Viewer) -> dict[str, Any]:
    """The base, every adapter that can be mixed, every saved mix, and Auto where a gate works.

    Where the workspace has documents, each of them is listed a second time, answering from these.
    """
    engine: Engine = request.app.state.engine
    return {"object": "list", "data": [model.to_json() for model in list_answering_models(engine)]}


@router.get("/v1/models/{model_id:path}", summary="Show a model")
def describe(model_id: str, request: Request, principal: Viewer) -> dict[str, Any]:
    """One model: any name that a request may give, `mix:...` included."""
    return find_answering_model(request.app.state.engine, model_id).to_json()


@router.post(
    "/v1/chat/completions", summary="Answer a conversation", responses=ANSWER, response_class=Response
)
async def create_chat_completion(body: ChatRequest, request: Request, principal: Viewer) -> Response:
    """Answers a conversation under the mix that `model` names; a stream with `stream`."""
    answer = Answer(body.model, True, bool(body.logprobs), body.n or 1, body.includes_usage)
    return await _respond(body, answer, request, principal)


@router.post("/v1/completions", summary="Continue texts", responses=ANSWER, response_class=Response)
async def create_completion(body: CompletionRequest, request: Request, principal: Viewer) -> Response:
    """Continues one text or several under the mix that `model` names; a stream with `stream`."""
    answer = Answer(body.model, False, body.logprobs is not None, body.n or 1, body.includes_usage)
    return await _respond(body, answer, request, principal)


async def _respond(
    body: ChatRequest | CompletionRequest, answer: Answer, request: Request, principal: Principal
) -> Response:
    engine: Engine = request.app.state.engine
    model, ids = await run_in_threadpool(_choose, engine, body)
    passages = None
    if ids is not None:
        assert isinstance(body, ChatRequest), "texts are continued without documents"
        passages = await wait_for_value(request, search_documents(engine, ids, body))
        if passages is None:
            return Response(status_code=CLIENT_LEFT)
    completions = _submit(engine, body.make_requests(model, principal.name, answer.id, passages))
    values = _follow_all(completions, request.app.state.metrics)
    if body.stream:
        first = await wait_for_value(request, anext(values))
        if first is None:
            return Response(status_code=CLIENT_LEFT)
        headers = {**_describe_active([first[1]]), "Cache-Control": "no-cache"}
        events = _write_events(first, values, answer, len(completions))
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")
    last = await wait_for_value(request, _read_last(values, len(completions)))
    if last is None:
        return Response(status_code=CLIENT_LEFT)
    return JSONResponse(answer.describe(last), headers=_describe_active(last))


def _choose(engine: Engine, body: ChatRequest | CompletionRequest) -> tuple[Model, list[str] | None]:
    """The model of a request, and the datasets that it answers from; None without documents."""
    model = find_answering_model(engine, body.model, falls_back=True)
    return model, choose_documents(engine, body, model)


def _describe_active(progress: Sequence[Progress]) -> dict[str, str]:
    """The headers of a response: what was active, and why the base answered in place of a mix."""
    reasons = [c.stamp["fallback"] for p in progress for c in p.columns if "fallback" in c.stamp]
    fallback = {FALLBACK_HEADER: reasons[0].encode("ascii", "replace").decode()} if reasons else {}
    return {MIX_HEADER: name_all_active(progress), **fallback}


def _submit(engine: Engine, requests: Sequence[EngineRequest]) -> list[Completion]:
    """Queues the requests of a body: all of them, or none."""
    engine.bases.load()  # where no page has done so
    completions: list[Completion] = []
    try:
        for request in requests:
            completions.append(engine.serving.submit(request))
    except StudioError:
        for completion in completions:
            completion.close()
        raise
    return completions


async def _follow_all(
    completions: Sequence[Completion], metrics: Metrics
) -> AsyncIterator[tuple[int, Progress]]:
    """The newest values of several completions, each with the number of its completion.

    Closes all of them when the reader leaves, or when one ends with an error.
    """
    streams = [follow(completion) for completion in completions]
    waiting: dict[asyncio.Task[Progress], int] = {}
    try:
        for number, stream in enumerate(streams):
            waiting[asyncio.ensure_future(anext(stream))] = number
        measured: set[int] = set()
        while waiting:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ready, key=waiting.__getitem__):
                number = waiting.pop(task)
                try:
                    progress = task.result()
                except StopAsyncIteration:
                    continue
                if number not in measured:
                    measured.add(number)
                    metrics.add_first_token(progress.first_token_seconds)
                yield number, progress
                waiting[asyncio.ensure_future(anext(streams[number]))] = number
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for completion in completions:
            completion.close()


async def _read_last(values: AsyncIterator[tuple[int, Progress]], count: int) -> list[Progress]:
    """The last value of each completion."""
    last: dict[int, Progress] = {}
    async for number, progress in values:
        last[number] = progress
    return [last[number] for number in range(count)]


async def _write_events(
    first: tuple[int, Progress], values: AsyncIterator[tuple[int, Progress]], answer: Answer, count: int
) -> AsyncIterator[str]:
    """Server-sent events of a stream. After an error the stream ends with it, and without [DONE].

    Args:
        values: those after the first.
        count: of prompts.
    """
    last: dict[int, Progress] = {}
    async with contextlib.aclosing(values):  # type: ignore[type-var]
        try:
            number, progress = first
            while True:
                last[number] = progress
                for chunk in answer.list_chunks(number, progress):
                    yield _write_event(chunk)
                number, progress = await anext(values)
        except StopAsyncIteration:
            pass
        except StudioError as e:
            yield _write_event({"error": Problem.of(e).to_json()["error"]})
            return
        except Exception as e:  # noqa: BLE001 (the response has begun; the client reads the error as an event)
            logger.error("A stream failed with %s", type(e).__name__)  # no traceback: it may hold texts
            problem = Problem(500, "The studio could not answer.", "Its log names the error.")
            yield _write_event({"error": problem.to_json()["error"]})
            return
    if answer.with_usage:
        yield _write_event(answer.make_usage_chunk([last[n] for n in range(count)]))
    yield "data: [DONE]\n\n"


def _write_event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
