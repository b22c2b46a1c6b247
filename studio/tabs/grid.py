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
from core.spec.access import Role
from core.spec.experiment import OFF, ON
from core.spec.grid_questions import GridQuestions
from core.spec.presets import resolve
from core.spec.settings import label_of
from core.spec.training import TrainSpec
from core.store import grids
from studio import events, fields, formatting, measured_data
from studio.components import damaged, plot
from studio.tabs import suggestions, train
from studio.tabs.experiments import list_choices
from studio.tree import Node, button, node, title, view
from studio.views import grid as views

AXES = 4  # settings that the page can vary at once; the terminal has no such limit
CUSTOM = ("Custom", "")
PRESET_SETTINGS = tuple(dict.fromkeys(n for p in grids.GRID_PRESETS.values() for n in p.settings))
NO_FIELD = ("None", "")
NO_QUESTIONS = ("Nothing", "")
QUESTIONS_INFO = (
    "Once the last run has ended, one experiment asks the base, the base with documents, and every "
    "adapter of the grid."
)


@dataclass(frozen=True)
class GridTab:
    """The components of the pane; `fields` and `values` are the axes.

    Attributes:
        questions: the dataset of the experiment that the grid ends in.
        with_documents: whether its adapters also answer with documents.
    """

    page: gr.Tab
    common_settings: gr.HTML
    name: gr.Textbox
    preset: gr.Dropdown
    fields: tuple[gr.Dropdown, ...]
    values: tuple[gr.Textbox, ...]
    questions: gr.Dropdown
    with_documents: gr.Checkbox
    estimate: gr.HTML
    start: gr.Button
    picker: gr.Dropdown
    results: gr.HTML
    damaged: gr.HTML
    chart: gr.HTML

    @property
    def form(self) -> set[gr.components.Component]:
        """The components that a grid is started from, beside the Train form."""
        return {self.name, *self.fields, *self.values, self.questions, self.with_documents}


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
            questions = fields.picker(
                "Then ask these questions", [NO_QUESTIONS], "", info=QUESTIONS_INFO, elem_id="grid-questions"
            )
            with_documents = gr.Checkbox(
                False,
                label="Every adapter also answers with documents",
                info="Doubles the rows of the experiment.",
                elem_id="grid-with-documents",
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
        questions,
        with_documents,
        estimate,
        start,
        picker,
        results,
        damaged_items,
        chart,
    )


def wire(
    tab: GridTab,
    engine: Engine,
    library_changed: events.EventGroup,
    form: train.TrainTab,
    tabs: gr.Tabs,
    experiments: gr.Dropdown,
) -> None:
    """Connects the events.

    Args:
        form: the Train form. tabs: the tabs of the whole studio.
        experiments: the picker of experiments, on the Evaluate tab.
    """

    def check(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return check_form(engine, tab, form, values)

    def start(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return start_grid(engine, tab, form, values)

    def act(engine: Engine, event: gr.EventData) -> dict[Any, Any]:
        if isinstance(event._data, dict) and event._data.get("do") == "experiment":
            return open_experiment(engine, tabs, experiments, str(event._data.get("grid", "")))
        events.require_role(Role.TRAINER)
        return use_results(engine, tab, form, tabs, event)

    inputs = form.form | tab.form
    checked = [tab.common_settings, tab.estimate, tab.start]
    events.bind(tab.page.select, engine, check, inputs, checked)  # the Train form may have changed meanwhile
    library_changed.then(check, inputs, checked)
    for control in (tab.name, *tab.fields, *tab.values, tab.questions, tab.with_documents):
        events.bind(control.change, engine, check, inputs, checked)
    shared = [form.advanced[name] for name in PRESET_SETTINGS]
    filled = [tab.preset, *tab.fields, *tab.values, tab.questions, tab.with_documents, *shared]
    chosen = [tab.preset, tab.questions]
    events.bind_fill(tab.preset.input, engine, fill_preset, chosen, filled, filled, [tab.preset])
    results = [tab.results, tab.chart]
    events.refresh_after(events.bind(tab.start.click, engine, start, inputs, [tab.picker, *results]))
    lists = [tab.picker, tab.questions]
    library_changed.add(refresh, lists, [*lists, *results], [tab.picker])
    damaged.wire(tab.damaged, engine, library_changed, "grids")
    events.bind(tab.picker.input, engine, open_grid, [tab.picker], results)
    acted = [tabs, experiments, tab.results, *form.form]
    events.refresh_after(events.bind(tab.results.act, engine, act, None, acted))


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


def read_questions(engine: Engine, tab: GridTab, values: dict[Any, Any]) -> GridQuestions | None:
    """The questions of the experiment that the grid ends in; None without any."""
    dataset = values[tab.questions]
    if not dataset:
        return None
    split = "all" if dataset in measured_data.list_whole_datasets(engine) else "test"
    documents = ON if values[tab.with_documents] else OFF
    return GridQuestions(dataset=dataset, split=split, documents=documents)


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
        if questions := read_questions(engine, tab, values):
            engine.grids.experiments.check(questions, count)
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


def fill_preset(engine: Engine, preset: str, questions: str | None) -> tuple[Any, ...]:
    """Fills the axes with those of a grid preset, and the Train form with what its cells share.

    A preset that is meant to end in an experiment takes the first dataset for evaluation, unless questions
    are chosen.
    """
    chosen = grids.GRID_PRESETS.get(preset, grids.GridPreset({}))
    axes = list(chosen.axes.items())[:AXES]
    axes += [("", [])] * (AXES - len(axes))
    texts = [", ".join(grids.format_value(v) for v in values) for _, values in axes]
    shared = [
        fields.to_component(chosen.settings[name]) if name in chosen.settings else gr.skip()
        for name in PRESET_SETTINGS
    ]
    ending = [gr.skip(), gr.skip()]
    if chosen.documents:
        whole = set(measured_data.list_whole_datasets(engine))
        first = next((i for _, i in _question_choices(engine) if i in whole), "")
        ending = [gr.skip() if questions else first, bool(engine.retrieval.list_documents())]
    return gr.update(info=chosen.help or None), *[name for name, _ in axes], *texts, *ending, *shared


def start_grid(engine: Engine, tab: GridTab, form: train.TrainTab, values: dict[Any, Any]) -> dict[Any, Any]:
    """Queues the grid and opens its results."""
    spec, axes, name = read_form(tab, form, values)
    grid = engine.grids.start(spec, axes, name, read_questions(engine, tab, values))
    results, chart = open_grid(engine, grid.id)
    picker = gr.update(choices=_grid_choices(engine), value=grid.id)
    return {tab.picker: picker, tab.results: results, tab.chart: chart}


def _grid_choices(engine: Engine) -> list[tuple[str, str]]:
    return [(f"{g.name} · {formatting.count(len(g.runs), 'cell')}", g.id) for g in engine.grids.list()]


def _question_choices(engine: Engine) -> list[tuple[str, str]]:
    tasks = {d.id for d in engine.datasets.list() if d.kind == "task"}
    return [choice for choice in measured_data.list_datasets(engine) if choice[1] in tasks]


def refresh(engine: Engine, picked: str | None, questions: str | None) -> tuple[Any, ...]:
    """Updates the lists of grids and of questions, and the results of the picked grid; at first the newest
    is picked.
    """
    choices = _grid_choices(engine)
    ids = [i for _, i in choices]
    value = picked if picked in ids else next(iter(ids), None)
    asked = [NO_QUESTIONS, *_question_choices(engine)]
    chosen = questions if questions in {i for _, i in asked} else ""
    return (
        fields.update_choices(choices, value, picked),
        fields.update_choices(asked, chosen, questions),
        *open_grid(engine, value),
    )


def open_grid(engine: Engine, picked: str | None) -> tuple[Any, Any]:
    """Shows the table and the plot of a grid."""
    if not picked:
        return views.NO_GRID, None
    results = engine.grids.results(picked)
    ending = views.render_experiment(results.grid, _name_experiment(engine, results.grid))
    return views.render_results(results, engine.library.labels(), ending), views.plot_cells(results)


def _name_experiment(engine: Engine, grid: grids.Grid) -> str:
    """The name of the experiment that a grid ended in; "" where it was deleted, or has not been started."""
    try:
        return engine.experiments.get(grid.follow_up.experiment).name if grid.follow_up else ""
    except StudioError:
        return ""


def open_experiment(engine: Engine, tabs: gr.Tabs, experiments: gr.Dropdown, grid_id: str) -> dict[Any, Any]:
    """Opens the experiment that a grid ended in, on the Evaluate tab.

    Raises:
        NotFound: it was deleted, or has not been started.
    """
    follow_up = engine.grids.get(grid_id).follow_up
    found = engine.experiments.get(follow_up.experiment if follow_up else "")
    picked = gr.update(choices=list_choices(engine), value=found.id)
    return {tabs: gr.Tabs(selected="evaluate"), experiments: picked}


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
