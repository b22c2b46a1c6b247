"""The bodies of the REST API: what requests may hold, and what responses show of the engine's records."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, create_model

from core.engine import Engine
from core.spec.mix import Sampling
from core.spec.settings import LIST_LIMIT, TEXT_LIMIT, Settings
from core.spec.training import RunStatus, TrainSpec
from core.store.adapters import Adapter
from core.store.mixes import SavedMix
from core.store.runs import Run

PROMPT_LIMIT = 100_000  # characters of a prompt or of one message
TIME = 1790000000.0  # of the examples


def get_engine(request: Request) -> Engine:
    """The engine of the application, as a FastAPI dependency."""
    engine: Engine = request.app.state.engine
    return engine


EngineOf = Annotated[Engine, Depends(get_engine)]
Kind = Literal["domain", "task"]
Split = Literal["train", "val", "test", "all"]
Text = Annotated[str, Field(max_length=PROMPT_LIMIT)]


def example(**values: Any) -> ConfigDict:
    """The configuration of a body with an example, which the OpenAPI document shows."""
    return ConfigDict(from_attributes=True, json_schema_extra={"examples": [values]})


def form(**values: Any) -> ConfigDict:
    """The configuration of a request: exact types, and only the fields that it names; with an example."""
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [values]})


def make_model(spec: type[Settings], name: str, leave_out: tuple[str, ...] = ()) -> type[BaseModel]:
    """A request body with the fields of settings: their sentences, defaults and limits.

    Args:
        leave_out: fields that the request gives elsewhere.
    """
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(spec):  # type: ignore[arg-type]
        if f.name not in leave_out:
            fields[f.name] = (_find_type(f), _describe_field(f))
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _find_type(f: dataclasses.Field[Any]) -> Any:
    kind = str(f.type)
    if f.metadata["choices"]:
        return Literal[f.metadata["choices"]]
    if kind.startswith("tuple"):
        texts = list[Annotated[str, Field(max_length=TEXT_LIMIT)]]
        return texts | None if kind.endswith("| None") else texts
    return {"int": int, "float": float, "bool": bool, "str": str}[kind]


def _describe_field(f: dataclasses.Field[Any]) -> Any:
    kind, low, high = str(f.type), f.metadata["low"], f.metadata["high"]
    limits: dict[str, Any] = {}
    if kind in ("int", "float"):
        limits = {"ge": low, "le": high, **({"allow_inf_nan": False} if kind == "float" else {})}
    elif kind == "str" and not f.metadata["choices"]:
        limits = {"max_length": int(high or TEXT_LIMIT)}
    elif kind.startswith("tuple"):
        limits = {"max_length": LIST_LIMIT}
    default = [] if f.default is dataclasses.MISSING else f.default
    return Field(default, description=f.metadata["help"], **limits)


def read_fields(body: BaseModel) -> dict[str, Any]:
    """The fields that a request gave, without the defaults."""
    return body.model_dump(exclude_unset=True)


TrainSettings = make_model(TrainSpec, "TrainSettings", ("kind",))
SamplingSettings = make_model(Sampling, "SamplingSettings")


# --- what responses show


class DatasetView(BaseModel):
    """A dataset of the workspace."""

    model_config = example(
        id="notes-1f3a", name="Notes", kind="domain", rows=48, splits={"train": 38, "val": 5, "test": 5},
        purpose="training", columns=["text"], roles={"text": "text"}, notes=[], left_out=0, duplicates=0,
        created=TIME,
    )  # fmt: skip
    id: str
    name: str
    kind: Kind
    rows: int
    splits: dict[str, int]
    purpose: str
    columns: list[str]
    roles: dict[str, str]
    notes: list[str]
    left_out: int
    duplicates: int
    created: float


class ImportView(BaseModel):
    """An import that runs in the background. `roles` and `encodings` are set where it has a question."""

    model_config = example(
        id="import-9ab01c22", name="Notes", state="running", text="Reading notes.jsonl", share=0.4, rows=19,
        dataset="", problem="", kind="", roles={}, encodings=[],
    )  # fmt: skip
    id: str
    name: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    text: str
    share: float
    rows: int
    dataset: str
    problem: str
    kind: str
    roles: dict[str, str]
    encodings: list[str]


class RunView(BaseModel):
    """A training run."""

    model_config = example(
        id="tone-20c1", name="Tone", kind="task", status="running", explanation="It is training.",
        next_step="Try its adapter under Mix while it trains; pause it, or stop it and keep the adapter.",
        adapter="tone-7d1e", dataset="pairs-77aa", base="embedded", step=12, total_steps=60, error="",
        resumable=False, settings={"rank": 16}, created=TIME,
    )  # fmt: skip
    id: str
    name: str
    kind: Kind
    status: RunStatus
    explanation: str
    next_step: str
    adapter: str
    dataset: str
    base: str
    step: int
    total_steps: int
    error: str
    resumable: bool
    settings: dict[str, Any]
    created: float

    @classmethod
    def of(cls, run: Run) -> RunView:
        """The view of a run."""
        names = set(cls.model_fields) - {"dataset", "settings"}
        values = {name: getattr(run, name) for name in names}
        return cls(dataset=run.spec.dataset, settings=run.spec.to_json(), **values)


class EventsView(BaseModel):
    """Events of a run, and the cursor after them."""

    model_config = example(events=[{"kind": "step", "step": 1, "loss": 3.2, "time": TIME}], cursor=412)
    events: list[dict[str, Any]]
    cursor: int


class AdapterView(BaseModel):
    """An adapter of the library; `reason` says why it does not fit the resident base."""

    model_config = example(
        id="tone-7d1e", name="Tone", kind="task", base="embedded", rank=16, alpha=32.0, dataset="pairs-77aa",
        run="tone-20c1", stacked_on="", bytes=190432, sha256="6b1f", fits=True, reason="", alone="",
        created=TIME,
    )  # fmt: skip
    id: str
    name: str
    kind: Kind
    base: str
    rank: int
    alpha: float
    dataset: str
    run: str
    stacked_on: str
    bytes: int
    sha256: str
    fits: bool
    reason: str
    alone: str
    created: float

    @classmethod
    def of(cls, adapter: Adapter, engine: Engine) -> AdapterView:
        """The view of an adapter of an engine's library."""
        base = engine.bases.current().fingerprint
        fits = not base or adapter.base_fingerprint == base
        reason = "" if fits else f"It was trained on {adapter.base!r}, another base."
        names = set(cls.model_fields) - {"fits", "reason"}
        return cls(fits=fits, reason=reason, **{name: getattr(adapter, name) for name in names})


class MixView(BaseModel):
    """A saved mix; `text` is how other requests name it."""

    model_config = example(
        id="calm-31f0", name="Calm", text="notes-8c2d=0.7 + tone-7d1e",
        weights={"notes-8c2d": 0.7, "tone-7d1e": 1.0}, tilt={}, auto={}, warnings=[], created=TIME,
    )  # fmt: skip
    id: str
    name: str
    text: str
    weights: dict[str, float]
    tilt: dict[str, float]
    auto: dict[str, str]
    warnings: list[str]
    created: float

    @classmethod
    def of(cls, mix: SavedMix) -> MixView:
        """The view of a saved mix."""
        names = set(cls.model_fields) - {"text"}
        return cls(text=str(mix.mix), **{name: getattr(mix, name) for name in names})


class ReportView(BaseModel):
    """The measurements of mixes on a dataset, a row of figures for each mix."""

    model_config = example(
        id="report-4411", dataset="pairs-77aa", dataset_name="Pairs", split="test", base="embedded",
        seconds=4.2, rows=[{"name": "base", "perplexity": 12.1, "exact_match": 0.0}], created=TIME,
    )  # fmt: skip
    id: str
    dataset: str
    dataset_name: str
    split: str
    base: str
    seconds: float
    rows: list[dict[str, Any]]
    created: float


class BaseView(BaseModel):
    """The resident base."""

    model_config = example(
        name="embedded", family="Llama", parameters=3300000, context=512, quantization="none", device="cpu",
        loading=False, error="",
    )  # fmt: skip
    name: str
    family: str
    parameters: int
    context: int
    quantization: str
    device: str
    loading: bool
    error: str


class DeletedView(BaseModel):
    """An item that was moved to the trash."""

    model_config = example(deleted="tone-7d1e", entry="adapters-tone-7d1e")
    deleted: str
    entry: str
