"""The Train tab: a form made from `TrainSpec`, and the live chart of one run.

`suggestions.py` decides what the form suggests. A value that the user changed stays, whatever is suggested
later; the others follow the dataset (`train_form.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from core.spec.presets import PRESETS, resolve
from core.spec.recommendation import CHOSEN
from core.spec.training import TrainSpec, describe_expert_training
from studio import events, fields, formatting, labels
from studio.components import field_errors, live
from studio.tabs import suggestions, train_form
from studio.tabs.suggestions import NO_PARENT, Suggestion
from studio.tabs.train_form import Filled
from studio.tree import Node, node, title, view

GROUPS: dict[str, tuple[str, ...]] = {
    "Run": ("epochs", "max_steps", "learning_rate", "batch_size", "accumulation", "max_length",
            "domain_dropout", "seed"),
    "Adapter": ("rank", "alpha", "dropout", "target_modules", "experts", "use_rslora", "use_dora",
                "initialisation"),
    "Data": ("packing", "overlap", "replay_share", "neftune_alpha", "continue_from"),
    "Optimizer": ("optimizer", "schedule", "warmup_ratio", "weight_decay", "lora_plus_ratio",
                  "gradient_checkpointing", "rules"),
    "Evaluation and checkpoints": ("eval_steps", "save_steps", "early_stopping", "keep", "sample_prompts",
                                   "report_to"),
}  # fmt: skip
ADVANCED = tuple(name for names in GROUPS.values() for name in names)
# The advanced settings that the memory estimate depends on.
MEMORY_FIELDS = ("batch_size", "max_length", "rank", "dropout", "optimizer", "gradient_checkpointing")


@dataclass(frozen=True)
class TrainTab:
    """The components of the Train tab."""

    kind: gr.Radio
    dataset: gr.Dropdown
    name: gr.Textbox
    preset: gr.Dropdown
    stack_on: gr.Dropdown
    advanced: fields.Fields
    advice: gr.HTML
    memory: gr.HTML
    start: gr.Button
    errors: field_errors.FieldErrors
    picker: gr.Dropdown
    live: gr.HTML
    suggestion: gr.JSON
    filled: gr.JSON

    @property
    def form(self) -> set[gr.components.Component]:
        """The components that a run is started from."""
        return {self.kind, self.dataset, self.name, self.preset, self.stack_on, *self.advanced.values()}


def build(engine: Engine) -> TrainTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            about = "A domain adapter is trained on plain text, a task adapter on labelled pairs."
            view(title("Train an adapter", about))
            kind = gr.Radio([("Domain", "domain"), ("Task", "task")], value="domain", label="Kind")
            dataset = fields.picker("Dataset")
            name = gr.Textbox(label="Name", max_length=120, placeholder="Name of the adapter")
            preset = gr.Dropdown(
                [(p.title, p.name) for p in PRESETS.values()],
                value="standard",
                label="Preset",
                info=PRESETS["standard"].help,
            )
            stack_on = fields.picker(
                "Train on top of",
                [NO_PARENT],
                "",
                info="The parent adapter stays frozen and active while the task adapter trains.",
                visible=False,
            )
            with gr.Accordion("Advanced settings", open=False, elem_classes="quiet-fold"):
                advanced: fields.Fields = {}
                for group, names in GROUPS.items():
                    with gr.Accordion(group, open=group == "Run", elem_classes="quiet-fold"):
                        advanced |= fields.build(TrainSpec, names)
            advice = view(None, elem_id="advice")
            memory = view(None)
            start = gr.Button("Start training", variant="primary", interactive=False, elem_id="start")
            form = {"kind": kind, "dataset": dataset, "name": name, "stack_on": stack_on, **advanced}
            errors = field_errors.field_errors(form)
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            picker = fields.picker("Run")
            chart = live.chart(engine)
    suggestion, filled = gr.JSON(list(Suggestion()), visible=False), gr.JSON(visible=False)
    return TrainTab(
        kind=kind,
        dataset=dataset,
        name=name,
        preset=preset,
        stack_on=stack_on,
        advanced=advanced,
        advice=advice,
        memory=memory,
        start=start,
        errors=errors,
        picker=picker,
        live=chart,
        suggestion=suggestion,
        filled=filled,
    )


def wire(
    tab: TrainTab, engine: Engine, library_changed: events.EventGroup, page: gr.Tab | None = None
) -> None:
    """Connects the events.

    Args:
        page: the tab that the form is on.
    """

    def refresh(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return refresh_form(engine, tab, values)

    def change_kind(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return refresh_form(engine, tab, values, new_kind=True)

    def check(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        try:
            settings = read_form(tab, values)
        except SpecError:  # a number field is empty while it is being edited
            return {}
        return {
            tab.start: update_start_button(engine, settings),
            tab.memory: render_memory(engine, values[tab.preset], settings),
            tab.advice: train_form.render_advice(engine, values[tab.preset], settings),
            experts: update_experts_info(engine, values[experts], values[tab.advanced["rank"]]),
        }

    def recheck(engine: Engine, values: dict[Any, Any]) -> None:
        settings = read_form(tab, values)
        engine.runs.check(resolve(values[tab.kind], values[tab.preset], settings))

    def change_preset(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        preset, kind = values[tab.preset], values[tab.kind]
        settings = form_settings(engine, kind, preset, values[tab.dataset])
        return {
            tab.preset: gr.update(info=PRESETS[preset].help),
            **{c: fields.to_component(settings[n]) for n, c in tab.advanced.items()},
            tab.filled: Filled(_to_components(tab, settings), Filled.read(values[tab.filled]).name),
        }

    def change_dataset(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return follow_dataset(engine, tab, values)

    def apply_advice(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        advised = suggestions.recommend(engine, values[tab.dataset], values[tab.preset]).settings
        updates = {tab.advanced[n]: fields.to_component(v) for n, v in advised.items()}
        last = Filled.read(values[tab.filled])
        return {**updates, tab.filled: Filled({**last.values, **advised}, last.name)}

    def start(engine: Engine, values: dict[Any, Any]) -> Any:
        settings = read_form(tab, values)
        if engine.bases.current().loading:  # the form was filled before the context length was known
            base = engine.bases.current(wait=True)
            settings["max_length"] = suggestions.limit_length(base, settings["max_length"])
        return start_run(engine, resolve(values[tab.kind], values[tab.preset], settings))

    experts = tab.advanced["experts"]
    advanced = list(tab.advanced.values())
    form = [tab.dataset, tab.name, tab.preset, tab.stack_on, *advanced]
    lists = [*form, tab.picker, tab.start, tab.suggestion, tab.filled]
    inputs = tab.form | {tab.picker, tab.suggestion, tab.filled}
    library_changed.add(refresh, inputs, [tab.kind, *lists], [tab.kind, tab.dataset, tab.preset])
    fills = [events.bind_fill(tab.kind.input, engine, change_kind, inputs, lists, keys=[tab.kind])]
    filled = tab.form | {tab.filled}
    for trigger, fn, filled_too, key in (
        (tab.preset.input, change_preset, [tab.preset], tab.preset),
        (tab.dataset.input, change_dataset, [tab.name], tab.dataset),
        (tab.advice.act, apply_advice, [], tab.dataset),
    ):
        targets = [*filled_too, *advanced, tab.filled]
        fills.append(events.bind_fill(trigger, engine, fn, filled, targets, keys=[key]))
    # One event for all that the user edits, so that the last response belongs to the last edit. What the
    # studio fills in is checked once, after it: each field fires a `change` of its own.
    names = dict.fromkeys((*MEMORY_FIELDS, *CHOSEN, "max_steps"))
    checked = (tab.name, tab.stack_on, *dict.fromkeys((experts, *(tab.advanced[n] for n in names))))
    outputs = [tab.start, tab.memory, tab.advice, experts]
    # One queue for both, so that a response to old values never arrives after one to new values.
    one_queue: dict[str, Any] = {"concurrency_id": "train-form", "concurrency_limit": 1}
    events.bind(
        events.any_of(c.input for c in checked),  # type: ignore[attr-defined]
        engine,
        check,
        tab.form,
        outputs,
        trigger_mode="always_last",
        **one_queue,
    )
    for event in fills:
        events.bind(event.then, engine, check, tab.form, outputs, trigger_mode="multiple", **one_queue)
    library_changed.then(check, tab.form, outputs, queue=one_queue["concurrency_id"])
    # Buttons on other tabs fill the form, too, and open its tab.
    if page is not None:
        events.bind(page.select, engine, check, tab.form, outputs, trigger_mode="multiple", **one_queue)
    started = events.bind(tab.start.click, engine, start, tab.form, [tab.picker], errors=tab.errors)
    events.refresh_after(started)
    field_errors.wire(tab.errors, engine, recheck, tab.form)
    events.bind(tab.picker.change, engine, watch_run, [tab.picker], [tab.live])


def update_experts_info(engine: Engine, experts: bool, rank: Any) -> Any:
    """Updates the info of the experts' checkbox: what training them costs, as soon as it is checked."""
    base = engine.bases.current()
    if not experts:
        info = next(f.metadata["help"] for f in dataclasses.fields(TrainSpec) if f.name == "experts")
    elif not base.expert_weights:
        info = f"The base {formatting.format_base(base.name)} has no experts."
    else:
        info = describe_expert_training(base.expert_weights, int(rank or 1), base.parameters)
    return gr.update(info=info)


def read_form(tab: TrainTab, values: dict[Any, Any]) -> dict[str, Any]:
    """The settings of the form, by name.

    Raises:
        SpecError: a number field is empty.
    """
    main = {
        "kind": values[tab.kind],
        "dataset": values[tab.dataset] or "",
        "name": values[tab.name] or "",
        "stack_on": values[tab.stack_on] or "",
    }
    if main["kind"] == "domain":
        main["stack_on"] = ""
    return {**main, **fields.read(TrainSpec, {n: values[c] for n, c in tab.advanced.items()})}


def fill_preset(
    engine: Engine, tab: TrainTab, values: dict[Any, Any], kind: str, preset: str, dataset: str | None
) -> dict[Any, Any]:
    """Updates that set the advanced fields to what is suggested, and record it as the last suggestion.

    A value that the user changed since the last suggestion stays.
    """
    last = Filled.read(values.get(tab.filled))
    settings = form_settings(engine, kind, preset, dataset)
    updates = {
        c: fields.to_component(settings[n])
        for n, c in tab.advanced.items()
        if not last.is_changed(n, values.get(c))
    }
    suggestion = Suggestion(engine.bases.current().fingerprint, preset, settings["max_length"])
    return {
        **updates,
        tab.suggestion: suggestion,
        tab.filled: Filled(_to_components(tab, settings), last.name),
    }


def form_settings(engine: Engine, kind: str, preset: str, dataset: str | None) -> dict[str, Any]:
    """The advanced settings that the form suggests: of the preset, within the context, as suits the data."""
    advice = suggestions.recommend(engine, dataset, preset).settings
    spec = resolve(kind, preset, {**suggestions.fit_preset(engine, kind, preset), **advice})
    return {n: getattr(spec, n) for n in ADVANCED}


def _to_components(tab: TrainTab, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as their components show them."""
    return {n: fields.to_component(settings[n]) for n in tab.advanced}


def follow_dataset(engine: Engine, tab: TrainTab, values: dict[Any, Any]) -> dict[Any, Any]:
    """Updates for a dataset that the user chose: the name and the settings that suit it.

    A name or a value that the user typed stays.
    """
    last = Filled.read(values.get(tab.filled))
    dataset = values[tab.dataset]
    settings = form_settings(engine, values[tab.kind], values[tab.preset], dataset)
    updates: dict[Any, Any] = {
        c: fields.to_component(settings[n])
        for n, c in tab.advanced.items()
        if not last.is_changed(n, values[c]) and fields.to_component(settings[n]) != values[c]
    }
    name = next((d.name for d in engine.datasets.list() if d.id == dataset), "")
    if name and values[tab.name] in ("", None, last.name):
        updates[tab.name] = name
    return {**updates, tab.filled: Filled(_to_components(tab, settings), name or last.name)}


def adapt_to_base(engine: Engine, tab: TrainTab, values: dict[Any, Any]) -> dict[Any, Any]:
    """Updates for a base that was loaded after the form was filled.

    An unchanged form gets the suggestion for the new base. In a changed form, only the sequence length is
    cut to the base's context.
    """
    base, last = engine.bases.current(), Suggestion(*values[tab.suggestion])
    try:
        settings = read_form(tab, values)
        preset = resolve(values[tab.kind], values[tab.preset], {})
        suggested = Filled.read(values.get(tab.filled))
    except SpecError:  # a number field is empty while it is being edited; starting the run reports it
        return {}
    is_changed = (
        values[tab.preset] != last.preset
        or settings["max_length"] != last.max_length
        or any(
            suggested.is_changed(n, values[c]) if suggested.values else settings[n] != getattr(preset, n)
            for n, c in tab.advanced.items()
            if n != "max_length"
        )
    )
    if is_changed:
        return {
            tab.advanced["max_length"]: suggestions.limit_length(base, settings["max_length"]),
            tab.suggestion: last._replace(fingerprint=base.fingerprint),
        }
    name = suggestions.suggest_preset(engine)
    return {
        tab.preset: gr.update(value=name, info=PRESETS[name].help),
        **fill_preset(engine, tab, values, values[tab.kind], name, values[tab.dataset]),
    }


def preset_values(engine: Engine, tab: TrainTab, kind: str, preset: str) -> dict[Any, Any]:
    """The values of the advanced fields in a preset."""
    spec = resolve(kind, preset, suggestions.fit_preset(engine, kind, preset))
    return {c: fields.to_component(getattr(spec, n)) for n, c in tab.advanced.items()}


def update_start_button(engine: Engine, settings: dict[str, Any]) -> Any:
    """Updates the start button: it names what is missing, and is enabled when nothing is."""
    problems = engine.runs.list_problems(settings)
    label = f"Start training {labels.shorten(str(settings.get('name') or ''))}".rstrip()
    return gr.update(value=problems[0] if problems else label, interactive=not problems)


def render_memory(engine: Engine, preset: str, settings: dict[str, Any]) -> Node | None:
    """The memory that the run would need, highlighted when the device has less.

    Where runs train in slices, the GPU time that it would need takes its place: the memory of this process is
    not that of the GPU.
    """
    spec = resolve(settings["kind"], preset, settings)
    if plan := engine.runs.plan_slices(spec):
        return node("p", plan.text, cls="quiet below")
    report = engine.runs.estimate_memory(spec)
    if report is None:
        return None
    return node("p", report.text, cls="quiet below" if report.fits else "note")


def refresh_form(
    engine: Engine, tab: TrainTab, values: dict[Any, Any], new_kind: bool = False
) -> dict[Any, Any]:
    """Updates of the form's lists and the run picker; valid choices stay.

    Args:
        new_kind: the user just changed the kind, so everything that depends on it is suggested again.
    """
    runs = engine.runs.list()
    out: dict[Any, Any] = {}
    kind = values[tab.kind]
    if not new_kind and _is_untouched(engine, tab, values):
        next_kind = _next_kind(engine, kind, runs)
        if new_kind := next_kind != kind:
            out[tab.kind] = kind = next_kind
    named = labels.label_datasets(engine.datasets.list())
    datasets = [(named.get(d.id, d.name), d.id) for d in suggestions.list_datasets(engine, kind)]
    parents = suggestions.list_parents(engine)
    hint = suggestions.suggest_run(engine, kind)
    dataset, name, parent = hint.dataset or None, hint.name, hint.stack_on
    last = Filled.read(values.get(tab.filled))
    if last.name and values[tab.name] not in ("", None, last.name):
        name = values[tab.name]  # typed by the user
    preset = suggestions.suggest_preset(engine)
    keep = values[tab.dataset] in [i for _, i in datasets] and not new_kind
    if keep:
        dataset, preset = values[tab.dataset], values[tab.preset]
        name = values[tab.name] or name
        parent = values[tab.stack_on] if values[tab.stack_on] in [i for _, i in parents] else parent
    if kind != "task":
        parent = ""
    info = "" if datasets else "No dataset of this kind yet. Import one in the Data tab."
    out[tab.dataset] = fields.update_choices(datasets, dataset, values[tab.dataset], info=info or None)
    if name != values[tab.name]:
        out[tab.name] = name
    out[tab.stack_on] = fields.update_choices(
        [*parents, NO_PARENT], parent, values[tab.stack_on], visible=kind == "task"
    )
    if preset != values[tab.preset]:
        out[tab.preset] = gr.update(value=preset, info=PRESETS[preset].help)
    out[tab.picker] = _update_picker(runs, values[tab.picker])
    if not keep:
        out.update(fill_preset(engine, tab, values, kind, preset, dataset))
        shown = out[tab.filled].values
        out[tab.filled] = Filled(shown, hint.name or last.name)
    elif engine.bases.current().fingerprint not in ("", values[tab.suggestion][0]):
        out.update(adapt_to_base(engine, tab, values))
    settings = {"kind": kind, "dataset": dataset or "", "name": name or "", "stack_on": parent}
    out[tab.start] = update_start_button(engine, settings)
    return out


def _is_untouched(engine: Engine, tab: TrainTab, values: dict[Any, Any]) -> bool:
    """Whether dataset and name are empty or as they were suggested."""
    hint = suggestions.suggest_run(engine, values[tab.kind])
    return values[tab.dataset] in (None, "", hint.dataset) and values[tab.name] in (None, "", hint.name)


def _next_kind(engine: Engine, kind: str, runs: Sequence[Any]) -> str:
    """The kind that an untouched form shows: the domain first, then the task."""
    kinds = {a.kind for a in engine.library.adapters()} | {r.kind for r in runs if r.status.is_alive}
    is_next = kind == "domain" and "domain" in kinds and "task" not in kinds
    return "task" if is_next and suggestions.list_datasets(engine, "task") else kind


def _update_picker(runs: Sequence[Any], picked: str | None) -> Any:
    ids = [r.id for r in runs]
    return fields.update_choices(
        run_choices(runs), picked if picked in ids else next(iter(ids), None), picked
    )


def run_choices(runs: Sequence[Any]) -> list[tuple[str, str]]:
    """Runs as the choices of a picker, newest first."""
    named = labels.label_runs(runs)
    return [(f"{named[r.id]} · {r.kind} · {formatting.format_status(r)}", r.id) for r in runs]


def start_run(engine: Engine, spec: TrainSpec) -> Any:
    """Starts a run and picks it in the run picker."""
    run_id = engine.runs.start(spec)
    return gr.update(choices=run_choices(engine.runs.list()), value=run_id)


def watch_run(engine: Engine, picked: str | None) -> str:
    """Shows the picked run in the live chart."""
    return picked or ""
