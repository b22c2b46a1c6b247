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
from studio import events, fields, mix_choices, problems, prompt_chips
from studio.components import damaged, mixer
from studio.session import SAMPLING, Exchange, Session, make_messages, read_sampling
from studio.tree import Node, node, title, view
from studio.views import conversation

# In the browser: the prompt moves from its field into the conversation.
TAKE_PROMPT = "(prompt) => (prompt.trim() ? ['', prompt] : [prompt, ''])"
# In the browser, because the user may be typing: a suggestion fills an empty field, and replaces an earlier
# suggestion, until a conversation has begun.
SUGGEST = """(prompt, suggestion, asked) => {
  const earlier = window.studio.suggestedMixPrompt ?? "";
  if (asked || (prompt && prompt !== earlier)) return prompt;
  window.studio.suggestedMixPrompt = suggestion;
  return suggestion;
}"""


@dataclass(frozen=True)
class MixTab:
    """The components of the Mix tab.

    Attributes:
        asked: holds the last prompt, which has left its field. Hidden.
        suggestion: holds a prompt to begin with. Hidden.
        has_chosen_mode: whether the user has chosen between chat and continuing a text. Hidden.
        query: holds the query string of the page's URL. Hidden.
    """

    mixer: gr.HTML
    warnings: gr.HTML
    name: gr.Textbox
    save: gr.Button
    save_problem: gr.HTML
    saved: gr.Dropdown
    saved_content: gr.HTML
    load: gr.Button
    delete: gr.Button
    load_problem: gr.HTML
    damaged: gr.HTML
    answer: gr.HTML
    prompt: gr.Textbox
    problem: gr.HTML
    continue_text: gr.Radio
    chips: gr.HTML
    ask: gr.Button
    stop: gr.Button
    clear: gr.Button
    share: gr.Button
    present: gr.Button
    exit: gr.Button
    system: gr.Textbox
    thinking: gr.Checkbox
    sampling: fields.Fields
    session: gr.State
    has_chosen_mode: gr.Checkbox
    asked: gr.Textbox
    suggestion: gr.Textbox
    query: gr.Textbox

    @property
    def answer_inputs(self) -> list[Any]:
        """The components that an answer depends on, in the order of `stream_answer`'s arguments."""
        settings = [*self.sampling.values(), self.system, self.thinking]
        return [self.asked, self.mixer, self.session, self.continue_text, *settings]


def build() -> MixTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes mix-panes"):
        with gr.Column(scale=6, min_width=320, elem_classes="card", elem_id="mix-side"):
            made = _build_mixer()
        with gr.Column(scale=7, min_width=320, elem_classes="card", elem_id="answer-side"):
            about = "Move a slider: an answer in progress continues, a finished one is regenerated."
            view(title("Conversation", about))
            made |= _build_conversation()
    made["query"], made["asked"], made["suggestion"] = (gr.Textbox(visible=False) for _ in range(3))
    made["session"] = gr.State(Session(), delete_callback=Session.stop)
    made["has_chosen_mode"] = gr.Checkbox(False, visible=False)
    return MixTab(**made)


def _build_mixer() -> dict[str, Any]:
    about = "Each adapter has a switch and a weight. Off means no effect; a negative weight subtracts."
    view(title("Mixer", about))
    made: dict[str, Any] = {"mixer": mixer.mixer(), "warnings": view(elem_id="mix-warnings")}
    with gr.Row(elem_classes="save-row"):
        made["name"] = gr.Textbox(
            label="Save this mix as", max_length=120, placeholder="Name", scale=3, min_width=140
        )
        made["save"] = gr.Button("Save mix", size="md", scale=1, min_width=110)
    made["save_problem"] = problems.place(elem_id="save-problem")
    with gr.Row(elem_classes="save-row"):
        made["saved"] = fields.picker("Saved mixes", scale=3, min_width=140)
        made["load"] = gr.Button("Load", size="md", scale=1, min_width=70)
        made["delete"] = gr.Button("Delete", size="md", scale=1, min_width=70, variant="stop")
    made["saved_content"] = view(elem_id="saved-content")
    made["load_problem"] = problems.place(elem_id="load-problem")
    made["damaged"] = damaged.damaged_list("adapters", "mixes")
    return made


def _build_conversation() -> dict[str, Any]:
    made: dict[str, Any] = {"answer": view(conversation.NO_ANSWER, elem_id="mix-answer")}
    with gr.Group(elem_classes="plain composer"):
        made["prompt"] = gr.Textbox(
            label="Prompt", lines=1, max_lines=8, placeholder="Ask something", elem_id="mix-prompt"
        )
        made["problem"] = problems.place(elem_id="mix-problem")
        with gr.Row(elem_classes="under-prompt"):
            view(node("p", mix_choices.SEND_HINT, cls="quiet"), elem_classes="send-hint")
            made["continue_text"] = mix_choices.mode_radio()
    made["chips"] = view(elem_id="mix-chips")
    with gr.Row(elem_classes="actions"):
        made["ask"] = gr.Button("Answer with this mix", variant="primary", scale=2, min_width=150)
        made["stop"] = gr.Button("Stop", scale=1, min_width=70)
        made["clear"] = gr.Button("Clear", scale=1, min_width=70)
        made["share"] = gr.Button("Copy link", scale=1, min_width=90)
        made["present"] = gr.Button("Present", scale=1, min_width=80)
        made["exit"] = gr.Button("Exit presentation", scale=1, min_width=80, elem_classes="leave")
    made["system"], made["thinking"] = mix_choices.system_fields()
    with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"):
        made["sampling"] = fields.build(Sampling, SAMPLING)
    return made


def wire(
    tab: MixTab, engine: Engine, library_changed: events.EventGroup, mix_changed: events.EventGroup
) -> None:
    """Connects the events."""
    queueing: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple"}
    for trigger in (tab.ask.click, tab.prompt.submit):
        taken = trigger(
            fn=None,
            inputs=[tab.prompt],
            outputs=[tab.prompt, tab.asked],
            js=TAKE_PROMPT,
            api_visibility="private",
        )
        outputs = [tab.answer, tab.prompt, tab.problem]
        asking = problems.guard(ask, 2, refuse_prompt, text=0)
        answered = events.bind(taken.then, engine, asking, tab.answer_inputs, outputs, **queueing)
        for event in (trigger, answered.then):  # the browser has moved the page while the answer grew
            event(fn=None, js=mix_choices.show_prompt("answer-side"), api_visibility="private")
    problems.clear_on_change(tab.prompt, tab.problem)
    following = problems.guard(follow_mixer)
    outputs = [tab.answer, tab.problem]
    events.bind(tab.mixer.mix_change, engine, following, tab.answer_inputs, outputs, **queueing)
    _wire_mix_description(tab, engine, library_changed, mix_changed)
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    events.bind(tab.clear.click, engine, clear, [tab.session], [tab.answer, tab.asked, tab.problem])
    tab.share.click(
        fn=None,
        inputs=[tab.prompt, tab.asked, tab.mixer],
        js="(prompt, asked, rows) => window.studio.copyLink(prompt || asked, rows)",
        api_visibility="private",
    )
    tab.present.click(fn=None, js="() => window.studio.present(true)", api_visibility="private")
    tab.exit.click(fn=None, js="() => window.studio.present(false)", api_visibility="private")
    _wire_saved_mixes(tab, engine, queueing)
    library_changed.add(refresh, [tab.saved], [tab.mixer, tab.saved, tab.saved_content, tab.thinking])
    damaged.wire(tab.damaged, engine, library_changed, "adapters", "mixes")


def _wire_mix_description(
    tab: MixTab, engine: Engine, library_changed: events.EventGroup, mix_changed: events.EventGroup
) -> None:
    """Connects what follows the mixer: the warnings, the prompts to try, and chat or continuing a text."""
    inputs = [tab.mixer, tab.continue_text, tab.has_chosen_mode]
    outputs = [tab.warnings, tab.chips, tab.continue_text, tab.suggestion]
    for group in (library_changed, mix_changed):
        group.add(describe_mix, inputs, outputs)
    events.bind(tab.mixer.change, engine, describe_mix, inputs, outputs)
    tab.suggestion.change(
        fn=None,
        inputs=[tab.prompt, tab.suggestion, tab.asked],
        outputs=[tab.prompt],
        js=SUGGEST,
        api_visibility="private",
    )
    tab.continue_text.input(fn=None, outputs=[tab.has_chosen_mode], js="() => true", api_visibility="private")
    outputs = [tab.prompt, tab.continue_text, tab.problem]
    events.bind(tab.chips.act, engine, take_chip, None, outputs).then(
        fn=None,
        js="() => document.querySelector('#mix-prompt textarea')?.focus()",
        api_visibility="private",
    )


def _wire_saved_mixes(tab: MixTab, engine: Engine, queueing: dict[str, Any]) -> None:
    saving = problems.guard(save_mix, 2, text=0)
    events.refresh_after(
        events.bind(
            tab.save.click, engine, saving, [tab.name, tab.mixer], [tab.name, tab.saved, tab.save_problem]
        )
    )
    problems.clear_on_change(tab.name, tab.save_problem)
    loading = problems.guard(load_mix)
    events.bind(
        tab.load.click, engine, loading, [tab.saved, tab.mixer], [tab.mixer, tab.load_problem]
    ).success(
        events.handler(problems.guard(follow_mixer), engine),
        tab.answer_inputs,
        [tab.answer, tab.problem],
        show_progress="hidden",
        api_visibility="private",
        **queueing,
    )
    deleting = problems.guard(delete_mix)
    events.refresh_after(
        events.bind(tab.delete.click, engine, deleting, [tab.saved], [tab.saved, tab.load_problem])
    )
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
        [tab.mixer, tab.prompt, tabs, tab.query],
        js="(query, rows) => [location.search, rows]",
    )
    loaded.success(
        events.handler(problems.guard(_answer_link, 3, lambda engine, *values: (gr.skip(),) * 3), engine),
        [tab.query, tab.prompt, *tab.answer_inputs[1:]],
        [tab.answer, tab.prompt, tab.asked, tab.problem],
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
    return conversation.render_conversation(session.exchanges, session.serial), prompt or gr.skip()


def stream_answer(
    engine: Engine, prompt: str, rows: Any, session: Session, continue_text: bool, *settings: Any
) -> Iterator[Node]:
    """Continues the conversation: answers a prompt with the mixer's mix, instead of one in progress.

    Args:
        settings: the values of the sampling settings, and optionally the system prompt and whether the answer
            begins with a thought.

    Yields:
        the whole conversation, for every frame.
    """
    if not prompt.strip():
        raise SpecError("The prompt is empty.", "Write a prompt first.")
    earlier = list(session.exchanges)
    exchange = Exchange(prompt, bool(continue_text))
    session.exchanges.append(exchange)
    yield from _answer(engine, exchange, earlier, rows, session, settings)


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
    system, thinking = (*settings[len(SAMPLING) :], "", False)[:2]
    try:
        mixes, sampling = [_read_mix(engine, rows)], read_sampling(settings[: len(SAMPLING)])
        if engine.bases.current().loading:
            exchange.note = "The base model is loading. The answer starts as soon as it is ready."
            yield conversation.render_conversation(session.exchanges, session.serial)
        frames = session.stream_frames(
            engine,
            exchange.prompt,
            mixes,
            sampling,
            chat=not exchange.continue_text,
            messages=make_messages(str(system or ""), earlier, exchange.prompt),
            thinking=bool(thinking),
        )
        for frame in frames:
            exchange.column, exchange.left_out = frame.columns[0], frame.left_out
            exchange.labels = session.labels
            yield conversation.render_conversation(session.exchanges, session.serial)
    finally:
        if exchange.column is None:
            back = [replaced] if replaced and replaced.column else []
            session.exchanges[:] = [
                e for one in session.exchanges for e in (back if one is exchange else [one])
            ]
    if exchange.column is None:  # stopped before the first word
        yield conversation.render_conversation(session.exchanges, session.serial)


def clear(engine: Engine, session: Session) -> tuple[Any, ...]:
    """Ends the conversation, and an answer in progress."""
    session.exchanges.clear()
    session.stop()
    session.prompt = ""
    return conversation.render_conversation([], session.serial), "", None


def describe_mix(engine: Engine, rows: Any, continue_text: bool, has_chosen_mode: bool) -> tuple[Any, ...]:
    """What follows the mixer.

    Returns:
        the warnings, the prompts to try, whether a prompt is continued as a text, and the prompt to begin
        with.
    """
    active = list(mixer.read_mix(rows).weights)
    chips = prompt_chips.list_chips(engine, active)
    mode: Any = gr.skip()
    if not has_chosen_mode and (suggested := prompt_chips.suggest_mode(engine, active)) != continue_text:
        mode = suggested
    suggestion = chips[0].text if chips else ""
    return show_warnings(engine, rows), prompt_chips.render_chips(chips), mode, suggestion


def take_chip(engine: Engine, event: gr.EventData) -> tuple[Any, ...]:
    """Puts a prompt to try into the field."""
    prompt, continue_text = prompt_chips.read_chip(event)
    return prompt, continue_text, None


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
    return gr.update(
        choices=[(m.name, m.id) for m in mixes], value=picked if picked in ids else next(iter(ids), None)
    )
