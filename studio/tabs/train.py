"""The Train tab: a form made from the spec, and the live chart of one run.

Knows the form and which run is watched. Knows nothing of how training works.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from core.spec.presets import PRESETS, resolve
from core.spec.training import TrainSpec, describe_expert_training
from studio import events, fields, formatting, samples
from studio.components import live
from studio.tree import Node, node, title, view

GROUPS: dict[str, tuple[str, ...]] = {
    "Run": (
        "epochs",
        "max_steps",
        "learning_rate",
        "batch_size",
        "accumulation",
        "max_length",
        "domain_dropout",
        "seed",
    ),
    "Adapter": (
        "rank",
        "alpha",
        "dropout",
        "target_modules",
        "experts",
        "use_rslora",
        "use_dora",
        "initialisation",
    ),
    "Data": ("packing", "overlap", "replay_share", "neftune_alpha"),
    "Optimiser": (
        "optimizer",
        "schedule",
        "warmup_ratio",
        "weight_decay",
        "lora_plus_ratio",
        "gradient_checkpointing",
    ),
    "Checks": ("eval_steps", "save_steps", "early_stopping", "keep", "sample_prompts", "report_to"),
}
ADVANCED = tuple(name for names in GROUPS.values() for name in names)
WEIGHTY = (
    "batch_size",
    "max_length",
    "rank",
    "dropout",
    "optimizer",
    "gradient_checkpointing",
)  # what a run's memory follows from
ALONE = ("Nothing: straight on the base model", "")


@dataclass(frozen=True)
class TrainTab:
    """The components of the Train tab."""

    kind: gr.Radio
    dataset: gr.Dropdown
    name: gr.Textbox
    preset: gr.Dropdown
    stack_on: gr.Dropdown
    advanced: fields.Fields
    need: gr.HTML
    start: gr.Button
    picker: gr.Dropdown
    live: gr.HTML
    suits: gr.State  # what was suggested last: (fingerprint of the base it was for, preset, max length)

    @property
    def form(self) -> set[gr.components.Component]:
        """Everything a run is started from."""
        return {self.kind, self.dataset, self.name, self.preset, self.stack_on, *self.advanced.values()}


def build(engine: Engine) -> TrainTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(title("Train an adapter", "Domain learns from plain text; task learns from labelled pairs."))
            kind = gr.Radio([("Domain", "domain"), ("Task", "task")], value="domain", label="Kind")
            dataset = fields.picker("Dataset")
            name = gr.Textbox(label="Name", max_length=120, placeholder="What the adapter is called")
            preset = gr.Dropdown(
                [(p.title, p.name) for p in PRESETS.values()],
                value="standard",
                label="Preset",
                info=PRESETS["standard"].help,
            )
            stack_on = fields.picker(
                "Train on top of",
                [ALONE],
                "",
                info="It stays frozen and active, so that the two work together.",
                visible=False,
            )
            with gr.Accordion("Advanced settings", open=False, elem_classes="quiet-fold"):
                advanced: fields.Fields = {}
                for group, names in GROUPS.items():
                    with gr.Accordion(group, open=group == "Run", elem_classes="quiet-fold"):
                        advanced |= fields.build(TrainSpec, names)
            need = view(None)
            start = gr.Button("Start training", variant="primary", interactive=False, elem_id="start")
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            picker = fields.picker("Run")
            chart = live.chart(engine)
    return TrainTab(
        kind, dataset, name, preset, stack_on, advanced, need, start, picker, chart, gr.State(("", "", 0))
    )


def wire(tab: TrainTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""

    def refresh(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return refreshed(engine, tab, values)

    def chosen(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        return refreshed(engine, tab, values, anew=True)

    def looked_over(engine: Engine, values: dict[Any, Any]) -> dict[Any, Any]:
        asked = asked_for(tab, values)
        hint = experts_hint(engine, values[experts], values[tab.advanced["rank"]])
        return {
            tab.start: start_button(engine, asked),
            tab.need: need(engine, values[tab.preset], asked),
            experts: hint,
        }

    def refilled(engine: Engine, kind: str, preset: str) -> dict[Any, Any]:
        return {tab.preset: gr.update(info=PRESETS[preset].help), **preset_values(engine, tab, kind, preset)}

    def begin(engine: Engine, values: dict[Any, Any]) -> Any:
        asked = asked_for(tab, values)
        if engine.bases.current().loading:  # nothing on the page could know what this base reads
            asked["max_length"] = readable(engine.bases.current(wait=True), asked["max_length"])
        return started(engine, resolve(values[tab.kind], values[tab.preset], asked))

    experts = tab.advanced["experts"]
    lists = [
        tab.dataset,
        tab.name,
        tab.preset,
        tab.stack_on,
        tab.picker,
        tab.start,
        tab.suits,
        *tab.advanced.values(),
    ]
    seen = tab.form | {tab.picker, tab.suits}
    library_changed.add(refresh, seen, [tab.kind, *lists])
    events.bind(tab.kind.input, engine, chosen, seen, lists)
    events.bind(
        tab.preset.input, engine, refilled, [tab.kind, tab.preset], [tab.preset, *tab.advanced.values()]
    )
    # One event for all of them, so that the answer to the last change is the last answer.
    decisive = events.any_of(
        c.change for c in (tab.dataset, tab.name, tab.stack_on, experts, *(tab.advanced[n] for n in WEIGHTY))
    )  # type: ignore[attr-defined]
    events.bind(
        decisive, engine, looked_over, tab.form, [tab.start, tab.need, experts], trigger_mode="always_last"
    )
    events.refresh_after(events.bind(tab.start.click, engine, begin, tab.form, [tab.picker]))
    events.bind(tab.picker.change, engine, watched, [tab.picker], [tab.live])


def experts_hint(engine: Engine, experts: bool, rank: Any) -> Any:
    """Beside the experts' switch: what they cost and cannot do, as soon as it is on."""
    base = engine.bases.current()
    said = (
        f"The base {formatting.format_base(base.name)} has no experts."
        if not base.expert_weights
        else describe_expert_training(base.expert_weights, int(rank or 1), base.parameters)
    )
    return gr.update(
        info=said
        if experts
        else next(f.metadata["help"] for f in dataclasses.fields(TrainSpec) if f.name == "experts")
    )


def asked_for(tab: TrainTab, values: dict[Any, Any]) -> dict[str, Any]:
    """The settings that the form asks for, by name."""
    main = {
        "kind": values[tab.kind],
        "dataset": values[tab.dataset] or "",
        "name": values[tab.name] or "",
        "stack_on": values[tab.stack_on] or "",
    }
    if main["kind"] == "domain":
        main["stack_on"] = ""
    return {**main, **fields.read(TrainSpec, {n: values[c] for n, c in tab.advanced.items()})}


def suggested(engine: Engine, kind: str) -> TrainSpec:
    """What a visitor most likely wants to train next: the newest dataset of that kind, a task on top of the newest domain."""
    dataset = next(iter(of_kind(engine, kind)), None)
    below = below_choices(engine) if kind == "task" else []
    changes = {
        "dataset": dataset.id if dataset else "",
        "name": dataset.name if dataset else "",
        "stack_on": below[0][1] if below else "",
    }
    return resolve(kind, usual_preset(engine), {**changes, **fitted(engine, kind, usual_preset(engine))})


def fitted(engine: Engine, kind: str, preset: str) -> dict[str, Any]:
    """What of a preset must change for the resident base: no sequence is longer than what the base reads."""
    return {"max_length": readable(engine.bases.current(), resolve(kind, preset, {}).max_length)}


def readable(base: Any, length: int) -> int:
    """A max length, no longer than what a base reads where that is known."""
    return min(length, base.context) if base.context else length


def of_kind(engine: Engine, kind: str) -> list[Any]:
    """Datasets of a kind, newest first; the sample's held-out questions last, since they are for measuring."""
    held_out = samples.find_held_out(engine)
    return sorted((d for d in reversed(engine.datasets.list()) if d.kind == kind), key=lambda d: d.id == held_out)


def usual_preset(engine: Engine) -> str:
    """The preset that was made for the resident base or its family."""
    base = engine.bases.current()
    made_for = next((p.name for p in PRESETS.values() if p.family and p.family == base.family), "standard")
    return "embedded" if base.name == "embedded" else made_for


def below_choices(engine: Engine) -> list[tuple[str, str]]:
    """Domain adapters a task can be trained on top of, newest first; one that is still learning counts, its run comes first."""
    here = engine.bases.current().fingerprint
    ready = [
        (a.name, a.id)
        for a in engine.library.adapters()
        if a.kind == "domain" and (not here or a.base_fingerprint == here)
    ]
    coming = [
        (f"{r.name} (still learning)", r.adapter)
        for r in engine.runs.list()
        if r.kind == "domain" and r.status.is_alive and r.adapter
    ]
    return [c for c in coming if c[1] not in {i for _, i in ready}] + ready


def suggestion(engine: Engine, tab: TrainTab, kind: str, preset: str) -> dict[Any, Any]:
    """The advanced fields as a preset sets them, and the note that they were."""
    made = preset_values(engine, tab, kind, preset)
    return {**made, tab.suits: (engine.bases.current().fingerprint, preset, made[tab.advanced["max_length"]])}


def suit(engine: Engine, tab: TrainTab, values: dict[Any, Any]) -> dict[Any, Any]:
    """The settings for a base that came after the form was filled: suggested anew, or, where someone has changed them, only cut to what it reads."""
    base, (_, preset, length) = engine.bases.current(), values[tab.suits]
    try:
        asked, was = asked_for(tab, values), resolve(values[tab.kind], values[tab.preset], {})
    except SpecError:  # a number is being typed; whoever starts with an empty one is told
        return {}
    own = (
        values[tab.preset] != preset
        or asked["max_length"] != length
        or any(asked[n] != getattr(was, n) for n in tab.advanced if n != "max_length")
    )
    if own:
        return {
            tab.advanced["max_length"]: readable(base, asked["max_length"]),
            tab.suits: (base.fingerprint, preset, length),
        }
    usual = usual_preset(engine)
    return {
        tab.preset: gr.update(value=usual, info=PRESETS[usual].help),
        **suggestion(engine, tab, values[tab.kind], usual),
    }


def preset_values(engine: Engine, tab: TrainTab, kind: str, preset: str) -> dict[Any, Any]:
    """The advanced fields as a preset sets them."""
    spec = resolve(kind, preset, fitted(engine, kind, preset))
    return {c: fields.to_component(getattr(spec, n)) for n, c in tab.advanced.items()}


def start_button(engine: Engine, asked: dict[str, Any]) -> Any:
    """The button says what is still missing, and starts only when nothing is."""
    lacking = engine.runs.list_missing(asked)
    return gr.update(value=lacking[0] if lacking else "Start training", interactive=not lacking)


def need(engine: Engine, preset: str, asked: dict[str, Any]) -> Node | None:
    """What the run would need of the device's memory, as the form stands; a note when that is more than there is."""
    told = engine.runs.estimate_memory(resolve(asked["kind"], preset, asked))
    return (
        node("p", told["text"], cls="quiet below" if told.get("fits", True) else "note")
        if told["text"]
        else None
    )


def refreshed(engine: Engine, tab: TrainTab, values: dict[Any, Any], anew: bool = False) -> dict[Any, Any]:
    """The form's lists and the run picker, what was chosen kept where it still exists.

    Args:
        anew: the kind was just changed, so everything that depends on it is suggested again.
    """
    runs = engine.runs.list()
    run_ids = [r.id for r in runs]
    kind, picked = values[tab.kind], values[tab.picker]
    out: dict[Any, Any] = {}
    before = suggested(engine, kind)
    untouched = values[tab.dataset] in (None, "", before.dataset) and values[tab.name] in (
        None,
        "",
        before.name,
    )
    if untouched and not anew:  # an untouched form follows the path: first the domain, then the task
        have = {a.kind for a in engine.library.adapters()} | {r.kind for r in runs if r.status.is_alive}
        ahead = kind == "domain" and "domain" in have and "task" not in have and of_kind(engine, "task")
        kind, anew = ("task", True) if ahead else (kind, anew)
        out[tab.kind] = kind
    sets = [(d.name, d.id) for d in of_kind(engine, kind)]
    below = below_choices(engine)
    hint = suggested(engine, kind)
    keep = values[tab.dataset] in [i for _, i in sets] and not anew
    dataset = values[tab.dataset] if keep else (hint.dataset or None)
    name = values[tab.name] if keep and values[tab.name] else hint.name
    stack = values[tab.stack_on] if keep and values[tab.stack_on] in [i for _, i in below] else hint.stack_on
    preset = values[tab.preset] if keep else usual_preset(engine)
    out[tab.dataset] = fields.update_choices(
        sets,
        dataset,
        values[tab.dataset],
        info="" if sets else "None of this kind yet: import one under Data.",
    )
    if name != values[tab.name]:
        out[tab.name] = name
    out[tab.stack_on] = fields.update_choices(
        [*below, ALONE], stack if kind == "task" else "", values[tab.stack_on], visible=kind == "task"
    )
    if preset != values[tab.preset]:
        out[tab.preset] = gr.update(value=preset, info=PRESETS[preset].help)
    out[tab.picker] = fields.update_choices(
        run_choices(runs), picked if picked in run_ids else (run_ids[0] if run_ids else None), picked
    )
    if not keep:
        out.update(suggestion(engine, tab, kind, preset))
    elif engine.bases.current().fingerprint not in ("", values[tab.suits][0]):
        out.update(suit(engine, tab, values))
    asked = {
        "kind": kind,
        "dataset": dataset or "",
        "name": name or "",
        "stack_on": stack if kind == "task" else "",
    }
    out[tab.start] = start_button(engine, asked)
    return out


def run_choices(runs: list[Any]) -> list[tuple[str, str]]:
    """Runs as the picker shows them."""
    return [(f"{r.name} · {r.kind} · {r.status.value}", r.id) for r in runs]


def started(engine: Engine, spec: TrainSpec) -> Any:
    """Starts a run and watches it."""
    run_id = engine.runs.start(spec)
    return gr.update(choices=run_choices(engine.runs.list()), value=run_id)


def watched(engine: Engine, picked: str | None) -> str:
    """The chart shows the picked run."""
    return picked or ""
