"""The Compare tab: two to six mixes answer one prompt side by side, with or without their names.

`views/blind.py` runs the blind test, `views/suite.py` the prompt suite.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import NotFound, SpecError, StudioError
from core.spec.mix import Mix, Sampling
from studio import answers, events, fields, mix_choices, problems, prompt_chips
from studio.assets import read_asset
from studio.components import board, mixer
from studio.session import SAMPLING, Session, make_messages, read_settings
from studio.tree import Node, node, title, view
from studio.views import blind, suite
from studio.views.suite import Suite

# In the browser, because the user may be typing: a suggestion fills an empty field or replaces an older one.
SUGGEST = """(prompt, suggestion) => {
  const earlier = window.studio.suggestedComparePrompt ?? "";
  if (prompt && prompt !== earlier) return prompt;
  window.studio.suggestedComparePrompt = suggestion;
  return suggestion;
}"""
SAME_NOISE_INFO = (
    "Every column samples with the same random numbers, so differences come from the mix. "
    "Matters only at temperatures above 0."
)


@dataclass(frozen=True)
class Votes:
    """The components of the votes' accordion; `confirmation` is the row with the last two buttons."""

    accordion: gr.Accordion
    tally: gr.HTML
    download: gr.Button
    delete: gr.Button
    confirmation: gr.Row
    confirm: gr.Button
    cancel: gr.Button


@dataclass(frozen=True)
class CompareTab:
    """The components of the Compare tab.

    Attributes:
        columns_problem: errors of the columns, above them; `problem` has those of the prompt, below it.
        has_chosen_mode: whether the user has chosen between chat and continuing a text. Hidden.
        suggestion: holds a prompt to begin with. Hidden.
        file_text: takes a file's text to the browser. Hidden.
    """

    prompt: gr.Textbox
    problem: gr.HTML
    continue_text: gr.Radio
    chips: gr.HTML
    ask: gr.Button
    blind: gr.Button
    stop: gr.Button
    export: gr.Button
    same_noise: gr.Checkbox
    system: gr.Textbox
    thinking: gr.Checkbox
    sampling: fields.Fields
    columns_problem: gr.HTML
    board: gr.HTML
    votes: Votes
    suite: Suite
    file_text: gr.Textbox
    suggestion: gr.Textbox
    has_chosen_mode: gr.Checkbox
    session: gr.State

    @property
    def settings(self) -> list[Any]:
        """The same-noise checkbox, and the components that `read_settings` reads."""
        return [
            self.same_noise,
            *self.sampling.values(),
            self.continue_text,
            self.system,
            self.thinking,
        ]


def build() -> CompareTab:
    """Makes the components."""
    made: dict[str, Any] = {}
    with gr.Column(elem_classes="card", elem_id="compare-side"):
        about = "All columns answer in one batch with the same noise, so differences come from the mix."
        view(title("Compare", about))
        with gr.Group(elem_classes="plain composer"):
            made["prompt"] = gr.Textbox(
                label="Prompt",
                lines=1,
                max_lines=8,
                placeholder="Ask every column the same question",
                elem_id="compare-prompt",
            )
            made["problem"] = problems.place(elem_id="compare-problem")
            with gr.Row(elem_classes="under-prompt"):
                view(node("p", mix_choices.SEND_HINT, cls="quiet"), elem_classes="send-hint")
                made["continue_text"] = mix_choices.mode_radio()
        made["chips"] = view(elem_id="compare-chips")
        with gr.Row(elem_classes="actions"):
            made["ask"] = gr.Button("Answer", variant="primary", scale=0, min_width=130)
            made["blind"] = gr.Button("Blind test", scale=0, min_width=120)
            made["stop"] = gr.Button("Stop", scale=0, min_width=90)
            made["export"] = gr.Button("Export as Markdown", scale=0, min_width=170)
        made["columns_problem"] = problems.place(elem_id="columns-problem")
        made["board"] = gr.HTML(
            value=None,
            choices=[],
            html_template='<div class="board"></div>',
            js_on_load=read_asset("components/board.js") + "\n/* fires 'vote', 'again' and 'pick' */",
            apply_default_css=False,
            elem_id="board",
        )
        made["system"], made["thinking"] = mix_choices.system_fields()
        with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"):
            with gr.Row():
                made["sampling"] = fields.build(Sampling, SAMPLING)
            made["same_noise"] = gr.Checkbox(True, label="Same noise in every column", info=SAME_NOISE_INFO)
        made["votes"] = _build_votes()
        made["suite"] = suite.build()
        made["file_text"], made["suggestion"] = gr.Textbox(visible=False), gr.Textbox(visible=False)
    made["has_chosen_mode"] = gr.Checkbox(False, visible=False)
    made["session"] = gr.State(Session(), delete_callback=Session.stop)
    return CompareTab(**made)


def _build_votes() -> Votes:
    with gr.Accordion("Votes so far", open=False, elem_classes="quiet-fold", elem_id="votes") as accordion:
        tally = view(blind.NO_VOTES)
        with gr.Row(elem_classes="actions"):
            download = gr.Button("Download the votes as CSV", scale=0, min_width=210)
            delete = gr.Button("Delete all votes", variant="stop", scale=0, min_width=140)
        with gr.Row(visible=False, elem_classes="actions") as confirmation:
            confirm = gr.Button("Yes, delete all votes", variant="stop", scale=0, min_width=180)
            cancel = gr.Button("Keep them", scale=0, min_width=110)
    return Votes(accordion, tally, download, delete, confirmation, confirm, cancel)


def wire(
    tab: CompareTab,
    engine: Engine,
    library_changed: events.EventGroup,
    mix_changed: events.EventGroup,
    mixer_rows: gr.HTML,
) -> None:
    """Connects the events."""
    inputs = [tab.prompt, tab.board, mixer_rows, tab.session, *tab.settings]
    outputs = [tab.board, tab.problem, tab.columns_problem]
    queueing: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple"}
    for trigger in (tab.ask.click, tab.prompt.submit):
        answered = events.bind(trigger, engine, ask, inputs, outputs, **queueing)
        for event in (trigger, answered.then):  # the browser has moved the page while the answers grew
            event(fn=None, js=mix_choices.show_prompt("compare-side"), api_visibility="private")
    for trigger in (tab.blind.click, tab.board.again):
        events.bind(trigger, engine, ask_blind, inputs, outputs, **queueing)
    problems.clear_on_change(tab.prompt, tab.problem)
    events.bind(tab.board.vote, engine, vote, [tab.session], [tab.board, tab.votes.tally])
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    events.bind(tab.export.click, engine, export_markdown, [tab.session], [tab.file_text]).success(
        fn=None,
        inputs=[tab.file_text],
        js="(text) => { window.studio.saveFile('comparison.md', text); }",
        api_visibility="private",
    )
    described = [tab.chips, tab.continue_text, tab.suggestion]
    columns = [mixer_rows, tab.board, tab.continue_text, tab.has_chosen_mode]
    for event in (library_changed, mix_changed):
        event.add(refresh, columns, [tab.board, tab.thinking, *described])
    events.bind(tab.board.pick, engine, follow_picks, columns, [tab.columns_problem, *described])
    tab.suggestion.change(
        fn=None,
        inputs=[tab.prompt, tab.suggestion],
        outputs=[tab.prompt],
        js=SUGGEST,
        api_visibility="private",
    )
    tab.continue_text.input(fn=None, outputs=[tab.has_chosen_mode], js="() => true", api_visibility="private")
    chosen = [tab.prompt, tab.continue_text, tab.problem]
    events.bind(tab.chips.act, engine, take_chip, None, chosen).then(
        fn=None,
        js="() => document.querySelector('#compare-prompt textarea')?.focus()",
        api_visibility="private",
    )
    _wire_votes(tab, engine)
    suite.wire(tab.suite, engine, [tab.board, mixer_rows], tab.settings)


def _wire_votes(tab: CompareTab, engine: Engine) -> None:
    votes = tab.votes
    events.bind(votes.accordion.expand, engine, show_tally, None, [votes.tally])
    events.bind(votes.download.click, engine, export_votes_csv, None, [tab.file_text]).success(
        fn=None,
        inputs=[tab.file_text],
        js="(text) => { window.studio.saveFile('votes.csv', text); }",
        api_visibility="private",
    )
    events.bind(votes.delete.click, engine, confirm_delete_votes, None, [votes.confirmation])
    events.bind(votes.cancel.click, engine, cancel_delete_votes, None, [votes.confirmation])
    events.bind(votes.confirm.click, engine, delete_votes, None, [votes.tally, votes.confirmation])


def refresh(
    engine: Engine, rows: Any, board_value: Any, continue_text: bool, has_chosen_mode: bool
) -> tuple[Any, ...]:
    """Updates the mixes that the columns offer, whether the base can think, and what follows the columns."""
    choices = mix_choices.list_choices(engine, mixer.current_mix(engine, rows))
    thinking = gr.update(visible=engine.bases.current().thinks)
    return (
        gr.HTML(choices=choices),
        thinking,
        *describe_columns(engine, board_value, continue_text, has_chosen_mode),
    )


def follow_picks(
    engine: Engine, rows: Any, board_value: Any, continue_text: bool, has_chosen_mode: bool
) -> tuple[Any, ...]:
    """Shows what follows the columns, after the user has chosen another one."""
    return None, *describe_columns(engine, board_value, continue_text, has_chosen_mode)


def describe_columns(
    engine: Engine, board_value: Any, continue_text: bool, has_chosen_mode: bool
) -> tuple[Any, ...]:
    """What follows the columns.

    Returns:
        the prompts to try, whether a prompt is continued as a text, and the prompt to begin with.
    """
    try:
        mixes = [Mix.parse(p) for p in board.read_picks(engine, board_value)]
    except StudioError:
        mixes = []
    active = list(dict.fromkeys(a for m in mixes for a in m.weights))
    chips = prompt_chips.list_chips(engine, active)
    mode: Any = gr.skip()
    if not has_chosen_mode and (suggested := prompt_chips.suggest_mode(engine, active)) != continue_text:
        mode = suggested
    return prompt_chips.render_chips(chips), mode, chips[0].text if chips else ""


def take_chip(engine: Engine, event: gr.EventData) -> tuple[Any, ...]:
    """Puts a prompt to try into the field."""
    prompt, continue_text = prompt_chips.read_chip(event)
    return prompt, continue_text, None


def ask(engine: Engine, *inputs: Any) -> Iterator[tuple[Any, ...]]:
    """Answers the prompt in every column; an error stands below the prompt or above the columns."""
    yield from _place_errors(engine, stream_answers, inputs)


def ask_blind(engine: Engine, *inputs: Any) -> Iterator[tuple[Any, ...]]:
    """Runs a blind test; an error stands below the prompt or above the columns."""
    yield from _place_errors(engine, stream_blind_test, inputs)


def _place_errors(
    engine: Engine, stream: Callable[..., Iterator[Any]], inputs: tuple[Any, ...]
) -> Iterator[tuple[Any, ...]]:
    """Adds the two places of errors to the boards of a stream. A refused prompt leaves no answers behind."""
    prompt, board_value, session = inputs[0], inputs[1], inputs[3]
    try:
        for value in stream(engine, *inputs):
            yield value, None, None
    except StudioError as e:
        session.stop()
        session.frame = None
        problem = problems.render_problem(e, prompt)
        places = (None, problem) if e.field == "columns" else (problem, None)
        yield {**(board_value or {}), "columns": [], "blind": None, "serial": session.serial}, *places


def stream_answers(
    engine: Engine,
    prompt: str,
    board_value: Any,
    rows: Any,
    session: Session,
    same_noise: bool,
    *settings: Any,
) -> Iterator[dict[str, Any]]:
    """Answers the prompt in every column; yields the whole board for each frame.

    Args:
        settings: see `read_settings`.
    """
    picks, mixes = _read_columns(engine, prompt, board_value, rows)
    how = read_settings(settings)
    reference = board.find_reference(mixes)
    value = {"picks": picks, "names": dict(zip(picks, [m.name for m in mixes], strict=True)), "touched": True}
    yield {**value, "columns": board.render_placeholders(len(mixes)), "serial": session.serial + 1}
    frames = session.stream_frames(
        engine,
        prompt,
        mixes,
        how.sampling,
        chat=not how.continue_text,
        same_noise=same_noise,
        messages=make_messages(how.system, [], prompt),
        thinking=how.thinking,
    )
    for frame in frames:
        columns = board.render_columns(frame, reference, session.labels)
        yield {**value, "columns": columns, "serial": session.serial}


def stream_blind_test(
    engine: Engine,
    prompt: str,
    board_value: Any,
    rows: Any,
    session: Session,
    same_noise: bool,
    *settings: Any,
    rng: random.Random | None = None,
) -> Iterator[dict[str, Any]]:
    """Answers the prompt in every column, in an order that only the server knows; yields unnamed boards.

    Args:
        settings: see `read_settings`.
        rng: shuffles the columns; by default the operating system's, which cannot be predicted.
    """
    picks, mixes = _read_columns(engine, prompt, board_value, rows)
    how = read_settings(settings)
    yield from blind.stream_covered_board(
        engine,
        session,
        prompt,
        mixes,
        picks,
        how.sampling,
        same_noise,
        rng or random.SystemRandom(),
        how,
    )


def _read_columns(engine: Engine, prompt: str, board_value: Any, rows: Any) -> tuple[list[str], list[Mix]]:
    if not prompt.strip():
        raise SpecError("The prompt is empty.", "Write a prompt first.")
    picks = board.read_picks(engine, board_value)
    return picks, board.read_mixes(engine, picks, rows)


def vote(engine: Engine, session: Session, event: gr.EventData) -> tuple[dict[str, Any], Node]:
    """Casts a vote or takes it back; returns the uncovered board and the tally."""
    data = event._data if isinstance(event._data, dict) else {}
    value = blind.undo_vote(engine, session) if data.get("undo") else blind.cast_vote(engine, session, data)
    serial = session.serial + 0.5  # after every frame of this test, before those of the next
    return {**value, "serial": serial}, blind.render_tally(engine)


def show_tally(engine: Engine) -> Node:
    """Shows all votes so far."""
    return blind.render_tally(engine)


def export_votes_csv(engine: Engine) -> str:
    """All votes as CSV.

    Raises:
        NotFound: no vote was cast yet.
    """
    if not engine.votes.tally():
        raise NotFound("No votes to download yet.", "Start a blind test first.")
    return engine.votes.csv()


def confirm_delete_votes(engine: Engine) -> Any:
    """Asks for confirmation before votes are deleted."""
    return gr.update(visible=True)


def cancel_delete_votes(engine: Engine) -> Any:
    """Hides the confirmation."""
    return gr.update(visible=False)


def delete_votes(engine: Engine) -> tuple[Node, Any]:
    """Deletes every vote."""
    return blind.delete_votes(engine), gr.update(visible=False)


def stop(engine: Engine, session: Session) -> None:
    """Stops the answers and keeps their text; a complete blind test can still be voted on."""
    if session.frame is None or not session.frame.done:
        session.stop()


def export_markdown(engine: Engine, session: Session) -> str:
    """The last comparison as a Markdown document.

    Raises:
        SpecError: a blind test waits for its vote. NotFound: nothing was answered yet.
    """
    if blind.is_covered(session):
        raise SpecError("The names are still covered.", "Vote first, then export the comparison.")
    text = answers.to_markdown(session)
    if not text:
        raise NotFound("There is nothing to export yet.", "Answer a prompt first.")
    return text
