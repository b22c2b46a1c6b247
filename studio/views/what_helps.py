"""Four columns with one click: base and mix, each without and with documents.

They say whether training helps and whether retrieval helps, on one question. On many questions, with
intervals, an experiment of the same name says it (`core.spec.experiment_presets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.retrieval import DATASET_LIMIT
from core.errors import SpecError
from core.spec.experiment_presets import WHAT_HELPS
from core.spec.mix import Mix
from studio import mix_choices
from studio.components import mixer
from studio.tree import Node, node, view

BASE = "base"
ABOUT = "One click: the base and your mix, each without and with documents, in one batch with the same noise."
NO_MIX = "It needs an adapter that fits the base: train one, or add one to the Library."
NO_DOCUMENTS = "It needs documents: add texts under Data."


@dataclass(frozen=True)
class WhatHelps:
    """The components: the button, and what it does or why it cannot."""

    ask: gr.Button
    about: gr.HTML


def build() -> WhatHelps:
    """Makes the components."""
    with gr.Row(elem_classes="what-helps", elem_id="what-helps"):
        ask = gr.Button(WHAT_HELPS, scale=0, min_width=300)
        about = view(node("p", ABOUT, cls="quiet"))
    return WhatHelps(ask, about)


def refresh(engine: Engine) -> tuple[Any, Node]:
    """Whether the button can be pressed, and otherwise why not."""
    reason = find_reason(engine)
    return gr.update(interactive=not reason), node("p", reason or ABOUT, cls="quiet")


def find_reason(engine: Engine) -> str:
    """What the workspace lacks for the four columns, or ""."""
    if _find_mix(engine, None) is None:
        return NO_MIX
    return "" if engine.retrieval.list_documents() else NO_DOCUMENTS


def choose_columns(engine: Engine, rows: Any, chosen: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The board's value with the four columns, and the datasets that two of them answer from.

    Args:
        rows: the mixer's value; a mix without adapters is replaced by the first suggested one with the most.
        chosen: ids of datasets; empty for all, or for as many of the newest as one search takes.

    Raises:
        SpecError: the workspace has no documents, or no adapter that can be mixed.
    """
    mix = _find_mix(engine, mixer.current_mix(engine, rows))
    documents = list(chosen) or [d.id for d in engine.retrieval.list_documents()][:DATASET_LIMIT]
    if mix is None or not documents:
        reason = NO_DOCUMENTS if mix else NO_MIX
        raise SpecError(f"{WHAT_HELPS} {reason}").at("columns")
    value = {
        "picks": [BASE, BASE, str(mix), str(mix)],
        "plain": [True, False, True, False],
        "names": {BASE: "Base", str(mix): mix.name},
        "touched": True,
    }
    return value, documents


def _find_mix(engine: Engine, current: Mix | None) -> Mix | None:
    """The mixer's mix if it has adapters; else the suggested mix with the most; else any; else None."""
    if current is not None and current.weights:
        return current
    for choice in reversed(engine.library.default_mixes()):
        if choice.weights:
            return choice
    listed = [c["id"] for c in mix_choices.list_choices(engine) if c["id"] != BASE]
    return mix_choices.parse_mixes(engine, listed[:1])[0] if listed else None
