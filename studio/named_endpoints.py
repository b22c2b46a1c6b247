"""Named endpoints for `gradio_client`: which models there are, and answers of one or several of them.

    client = gradio_client.Client("http://127.0.0.1:7860", headers={"x-api-key": key})
    client.predict("Where is the lamp?", ["base", "mix:notes=0.7"], api_name="/compare_models")

A name that ends in "+documents" answers from all documents of the workspace, as in OpenAI's API.
All other events of the page are private. Programs without Gradio use the HTTP API (`core.server`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from core.retrieve.passages import Passage
from core.server.dataset_names import find_texts
from core.server.model_names import Model, find_answering_model, list_answering_models
from core.server.openai_responses import read_active
from core.server.problems import Problem
from core.spec.mix import Sampling
from studio import events


def wire(engine: Engine) -> None:
    """Adds the endpoints to the page that is being built."""
    for fn in (list_models, answer_prompt, compare_models):
        call = events.handler(fn, engine)
        call.__annotations__ = {k: v for k, v in fn.__annotations__.items() if k != "engine"}
        gr.api(call, api_name=fn.__name__, api_description=(fn.__doc__ or "").partition("\n")[0])


def list_models(engine: Engine) -> list[dict[str, Any]]:
    """The base, the adapters and the saved mixes, with weights and parents; again with documents, if any."""
    return [model.to_json() for model in list_answering_models(engine)]


def answer_prompt(
    engine: Engine,
    prompt: str,
    model: str = "base",
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Answers a prompt with one model: `text`, and in `active` what answered."""
    return compare_models(engine, prompt, [model], max_new_tokens, temperature, seed)[0]


def compare_models(
    engine: Engine,
    prompt: str,
    models: list[str],
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Answers a prompt with several models in one batch, with the same random numbers.

    Returns:
        for each model its `text`, `tokens` and what was `active`, and the `passages` of its prompt, which it
        cites as [1], [2]; None for an answer without documents.

    Raises:
        SpecError: a name is unknown, a value is outside its limits, or documents are missing.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    found, passages = _find_models(engine, prompt, models)
    frame = engine.chat.stream(prompt, [m.mix for m in found], sampling, passages=passages).last()
    prompts = frame.prompts or [None] * len(models)
    return [
        {
            "model": name,
            "text": column.text,
            "tokens": column.tokens,
            "active": read_active(column.stamp),
            "passages": [p.to_json() for p in used.used] if used else None,
        }
        for name, column, used in zip(models, frame.columns, prompts, strict=True)
    ]


def _find_models(
    engine: Engine, prompt: str, names: Sequence[str]
) -> tuple[list[Model], list[list[Passage] | None] | None]:
    """The models, and the passages that each answers from."""
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise SpecError(f"The models must be a list of names, got {str(names)[:80]!r}.")
    try:
        models = [find_answering_model(engine, name) for name in names]
        if not any(m.has_documents for m in models):
            return models, None
        found = engine.retrieval.search(find_texts(engine, [], "models"), prompt)
    except Problem as e:
        raise SpecError(e.what, e.fix) from e
    return models, [found if m.has_documents else None for m in models]
