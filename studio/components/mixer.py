"""The mixer: one component with a switch, a weight, a gate and a tilt for each adapter.

Python sets the property `adapters` (which exist), the browser sets `value` (what is on, and how much), so
neither overwrites the other. A row is `{"id", "on", "weight", "tilt", "auto", ...}`. `auto` is the gate of a
weight on Auto, "" for a number; `weight` is then the one where the gate is open. What the gates of the newest
answer chose comes with the conversation (`live_gates`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.gates import describe_decisions, read_decisions
from core.engine.mix_names import label_adapters
from core.spec.mix import WEIGHT_LIMIT, WEIGHT_STEP, Mix
from studio import formatting
from studio.assets import read_asset
from studio.tree import button, empty

NO_ADAPTERS = empty(
    "No adapters yet",
    "A mix is the base model plus adapters, each with a weight. "
    "Train an adapter: it appears here as soon as its training starts.",
    button("Go to Train", {"do": "tab", "tab": "train"}, "primary"),
)


def mixer() -> gr.HTML:
    """The component. Its event `mix_change` fires an eighth of a second after a slider has last moved."""
    return gr.HTML(
        value=None,
        adapters=[],
        empty=NO_ADAPTERS,
        html_template='<div class="mixer"><div class="formula"></div><div class="mix-rows"></div></div>',
        js_on_load=(
            f"const LIMIT = {WEIGHT_LIMIT}, STEP = {WEIGHT_STEP};\n"
            f"{read_asset('components/mixer.js')}\n/* fires 'mix_change' */"
        ),
        apply_default_css=False,
        elem_id="mixer",
    )


def adapter_rows(engine: Engine) -> list[dict[str, Any]]:
    """The rows of all adapters. At first the newest task adapter and the domain adapter below it are on."""
    listed = engine.library.mixable_adapters()
    labels = label_adapters(listed)
    adapters = [{**asdict(a), "name": labels[a.id], "base": formatting.format_base(a.base)} for a in listed]
    suggested = engine.library.default_mixes()[-1].weights
    return [
        {
            **a,
            "gate": _find_gate(engine, a["id"], a["gate"]),
            "on": a["id"] in suggested,
            "weight": 1.0,
            "tilt": 0.0,
            "auto": "",
        }
        for a in adapters
    ]


def _find_gate(engine: Engine, adapter_id: str, gate: dict[str, Any]) -> dict[str, Any]:
    """The state of a gate, with the calibration in the background: whether it runs, and why it failed."""
    status = engine.calibration.status(adapter_id)
    if status is None or gate["usable"]:
        return {**gate, "running": bool(status and not status.has_ended)}
    problem = status.problem.rstrip(".")
    reason = f"it could not be calibrated: {problem}" if problem else gate["reason"]
    return {**gate, "reason": reason, "running": not status.has_ended}


def read_mix(rows: Any, names: dict[str, str] | None = None) -> Mix:
    """Reads a mix from the rows that the browser sent; `Mix` checks the weights and tilts.

    Args:
        rows: the mixer's value; anything that is not a row is ignored.
        names: the adapters' names by id, for the mix's own name, which is its formula.

    Raises:
        SpecError: a weight or a tilt is outside its limits, or a gate does not exist.
    """
    candidates = rows if isinstance(rows, list) else []
    active = [
        r for r in candidates if isinstance(r, dict) and isinstance(r.get("id"), str) and r.get("on") is True
    ]
    mix = Mix(
        weights={r["id"]: r.get("weight", 0.0) for r in active},
        tilt={r["id"]: r["tilt"] for r in active if r.get("tilt")},
        auto={r["id"]: r["auto"] for r in active if r.get("auto")},
    )
    return replace(mix, name=formatting.format_mix(mix, names or {})[:120])


def current_mix(engine: Engine, rows: Any) -> Mix | None:
    """The mixer's current mix, named with the adapters' names; None before the page has drawn the mixer."""
    return read_mix(rows, {a["id"]: a["name"] for a in adapter_rows(engine)}) if rows else None


def join_rows(rows: Any, adapters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that the mixer shows once its page has these adapters, as `rows` of `mixer.js` joins them.

    What follows from the library is computed with them: the page has not drawn its newest adapters yet.
    """
    set_by_user = {r["id"]: r for r in rows or () if isinstance(r, dict) and "id" in r}
    kept = ("on", "weight", "tilt", "auto")
    joined = [{**a, **{k: v for k, v in set_by_user.get(a["id"], {}).items() if k in kept}} for a in adapters]
    return [{**r, "on": r["fits"] and r["on"]} for r in joined]


def apply_mix(rows: Any, adapters: list[dict[str, Any]], mix: Mix) -> list[dict[str, Any]]:
    """Sets the rows to a mix. Adapters that are not part of it are switched off and keep their weights."""
    rows = rows if isinstance(rows, list) else []
    set_by_user = {r["id"]: r for r in rows if isinstance(r, dict) and "id" in r}
    on = mix.weights
    return [
        {
            **a,
            "on": a["id"] in on,
            "weight": on.get(a["id"], set_by_user.get(a["id"], a).get("weight", 1.0)),
            "tilt": mix.tilt.get(a["id"], 0.0),
            "auto": mix.auto.get(a["id"], ""),
        }
        for a in adapters
    ]


def live_gates(column: Any, labels: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """What the gates of an answer chose, for the rows of the mixer.

    Returns:
        adapter id -> its weight, and why, in words.
    """
    decisions = read_decisions(column.stamp)
    sentences = describe_decisions(decisions, labels)
    return {a: {"weight": d.weight, "text": sentences[a]} for a, d in decisions.items()}
