"""The Grid pane of the Runs tab: varies settings of the Train form and shows the results of every run.

`core/engine/grids.py` queues the runs and reads their results.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError, StudioError
from core.spec.presets import resolve
from core.spec.settings import label_of
from core.spec.training import TrainSpec
from core.store import grids
from studio import events, fields, formatting
from studio.components import damaged, plot
from studio.tabs import suggestions, train
from studio.tree import Node, button, node, title, view
from studio.views import grid as views

AXES = 4  # settings that the page can vary at once; the terminal has no such limit
CUSTOM = ("Custom", "")
PRESET_SETTINGS = tuple(dict.fromkeys(n for p in grids.GRID_PRESETS.values() for n in p.settings))
NO_FIELD = ("None", "")


@dataclass(frozen=True)
class GridTab:
    """The components of the pane; `fields` and `values` are the axes."""

    page: gr.Tab
    common_settings: gr.HTML
    name: gr.Textbox
    preset: gr.Dropdown
    fields: tuple[gr.Dropdown, ...]
    values: tuple[gr.Textbox, ...]
    estimate: gr.HTML
    start: gr.Button
    picker: gr.Dropdown
    results: gr.HTML
    damaged: gr.HTML
    chart: gr.HTML

    @property
    def form(self) -> set[gr.components.Component]:
        """The components that a grid is started from, beside the Train form."""
        return {self.name, *self.fields, *self.values}


def build(page: gr.Tab) -> GridTab:
    """Makes the components, inside the tab `page`."""
    choices = [NO_FIELD, *[(label_of(f), n) for n, f in grids.FIELDS.items()]]
    presets = [CUSTOM, *[(p.capitalize(), p) for p in grids.GRID_PRESETS]]
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            about = "Every combination of the values is one run. All other settings come from the Train tab."
            view(title("Grid", about))
            common_settings = view(elem_id="grid-common-settings")
            name = gr.Textbox(
                label="Grid name", max_length=80, placeholder="Name of the grid and of its adapters"
            )
            preset = gr.Dropdown(presets, value="", label="Grid preset")
            axis_fields, axis_values = [], []
            for i in range(1, AXES + 1):
                with gr.Row(elem_classes="axis"):
                    axis_fields.append(
                        gr.Dropdown(choices, value="", label=f"Vary {i}", min_width=130, scale=1)
                    )
                    axis_values.append(
                        gr.Textbox(label=f"Values {i}", placeholder="16, 32", min_width=110, scale=1)
                    )
            estimate = view(elem_id="grid-estimate")
            start = gr.Button("Queue the grid", variant="primary", interactive=False, elem_id="grid-start")
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            picker = fields.picker("Show results of")
            results = view(views.NO_GRID, elem_id="grid-results")
            damaged_items = damaged.damaged_list("grids")
            chart = plot.plot("parallel")
    return GridTab(
        page,
        common_settings,
        name,
        preset,
        tuple(axis_fields),
        tuple(axis_values),
        estimate,
        start,
        picker,
        results,
        damaged_items,
        chart,
    )


def wire(
    tab: GridTab, engine: Engine, library_changed: events.EventGroup, form: train.TrainTab, tabs: gr.Tabs
) -> None:
    """Connects the events.

    Args:
        form: the Train form. tabs: the tabs of the whole studio.
    """

    def check(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return check_form(engine, tab, form, values)

    def start(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return start_grid(engine, tab, form, values)

    def act(engine: Engine, event: gr.EventData) -> dict[Any, Any]:
        return use_results(engine, tab, form, tabs, event)

    inputs = form.form | tab.form
    checked = [tab.common_settings, tab.estimate, tab.start]
    events.bind(tab.page.select, engine, check, inputs, checked)  # the Train form may have changed meanwhile
    library_changed.then(check, inputs, checked)
    for control in (tab.name, *tab.fields, *tab.values):
        events.bind(control.change, engine, check, inputs, checked)
    shared = [form.advanced[name] for name in PRESET_SETTINGS]
    filled = [tab.preset, *tab.fields, *tab.values, *shared]
    events.bind(tab.preset.input, engine, fill_preset, [tab.preset], filled)
    results = [tab.results, tab.chart]
    events.refresh_after(events.bind(tab.start.click, engine, start, inputs, [tab.picker, *results]))
    library_changed.add(refresh, [tab.picker], [tab.picker, *results])
    damaged.wire(tab.damaged, engine, library_changed, "grids")
    events.bind(tab.picker.input, engine, open_grid, [tab.picker], results)
    events.refresh_after(events.bind(tab.results.act, engine, act, None, [tabs, tab.results, *form.form]))


def read_axes(tab: GridTab, values: dict[Any, Any]) -> grids.Axes:
    """The settings that are varied, each with its values.

    Raises:
        SpecError: a setting is varied twice, or has values that cannot be parsed.
    """
    axes: grids.Axes = {}
    for field, text in zip(tab.fields, tab.values, strict=True):
        if name := values[field]:
            if name in axes:
                raise SpecError(
                    f"{label_of(grids.FIELDS[name])} is varied twice.", "Choose every setting once."
                )
            axes[name] = grids.parse_axis(name, values[text] or "")
    return axes


def read_form(
    tab: GridTab, form: train.TrainTab, values: dict[Any, Any]
) -> tuple[TrainSpec, grids.Axes, str]:
    """The grid that the two forms describe: the shared settings, the axes, the name.

    Raises:
        SpecError
    """
    name = (values[tab.name] or "").strip()
    settings = {**train.read_form(form, values), "name": name or "Grid"}
    return resolve(values[form.kind], values[form.preset], settings), read_axes(tab, values), name


def check_form(engine: Engine, tab: GridTab, form: train.TrainTab, values: dict[Any, Any]) -> dict[Any, Any]:
    """Shows the number of cells with an estimate, or what is missing; enables the button if nothing is."""
    common = _render_common_settings(engine, train.read_form(form, values), values[form.preset])
    try:
        spec, axes, name = read_form(tab, form, values)
        count = len(grids.make_cells(spec, axes, name))
        problems = engine.runs.list_problems({**spec.to_json(), "name": name})
        seconds = engine.grids.estimate_seconds(spec, axes, engine.bases.current().name)
    except StudioError as e:
        estimate = node("p", str(e), cls="quiet")
        text, is_ready = "Queue the grid", False
    else:
        estimate = views.render_estimate(count, seconds)
        text, is_ready = f"Queue {formatting.count(count, 'run')}", not problems
        if problems:
            # `spec` always has a name, so its problems lack the one that a name solves.
            needs_name = problems[0] not in engine.runs.list_problems(spec.to_json())
            text = "Give the grid a name." if needs_name else problems[0]
    start = gr.update(value=text, interactive=is_ready)
    return {tab.common_settings: common, tab.estimate: estimate, tab.start: start}


def _render_common_settings(engine: Engine, settings: dict[str, Any], preset: str) -> Node:
    dataset = next((d.name for d in engine.datasets.list() if d.id == settings["dataset"]), "no dataset")
    adapters = engine.library.adapters()
    parent = next((f" on top of {a.name}" for a in adapters if a.id == settings["stack_on"]), "")
    text = f"All cells: {settings['kind']} run on {dataset}{parent}, {preset} preset, set in the Train tab."
    link = button("Change", {"do": "tab", "tab": "train"})
    return node("div", node("p", text), link, cls="aside row")


def fill_preset(engine: Engine, preset: str) -> tuple[Any, ...]:
    """Fills the axes with those of a grid preset, and the Train form with what its cells share."""
    chosen = grids.GRID_PRESETS.get(preset, grids.GridPreset({}))
    axes = list(chosen.axes.items())[:AXES]
    axes += [("", [])] * (AXES - len(axes))
    texts = [", ".join(grids.format_value(v) for v in values) for _, values in axes]
    shared = [
        fields.to_component(chosen.settings[name]) if name in chosen.settings else gr.skip()
        for name in PRESET_SETTINGS
    ]
    return gr.update(info=chosen.help or None), *[name for name, _ in axes], *texts, *shared


def start_grid(engine: Engine, tab: GridTab, form: train.TrainTab, values: dict[Any, Any]) -> dict[Any, Any]:
    """Queues the grid and opens its results."""
    spec, axes, name = read_form(tab, form, values)
    grid = engine.grids.start(spec, axes, name)
    results, chart = open_grid(engine, grid.id)
    picker = gr.update(choices=_grid_choices(engine), value=grid.id)
    return {tab.picker: picker, tab.results: results, tab.chart: chart}


def _grid_choices(engine: Engine) -> list[tuple[str, str]]:
    return [(f"{g.name} · {formatting.count(len(g.runs), 'cell')}", g.id) for g in engine.grids.list()]


def refresh(engine: Engine, picked: str | None) -> tuple[Any, Any, Any]:
    """Updates the list of grids and the results of the picked one; at first the newest is picked."""
    choices = _grid_choices(engine)
    ids = [i for _, i in choices]
    value = picked if picked in ids else next(iter(ids), None)
    return fields.update_choices(choices, value, picked), *open_grid(engine, value)


def open_grid(engine: Engine, picked: str | None) -> tuple[Any, Any]:
    """Shows the table and the plot of a grid."""
    if not picked:
        return views.NO_GRID, None
    results = engine.grids.results(picked)
    return views.render_results(results, engine.library.labels()), views.plot_cells(results)


def use_results(
    engine: Engine, tab: GridTab, form: train.TrainTab, tabs: gr.Tabs, event: gr.EventData
) -> dict[Any, Any]:
    """Carries out a button of the table: fills the Train form with a cell, or cancels the queued runs."""
    data = event._data if isinstance(event._data, dict) else {}
    action, grid_id = data.get("do"), str(data.get("grid", ""))
    if action == "cancel_queued":
        engine.grids.cancel_open_cells(grid_id)
        return {tab.results: open_grid(engine, grid_id)[0]}
    if action != "use":
        return {tab.results: gr.skip()}
    cells, index = engine.grids.get(grid_id).cells, data.get("cell")
    if not isinstance(index, int) or not 0 <= index < len(cells):
        raise SpecError("The grid has no such cell.", "Choose one from its table.")
    return {tabs: gr.Tabs(selected="train"), **fill_train_form(engine, form, cells[index].spec)}


def fill_train_form(engine: Engine, form: train.TrainTab, spec: TrainSpec) -> dict[Any, Any]:
    """Updates that set the Train form to a run; warns about settings that the form has no field for."""
    on_form = {"kind", "name", "dataset", "stack_on", *form.advanced}
    lost = [
        label_of(f)
        for f in dataclasses.fields(TrainSpec)
        if f.name not in on_form and getattr(spec, f.name) != fields.default_of(f)
    ]
    if lost:
        text = f"The form has no field for {', '.join(lost)}; set it in the terminal."
        gr.Warning(events.escape_markup(text), title="Some settings are left out")
    datasets = [(d.name, d.id) for d in suggestions.list_datasets(engine, spec.kind)]
    parents = [*suggestions.list_parents(engine), suggestions.NO_PARENT]
    return {
        form.kind: spec.kind,
        form.dataset: gr.update(choices=datasets, value=spec.dataset),
        form.name: spec.name,
        form.preset: "standard",  # it changes no default, so settings that are not on the form keep theirs
        form.stack_on: gr.update(choices=parents, value=spec.stack_on, visible=spec.kind == "task"),
        **{c: fields.to_component(getattr(spec, n)) for n, c in form.advanced.items()},
    }
