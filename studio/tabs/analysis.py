"""The analysis card of the Mix tab: the weight map, attribution, interference and baking of the mixer's mix.

The weight map has a module of its own, `weight_map.py`. `core/analyze` and `core/merge` compute the results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from core.merge.methods import METHODS, BakeSpec
from studio import events, fields
from studio.components import field_errors, mixer, plot
from studio.session import SAMPLING, read_sampling
from studio.tabs import mix as mixing
from studio.tabs import weight_map
from studio.tabs.analysis_session import AnalysisSession
from studio.tree import Node, empty, title, view
from studio.views import analysis as views

BAKE_FIELDS = ("name", "method", "rank", "density")
NO_ATTRIBUTION = empty(
    "No explanation yet",
    "The mix answers the prompt above, and every token shows which adapter made it more likely.",
)
NO_OVERLAP = empty(
    "No comparison yet",
    "Switch on two adapters. Their weight updates are compared layer by layer, and on the prompt above.",
)
NO_BAKE = empty(
    "Nothing baked yet",
    "Baking merges the mixer's mix into one ordinary adapter, which is checked against the live mix.",
)
ATTRIBUTION_STOPPED = empty("Stopped", "The answer was not explained.")
OVERLAP_STOPPED = empty("Stopped", "The adapters were not compared.")
BAKE_STOPPED = empty("Stopped", "No adapter was baked, and no files were left behind.")


@dataclass(frozen=True)
class AnalysisTab:
    """The components of the card."""

    weight_map: weight_map.WeightMapPane
    explain: gr.Button
    attribution: gr.HTML
    compare: gr.Button
    cosines: gr.HTML
    overlap: gr.HTML
    spec: fields.Fields
    errors: field_errors.FieldErrors
    bake: gr.Button
    bake_result: gr.HTML
    session: gr.State


def build() -> AnalysisTab:
    """Makes the components."""
    with gr.Column(elem_classes="card", elem_id="analysis"):
        view(title("Analyze this mix", "All four tools use the mix that is set in the mixer above."))
        with gr.Tabs():
            with gr.Tab("Weight map"):
                pane = weight_map.build()
            with gr.Tab("Attribution"):
                explain = gr.Button("Explain the answer", variant="primary", scale=0, min_width=170)
                attribution = view(NO_ATTRIBUTION, elem_id="attribution")
            with gr.Tab("Interference"):
                compare = gr.Button("Compare the adapters", variant="primary", scale=0, min_width=170)
                overlap = view(NO_OVERLAP, elem_id="overlap")
                cosines = plot.plot("cosines")
            with gr.Tab("Bake"), gr.Row(elem_classes="panes"):
                with gr.Column(scale=3, min_width=250):
                    methods = [(m.label, m.name) for m in METHODS.values()]
                    spec = fields.build(BakeSpec, BAKE_FIELDS, choices={"method": methods})
                    errors = field_errors.field_errors(spec)
                    bake = gr.Button("Bake this mix", variant="primary")
                with gr.Column(scale=6, min_width=320):
                    bake_result = view(NO_BAKE, elem_id="bake-result")
    session = gr.State(AnalysisSession(), delete_callback=AnalysisSession.stop)
    return AnalysisTab(
        pane, explain, attribution, compare, cosines, overlap, spec, errors, bake, bake_result, session
    )


def wire(
    tab: AnalysisTab,
    engine: Engine,
    library_changed: events.EventGroup,
    mix_changed: events.EventGroup,
    mix: mixing.MixTab,
) -> None:
    """Connects the events."""
    queueing: dict[str, Any] = {"concurrency_limit": 4, "trigger_mode": "multiple"}
    weight_map.wire(tab.weight_map, engine, library_changed, mix_changed, mix, tab.session)
    inputs = [mix.composer.prompt, mix.mixer, tab.session]
    sampling = [mix.composer.continue_text, *mix.sampling.values(), mix.asked]
    events.bind(
        tab.explain.click, engine, explain_answer, [*inputs, *sampling], [tab.attribution], **queueing
    )
    inputs = [*inputs, mix.asked]
    events.bind(tab.compare.click, engine, compare_adapters, inputs, [tab.overlap, tab.cosines], **queueing)
    method = tab.spec["method"]
    events.bind(method.change, engine, show_method_help, [method], [method])  # type: ignore[attr-defined]
    form = [mix.mixer, tab.session, *tab.spec.values()]
    events.refresh_after(
        events.bind(tab.bake.click, engine, bake_mix, form, [tab.bake_result], errors=tab.errors, **queueing)
    )
    field_errors.wire(tab.errors, engine, check_bake, list(tab.spec.values()))


def explain_answer(
    engine: Engine, prompt: str, rows: Any, session: AnalysisSession, continue_text: bool, *settings: Any
) -> Iterator[Node]:
    """Attributes the mix's answer to its adapters, token by token.

    Args:
        settings: the sampling settings, and optionally the prompt that was asked last, which is used where
            the field is empty.
    """
    sampling, asked = settings[: len(SAMPLING)], (*settings[len(SAMPLING) :], "")[0]
    prompt = prompt if prompt.strip() else str(asked or "")
    if not prompt.strip():
        raise SpecError("The prompt is empty.", "Write a prompt first.")
    mix, how = mixer.read_mix(rows), read_sampling(sampling)
    stream = engine.analysis.attribution(prompt, mix, sampling=how, chat=not continue_text)
    for part in session.follow("attribution", stream):
        if part is None:
            yield ATTRIBUTION_STOPPED
        elif part.attribution is None:
            yield views.render_progress(part)
        else:
            names = engine.library.labels()
            adapters = {a.id: (names[a.id], a.kind) for a in engine.library.mixable_adapters()}
            yield views.render_attribution(part.attribution, adapters)


def compare_adapters(
    engine: Engine, prompt: str, rows: Any, session: AnalysisSession, asked: str = ""
) -> Iterator[tuple[Any, Any]]:
    """Compares the mix's adapters by their weights, and on the prompt, or on the one that was asked last."""
    stream = engine.analysis.interference(mixer.read_mix(rows), [prompt or asked or ""])
    for part in session.follow("overlap", stream):
        if part is None:
            yield OVERLAP_STOPPED, gr.skip()
        elif part.done < part.total or not part.pairs:
            yield views.render_progress(part), gr.skip()
        else:
            yield views.render_overlap(part), views.plot_cosines(part)


def show_method_help(engine: Engine, method: str) -> Any:
    """Shows what the chosen bake method does."""
    return gr.update(info=METHODS[method].help)


def check_bake(engine: Engine, *values: Any) -> BakeSpec:
    """Reads the form of a bake. Raises SpecError."""
    return BakeSpec(**fields.read(BakeSpec, dict(zip(BAKE_FIELDS, values, strict=True))))


def bake_mix(engine: Engine, rows: Any, session: AnalysisSession, *values: Any) -> Iterator[Node]:
    """Bakes the mixer's mix into an adapter of the library."""
    spec = check_bake(engine, *values)
    for part in session.follow("bake", engine.library.bake(mixer.read_mix(rows), spec)):
        if part is None:
            yield BAKE_STOPPED
        elif hasattr(part, "adapter"):
            yield views.render_bake_result(part)
        else:
            yield views.render_progress(part)
