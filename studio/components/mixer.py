"""The mixer: one component with a switch, a weight and a tilt for each adapter.

Python sets the property `adapters` (which exist), the browser sets `value` (what is on, and how much), so
neither overwrites the other. A row is `{"id", "on", "weight", "tilt", ...}`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.mix_names import label_adapters
from core.spec.mix import WEIGHT_LIMIT, WEIGHT_STEP, Mix
from studio import formatting
from studio.assets import read_asset
from studio.tree import button, empty

TILTS = {0.0: "", 1.0: " (deep)", -1.0: " (shallow)"}
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
    return [{**a, "on": a["id"] in suggested, "weight": 1.0, "tilt": 0.0} for a in adapters]


def read_mix(rows: Any, names: dict[str, str] | None = None) -> Mix:
    """Reads a mix from the rows that the browser sent; `Mix` checks the weights and tilts.

    Args:
        rows: the mixer's value; anything that is not a row is ignored.
        names: the adapters' names by id, for the mix's own name, which is its formula.

    Raises:
        SpecError: a weight or a tilt is outside its limits.
    """
    candidates = rows if isinstance(rows, list) else []
    active = [
        r for r in candidates if isinstance(r, dict) and isinstance(r.get("id"), str) and r.get("on") is True
    ]
    mix = Mix(
        weights={r["id"]: r.get("weight", 0.0) for r in active},
        tilt={r["id"]: r["tilt"] for r in active if r.get("tilt")},
    )
    labels = {i: (names or {}).get(i, i) + _tilt_label(mix.tilt.get(i, 0.0)) for i in mix.weights}
    return replace(
        mix,
        name=formatting.format_mix({labels[i]: w for i, w in mix.weights.items()})[:120],
    )


def _tilt_label(tilt: float) -> str:
    return TILTS.get(tilt, f" (@{tilt:g})")  # a link or the API may set any other tilt


def current_mix(engine: Engine, rows: Any) -> Mix | None:
    """The mixer's current mix, named with the adapters' names; None before the page has drawn the mixer."""
    return read_mix(rows, {a["id"]: a["name"] for a in adapter_rows(engine)}) if rows else None


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
        }
        for a in adapters
    ]
