"""The mixer: a switch and a weight for each adapter, as one component.

Knows how a row of the mixer becomes a weight of a mix. Knows nothing of what a mix does. Python says
which adapters exist (`adapters`), the browser says what is on (`value`), so neither overwrites the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from core.engine import Engine
from core.spec.mix import WEIGHT_LIMIT, WEIGHT_STEP, Mix
from studio import formatting
from studio.assets import read_asset
from studio.tree import button, empty

LEANS = {0.0: "", 1.0: " (deep)", -1.0: " (shallow)"}
NOTHING = empty(
    "No adapters yet",
    "A mix is the base model plus any adapters, each with a weight. Train one and it appears here, even while it learns.",
    button("Go to Train", {"do": "tab", "tab": "train"}, "primary"),
)


def mixer() -> gr.HTML:
    """The component; its event `mixed` fires an eighth of a second after the last move."""
    return gr.HTML(
        value=None,
        adapters=[],
        nothing=NOTHING,
        html_template='<div class="mixer"><div class="formula"></div><div class="mix-rows"></div></div>',
        js_on_load=f"const LIMIT = {WEIGHT_LIMIT}, STEP = {WEIGHT_STEP};\n{read_asset('components/mixer.js')}\n/* fires 'mix_change' */",
        apply_default_css=False,
        elem_id="mixer",
    )


def adapter_rows(engine: Engine) -> list[dict[str, Any]]:
    """The adapters that can be mixed, with where their rows start: the newest domain and task adapter are on."""
    found = [_plain(a) for a in engine.library.mixable_adapters()]
    first = {
        kind: next((a["id"] for a in reversed(found) if a["kind"] == kind and a["fits"]), None)
        for kind in ("domain", "task")
    }
    return [{**a, "on": a["id"] in first.values(), "weight": 1.0, "tilt": 0.0} for a in found]


def _plain(adapter: Any) -> dict[str, Any]:
    get = adapter.get if isinstance(adapter, dict) else lambda k, d=None: getattr(adapter, k, d)
    keys = ("id", "name", "kind", "rank", "base", "training", "fits", "why")
    return {**{k: get(k) for k in keys}, "base": formatting.format_base(get("base") or "")}


def read_mix(rows: Any, names: dict[str, str] | None = None) -> Mix:
    """The mixer's present state as a mix, named by its formula. What the browser sent is checked by `Mix` like everything else.

    Raises:
        SpecError: a weight or a tilt outside its limits.
    """
    good = (
        [r for r in rows if isinstance(r, dict) and isinstance(r.get("id"), str) and r.get("on") is True]
        if isinstance(rows, list)
        else []
    )
    mix = Mix(
        weights={r["id"]: r.get("weight", 0.0) for r in good},
        tilt={r["id"]: r["tilt"] for r in good if r.get("tilt")},
    )
    called = {i: (names or {}).get(i, i) for i in mix.weights}
    return replace(
        mix,
        name=formatting.format_mix({called[i] + _lean(mix.tilt.get(i, 0.0)): w for i, w in mix.weights.items()})[
            :120
        ],
    )


def _lean(tilt: float) -> str:
    return LEANS.get(tilt, f" (@{tilt:g})")  # a tilt between these comes by a link or the API


def current_mix(engine: Engine, rows: Any) -> Mix | None:
    """The mixer's present state with the adapters' names, or nothing while the mixer was never seen."""
    return read_mix(rows, {a["id"]: a["name"] for a in adapter_rows(engine)}) if rows else None


def apply_mix(rows: Any, adapters: list[dict[str, Any]], mix: Mix) -> list[dict[str, Any]]:
    """The mixer's rows set to a mix: what it does not name is switched off."""
    on = mix.weights
    set_by_user = (
        {r["id"]: r for r in rows if isinstance(r, dict) and "id" in r} if isinstance(rows, list) else {}
    )
    return [
        {
            **a,
            "on": a["id"] in on,
            "weight": on.get(a["id"], set_by_user.get(a["id"], a).get("weight", 1.0)),
            "tilt": mix.tilt.get(a["id"], 0.0),
        }
        for a in adapters
    ]
