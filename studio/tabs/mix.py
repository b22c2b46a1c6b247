"""The Mix tab: a weight for every adapter, and an answer that follows the weights while it is generated.

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
from studio import answers, events, fields
from studio.components import damaged, mixer
from studio.session import SAMPLING, Session, read_sampling
from studio.tree import Node, empty, node, title, view

NO_ANSWER = empty("No answer yet", "Ask something, then move a slider: the answer follows the mix.")


@dataclass(frozen=True)
class MixTab:
    """The components of the Mix tab; the hidden `query` holds the query string of the page's URL."""

    mixer: gr.HTML
    warnings: gr.HTML
    name: gr.Textbox
    save: gr.Button
    saved: gr.Dropdown
    load: gr.Button
    delete: gr.Button
    damaged: gr.HTML
    prompt: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    share: gr.Button
    present: gr.Button
    exit: gr.Button
    continue_text: gr.Checkbox
    sampling: fields.Fields
    answer: gr.HTML
    session: gr.State
    query: gr.Textbox

    @property
    def answer_inputs(self) -> list[Any]:
        """The components that an answer depends on, in the order of `stream_answer`'s arguments."""
        return [self.prompt, self.mixer, self.session, self.continue_text, *self.sampling.values()]


def build() -> MixTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=7, min_width=320, elem_classes="card", elem_id="mix-side"):
            about = (
                "Each adapter has a switch and a weight. Off means no effect; a negative weight subtracts."
            )
            view(title("Mixer", about))
            rows = mixer.mixer()
            warnings = view(elem_id="mix-warnings")
            with gr.Row(elem_classes="save-row"):
                name = gr.Textbox(
                    label="Save this mix as", max_length=120, placeholder="Name", scale=3, min_width=140
                )
                save = gr.Button("Save mix", size="md", scale=1, min_width=110)
            with gr.Row(elem_classes="save-row"):
                saved = fields.picker("Saved mixes", scale=3, min_width=140)
                load = gr.Button("Load", size="md", scale=1, min_width=70)
                delete = gr.Button("Delete", size="md", scale=1, min_width=70, variant="stop")
            damaged_items = damaged.damaged_list("adapters", "mixes")
        with gr.Column(scale=6, min_width=320, elem_classes="card", elem_id="answer-side"):
            about = "Move a slider: an answer in progress continues, a finished one is regenerated."
            view(title("Answer", about))
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_lines=6, placeholder="Ask something", elem_id="mix-prompt"
            )
            with gr.Row(elem_classes="actions"):
                ask = gr.Button("Answer with this mix", variant="primary", scale=2, min_width=150)
                stop = gr.Button("Stop", scale=1, min_width=70)
                share = gr.Button("Copy link", scale=1, min_width=90)
                present = gr.Button("Present", scale=1, min_width=80)
                exit_view = gr.Button("Exit presentation", scale=1, min_width=80, elem_classes="leave")
            answer = view(NO_ANSWER, elem_id="mix-answer")
            with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"):
                continue_text = gr.Checkbox(
                    False,
                    label="Continue the text",
                    info="The prompt is the beginning of a text, not a question.",
                )
                sampling = fields.build(Sampling, SAMPLING)
    query = gr.Textbox(visible=False)
    session = gr.State(Session(), delete_callback=Session.stop)
    return MixTab(
        rows,
        warnings,
        name,
        save,
        saved,
        load,
        delete,
        damaged_items,
        prompt,
        ask,
        stop,
        share,
        present,
        exit_view,
        continue_text,
        sampling,
        answer,
        session,
        query,
    )


def wire(
    tab: MixTab, engine: Engine, library_changed: events.EventGroup, mix_changed: events.EventGroup
) -> None:
    """Connects the events."""
    queueing: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple"}
    for trigger in (tab.ask.click, tab.prompt.submit):
        events.bind(trigger, engine, stream_answer, tab.answer_inputs, [tab.answer], **queueing)
    events.bind(tab.mixer.mix_change, engine, follow_mixer, tab.answer_inputs, [tab.answer], **queueing)
    mix_changed.add(show_warnings, [tab.mixer], [tab.warnings])
    events.bind(tab.mixer.change, engine, show_warnings, [tab.mixer], [tab.warnings])
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    tab.share.click(
        fn=None,
        inputs=[tab.prompt, tab.mixer],
        js="(prompt, rows) => window.studio.copyLink(prompt, rows)",
        api_visibility="private",
    )
    tab.present.click(fn=None, js="() => window.studio.present(true)", api_visibility="private")
    tab.exit.click(fn=None, js="() => window.studio.present(false)", api_visibility="private")
    events.refresh_after(
        events.bind(tab.save.click, engine, save_mix, [tab.name, tab.mixer], [tab.name, tab.saved])
    )
    events.bind(tab.load.click, engine, load_mix, [tab.saved, tab.mixer], [tab.mixer]).success(
        events.handler(follow_mixer, engine),
        tab.answer_inputs,
        [tab.answer],
        show_progress="hidden",
        api_visibility="private",
        **queueing,
    )
    events.refresh_after(events.bind(tab.delete.click, engine, delete_mix, [tab.saved], [tab.saved]))
    library_changed.add(refresh, [tab.saved], [tab.mixer, tab.saved])
    damaged.wire(tab.damaged, engine, library_changed, "adapters", "mixes")


def refresh(engine: Engine, picked: str | None) -> tuple[Any, ...]:
    """Updates the adapters of the mixer and the list of saved mixes."""
    return gr.HTML(adapters=mixer.adapter_rows(engine)), _update_mix_choices(engine, picked)


def wire_link(tab: MixTab, engine: Engine, page: gr.Blocks, tabs: gr.Tabs) -> None:
    """Connects the page's URL: the mix of a shared link is set, and its prompt is answered."""
    loaded = events.bind(
        page.load,
        engine,
        open_link,
        [tab.query, tab.mixer],
        [tab.mixer, tab.prompt, tabs, tab.query],
        js="(query, rows) => [location.search, rows]",
    )
    loaded.success(
        events.handler(answer_link, engine),
        [tab.query, *tab.answer_inputs],
        [tab.answer],
        show_progress="hidden",
        api_visibility="private",
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


def stream_answer(
    engine: Engine, prompt: str, rows: Any, session: Session, continue_text: bool, *sampling: Any
) -> Iterator[Node]:
    """Answers a prompt with the mixer's mix; a newer answer replaces one in progress."""
    if not prompt.strip():
        raise SpecError("The prompt is empty.", "Write a prompt first.")
    if engine.bases.current().loading:
        yield empty("The base model is loading", "The answer starts as soon as the model is ready.")
    mixes, settings = [_read_mix(engine, rows)], read_sampling(sampling)
    for frame in session.stream_frames(engine, prompt, mixes, settings, chat=not continue_text):
        yield {**_render_answer(frame.columns[0]), "serial": session.serial}


def follow_mixer(
    engine: Engine, prompt: str, rows: Any, session: Session, continue_text: bool, *sampling: Any
) -> Iterator[Any]:
    """Continues an answer in progress with a changed mix, or answers the last prompt again."""
    has_prompt = bool(session.prompt and prompt.strip())
    is_same = has_prompt and prompt == session.prompt
    if not has_prompt or (is_same and session.retune(engine, [_read_mix(engine, rows)])):
        yield gr.skip()
    else:
        yield from stream_answer(engine, prompt, rows, session, continue_text, *sampling)


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
    saved = engine.library.save_mix(name, mix.weights, mix.tilt)
    gr.Info(f"Saved the mix {saved.id}.", title="Done")
    return "", _update_mix_choices(engine, saved.id)


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
    return gr.update(
        choices=[(m.name, m.id) for m in mixes], value=picked if picked in ids else next(iter(ids), None)
    )


def _render_answer(column: Any) -> Node:
    cls = "answer-text" if column.done else "answer-text writing"
    text = node("p", *answers.render_parts(column), cls=cls)
    name = column.stamp.get("mix", "")
    return node(
        "div",
        answers.render_column_fold(column),
        text,
        node("p", answers.format_speed(column), cls="quiet"),
        node("p", name, cls="quiet"),
        node("p", answers.format_stamp(column), cls="stamp"),
        cls="answer",
    )
