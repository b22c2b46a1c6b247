"""Retrieval over HTTP: search the documents of datasets, build their indexes, and list the extras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from core.engine import Engine
from core.engine.retrieval import DATASET_LIMIT, IndexStatus
from core.retrieve.extras import Extra
from core.retrieve.passages import Passage
from core.server.access import Role, require
from core.server.studio_api_models import EngineOf, example, form, make_model, read_fields
from core.spec.retrieval import QUERY_LIMIT, RetrievalSettings

router = APIRouter(prefix="/api", tags=["retrieval"])
State = Literal["waiting", "running", "done", "failed", "cancelled"]
DatasetId = Annotated[str, Field(min_length=1, max_length=64)]
RetrievalFields = make_model(RetrievalSettings, "RetrievalSettings")
PASSAGE = {
    "dataset": "notes-1f3a", "dataset_name": "Notes", "document": "notes.md", "section": "The north room",
    "start": 0, "end": 35, "text": "The lamp is kept in the north room.", "score": 0.61, "words": ["lamp"],
    "marks": [[4, 8]], "chunk": 0,
}  # fmt: skip


class PassageView(BaseModel):
    """A passage: `text` is the slice from `start` to `end` of its document, `marks` are places in `text`."""

    model_config = example(**PASSAGE)
    dataset: str
    dataset_name: str
    document: str
    section: str
    start: int
    end: int
    text: str
    score: float
    words: list[str]
    marks: list[tuple[int, int]]
    chunk: int


class Documents(BaseModel):
    """The datasets that an answer cites, and how they are searched."""

    model_config = form(datasets=["notes-1f3a"])
    datasets: list[DatasetId] = Field(
        min_length=1, max_length=DATASET_LIMIT, description="Ids of datasets of texts."
    )
    settings: RetrievalFields = Field(default_factory=RetrievalFields)  # type: ignore[valid-type]


class Search(Documents):
    """A question to the documents of datasets. The first search of a dataset waits for its index."""

    model_config = form(datasets=["notes-1f3a"], query="Where is the lamp?")
    query: str = Field(min_length=1, max_length=QUERY_LIMIT)


class SearchView(BaseModel):
    """The passages, the best first; an empty list means that nothing was found."""

    model_config = example(passages=[PASSAGE])
    passages: list[PassageView]


class NewIndex(BaseModel):
    """A dataset to index."""

    model_config = form(dataset="notes-1f3a")
    dataset: DatasetId
    settings: RetrievalFields = Field(default_factory=RetrievalFields)  # type: ignore[valid-type]


class IndexView(BaseModel):
    """An index that is being built, or that is ready."""

    model_config = example(
        key="notes-1f3a-5c0e", dataset="notes-1f3a", state="running", text="Indexing: 500 chunks", done=5,
        total=10, chunks=0, encoder="", problem="",
    )  # fmt: skip
    key: str
    dataset: str
    state: State
    text: str
    done: int
    total: int
    chunks: int
    encoder: str
    problem: str


class ExtraView(BaseModel):
    """An optional package."""

    model_config = example(name="wordllama", package="wordllama==1.0", about="", is_installed=False)
    name: str
    package: str
    about: str
    is_installed: bool


def read_retrieval(fields: BaseModel) -> RetrievalSettings:
    """The settings of a request.

    Raises:
        SpecError: they do not fit together.
    """
    return RetrievalSettings(**read_fields(fields))


def search_documents(engine: Engine, documents: Documents, query: str) -> list[Passage]:
    """The passages for a question.

    Raises:
        StudioError: see `core.engine.retrieval.Retrieval.search`.
    """
    settings = read_retrieval(documents.settings)  # type: ignore[arg-type]
    return engine.retrieval.search(documents.datasets, query, settings=settings)


def view_passage(passage: Passage) -> PassageView:
    """The view of a passage."""
    return PassageView(**passage.to_json())


@router.post("/search", response_model=SearchView, summary="Search the documents of datasets",
             dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def search(body: Search, engine: EngineOf) -> SearchView:
    """The passages that answer a question best, with the words that matched."""
    return SearchView(passages=[view_passage(p) for p in search_documents(engine, body, body.query)])


@router.post("/indexes", status_code=202, response_model=IndexView, summary="Index a dataset",
             dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def start_index(body: NewIndex, engine: EngineOf) -> IndexStatus:
    """Builds the index of a dataset in the background, unless it is ready."""
    settings = read_retrieval(body.settings)  # type: ignore[arg-type]
    return engine.retrieval.status(engine.retrieval.index(body.dataset, settings))


@router.get("/indexes/{key}", response_model=IndexView, summary="Follow an index",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_index(key: str, engine: EngineOf) -> IndexStatus:
    """The progress of an index."""
    return engine.retrieval.status(key)


@router.delete("/indexes/{key}", response_model=IndexView, summary="Cancel an index",
               dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def cancel_index(key: str, engine: EngineOf) -> IndexStatus:
    """Cancels an index that is being built; nothing is left of it."""
    engine.retrieval.cancel(key)
    return engine.retrieval.status(key)


@router.get("/extras", response_model=list[ExtraView], summary="List the optional packages of retrieval",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_extras(engine: EngineOf) -> Sequence[Extra]:
    """What each adds, and whether it is installed. The page or pip installs them."""
    return engine.retrieval.extras()
