"""The Mix tab: a weight for every adapter, and a conversation whose answers follow the weights.

It also has the link to a mix and its prompt, and the presentation view for a projector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from core.engine import Engine
from core.errors import NotFound, SpecError
from core.spec.mix import Mix, Sampling
from studio import events, fields, mix_choices
from studio.components import composer, damaged, documents, field_errors, mixer
from studio.components.composer import Composer
from studio.components.documents import DocumentsField
from studio.components.field_errors import FieldErrors
from studio.session import SAMPLING, Exchange, Session, make_messages, read_sampling
from studio.tree import Node, node, title, view
from studio.views import conversation

# In the browser: the prompt moves from its field into the conversation.
TAKE_PROMPT = "(prompt) => (prompt.trim() ? ['', prompt] : [prompt, ''])"


@dataclass(frozen=True)
class MixTab:
    """The components of the Mix tab.

    Attributes:
        errors: of the prompt; `save_errors` has those of the name, `load_errors` those of the saved mixes.
        asked: holds the last prompt, which has left its field. Hidden.
        query: holds the query string of the page's URL. Hidden.
    """

    mixer: gr.HTML
    warnings: gr.HTML
    name: gr.Textbox
    save: gr.Button
    export: gr.Button
    save_errors: FieldErrors
    saved: gr.Dropdown
    saved_content: gr.HTML
    load: gr.Button
    delete: gr.Button
    load_errors: FieldErrors
    damaged: gr.HTML
    answer: gr.HTML
    composer: Composer
    errors: FieldErrors
    ask: gr.Button
    stop: gr.Button
    clear: gr.Button
    share: gr.Button
    present: gr.Button
    exit: gr.Button
    documents: DocumentsField
    system: gr.Textbox
    thinking: gr.Checkbox
    sampling: fields.Fields
    session: gr.State
    asked: gr.Textbox
    query: gr.Textbox

    @property
    def answer_inputs(self) -> list[Any]:
        """The components that an answer depends on, in the order of `stream_answer`'s arguments."""
        settings = [*self.sampling.values(), self.system, self.thinking, self.documents.choice]
        return [self.asked, self.mixer, self.session, self.composer.continue_text, *settings]


def build() -> MixTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes mix-panes"):
        with gr.Column(scale=6, min_width=320, elem_classes="card", elem_id="mix-side"):
            made = _build_mixer()
        with gr.Column(scale=7, min_width=320, elem_classes="card", elem_id="answer-side"):
            about = "Move a slider: an answer in progress continues, a finished one is regenerated."
            view(title("Conversation", about))
            made |= _build_conversation()
    made["query"], made["asked"] = (gr.Textbox(visible=False) for _ in range(2))
    made["session"] = gr.State(Session(), delete_callback=Session.stop)
    return MixTab(**made)


def _build_mixer() -> dict[str, Any]:
    about = (
        "Each adapter has a switch and a weight. A negative weight subtracts, and Auto lets the weight "
        "follow the prompt."
    )
    view(title("Mixer", about))
    made: dict[str, Any] = {"mixer": mixer.mixer(), "warnings": view(elem_id="mix-warnings")}
    with gr.Row(elem_classes="save-row"):
        made["name"] = gr.Textbox(
            label="Save this mix as", max_length=120, placeholder="Name", scale=3, min_width=140
        )
        made["save"] = gr.Button("Save mix", size="md", scale=1, min_width=110)
        made["export"] = gr.Button("Export…", size="md", scale=1, min_width=90)
    made["save_errors"] = field_errors.field_errors({"name": made["name"]}, default="name")
    with gr.Row(elem_classes="save-row"):
        made["saved"] = fields.picker("Saved mixes", scale=3, min_width=140)
        made["load"] = gr.Button("Load", size="md", scale=1, min_width=70)
        made["delete"] = gr.Button("Delete", size="md", scale=1, min_width=70, variant="stop")
    made["saved_content"] = view(elem_id="saved-content")
    made["load_errors"] = field_errors.field_errors({"saved": made["saved"]}, default="saved")
    made["damaged"] = damaged.damaged_list("adapters", "mixes")
    return made


def _build_conversation() -> dict[str, Any]:
    made: dict[str, Any] = {"answer": view(conversation.NO_ANSWER, elem_id="mix-answer")}
    made["composer"] = composer.composer("mix", "Ask something")
    prompt = {"prompt": made["composer"].prompt}
    made["errors"] = field_errors.field_errors(prompt, default="prompt", texts=["prompt"])
    with gr.Row(elem_classes="actions"):
        made["ask"] = gr.Button("Answer with this mix", variant="primary", scale=2, min_width=150)
        made["stop"] = gr.Button("Stop", scale=1, min_width=70)
        made["clear"] = gr.Button("Clear", scale=1, min_width=70)
        made["share"] = gr.Button("Copy link", scale=1, min_width=90)
        made["present"] = gr.Button("Present", scale=1, min_width=80)
        made["exit"] = gr.Button("Exit presentation", scale=1, min_width=80, elem_classes="leave")
    made["documents"] = documents.documents_field("mix")
    made["system"], made["thinking"] = mix_choices.system_fields()
    with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"):
        made["sampling"] = fields.build(Sampling, SAMPLING)
    return made


def wire(
    tab: MixTab, engine: Engine, library_changed: events.EventGroup, mix_changed: events.EventGroup
) -> None:
    """Connects the events."""
    queueing: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple"}
    prompt = tab.composer.prompt
    at_prompt: dict[str, Any] = {"errors": tab.errors, **queueing}
    for trigger in (tab.ask.click, prompt.submit):
        taken = trigger(
            fn=None, inputs=[prompt], outputs=[prompt, tab.asked], js=TAKE_PROMPT, api_visibility="private"
        )
        outputs = [tab.answer, prompt]
        answered = events.bind(
            taken.then, engine, ask, tab.answer_inputs, outputs, refuse=refuse_prompt, **at_prompt
        )
        for event in (trigger, answered.then):  # the browser has moved the page while the answer grew
            event(fn=None, js=mix_choices.show_prompt("answer-side"), api_visibility="private")
    field_errors.wire(tab.errors, engine)
    events.bind(tab.mixer.mix_change, engine, follow_mixer, tab.answer_inputs, [tab.answer], **at_prompt)
    _wire_mix_description(tab, engine, library_changed, mix_changed)
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    events.bind(tab.answer.act, engine, rate_answer, [tab.session], [tab.answer])
    events.bind(tab.clear.click, engine, clear, [tab.session], [tab.answer, tab.asked], errors=tab.errors)
    tab.share.click(
        fn=None,
        inputs=[prompt, tab.asked, tab.mixer],
        js="(prompt, asked, rows) => window.studio.copyLink(prompt || asked, rows)",
        api_visibility="private",
    )
    tab.present.click(fn=None, js="() => window.studio.present(true)", api_visibility="private")
    tab.exit.click(fn=None, js="() => window.studio.present(false)", api_visibility="private")
    _wire_saved_mixes(tab, engine, at_prompt)
    library_changed.add(refresh, [tab.saved], [tab.mixer, tab.saved, tab.saved_content, tab.thinking])
    damaged.wire(tab.damaged, engine, library_changed, "adapters", "mixes")
    documents.wire(tab.documents, engine, library_changed)


def _wire_mix_description(
    tab: MixTab, engine: Engine, library_changed: events.EventGroup, mix_changed: events.EventGroup
) -> None:
    """Connects what follows the mixer: the warnings, the prompts to try, and chat or continuing a text."""
    inputs = [tab.mixer, *tab.composer.mode]
    outputs = [tab.warnings, *tab.composer.outputs]
    keys = [tab.composer.has_chosen_mode]
    library_changed.add(describe_next_mix, inputs, outputs, keys)
    mix_changed.add(describe_mix, inputs, outputs, keys)
    how: dict[str, Any] = {"keys": keys, "trigger_mode": "always_last"}
    events.bind_fill(tab.mixer.change, engine, describe_mix, inputs, outputs, **how)
    composer.wire(tab.composer, engine, tab.errors, tab.asked)


def _wire_saved_mixes(tab: MixTab, engine: Engine, at_prompt: dict[str, Any]) -> None:
    names = [tab.name, tab.mixer]
    saving = events.bind(
        tab.save.click, engine, save_mix, names, [tab.name, tab.saved], errors=tab.save_errors
    )
    events.refresh_after(saving)
    saved = [tab.saved, tab.mixer]
    loaded = events.bind(tab.load.click, engine, load_mix, saved, [tab.mixer], errors=tab.load_errors)
    events.bind(loaded.success, engine, follow_mixer, tab.answer_inputs, [tab.answer], **at_prompt)
    deleted = events.bind(
        tab.delete.click, engine, delete_mix, [tab.saved], [tab.saved], errors=tab.load_errors
    )
    events.refresh_after(deleted)
    for errors in (tab.save_errors, tab.load_errors):
        field_errors.wire(errors, engine)
    events.bind(tab.saved.input, engine, show_saved_mix, [tab.saved], [tab.saved_content])


def refresh(engine: Engine, picked: str | None) -> tuple[Any, ...]:
    """Updates the adapters of the mixer, the list of saved mixes, and whether the base can think."""
    choices = _update_mix_choices(engine, picked)
    return (
        gr.HTML(adapters=mixer.adapter_rows(engine)),
        choices,
        show_saved_mix(engine, choices["value"]),
        gr.update(visible=engine.bases.current().thinks),
    )


def wire_link(tab: MixTab, engine: Engine, page: gr.Blocks, tabs: gr.Tabs) -> None:
    """Connects the page's URL: the mix of a shared link is set, and its prompt is answered."""
    loaded = events.bind(
        page.load,
        engine,
        open_link,
        [tab.query, tab.mixer],
        [tab.mixer, tab.composer.prompt, tabs, tab.query],
        js="(query, rows) => [location.search, rows]",
    )
    events.bind(
        loaded.success,
        engine,
        _answer_link,
        [tab.query, tab.composer.prompt, *tab.answer_inputs[1:]],
        [tab.answer, tab.composer.prompt, tab.asked],
        errors=tab.errors,
        concurrency_limit=8,
    )


def open_link(engine: Engine, query: str, rows: Any) -> tuple[Any, ...]:
    """Reads the query string of a link.

    Returns:
        the mixer's rows, the prompt, the selected tab, and "answer" if there is a prompt to answer.

    Raises:
        SpecError: the mix cannot be parsed. NotFound: one of its adapters is not in the library.
    """
    parameters = parse_qs(query.lstrip("?"), keep_blank_values=True)
    if "mix" not in parameters:
        return gr.skip(), gr.skip(), gr.skip(), ""
    mix = Mix.parse(parameters["mix"][0])
    adapters = mixer.adapter_rows(engine)
    if missing := sorted(set(mix.weights) - {a["id"] for a in adapters}):
        raise NotFound(
            f"The link uses the adapter {missing[0]!r}, which is not in this library.",
            "Ask the sender for the adapter, or mix the adapters in this library.",
        )
    prompt = parameters.get("prompt", [""])[0]
    return (
        mixer.apply_mix(rows, adapters, mix),
        prompt or gr.skip(),
        gr.Tabs(selected="mix"),
        prompt and "answer",
    )


def answer_link(engine: Engine, query: str, *inputs: Any) -> Iterator[Any]:
    """Answers the prompt of a link."""
    if query != "answer":
        yield gr.skip()
        return
    engine.bases.load()
    yield from stream_answer(engine, *inputs)


def _answer_link(engine: Engine, query: str, prompt: str, *inputs: Any) -> Iterator[tuple[Any, ...]]:
    """Answers the prompt of a link, which moves from its field into the conversation."""
    fields_after: tuple[Any, ...] = ("", prompt) if query == "answer" else (gr.skip(), gr.skip())
    for shown in answer_link(engine, query, prompt, *inputs):
        yield shown, *fields_after
        fields_after = (gr.skip(), gr.skip())


def ask(
    engine: Engine, prompt: str, rows: Any, session: Session, *settings: Any
) -> Iterator[tuple[Any, ...]]:
    """Answers a prompt. Its field, which may hold the next prompt by now, stays as it is."""
    if prompt.strip():
        waiting = [*session.exchanges, Exchange(prompt, bool(settings[0]))]
        yield conversation.render_conversation(waiting, session.serial), gr.skip()
    for shown in stream_answer(engine, prompt, rows, session, *settings):
        yield shown, gr.skip()


def refuse_prompt(engine: Engine, prompt: str, rows: Any, session: Session, *_: Any) -> tuple[Any, ...]:
    """Puts a refused prompt back into its field; the conversation is shown without it."""
    return show_conversation(session), prompt or gr.skip()


def stream_answer(
    engine: Engine, prompt: str, rows: Any, session: Session, continue_text: bool, *settings: Any
) -> Iterator[Node]:
    """Continues the conversation: answers a prompt with the mixer's mix, instead of one in progress.

    Args:
        settings: the values of the sampling settings, and optionally the system prompt, whether the answer
            begins with a thought, and the datasets that it cites.

    Yields:
        the whole conversation, for every frame.
    """
    if not prompt.strip():
        raise SpecError("The prompt is empty.", "Write a prompt first.")
    earlier = list(session.exchanges)
    exchange = Exchange(prompt, bool(continue_text))
    session.exchanges.append(exchange)
    yield from _answer(engine, exchange, earlier, rows, session, settings)


def rate_answer(engine: Engine, session: Session, event: gr.EventData) -> Node:
    """Records whether an answer of the conversation was good, and shows it."""
    action = event._data or {}
    for exchange in session.exchanges:
        if action.get("do") == "rate" and exchange.answer and exchange.answer == action.get("answer"):
            engine.answer_quality.rate(f"{exchange.answer}-0", bool(action.get("good")))
            exchange.is_good, exchange.rendered = bool(action.get("good")), None
    return conversation.render_conversation(session.exchanges, session.serial)


def follow_mixer(
    engine: Engine, prompt: str, rows: Any, session: Session, continue_text: bool, *settings: Any
) -> Iterator[Any]:
    """Continues an answer in progress with a changed mix, or answers the last question again."""
    if not session.exchanges or session.retune(engine, [_read_mix(engine, rows)]):
        yield gr.skip()
        return
    *earlier, last = session.exchanges
    session.exchanges[-1] = again = Exchange(last.prompt, last.continue_text)
    yield from _answer(engine, again, earlier, rows, session, settings, last)


def _answer(
    engine: Engine,
    exchange: Exchange,
    earlier: list[Exchange],
    rows: Any,
    session: Session,
    settings: tuple[Any, ...],
    replaced: Exchange | None = None,
) -> Iterator[Node]:
    """Answers the last question of the conversation; yields the whole conversation for every frame.

    Args:
        exchange: the question, which is the last one of the conversation. It is taken back if it gets no
            answer.
        earlier: the exchanges before it.
        replaced: the same question with its answer by another mix, which comes back in this case.
    """
    given = settings[len(SAMPLING) :]
    defaults: tuple[Any, ...] = ("", False, ())
    system, thinking, chosen = [*given, *defaults[len(given) :]]
    serial = session.serial
    try:
        mixes, sampling = [_read_mix(engine, rows)], read_sampling(settings[: len(SAMPLING)])
        if engine.bases.current().loading:
            exchange.note = "The base model is loading. The answer starts as soon as it is ready."
            yield show_conversation(session)
        passages = None
        if ids := documents.read_choice(chosen):
            for note in documents.wait_for_indexes(engine, ids):
                exchange.note = note
                yield show_conversation(session)
                if session.serial != serial:  # stopped, or another prompt
                    return
            passages = [documents.find_passages(engine, ids, exchange.prompt)]
        frames = session.stream_frames(
            engine,
            exchange.prompt,
            mixes,
            sampling,
            chat=not exchange.continue_text,
            messages=make_messages(str(system or ""), earlier, exchange.prompt),
            thinking=bool(thinking),
            passages=passages,
        )
        for frame in frames:
            exchange.column, exchange.left_out = frame.columns[0], frame.left_out
            exchange.answer = session.stream.answer if session.stream else ""
            exchange.passages = frame.prompts[0] if frame.prompts else None
            exchange.labels = session.labels
            yield show_conversation(session)
    finally:
        if exchange.column is None:
            back = [replaced] if replaced and replaced.column else []
            session.exchanges[:] = [
                e for one in session.exchanges for e in (back if one is exchange else [one])
            ]
    if exchange.column is None:  # stopped before the first word
        yield show_conversation(session)


def clear(engine: Engine, session: Session) -> tuple[Any, ...]:
    """Ends the conversation, and an answer in progress."""
    session.exchanges.clear()
    session.stop()
    session.prompt = ""
    return show_conversation(session), ""


def show_conversation(session: Session) -> Node:
    """The conversation, with what the gates of its newest answer chose for the rows of the mixer.

    Until the newest question has an answer, the mixer shows the choices of the one before.
    """
    shown = conversation.render_conversation(session.exchanges, session.serial)
    last = session.exchanges[-1] if session.exchanges else None
    if last is not None and last.column is None:
        return shown
    gates = mixer.live_gates(last.column, last.labels) if last else {}
    return {**shown, "gates": gates}


def describe_mix(engine: Engine, rows: Any, continue_text: bool, has_chosen_mode: bool) -> tuple[Any, ...]:
    """The warnings, and what `composer.describe_prompt` returns for the adapters of the mixer."""
    active = mixer.read_mix(rows).weights
    described = composer.describe_prompt(engine, active, continue_text, has_chosen_mode)
    return show_warnings(engine, rows), *described


def describe_next_mix(
    engine: Engine, rows: Any, continue_text: bool, has_chosen_mode: bool
) -> tuple[Any, ...]:
    """What `describe_mix` returns for the mixer with the adapters that the library has now.

    For the rows that the page shows until then, a prompt to try would be replaced just as it is pressed.
    """
    joined = mixer.join_rows(rows, mixer.adapter_rows(engine))
    return describe_mix(engine, joined, continue_text, has_chosen_mode)


def show_warnings(engine: Engine, rows: Any) -> Node | None:
    """Shows where the mix differs from the conditions that its adapters were trained under."""
    warnings = engine.library.mix_warnings(mixer.read_mix(rows))
    return node("div", *[node("p", w, cls="note") for w in warnings]) if warnings else None


def stop(engine: Engine, session: Session) -> None:
    """Stops the answer and keeps its text."""
    session.stop()


def _read_mix(engine: Engine, rows: Any) -> Mix:
    return mixer.read_mix(rows, {a["id"]: a["name"] for a in mixer.adapter_rows(engine)})


def save_mix(engine: Engine, name: str, rows: Any) -> tuple[Any, ...]:
    """Saves the mixer's mix under a name."""
    mix = mixer.read_mix(rows)
    saved = engine.library.save_mix(name, mix.weights, mix.tilt, mix.auto)
    gr.Info(f"Saved the mix {events.escape_markup(saved.name)}.", title="Done")
    return "", _update_mix_choices(engine, saved.id)


def show_saved_mix(engine: Engine, picked: str | None) -> Node | None:
    """Shows what a saved mix holds, by the present names of its adapters."""
    saved = next((m for m in engine.library.mixes() if m.id == picked), None)
    if saved is None:
        return None
    return node("p", mix_choices.describe_saved_mix(engine, saved), cls="quiet")


def load_mix(engine: Engine, picked: str | None, rows: Any) -> list[dict[str, Any]]:
    """Sets the mixer to a saved mix."""
    if not picked:
        raise NotFound("No saved mix is chosen.", "Choose one in the list.")
    mix = engine.library.mix(picked)
    for warning in getattr(mix, "warnings", ()):
        gr.Warning(events.escape_markup(warning), title="Changed since it was saved")
    return mixer.apply_mix(rows, mixer.adapter_rows(engine), mix.mix)


def delete_mix(engine: Engine, picked: str | None) -> Any:
    """Deletes a saved mix; its adapters stay."""
    if not picked:
        raise NotFound("No saved mix is chosen.", "Choose one in the list.")
    engine.library.delete("mixes", picked)
    return _update_mix_choices(engine, None)


def _update_mix_choices(engine: Engine, picked: str | None) -> Any:
    mixes = engine.library.mixes()
    ids = [m.id for m in mixes]
    choices = [(m.name, m.id) for m in mixes] or [("None yet", "")]
    return gr.update(choices=choices, value=picked if picked in ids else choices[0][1])
