"""Named endpoints for `gradio_client`: which models there are, and answers of one or several of them.

    client = gradio_client.Client("http://127.0.0.1:7860", headers={"x-api-key": key})
    client.predict("Where is the lamp?", ["base", "mix:notes=0.7"], api_name="/compare_models")

All other events of the page are private. Programs without Gradio use the HTTP API (`core.server`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from core.server.model_names import find_model
from core.server.model_names import list_models as list_names
from core.server.openai_responses import read_active
from core.server.problems import Problem
from core.spec.mix import Mix, Sampling
from studio import events


def wire(engine: Engine) -> None:
    """Adds the endpoints to the page that is being built."""
    for fn in (list_models, answer_prompt, compare_models):
        call = events.handler(fn, engine)
        call.__annotations__ = {k: v for k, v in fn.__annotations__.items() if k != "engine"}
        gr.api(call, api_name=fn.__name__, api_description=(fn.__doc__ or "").partition("\n")[0])


def list_models(engine: Engine) -> list[dict[str, Any]]:
    """The base, the adapters and the saved mixes, with weights and parents."""
    return [model.to_json() for model in list_names(engine)]


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

    Raises:
        SpecError: a name is unknown, or a value is outside its limits.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    frame = engine.chat.stream(prompt, _find_mixes(engine, models), sampling).last()
    return [
        {"model": name, "text": column.text, "tokens": column.tokens, "active": read_active(column.stamp)}
        for name, column in zip(models, frame.columns, strict=True)
    ]


def _find_mixes(engine: Engine, names: Sequence[str]) -> list[Mix]:
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise SpecError(f"The models must be a list of names, got {str(names)[:80]!r}.")
    try:
        return [find_model(engine, name).mix for name in names]
    except Problem as e:
        raise SpecError(e.what, e.fix) from e
