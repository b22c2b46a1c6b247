"""The Mix tab: weights for every adapter, and an answer that follows them.

Knows the mixer and the answer beside it. Knows nothing of how a mix reaches the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import NotFound, SpecError
from core.spec import Sampling
from studio import fields, guard, mixer, samples
from studio.talk import Talk, frames, speed, stamp
from studio.tree import Node, empty, node, title, view

NOT_ASKED = empty("No answer yet", "Ask something; then move a slider, and the answer follows it.")


@dataclass(frozen=True)
class MixTab:
    """The components of the Mix tab."""

    mixer: gr.HTML
    name: gr.Textbox
    save: gr.Button
    saved: gr.Dropdown
    load: gr.Button
    delete: gr.Button
    prompt: gr.Textbox
    ask: gr.Button
    answer: gr.HTML
    talk: gr.State
    asked: gr.State


def build() -> MixTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=7, min_width=320, elem_classes="card"):
            view(title("Mixer", "Each adapter has a switch and a weight. Off is really off; a negative weight pushes away."))
            rows = mixer.mixer()
            with gr.Row(elem_classes="save-row"):
                name = gr.Textbox(label="Save this mix as", max_length=120, placeholder="Name", scale=3, min_width=140)
                save = gr.Button("Save mix", size="md", scale=1, min_width=90)
            with gr.Row(elem_classes="save-row"):
                saved = fields.picker("Saved mixes", scale=3, min_width=140)
                load = gr.Button("Load", size="md", scale=1, min_width=70)
                delete = gr.Button("Delete", size="md", scale=1, min_width=70, variant="stop")
        with gr.Column(scale=6, min_width=320, elem_classes="card"):
            view(title("Answer", "It is written again, under the new mix, each time a slider rests."))
            prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, placeholder="Ask something", elem_id="mix-prompt")
            ask = gr.Button("Answer with this mix", variant="primary")
            answer = view(NOT_ASKED, elem_id="mix-answer")
    return MixTab(rows, name, save, saved, load, delete, prompt, ask, answer, gr.State(Talk(), delete_callback=Talk.stop), gr.State(""))


def wire(tab: MixTab, engine: Engine, moved: Any) -> None:
    """Connects the events."""
    talking: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple"}
    for trigger in (tab.ask.click, tab.prompt.submit):
        guard.on(trigger, engine, answered, [tab.prompt, tab.mixer, tab.talk], [tab.answer], **talking)
    guard.on(tab.mixer.mixed, engine, followed, [tab.prompt, tab.mixer, tab.talk], [tab.answer], **talking)
    guard.look_again(guard.on(tab.save.click, engine, kept, [tab.name, tab.mixer], [tab.name, tab.saved]))
    guard.on(tab.load.click, engine, restored, [tab.saved, tab.mixer], [tab.mixer]).success(
        guard.door(followed, engine), [tab.prompt, tab.mixer, tab.talk], [tab.answer], show_progress="hidden", api_visibility="private", **talking
    )
    guard.look_again(guard.on(tab.delete.click, engine, forgotten, [tab.saved], [tab.saved]))
    guard.on(moved, engine, refresh, [tab.saved, tab.prompt], [tab.mixer, tab.saved, tab.prompt])


def refresh(engine: Engine, picked: str | None, prompt: str) -> tuple[Any, ...]:
    """The adapters and the saved mixes there are; a sample question while the prompt is empty."""
    return gr.HTML(adapters=mixer.shelf(engine)), _saved(engine, picked), gr.skip() if prompt else samples.question(engine)


def answered(engine: Engine, prompt: str, rows: Any, talk: Talk) -> Iterator[Node]:
    """Answers a prompt with the mixer's present mix; a newer answer replaces an older one under way."""
    if not prompt.strip():
        raise SpecError("There is no prompt.", "Write what to ask.")
    mix = mixer.to_mix(rows, {a["id"]: a["name"] for a in mixer.shelf(engine)})
    for frame in frames(engine, talk, prompt, [mix], Sampling()):
        yield {**_shown(frame.columns[0], mix.name), "serial": talk.serial}


def followed(engine: Engine, prompt: str, rows: Any, talk: Talk) -> Iterator[Any]:
    """A slider rested: the last prompt is answered again, if there was one."""
    if not talk.prompt or not prompt.strip():
        yield gr.skip()
        return
    yield from answered(engine, prompt, rows, talk)


def kept(engine: Engine, name: str, rows: Any) -> tuple[Any, ...]:
    """Saves the mixer's present mix under a name."""
    made = engine.save_mix(name, mixer.weights(rows))
    gr.Info(f"Saved the mix {made.id}.", title="Done")
    return "", _saved(engine, made.id)


def restored(engine: Engine, picked: str | None, rows: Any) -> list[dict[str, Any]]:
    """Sets the mixer to a saved mix."""
    if not picked:
        raise NotFound("No saved mix is chosen.", "Choose one in the list.")
    mix = engine.mix(picked)
    for warning in getattr(mix, "warnings", ()):
        gr.Warning(guard.plain(warning), title="Changed since it was saved")
    return mixer.loaded(rows, mixer.shelf(engine), mix.weights)


def forgotten(engine: Engine, picked: str | None) -> Any:
    """Deletes a saved mix; adapters are not touched."""
    if not picked:
        raise NotFound("No saved mix is chosen.", "Choose one in the list.")
    engine.remove("mixes", picked)
    return _saved(engine, None)


def _saved(engine: Engine, picked: str | None) -> Any:
    mixes = engine.mixes()
    ids = [m.id for m in mixes]
    return gr.update(choices=[(m.name, m.id) for m in mixes], value=picked if picked in ids else (ids[0] if ids else None))


def _shown(column: Any, name: str) -> Node:
    text = node("p", column.text or "…", cls="answer-text" if column.done else "answer-text writing")
    return node("div", text, node("p", speed(column), cls="quiet"), node("p", name, cls="quiet"), node("p", stamp(column), cls="stamp"), cls="answer")
