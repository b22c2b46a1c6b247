"""The Mix tab: weights for every adapter, and an answer that follows them, also while it is written.

Knows the mixer, the answer beside it, the link that brings both back, and the view for a projector.
Knows nothing of how a mix reaches the model.
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
from studio.components import mixer
from studio.session import SAMPLING, Session, read_sampling
from studio.tree import Node, empty, node, title, view

NOT_ASKED = empty("No answer yet", "Ask something; then move a slider, and the answer follows it.")


@dataclass(frozen=True)
class MixTab:
    """The components of the Mix tab."""

    mixer: gr.HTML
    departures: gr.HTML
    name: gr.Textbox
    save: gr.Button
    saved: gr.Dropdown
    load: gr.Button
    delete: gr.Button
    prompt: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    share: gr.Button
    present: gr.Button
    leave: gr.Button
    plain: gr.Checkbox
    sampling: fields.Fields
    answer: gr.HTML
    session: gr.State
    query: gr.Textbox

    def asked(self) -> list[Any]:
        """What an answer depends on."""
        return [self.prompt, self.mixer, self.session, self.plain, *self.sampling.values()]


def build() -> MixTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=7, min_width=320, elem_classes="card", elem_id="mix-side"):
            view(
                title(
                    "Mixer",
                    "Each adapter has a switch and a weight. Off is really off; a negative weight pushes away.",
                )
            )
            rows = mixer.mixer()
            departs = view(elem_id="departures")
            with gr.Row(elem_classes="save-row"):
                name = gr.Textbox(
                    label="Save this mix as", max_length=120, placeholder="Name", scale=3, min_width=140
                )
                save = gr.Button("Save mix", size="md", scale=1, min_width=90)
            with gr.Row(elem_classes="save-row"):
                saved = fields.picker("Saved mixes", scale=3, min_width=140)
                load = gr.Button("Load", size="md", scale=1, min_width=70)
                delete = gr.Button("Delete", size="md", scale=1, min_width=70, variant="stop")
        with gr.Column(scale=6, min_width=320, elem_classes="card", elem_id="mix-said"):
            view(
                title(
                    "Answer",
                    "Move a slider: an answer under way goes on under the new mix, a finished one is written again.",
                )
            )
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_lines=6, placeholder="Ask something", elem_id="mix-prompt"
            )
            with gr.Row(elem_classes="actions"):
                ask = gr.Button("Answer with this mix", variant="primary", scale=2, min_width=150)
                stop = gr.Button("Stop", scale=1, min_width=70)
                share = gr.Button("Copy link", scale=1, min_width=90)
                present = gr.Button("Present", scale=1, min_width=80)
                leave = gr.Button("Leave this view", scale=1, min_width=80, elem_classes="leave")
            answer = view(NOT_ASKED, elem_id="mix-answer")
            with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"):
                plain = gr.Checkbox(
                    False,
                    label="Continue the text",
                    info="The prompt is the beginning of a text that goes on, not a question.",
                )
                sampling = fields.build(Sampling, SAMPLING)
    query = gr.Textbox(visible=False)
    session = gr.State(Session(), delete_callback=Session.stop)
    return MixTab(
        rows,
        departs,
        name,
        save,
        saved,
        load,
        delete,
        prompt,
        ask,
        stop,
        share,
        present,
        leave,
        plain,
        sampling,
        answer,
        session,
        query,
    )


def wire(tab: MixTab, engine: Engine, library_changed: events.EventGroup, mix_changed: events.EventGroup) -> None:
    """Connects the events."""
    queueing: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple"}
    for trigger in (tab.ask.click, tab.prompt.submit):
        events.bind(trigger, engine, answered, tab.asked(), [tab.answer], **queueing)
    events.bind(tab.mixer.mix_change, engine, followed, tab.asked(), [tab.answer], **queueing)
    mix_changed.add(departed, [tab.mixer], [tab.departures])
    events.bind(tab.mixer.change, engine, departed, [tab.mixer], [tab.departures])
    events.bind(tab.stop.click, engine, stopped, [tab.session], None)
    tab.share.click(
        fn=None,
        inputs=[tab.prompt, tab.mixer],
        js="(prompt, rows) => window.studio.share(prompt, rows)",
        api_visibility="private",
    )
    tab.present.click(fn=None, js="() => window.studio.present(true)", api_visibility="private")
    tab.leave.click(fn=None, js="() => window.studio.present(false)", api_visibility="private")
    events.refresh_after(events.bind(tab.save.click, engine, kept, [tab.name, tab.mixer], [tab.name, tab.saved]))
    events.bind(tab.load.click, engine, restored, [tab.saved, tab.mixer], [tab.mixer]).success(
        events.handler(followed, engine),
        tab.asked(),
        [tab.answer],
        show_progress="hidden",
        api_visibility="private",
        **queueing,
    )
    events.refresh_after(events.bind(tab.delete.click, engine, forgotten, [tab.saved], [tab.saved]))
    library_changed.add(refresh, [tab.saved], [tab.mixer, tab.saved])


def refresh(engine: Engine, picked: str | None) -> tuple[Any, ...]:
    """The adapters and the saved mixes there are."""
    return gr.HTML(adapters=mixer.adapter_rows(engine)), _saved(engine, picked)


def arrive(tab: MixTab, engine: Engine, page: gr.Blocks, tabs: gr.Tabs) -> None:
    """Connects the address that a visitor came by: a shared mix is set, and its prompt answered."""
    came = events.bind(
        page.load,
        engine,
        opened,
        [tab.query, tab.mixer],
        [tab.mixer, tab.prompt, tabs, tab.query],
        js="(query, rows) => [location.search, rows]",
    )
    came.success(
        events.handler(greeted, engine),
        [tab.query, *tab.asked()],
        [tab.answer],
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=8,
    )


def opened(engine: Engine, query: str, rows: Any) -> tuple[Any, ...]:
    """What an address says: the mixer's rows, the prompt, the tab; and whether there is something to answer.

    Raises:
        SpecError: the address holds no mix that could be read. NotFound: it names an adapter that is not here.
    """
    said = parse_qs(query.lstrip("?"), keep_blank_values=True)
    if "mix" not in said:
        return gr.skip(), gr.skip(), gr.skip(), ""
    mix = Mix.parse(said["mix"][0])
    shelf = mixer.adapter_rows(engine)
    if missing := sorted(set(mix.weights) - {a["id"] for a in shelf}):
        raise NotFound(
            f"The link names the adapter {missing[0]!r}, which is not here.",
            "Ask whoever sent the link for the adapter, or mix what is here.",
        )
    prompt = said.get("prompt", [""])[0]
    return mixer.apply_mix(rows, shelf, mix), prompt or gr.skip(), gr.Tabs(selected="mix"), prompt and "answer"


def greeted(engine: Engine, query: str, *asked: Any) -> Iterator[Any]:
    """Answers the prompt of a shared link."""
    if query != "answer":
        yield gr.skip()
        return
    engine.bases.load()
    yield from answered(engine, *asked)


def answered(
    engine: Engine, prompt: str, rows: Any, session: Session, plain: bool, *sampling: Any
) -> Iterator[Node]:
    """Answers a prompt with the mixer's present mix; a newer answer replaces an older one under way."""
    if not prompt.strip():
        raise SpecError("There is no prompt.", "Write what to ask.")
    if engine.bases.current().loading:
        yield empty("The base model is loading", "The answer comes as soon as it is there.")
    for frame in session.stream_frames(engine, prompt, [_mix(engine, rows)], read_sampling(sampling), chat=not plain):
        yield {**_shown(frame.columns[0]), "serial": session.serial}


def followed(
    engine: Engine, prompt: str, rows: Any, session: Session, plain: bool, *sampling: Any
) -> Iterator[Any]:
    """A slider moved: an answer under way goes on under the new mix; else the last prompt is answered again, if there was one."""
    if (
        not session.prompt
        or not prompt.strip()
        or prompt == session.prompt
        and session.retune(engine, [_mix(engine, rows)])
    ):
        yield gr.skip()
    else:
        yield from answered(engine, prompt, rows, session, plain, *sampling)


def departed(engine: Engine, rows: Any) -> Node | None:
    """Where the mix departs from how its adapters were trained, said beside the mixer."""
    said = engine.library.mix_warnings(mixer.read_mix(rows))
    return node("div", *[node("p", s, cls="note") for s in said]) if said else None


def stopped(engine: Engine, session: Session) -> None:
    """Ends the answer under way; what is written stays."""
    session.stop()


def _mix(engine: Engine, rows: Any) -> Mix:
    return mixer.read_mix(rows, {a["id"]: a["name"] for a in mixer.adapter_rows(engine)})


def kept(engine: Engine, name: str, rows: Any) -> tuple[Any, ...]:
    """Saves the mixer's present mix under a name."""
    mix = mixer.read_mix(rows)
    made = engine.library.save_mix(name, mix.weights, mix.tilt)
    gr.Info(f"Saved the mix {made.id}.", title="Done")
    return "", _saved(engine, made.id)


def restored(engine: Engine, picked: str | None, rows: Any) -> list[dict[str, Any]]:
    """Sets the mixer to a saved mix."""
    if not picked:
        raise NotFound("No saved mix is chosen.", "Choose one in the list.")
    mix = engine.library.mix(picked)
    for warning in getattr(mix, "warnings", ()):
        gr.Warning(events.escape_markup(warning), title="Changed since it was saved")
    return mixer.apply_mix(rows, mixer.adapter_rows(engine), mix.mix)


def forgotten(engine: Engine, picked: str | None) -> Any:
    """Deletes a saved mix; adapters are not touched."""
    if not picked:
        raise NotFound("No saved mix is chosen.", "Choose one in the list.")
    engine.library.delete("mixes", picked)
    return _saved(engine, None)


def _saved(engine: Engine, picked: str | None) -> Any:
    mixes = engine.library.mixes()
    ids = [m.id for m in mixes]
    return gr.update(
        choices=[(m.name, m.id) for m in mixes], value=picked if picked in ids else (ids[0] if ids else None)
    )


def _shown(column: Any) -> Node:
    text = node("p", *answers.render_parts(column), cls="answer-text" if column.done else "answer-text writing")
    name = column.stamp.get("mix", "")
    return node(
        "div",
        text,
        node("p", answers.format_speed(column), cls="quiet"),
        node("p", name, cls="quiet"),
        node("p", answers.format_stamp(column), cls="stamp"),
        cls="answer",
    )
