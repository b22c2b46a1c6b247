"""The Weight map pane of the analysis card: a map of two weights, and a search for the best weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.analysis import MAP_ROWS
from core.errors import SpecError
from core.spec.mix import Mix
from studio import events, fields
from studio.components import field_errors, mixer, plot
from studio.measured_data import list_datasets, list_whole_datasets
from studio.tabs import mix as mixing
from studio.tabs.analysis_session import AnalysisSession
from studio.tree import Node, empty, view
from studio.views import analysis as analysis_views
from studio.views import weight_map as views

METRICS = [("Perplexity", "perplexity"), ("Exact match", "exact_match")]
ROWS_LIMIT = 10_000  # of a map
NO_MAP = empty(
    "No map yet",
    "Choose two adapters and a dataset. Every point of the map is a mix; click one to set the mixer to it.",
)


@dataclass(frozen=True)
class WeightMapPane:
    """The components of the pane."""

    x: gr.Dropdown
    y: gr.Dropdown
    dataset: gr.Dropdown
    metric: gr.Radio
    rows: gr.Number
    draw: gr.Button
    search: gr.Button
    stop: gr.Button
    errors: field_errors.FieldErrors
    map: gr.HTML
    details: gr.HTML


def build() -> WeightMapPane:
    """Makes the components, inside a tab."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=3, min_width=250):
            with gr.Row():
                x = fields.picker("Horizontal axis", min_width=110)
                y = fields.picker("Vertical axis", min_width=110)
            dataset = fields.picker(
                "Dataset",
                info="Uses only rows that no adapter was trained on. A search is tested on separate rows.",
            )
            with gr.Row():
                metric = gr.Radio(METRICS, value="perplexity", label="Metric", min_width=140)
                rows = fields.number(
                    MAP_ROWS,
                    label="Rows",
                    info="0 means all.",
                    minimum=0,
                    maximum=ROWS_LIMIT,
                    precision=0,
                    min_width=90,
                )
            errors = field_errors.field_errors({"x": x, "y": y, "dataset": dataset, "rows": rows})
            with gr.Row(elem_classes="actions"):
                draw = gr.Button("Draw the map", variant="primary", min_width=120)
                search = gr.Button("Search for weights", min_width=130)
                stop_button = gr.Button("Stop", scale=0, min_width=70)
        with gr.Column(scale=6, min_width=320):
            chart = plot.plot("map")
            details = view(NO_MAP, elem_id="map-details")
    return WeightMapPane(x, y, dataset, metric, rows, draw, search, stop_button, errors, chart, details)


def wire(
    pane: WeightMapPane,
    engine: Engine,
    library_changed: events.EventGroup,
    mix_changed: events.EventGroup,
    mix: mixing.MixTab,
    session: gr.State,
) -> None:
    """Connects the events."""
    queueing: dict[str, Any] = {"concurrency_limit": 4, "trigger_mode": "multiple", "errors": pane.errors}
    field_errors.wire(pane.errors, engine)
    pickers = [pane.x, pane.y, pane.dataset]
    inputs = [*pickers, pane.rows, mix.mixer, session]
    outputs = [pane.map, pane.details]
    library_changed.add(refresh, pickers, pickers)
    events.bind(pane.draw.click, engine, draw_map, [*inputs, pane.metric], outputs, **queueing)
    events.bind(pane.search.click, engine, search_weights, inputs, outputs, **queueing)
    events.bind(pane.stop.click, engine, stop, [session], None)
    mix_changed.add(mark_mixer, [mix.mixer, session], [pane.map])
    for trigger in (pane.map.point_click, pane.details.act):
        events.bind(trigger, engine, pick_mix, [mix.mixer, session], [mix.mixer, pane.map]).success(
            events.handler(mixing.follow_mixer, engine),
            mix.answer_inputs,
            [mix.answer],
            show_progress="hidden",
            show_progress_on=events.find_progress_bearer(),
            api_visibility="private",
            concurrency_limit=8,
        )


def refresh(engine: Engine, x: str | None, y: str | None, dataset: str | None) -> tuple[Any, ...]:
    """Updates the lists of adapters and datasets.

    At first the newest domain and task adapter are picked, with the held-out questions or the training data.
    """
    adapters = [a for a in engine.library.mixable_adapters() if a.fits and not a.training and not a.alone]
    names = engine.library.labels()
    choices = [(names[a.id], a.id) for a in adapters]
    ids = [a.id for a in adapters]
    horizontal = _pick_axis(ids, x, _newest(adapters, "domain"))
    vertical = _pick_axis([i for i in ids if i != horizontal], y, _newest(adapters, "task"))
    datasets = list_datasets(engine)
    chosen = _pick_dataset(engine, [i for _, i in datasets], dataset, (vertical, horizontal))
    return (
        fields.update_choices(choices, horizontal, x),
        fields.update_choices(choices, vertical, y),
        fields.update_choices(datasets, chosen, dataset),
    )


def _newest(adapters: Sequence[Any], kind: str) -> str | None:
    return next((a.id for a in reversed(adapters) if a.kind == kind), None)


def _pick_axis(ids: Sequence[str], current: str | None, suggestion: str | None) -> str | None:
    """The current adapter if it can be picked, else the suggestion, else the first adapter."""
    if current in ids:
        return current
    return suggestion if suggestion in ids else next(iter(ids), None)


def _pick_dataset(
    engine: Engine, ids: Sequence[str], current: str | None, adapters: Sequence[str | None]
) -> str | None:
    """The current dataset if it exists, else data for evaluation, else training data, else the newest."""
    if current in ids:
        return current
    trained_on = (engine.library.adapter(a).dataset for a in adapters if a)
    suggestion = next(iter(list_whole_datasets(engine)), "") or next(trained_on, "")
    return suggestion if suggestion in ids else next(iter(ids), None)


def draw_map(
    engine: Engine,
    x: str | None,
    y: str | None,
    dataset: str | None,
    limit: int,
    rows: Any,
    session: AnalysisSession,
    metric: str,
) -> Iterator[tuple[Any, Any]]:
    """Measures the map; yields it as it grows."""
    around = _read_mix(x, y, dataset, limit, rows)
    names = _adapter_names(engine)
    session.search = None
    stream = engine.analysis.weight_map(str(x), str(y), str(dataset), int(limit or 0), around, metric)
    for part in session.follow("map", stream):
        session.map = part.map if part is not None else session.map
        is_running = part is not None and part.done < part.total
        details = analysis_views.render_progress(part) if is_running else _render_details(session, names)
        yield _plot_map(engine, session, rows), details


def search_weights(
    engine: Engine,
    x: str | None,
    y: str | None,
    dataset: str | None,
    limit: int,
    rows: Any,
    session: AnalysisSession,
) -> Iterator[tuple[Any, Any]]:
    """Searches the best weights of the two adapters and compares the search methods."""
    around = _read_mix(x, y, dataset, limit, rows)
    shown = session.map
    is_reusable = shown is not None and shown.adapters == (x, y) and shown.metric == "perplexity"
    known_map = shown if is_reusable else None
    stream = engine.analysis.search_weights(
        [str(x), str(y)], str(dataset), int(limit or 0), around, known_map
    )
    for part in session.follow("map", stream):
        if part is None:
            yield gr.skip(), empty("Stopped", "The search was stopped before it found weights.")
        elif part.comparison is None:
            yield gr.skip(), analysis_views.render_progress(part)
        else:
            session.search = part.comparison
            chart = _plot_map(engine, session, rows) if known_map else gr.skip()
            yield chart, _render_details(session, _adapter_names(engine))


def stop(engine: Engine, session: AnalysisSession) -> None:
    """Stops the current request. The measured part of a map stays, on the page and on disk."""
    session.stop()


def mark_mixer(engine: Engine, rows: Any, session: AnalysisSession) -> Any:
    """Moves the mixer's mark on the map."""
    return _plot_map(engine, session, rows) if session.map is not None else gr.skip()


def pick_mix(engine: Engine, rows: Any, session: AnalysisSession, event: gr.EventData) -> tuple[Any, Any]:
    """Sets the mixer to a clicked point of the map, or to the weights of a button below it."""
    data = event._data if isinstance(event._data, dict) else {}
    if "weights" in data:
        weights, tilt = data["weights"], data.get("tilt") or {}
    elif session.map is not None:
        x, y = session.map.adapters
        weights, tilt = {**session.map.fixed, x: data.get("x"), y: data.get("y")}, session.map.tilt
    else:
        return gr.skip(), gr.skip()
    changed_rows = mixer.apply_mix(rows, mixer.adapter_rows(engine), Mix(weights=weights, tilt=tilt))
    return changed_rows, mark_mixer(engine, changed_rows, session)


def _read_mix(x: str | None, y: str | None, dataset: str | None, limit: Any, rows: Any) -> Mix:
    """The mixer's mix, once adapters and dataset are chosen.

    Raises:
        SpecError: an adapter or the dataset is not chosen, or the number of rows is outside its limits.
    """
    if not x or not y:
        raise SpecError("A map needs two adapters.", "Train two, then choose one for each axis.").at(
            "x" if not x else "y"
        )
    if not dataset:
        raise SpecError("No dataset is chosen.", "Import one in the Data tab, then choose it here.").at(
            "dataset"
        )
    if not 0 <= (limit or 0) <= ROWS_LIMIT:
        raise SpecError(f"Rows must be between 0 and {ROWS_LIMIT:,}, got {limit}.", "0 means all.").at("rows")
    return mixer.read_mix(rows)


def _adapter_names(engine: Engine) -> dict[str, str]:
    return engine.library.labels()


def _plot_map(engine: Engine, session: AnalysisSession, rows: Any) -> Any:
    if session.map is None:
        return None
    mix = mixer.read_mix(rows)
    has_same_tilt = all(mix.tilt.get(a, 0.0) == session.map.tilt.get(a, 0.0) for a in mix.weights)
    current = mix.weights if has_same_tilt and not mix.auto else None  # a gate has no place on the map
    return views.plot_map(session.map, session.search, _adapter_names(engine), current)


def _render_details(session: AnalysisSession, names: dict[str, str]) -> Node:
    if session.map is None and session.search is None:
        return NO_MAP
    return views.render_details(session.map, session.search, names)
