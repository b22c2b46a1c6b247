"""Documents in OpenAI's API: which datasets a request answers from, and the passages for its question.

A search takes milliseconds, on a thread of the pool. The first search of a dataset waits for its index,
without a thread: at most INDEX_SECONDS, and not after its client has left. The index is built all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from core.engine import Engine
from core.engine.retrieval import IndexStatus
from core.errors import StudioError
from core.retrieve.passages import Passage
from core.server.dataset_names import find_texts
from core.server.model_names import DOCUMENTS, Model, quote_name
from core.server.openai_requests import ChatRequest, CompletionRequest
from core.server.problems import Problem

INDEX_SECONDS = 60.0
POLL_SECONDS = 0.1
FIELD = "documents"
QUESTIONS_ONLY = "Use /v1/chat/completions: documents answer questions."


def choose_documents(engine: Engine, body: ChatRequest | CompletionRequest, model: Model) -> list[str] | None:
    """The ids of the datasets that a request answers from; None for an answer without documents.

    What the field `documents` says counts more than the name of the model.

    Raises:
        Problem: a dataset is unknown (404), or its name is ambiguous; the workspace has no documents; the
            request is not a question (422).
    """
    if isinstance(body, CompletionRequest):
        if model.has_documents:
            raise Problem(422, f"A text that is continued cannot have {DOCUMENTS}.", QUESTIONS_ONLY, "model")
        return None
    chosen = model.has_documents if body.documents is None else body.documents
    if chosen is False:
        if body.passages is not None:
            raise Problem(422, "`passages` needs documents.", "Set `documents` to true.", "passages")
        return None
    if body.messages[-1].role != "user":
        raise Problem(
            422, "Documents answer a question: the last message must be the user's.", "Add it.", "messages"
        )
    return find_texts(engine, [] if chosen is True else chosen, FIELD)


async def search_documents(engine: Engine, ids: Sequence[str], body: ChatRequest) -> list[Passage]:
    """The passages for the last message of a request, the best first; empty where nothing was found.

    Raises:
        Problem: 503, an index is still being built after INDEX_SECONDS.
        StudioError: see `core.engine.retrieval.Retrieval.search`.
    """
    deadline = asyncio.get_running_loop().time() + INDEX_SECONDS
    for dataset_id in ids:
        key = await run_in_threadpool(engine.retrieval.index, dataset_id)
        while not (status := engine.retrieval.status(key)).has_ended:
            if asyncio.get_running_loop().time() > deadline:
                raise _refuse_wait(status)
            await asyncio.sleep(POLL_SECONDS)
        if status.state != "done":
            raise status.error or StudioError("The indexing was cancelled.", "Send the request again.")
    question = body.messages[-1].content
    return await run_in_threadpool(engine.retrieval.search, ids, question, body.passages)


def _refuse_wait(status: IndexStatus) -> Problem:
    return Problem(
        503,
        f"The documents of {quote_name(status.dataset)} are still being indexed "
        f"({100 * status.share:.0f} % of: {status.text}).",
        "Send the request again in a moment.",
        FIELD,
        {"Retry-After": "5"},
    )
