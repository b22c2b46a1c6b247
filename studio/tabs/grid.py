"""The grid: which settings of the Train form are varied, and what came out of every combination.

Knows the builder, the picked grid and how a cell's settings go back into the Train form. Knows nothing
of how cells are trained.
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
from studio import events, fields
from studio.components import plot
from studio.tabs import suggestions, train
from studio.tree import Node, button, node, title, view
from studio.views import runs

AXES = 4  # settings that the page varies at once; the terminal has no such limit
OWN = ("My own", "")
NOTHING_VARIED = ("Nothing", "")


@dataclass(frozen=True)
class GridTab:
    """The components of the grid."""

    page: gr.Tab
    shared: gr.HTML
    name: gr.Textbox
    preset: gr.Dropdown
    fields: tuple[gr.Dropdown, ...]
    values: tuple[gr.Textbox, ...]
    told: gr.HTML
    start: gr.Button
    picker: gr.Dropdown
    results: gr.HTML
    chart: gr.HTML

    @property
    def form(self) -> set[gr.components.Component]:
        """What is varied."""
        return {self.name, *self.fields, *self.values}


def build(page: gr.Tab) -> GridTab:
    """Makes the components, inside the tab `page`."""
    choices = [NOTHING_VARIED, *[(label_of(f), n) for n, f in grids.FIELDS.items()]]
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(
                title(
                    "Grid",
                    "Every combination of the values is one run; all else is what the Train form says.",
                )
            )
            shared = view(elem_id="grid-shared")
            name = gr.Textbox(
                label="Grid name", max_length=80, placeholder="What the grid and its adapters are called"
            )
            preset = gr.Dropdown(
                [OWN, *[(p.capitalize(), p) for p in grids.GRID_PRESETS]], value="", label="Usual grids"
            )
            picked, typed = [], []
            for i in range(AXES):
                with gr.Row(elem_classes="axis"):
                    picked.append(
                        gr.Dropdown(choices, value="", label=f"Vary {i + 1}", min_width=130, scale=1)
                    )
                    typed.append(
                        gr.Textbox(label=f"Values {i + 1}", placeholder="16, 32", min_width=110, scale=1)
                    )
            told = view(elem_id="grid-told")
            start = gr.Button("Queue the grid", variant="primary", interactive=False, elem_id="grid-start")
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            picker = fields.picker("Results of")
            results = view(runs.NO_GRID, elem_id="grid-results")
            chart = plot.plot("parallel")
    return GridTab(
        page, shared, name, preset, tuple(picked), tuple(typed), told, start, picker, results, chart
    )


def wire(tab: GridTab, engine: Engine, library_changed: events.EventGroup, form: train.TrainTab, tabs: gr.Tabs) -> None:
    """Connects the events.

    Args:
        form: the Train form. tabs: the tabs of the whole studio.
    """

    def looked_over(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return checked(engine, tab, form, values)

    def begin(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return started(engine, tab, form, values)

    def use(engine: Engine, event: gr.EventData) -> dict[Any, Any]:
        return pressed(engine, tab, form, tabs, event)

    inputs = form.form | tab.form
    shown = [tab.shared, tab.told, tab.start]
    events.bind(
        tab.page.select, engine, looked_over, inputs, shown
    )  # the form may have changed while another tab was open
    library_changed.then(looked_over, inputs, shown)
    for control in (tab.name, *tab.fields, *tab.values):
        events.bind(control.change, engine, looked_over, inputs, shown)
    events.bind(tab.preset.input, engine, filled, [tab.preset], [*tab.fields, *tab.values])
    events.refresh_after(events.bind(tab.start.click, engine, begin, inputs, [tab.picker, tab.results, tab.chart]))
    library_changed.add(refresh, [tab.picker], [tab.picker, tab.results, tab.chart])
    events.bind(tab.picker.input, engine, opened, [tab.picker], [tab.results, tab.chart])
    taken = [tabs, tab.results, *form.form]
    events.refresh_after(events.bind(tab.results.act, engine, use, None, taken))


def axes_of(tab: GridTab, values: dict[Any, Any]) -> grids.Axes:
    """What is varied.

    Raises:
        SpecError: a setting twice, or values that cannot be.
    """
    found: grids.Axes = {}
    for field, typed in zip(tab.fields, tab.values, strict=True):
        if name := values[field]:
            if name in found:
                raise SpecError(
                    f"{label_of(grids.FIELDS[name])} is varied twice.", "Choose every setting once."
                )
            found[name] = grids.parse_axis(name, values[typed] or "")
    return found


def described(
    tab: GridTab, form: train.TrainTab, values: dict[Any, Any]
) -> tuple[TrainSpec, grids.Axes, str]:
    """What the grid asks for: the shared settings, the axes, the name.

    Raises:
        SpecError
    """
    name = (values[tab.name] or "").strip()
    asked = {**train.read_form(form, values), "name": name or "Grid"}
    return resolve(values[form.kind], values[form.preset], asked), axes_of(tab, values), name


def checked(engine: Engine, tab: GridTab, form: train.TrainTab, values: dict[Any, Any]) -> dict[Any, Any]:
    """How many cells there are and what they take, or what is still missing; the button starts only when nothing is."""
    out: dict[Any, Any] = {tab.shared: _shared(engine, train.read_form(form, values), values[form.preset])}
    try:
        spec, axes, name = described(tab, form, values)
        count = len(grids.make_cells(spec, axes, name))
        lacking = engine.runs.list_problems({**spec.to_json(), "name": name})
        seconds = engine.grids.estimate_seconds(spec, axes, engine.bases.current().name)
    except StudioError as e:
        return {
            **out,
            tab.told: node("p", str(e), cls="quiet"),
            tab.start: gr.update(value="Queue the grid", interactive=False),
        }
    told = runs.estimate(count, seconds)
    if lacking:
        text = "Give the grid a name." if lacking[0].startswith("Give the adapter") else lacking[0]
        return {**out, tab.told: told, tab.start: gr.update(value=text, interactive=False)}
    return {
        **out,
        tab.told: told,
        tab.start: gr.update(value=f"Queue {count} runs" if count > 1 else "Queue 1 run", interactive=True),
    }


def _shared(engine: Engine, asked: dict[str, Any], preset: str) -> Node:
    data = next((d.name for d in engine.datasets.list() if d.id == asked["dataset"]), "no dataset")
    below = next((f" on top of {a.name}" for a in engine.library.adapters() if a.id == asked["stack_on"]), "")
    text = f"All cells: {asked['kind']} run on {data}{below}, {preset} preset, as the Train form stands."
    return node("div", node("p", text), button("Change it", {"do": "tab", "tab": "train"}), cls="aside row")


def filled(engine: Engine, preset: str) -> tuple[Any, ...]:
    """The axes of a usual grid."""
    axes = list(grids.GRID_PRESETS.get(preset, {}).items())[:AXES]
    axes += [("", [])] * (AXES - len(axes))
    return (*[f for f, _ in axes], *[", ".join(grids.format_value(v) for v in values) for _, values in axes])


def started(engine: Engine, tab: GridTab, form: train.TrainTab, values: dict[Any, Any]) -> dict[Any, Any]:
    """Queues the grid and shows its table."""
    spec, axes, name = described(tab, form, values)
    made = engine.grids.start(spec, axes, name)
    results, chart = opened(engine, made.id)
    return {
        tab.picker: gr.update(choices=_choices(engine), value=made.id),
        tab.results: results,
        tab.chart: chart,
    }


def _choices(engine: Engine) -> list[tuple[str, str]]:
    return [(f"{g.name} · {len(g.runs)} cells", g.id) for g in engine.grids.list()]


def refresh(engine: Engine, picked: str | None) -> tuple[Any, Any, Any]:
    """The grids there are, and how the picked one stands; at first the newest."""
    choices = _choices(engine)
    ids = [i for _, i in choices]
    value = picked if picked in ids else next(iter(ids), None)
    return fields.update_choices(choices, value, picked), *opened(engine, value)


def opened(engine: Engine, picked: str | None) -> tuple[Any, Any]:
    """The table and the lines of a grid."""
    if not picked:
        return runs.NO_GRID, None
    found = engine.grids.results(picked)
    return runs.results(found), runs.parallel(found)


def pressed(
    engine: Engine, tab: GridTab, form: train.TrainTab, tabs: gr.Tabs, event: gr.EventData
) -> dict[Any, Any]:
    """What the buttons of the table do: take a cell's settings into the Train form, or cancel the rest."""
    said = event._data if isinstance(event._data, dict) else {}
    if said.get("do") == "rest":
        engine.grids.cancel_open_cells(str(said.get("grid", "")))
        return {tab.results: opened(engine, str(said.get("grid", "")))[0]}
    if said.get("do") != "use":
        return {tab.results: gr.skip()}
    cells, index = engine.grids.get(str(said.get("grid", ""))).cells, said.get("cell")
    if not isinstance(index, int) or not 0 <= index < len(cells):
        raise SpecError("The grid has no such cell.", "Choose one from its table.")
    return {tabs: gr.Tabs(selected="train"), **settings(engine, form, cells[index].spec)}


def settings(engine: Engine, form: train.TrainTab, spec: TrainSpec) -> dict[Any, Any]:
    """Updates that make the Train form ask for just this run."""
    lost = [label_of(f) for f in dataclasses.fields(TrainSpec) if f.name not in ("kind", "name", "dataset", "stack_on", *form.advanced)
            and getattr(spec, f.name) != fields.default_of(f)]  # fmt: skip
    if lost:
        gr.Warning(
            events.escape_markup(f"The form has no field for {', '.join(lost)}; set it in the terminal."),
            title="Not everything",
        )
    sets = [(d.name, d.id) for d in suggestions.list_datasets(engine, spec.kind)]
    below = [*suggestions.list_parents(engine), suggestions.NO_PARENT]
    return {
        form.kind: spec.kind,
        form.dataset: gr.update(choices=sets, value=spec.dataset),
        form.name: spec.name,
        form.preset: "standard",  # which changes no default, so that what is not on the form stays at its default
        form.stack_on: gr.update(choices=below, value=spec.stack_on, visible=spec.kind == "task"),
        **{c: fields.to_component(getattr(spec, n)) for n, c in form.advanced.items()},
    }
