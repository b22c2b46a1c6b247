"""Exporting in the Library tab: what leaves, in which form, what it takes, and the list of exports below.

`engine.exports` writes and checks; `studio/components/exports.py` is the list, which follows the work.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import AdapterError, InvalidName, NotFound, SpecError, StudioError
from core.spec.export import NAME_LIMIT, ExportSpec
from core.spec.fixed_weights import require_numbers
from core.spec.mix import Mix
from studio import events, fields, mix_choices
from studio.components import exports as export_list
from studio.components import field_errors, mixer
from studio.tree import Node, node, view
from studio.views import exports as views

FORMS = [
    ("PEFT adapter: for peft, vLLM and TRL; some MB", "peft"),
    ("Merged model: base and adapters in one, for transformers", "merged"),
    ("Merged model as GGUF: for llama.cpp, Ollama and LM Studio", "gguf"),
    ("Base and adapters as GGUF: a mix whose weights still move, in llama.cpp", "bundle"),
]
CHOICES = {
    "precision": [
        ("As the base", "base"),
        ("BF16: 2 bytes a weight", "bf16"),
        ("F16: 2 bytes a weight", "f16"),
        ("F32: 4 bytes a weight, exact", "f32"),
    ],
    "quantization": [
        ("Q8_0: about 1 byte a weight, very close", "q8_0"),
        ("Q4_K_M: about 0.6 bytes a weight, the usual small one", "q4_k_m"),
        ("Q4_0: about 0.6 bytes a weight, the fastest", "q4_0"),
        ("F16: 2 bytes a weight, nearly exact", "f16"),
        ("BF16: 2 bytes a weight, nearly exact", "bf16"),
        ("F32: 4 bytes a weight, exact", "f32"),
    ],
}
SETTINGS = ("precision", "quantization", "shard_gb", "plain_copy", "include_base", "prompts")
# The settings that only some forms have.
FORMS_OF = {
    "precision": ("merged",),
    "quantization": ("gguf", "bundle"),
    "shard_gb": ("merged",),
    "plain_copy": ("peft",),
    "include_base": ("bundle",),
    "also": ("bundle",),
}
ALSO_INFO = "Other adapters, off at first: llama.cpp can raise their weights later."
WHAT_INFO = "An adapter, a saved mix, a suggested mix, or what the mixer is set to."
NAME_INFO = "Of the files and of their folder. Empty: the name of what is exported."
NOTHING = "Choose an adapter or a mix. Before anything is written, its size and time stand here."
LOADING = "Size and time stand here as soon as the base is loaded."
NO_ADAPTER = "Train an adapter or import one first: what leaves the studio is an adapter, or a mix of some."


@dataclass(frozen=True)
class ExportForm:
    """The components: the form in its fold, and the list of exports."""

    fold: gr.Accordion
    what: gr.Dropdown
    form: gr.Radio
    settings: fields.Fields
    also: gr.Dropdown
    name: gr.Textbox
    errors: field_errors.FieldErrors
    estimate: gr.HTML
    start: gr.Button
    list: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """The components of the form, in the order of `read_spec`'s arguments."""
        return [self.what, self.form, self.name, *self.settings.values(), self.also]


def build(engine: Engine) -> ExportForm:
    """Makes the components."""
    with gr.Accordion("Export", open=False, elem_classes="quiet-fold", elem_id="export-fold") as fold:
        with gr.Row(elem_classes="export-form"):
            with gr.Column(scale=1, min_width=280):
                what = fields.picker("What", info=WHAT_INFO)
                form = gr.Radio(FORMS, value="peft", label="As", elem_classes="stacked")
            with gr.Column(scale=1, min_width=280):
                name = gr.Textbox(label="Name", info=NAME_INFO, max_length=NAME_LIMIT)
                settings = fields.build(ExportSpec, SETTINGS[:2], choices=CHOICES)
                also = fields.picker(
                    "Also include, at weight 0", value=[], multiselect=True, info=ALSO_INFO, visible=False
                )
                with gr.Accordion("More settings", open=False, elem_classes="quiet-fold"):
                    settings |= fields.build(ExportSpec, SETTINGS[2:])
                estimate_line = view(views.render_hint(NOTHING), elem_id="export-estimate")
                with gr.Row(elem_classes="actions"):
                    export = gr.Button("Export", variant="primary", size="md", min_width=120)
        for setting, component in settings.items():
            component.visible = has_setting("peft", setting)
        errors = field_errors.field_errors(
            {
                "what": what,
                "form": form,
                "name": name,
                **settings,
                "also": also,
                "estimate": estimate_line,
            },
            default="estimate",
        )
    listed = export_list.exports(engine)
    return ExportForm(fold, what, form, settings, also, name, errors, estimate_line, export, listed)


def wire(
    tab: ExportForm,
    engine: Engine,
    library_changed: events.EventGroup,
    mixer_rows: gr.HTML,
    page: gr.Tab,
) -> None:
    """Connects the events.

    Args:
        page: the Library tab. The mixer is on another one, so its mix is read when the tab is opened.
    """
    library_changed.add(refresh, [tab.what, mixer_rows], [tab.what])
    opened = events.bind_sequential(page.select, engine, refresh, [tab.what, mixer_rows], [tab.what])
    settings = list(tab.settings.values())
    also = [tab.form, tab.what, tab.also]
    library_changed.add(refresh_also, also, [tab.also], [tab.form, tab.what])
    changed = events.bind_sequential(tab.what.change, engine, refresh_also, also, [tab.also])
    # In requests of their own: an estimate waits for the model's thread, and no list waits for an estimate.
    for event in (opened.then, tab.fold.expand, changed.then):
        events.bind(event, engine, refresh_estimate, tab.inputs, [tab.estimate])
    chosen = events.bind_sequential(tab.form.input, engine, show_settings, also, [*settings, tab.also])
    line: dict[str, Any] = {"errors": tab.errors, "refuse": clear_estimate}
    events.bind(chosen.then, engine, estimate, tab.inputs, [tab.estimate], **line)
    typed = events.any_of(c.input for c in (*settings, tab.also))
    events.bind(typed, engine, estimate, tab.inputs, [tab.estimate], trigger_mode="always_last", **line)
    started = [tab.list, tab.name]
    events.bind(tab.start.click, engine, start, tab.inputs, started, errors=tab.errors)
    field_errors.wire(tab.errors, engine, check_form, tab.inputs)


def wire_buttons(
    tab: ExportForm,
    engine: Engine,
    details: gr.HTML,
    mix_button: gr.Button,
    mixer_rows: gr.HTML,
    tabs: gr.Tabs,
) -> None:
    """Connects the buttons elsewhere that open the form with What chosen.

    Args:
        details: of the Library tab; an adapter's have such a button.
        mix_button: of the Mix tab.
    """
    shown = [tab.fold, tab.what, tab.list]
    for opened in (
        events.bind_sequential(details.act, engine, open_for_adapter, [mixer_rows], shown),
        events.bind_sequential(mix_button.click, engine, open_for_mix, [mixer_rows], [*shown, tabs]),
    ):
        events.bind(opened.then, engine, refresh_estimate, tab.inputs, [tab.estimate])


# --- what can be exported


def list_choices(engine: Engine, rows: Any) -> list[dict[str, str]]:
    """The mixes of `mix_choices.list_choices` with an adapter, all of whose adapters are in the library."""
    usable = {a.id for a in engine.library.mixable_adapters() if a.fits and not a.training}
    choices = mix_choices.list_choices(engine, mixer.current_mix(engine, rows))
    return [c for c in choices if (weights := Mix.parse(c["id"]).weights) and set(weights) <= usable]


def refresh(engine: Engine, what: str | None, rows: Any) -> Any:
    """Updates the choices. A chosen mix stays while its adapters exist; at first it is the newest adapter."""
    choices = [(c["name"], c["id"]) for c in list_choices(engine, rows)]
    return _update_what(engine, choices, what)


def _update_what(engine: Engine, choices: list[tuple[str, str]], what: str | None) -> Any:
    ids = [i for _, i in choices]
    value = what if what in ids else None
    if what and value is None:  # what the mixer was set to, for example
        try:
            (mix,) = mix_choices.parse_mixes(engine, [what])
            choices, value = [*choices, (mix.name, what)], what
        except StudioError:  # one of its adapters was deleted
            value = None
    if value is None:
        value = next((i for i in ids if len(Mix.parse(i).weights) == 1), None)
    return fields.update_choices(choices, value, what)


def open_for_adapter(engine: Engine, rows: Any, event: gr.EventData) -> tuple[Any, ...]:
    """Opens the form for the adapter whose button was pressed.

    Raises:
        SpecError: it belongs to another base. NotFound: it was deleted.
    """
    action = event._data if isinstance(event._data, dict) else {}
    if action.get("do") != "export":
        return gr.skip(), gr.skip(), gr.skip()
    adapter_id = str(action.get("adapter", ""))
    found = next((a for a in engine.library.mixable_adapters() if a.id == adapter_id), None)
    if found is None:
        raise NotFound("This adapter is not in the library any more.", "Choose another one in the list.")
    if not found.fits:
        raise SpecError(
            f"The adapter {found.name!r} cannot be exported now. {found.reason}", "Choose its base first."
        )
    return _open(engine, Mix(weights={adapter_id: 1.0}), rows)


def open_for_mix(engine: Engine, rows: Any) -> tuple[Any, ...]:
    """Opens the form for what the mixer is set to.

    Raises:
        SpecError: that is the base alone, a weight is on Auto, or an adapter of it is in training.
    """
    mix = mixer.current_mix(engine, rows)
    if mix is None or not mix.weights:
        raise SpecError("The mixer is set to the base alone.", "Switch an adapter on, with a weight.")
    require_numbers(mix, "An export", engine.library.labels())
    training = [a.name for a in engine.library.mixable_adapters() if a.training and a.id in mix.weights]
    if training:
        raise SpecError(
            f"The adapter {training[0]!r} is in training.",
            "Export it once its run has ended, or switch it off in the mixer.",
        )
    return *_open(engine, mix, rows), gr.Tabs(selected="library")


def _open(engine: Engine, mix: Mix, rows: Any) -> tuple[Any, ...]:
    choices = [(c["name"], c["id"]) for c in list_choices(engine, rows)]
    update = _update_what(engine, choices, str(mix))
    what = gr.update(choices=update["choices"], value=str(mix))
    return gr.update(open=True), what, {"show": time.time()}  # a new value each time


# --- the form


def has_setting(form: str, setting: str) -> bool:
    """Whether a form of export has a setting."""
    return form in FORMS_OF.get(setting, (form,))


def list_settings(engine: Engine, form: str) -> list[Any]:
    """Shows the settings that a form has, and hides the others."""
    return [gr.update(visible=has_setting(form, name)) for name in SETTINGS]


def show_settings(engine: Engine, form: str, what: str | None, also: list[str] | None) -> list[Any]:
    """As `list_settings`, and the adapters that a bundle can also hold."""
    return [*list_settings(engine, form), refresh_also(engine, form, what, also)]


def list_also(engine: Engine, what: str | None) -> list[tuple[str, str]]:
    """The adapters that a bundle can hold beside those of its mix, as (label, id), the newest first."""
    labels = engine.library.labels()
    held = Mix.parse(what or "").weights
    adapters = [a for a in engine.library.mixable_adapters() if a.fits and not (a.training or a.alone)]
    return [(labels[a.id], a.id) for a in reversed(adapters) if a.id not in held]


def refresh_also(engine: Engine, form: str, what: str | None, also: list[str] | None) -> Any:
    """Updates the choices of what a bundle holds at weight 0; what was chosen stays where it can."""
    choices = list_also(engine, what)
    ids = [i for _, i in choices]
    kept = [a for a in also or [] if a in ids]
    return fields.update_choices(choices, kept, also or [], visible=has_setting(form, "also"))


def read_also(engine: Engine, what: str, also: list[str] | None) -> dict[str, float]:
    """Adapter id -> 0, of those that a bundle holds beside its mix.

    Raises:
        NotFound: one was deleted, or what was typed names none.
    """
    known = {i for _, i in list_also(engine, None)}
    for adapter_id in also or []:
        if adapter_id not in known:
            raise NotFound(
                f"{adapter_id!r} is not an adapter of this base.", "Remove it, and choose one in the list."
            ).at("also")
    held = Mix.parse(what).weights
    return {a: 0.0 for a in also or [] if a not in held}


def read_spec(engine: Engine, what: str | None, form: str, name: str, *settings: Any) -> ExportSpec:
    """Reads the form.

    Args:
        settings: the values of SETTINGS, and the ids of what a bundle also holds, where there are any.

    Raises:
        SpecError: something is missing, or a number is outside its limits; it names the field. NotFound: an
            adapter of the mix was deleted.
    """
    if not what:
        fix = "Choose one in the list." if list_choices(engine, None) else NO_ADAPTER
        raise SpecError("No adapter and no mix is chosen.", fix).at("what")
    try:
        (mix,) = mix_choices.parse_mixes(engine, [what])
    except StudioError as e:
        e.at("what")
        raise
    also = settings[len(SETTINGS)] if len(settings) > len(SETTINGS) else []
    values = fields.read(ExportSpec, dict(zip(SETTINGS, settings[: len(SETTINGS)], strict=True)))
    given = {k: v for k, v in values.items() if has_setting(form, k)}
    saved = next((m.name for m in engine.library.mixes() if str(m.mix) == str(mix)), "")
    chosen = (name or "").strip() or saved[:NAME_LIMIT]
    try:
        require_numbers(mix, "An export", engine.library.labels())
    except SpecError as e:
        raise e.at("what") from None
    spec = ExportSpec.of_mix(mix, name=chosen, form=form, **given)
    zeros = read_also(engine, what, also) if has_setting(form, "also") else {}
    return replace(spec, weights={**spec.weights, **zeros})


def check_form(engine: Engine, *values: Any) -> None:
    """Checks the form.

    Raises:
        SpecError, NotFound: as `read_spec`.
    """
    read_spec(engine, *values)


def estimate(engine: Engine, *values: Any) -> Node:
    """What the export will take, before it starts.

    Raises:
        StudioError: it cannot be exported.
    """
    if not values[0]:
        return views.render_hint(NOTHING)
    spec = read_spec(engine, *values)
    if engine.bases.current().loading:
        return views.render_hint(LOADING)
    try:
        found = engine.exports.estimate(spec)
    except StudioError as e:
        raise _place(engine, e, spec) from None
    return views.render_estimate(found, shutil.disk_usage(engine.workspace.root).free, spec.prompts > 0)


def clear_estimate(engine: Engine, *values: Any) -> Node:
    """The place of the estimate while the form has an error."""
    return node("div")


def refresh_estimate(engine: Engine, *values: Any) -> Node:
    """The estimate after a change that the user has not made in the form; an error stands in its place."""
    try:
        return estimate(engine, *values)
    except StudioError as e:
        return views.render_problem(events.user_message(e))


def start(engine: Engine, *values: Any) -> tuple[Any, ...]:
    """Starts the export; the list below follows it.

    Raises:
        StudioError: as `read_spec` and `engine.exports.start`.
    """
    spec = read_spec(engine, *values)
    engine.bases.load()
    try:
        export_id = engine.exports.start(spec)
    except StudioError as e:
        raise _place(engine, e, spec) from None
    return {"export": export_id}, ""


def _place(engine: Engine, error: StudioError, spec: ExportSpec) -> StudioError:
    """Names the field of an error that names none; adapters at weight 0 have a field of their own."""
    zeros = [a.name for a in engine.library.adapters() if spec.weights.get(a.id) == 0]
    if isinstance(error, AdapterError) and any(repr(name) in error.what for name in zeros):
        error.at("also")
    if not error.field:
        places = ((InvalidName, "name"), (AdapterError, "what"), (NotFound, "what"))
        error.at(next((field for kind, field in places if isinstance(error, kind)), "estimate"))
    return error
