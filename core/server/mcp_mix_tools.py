"""Tools of MCP: answers of mixes, learned weights, and explanations. `core.server.mcp_tools` lists them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from core.engine import Engine
from core.engine.analysis import MAP_ROWS
from core.engine.retrieval import DATASET_LIMIT
from core.engine.worker import Stream
from core.errors import SpecError
from core.progress import Progress
from core.server.dataset_names import find_texts
from core.server.events_stream import poll
from core.server.studio_api_answers import (
    MIXES,
    Comparison,
    ComparisonView,
    MixText,
    start_comparison,
    view_frame,
)
from core.server.studio_api_mixes import find_mix
from core.server.studio_api_models import Text, form
from core.server.studio_api_retrieval import SearchView, view_passage
from core.spec.mix import COLUMN_LIMIT, NEW_TOKENS_LIMIT, Mix, Sampling
from core.spec.retrieval import PASSAGE_LIMIT, QUERY_LIMIT, RetrievalSettings

TOKEN_LIMIT = 512  # tokens of an answer that is explained
DatasetName = Annotated[str, Field(min_length=1, max_length=120)]
DATASETS = "ids or names of datasets of texts; all of them for an empty list."
Report = Callable[[float, float, str], Awaitable[None]]  # receives done, total, and what is being done


class MixComparison(BaseModel):
    """A prompt and the mixes that answer it."""

    model_config = form(prompt="Where is the lamp?", mixes=["base", "Notes"])
    prompt: Text
    mixes: list[MixText] = Field(min_length=1, max_length=COLUMN_LIMIT, description=MIXES)
    documents: list[DatasetName] | None = Field(
        None, max_length=DATASET_LIMIT, description=f"Answer from the documents of these: {DATASETS}"
    )
    with_documents: list[bool] | None = Field(
        None,
        max_length=COLUMN_LIMIT,
        description="For each mix, whether it answers from the documents; null means that all do.",
    )
    max_new_tokens: int = Field(96, ge=1, le=NEW_TOKENS_LIMIT)
    temperature: float = Field(0.0, ge=0.0, le=4.0)
    seed: int = Field(0, ge=0, le=2**31 - 1)


async def compare_mixes(engine: Engine, arguments: MixComparison, report: Report) -> ComparisonView:
    """Answers a prompt with every mix in one batch."""
    given = arguments.model_dump(include={"prompt", "mixes", "with_documents"})
    given["sampling"] = arguments.model_dump(include={"max_new_tokens", "temperature", "seed"})
    if arguments.documents is not None:
        ids = await run_in_threadpool(find_texts, engine, arguments.documents, "documents")
        given["documents"] = {"datasets": ids}
    body = Comparison.model_validate(given)
    frame: Any = None
    async for frame in poll(await run_in_threadpool(start_comparison, engine, body)):
        done = sum(column.tokens for column in frame.columns)
        await report(done, arguments.max_new_tokens * len(arguments.mixes), "Answering")
    return view_frame(frame, arguments.mixes)


class DocumentSearch(BaseModel):
    """A question to documents."""

    model_config = form(query="Where is the lamp?", documents=["notes-1f3a"])
    query: str = Field(min_length=1, max_length=QUERY_LIMIT)
    documents: list[DatasetName] = Field([], max_length=DATASET_LIMIT, description=DATASETS)
    passages: int = Field(RetrievalSettings().passages, ge=1, le=PASSAGE_LIMIT)


class DocumentSearchView(SearchView):
    """The passages, the best first, and the datasets that were searched: id -> name.

    An empty list of passages means that nothing was found.
    """

    datasets: dict[str, str]


async def search_texts(engine: Engine, arguments: DocumentSearch, report: Report) -> DocumentSearchView:
    """Searches documents. The first search of a dataset waits for its index."""

    def search() -> DocumentSearchView:
        ids = find_texts(engine, arguments.documents, "documents")
        found = engine.retrieval.search(ids, arguments.query, arguments.passages)
        names = {d.id: d.name for d in engine.retrieval.list_documents() if d.id in ids}
        return DocumentSearchView(passages=[view_passage(p) for p in found], datasets=names)

    return await run_in_threadpool(search)


class WeightSearch(BaseModel):
    """Adapters whose weights are learned on a dataset."""

    model_config = form(adapters=["notes-8c2d", "tone-7d1e"], dataset="pairs-77aa")
    adapters: list[MixText] = Field(min_length=1, max_length=8, description="Ids or names of adapters.")
    dataset: str = Field(max_length=64, description="Id of the dataset that the weights should suit.")
    limit: int = Field(MAP_ROWS, ge=1, le=1000, description="At most this many rows.")


class WeightsView(BaseModel):
    """The weights with the lowest loss on validation rows, and how they compare on other rows.

    `mix` is how other tools name them; losses are in nats per token.
    """

    mix: str
    weights: dict[str, float]
    validation_loss: float
    test_loss: float
    summary: str


async def learn_weights(engine: Engine, arguments: WeightSearch, report: Report) -> WeightsView:
    """Searches weights with three methods and returns the best."""

    def start() -> Stream:
        ids: list[str] = []
        for name in arguments.adapters:
            weights = find_mix(engine, name).weights
            if len(weights) != 1:
                raise SpecError(f"Each entry must be one adapter, got {name[:80]!r}.").at("adapters")
            ids += weights
        engine.bases.load()
        return engine.analysis.search_weights(ids, arguments.dataset, arguments.limit)

    last = await _follow(await run_in_threadpool(start), report)
    comparison = last.comparison
    searches = ("gradient", "grid", "gradient-free")
    best = min((comparison.result(s) for s in searches), key=lambda r: r.validation_loss)
    return WeightsView(
        mix=str(Mix(weights=best.weights)), weights=best.weights, validation_loss=best.validation_loss,
        test_loss=best.test_loss, summary=comparison.summary(engine.library.labels()),
    )  # fmt: skip


class Explanation(BaseModel):
    """An answer to explain."""

    model_config = form(prompt="Where is the lamp?", mix="Notes=1,Tone=0.5", token=0)
    prompt: Text
    mix: MixText = Field(description="The mix that answers, with at least one adapter.")
    answer: Text = Field("", description="The answer to explain; empty lets the mix answer first.")
    token: int = Field(-1, ge=-1, lt=TOKEN_LIMIT, description="Index of one token; -1 explains all.")


class TokenView(BaseModel):
    """A token of an answer: its log-probabilities, and the nats that each adapter adds to it."""

    index: int
    text: str
    log_prob: float
    base_log_prob: float
    by_adapter: dict[str, float]


class ExplanationView(BaseModel):
    """An answer token by token."""

    answer: str
    tokens: list[TokenView]


async def explain_token(engine: Engine, arguments: Explanation, report: Report) -> ExplanationView:
    """Which adapter made a token more likely."""

    def start() -> Stream:
        engine.bases.load()
        mix = find_mix(engine, arguments.mix)
        sampling = Sampling(max_new_tokens=64)
        return engine.analysis.attribution(arguments.prompt, mix, arguments.answer, sampling)

    found = (await _follow(await run_in_threadpool(start), report)).attribution
    effects = found.by_adapter
    tokens = [
        TokenView(
            index=i, text=text, log_prob=found.full[i], base_log_prob=found.base[i],
            by_adapter={adapter: nats[i] for adapter, nats in effects.items()},
        )
        for i, text in enumerate(found.tokens)
    ]  # fmt: skip
    if arguments.token >= len(tokens):
        raise SpecError(
            f"The answer has {len(tokens)} tokens, got the index {arguments.token}.",
            "Indices count from 0; -1 explains all.",
        ).at("token")
    chosen = tokens if arguments.token < 0 else [tokens[arguments.token]]
    return ExplanationView(answer=found.answer, tokens=chosen)


async def _follow(stream: Stream, report: Report) -> Any:
    """Reports the progress of a stream of the worker, and returns its last value."""
    last: Any = None
    async for last in poll(stream):
        if isinstance(last, Progress):
            await report(last.done, last.total, last.text)
    return last
