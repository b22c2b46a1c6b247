"""The blind test of the Compare tab: the same answers without their names, a vote, and then the names.

The `Ballot`, which says which mix has which letter, stays on the server until the vote.
`core/store/votes.py` stores the votes.

    shuffle ─> letters, plain text ─> all answers complete: vote buttons ─> vote ─> names, stamps, tally
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.engine import Engine
from core.engine.mix_names import format_weight, name_mix
from core.errors import NotFound, SpecError, StudioError
from core.spec.mix import Mix, Sampling
from core.store.votes import Standing
from studio import answers, formatting, mix_choices
from studio.components import board
from studio.session import PromptSettings, Session, make_messages
from studio.tree import Node, button, empty, node, table

LETTERS = "ABCDEF"
TEST_OVER = "This blind test is over."
NO_VOTES = empty(
    "No votes yet",
    "Press Blind test to see the answers without the names of their mixes and vote for the best one.",
)
HEADINGS = ["Mix", "Shown", "Won", "No difference", "Win rate", "95 % interval", "Expected by chance"]
NUMERIC = frozenset(range(1, len(HEADINGS)))


@dataclass
class Ballot:
    """A blind test in progress: which mix has which letter. It belongs to the session and is never sent.

    Attributes:
        mixes: in the order of the letters.
        picks: the mixes that the board showed before, in its own order.
        open_votes: one entry until the vote is cast; taking it is atomic, so two clicks count as one vote.
        vote_id: the id of the vote that was cast.
    """

    mixes: list[Mix]
    picks: list[str]
    open_votes: list[str] = field(default_factory=lambda: ["one"])
    vote_id: str = ""

    @property
    def is_closed(self) -> bool:
        """Whether the vote has been cast."""
        return not self.open_votes


def stream_covered_board(
    engine: Engine,
    session: Session,
    prompt: str,
    mixes: Sequence[Mix],
    picks: list[str],
    sampling: Sampling,
    same_noise: bool,
    rng: random.Random,
    how: PromptSettings | None = None,
) -> Iterator[dict[str, Any]]:
    """Shuffles the mixes, answers with all of them and yields a board that identifies none of them.

    Args:
        how: how the prompt is read; by default as a chat without a system prompt.

    Raises:
        SpecError: a mix is picked twice.
    """
    if len({str(m) for m in mixes}) < len(mixes):
        raise SpecError("Two columns hold the same mix.", "Pick a different mix for each column.").at(
            "columns"
        )
    shuffled = list(mixes)
    rng.shuffle(shuffled)
    how = how or PromptSettings(sampling)
    for frame in session.stream_frames(
        engine,
        prompt,
        shuffled,
        sampling,
        chat=not how.continue_text,
        same_noise=same_noise,
        ballot=Ballot(shuffled, picks),
        messages=make_messages(how.system, [], prompt),
        thinking=how.thinking,
    ):
        stopped = any(c.reason == "cancelled" for c in frame.columns)
        yield {
            **render_covered_board(frame, picks, "" if stopped else str(session.serial), stopped),
            "serial": session.serial,
        }


def render_covered_board(
    frame: Any, picks: list[str], round_id: str, stopped: bool = False
) -> dict[str, Any]:
    """The board before the vote: letters and texts, with vote buttons once all answers are complete."""
    ready = frame.done and not stopped
    columns = []
    for place, column in enumerate(frame.columns):
        text = board.render_answer(column, [node("span", column.text)] if column.text else [])
        columns.append(node("div", text, _vote_button(place, round_id) if ready else None))
    heads = [
        node("div", node("strong", letter, cls="letter"), cls="col-head covered")
        for letter in LETTERS[: len(frame.columns)]
    ]
    if stopped:
        note = "Stopped before every answer was complete, so there is nothing to vote on."
        foot = node("div", node("p", note, cls="quiet"), _next_buttons())
    elif ready:
        tie = button("No difference", {"vote": None, "round": round_id})
        foot = node("div", node("p", "Which answer is best?"), tie, cls="row vote-row")
    else:
        foot = node("div", node("p", "You can vote once every answer is complete.", cls="quiet"))
    return _board_value(picks, columns, heads, foot)


def _vote_button(place: int, round_id: str) -> Node:
    label = f"Answer {LETTERS[place]} is best"
    return button("This one", {"vote": place, "round": round_id}, "primary", aria_label=label)


def cast_vote(engine: Engine, session: Session, data: Any) -> dict[str, Any]:
    """Stores the vote that a button reports and uncovers the board.

    Args:
        data: the button's event data, `{"vote": column index or None, "round": serial}`.

    Raises:
        SpecError: the test is over, an answer is incomplete, or the vote has been cast already.
    """
    ballot, frame = session.ballot, session.frame
    data = data if isinstance(data, dict) else {}
    if ballot is None or frame is None or data.get("round") != str(session.serial):
        raise SpecError(TEST_OVER, "Start a new one.")
    chosen = data.get("vote")
    if not frame.done:
        raise SpecError("The answers are still being written.", "Vote once every answer is complete.")
    if chosen is not None and not (type(chosen) is int and 0 <= chosen < len(frame.columns)):
        raise SpecError(
            f"The vote must be for one of the answers, got {chosen!r}.", "Press one of the buttons."
        )
    try:
        open_vote = ballot.open_votes.pop()
    except IndexError:
        raise SpecError("You have already voted in this blind test.", "Start a new one.") from None
    try:
        vote = engine.votes.cast(session.prompt, [c.stamp for c in frame.columns], chosen, ballot.mixes)
    except StudioError:
        ballot.open_votes.append(open_vote)
        raise
    ballot.vote_id = vote.id
    return render_uncovered_board(engine, session, vote)


def render_uncovered_board(engine: Engine, session: Session, vote: Any) -> dict[str, Any]:
    """The board after the vote: names, stamps, marks, and the tally of these mixes."""
    ballot, frame = session.ballot, session.frame
    if vote.chosen is None:
        verdict = "You found no difference."
    else:
        mix = ballot.mixes[vote.chosen]
        verdict = f"You chose {LETTERS[vote.chosen]}: {mix.name or mix}."
    identities = set(vote.identities)
    standings = [s for s in engine.votes.tally() if s.identity in identities]
    summary = node(
        "div",
        node("p", node("strong", verdict), " All votes on these mixes so far:"),
        _next_buttons({"undo": True}),
        cls="row spread",
    )
    return _board_value(
        ballot.picks,
        board.render_columns(frame, board.find_reference(ballot.mixes), session.labels),
        _name_heads(engine, ballot, vote.chosen),
        node("div", summary, _tally_table(engine, standings)),
    )


def undo_vote(engine: Engine, session: Session) -> dict[str, Any]:
    """Deletes the vote of this test; the names stay uncovered, so the test is over."""
    ballot, frame = session.ballot, session.frame
    if ballot is None or not ballot.vote_id:
        raise SpecError(TEST_OVER, "Start a new one.")
    engine.votes.withdraw(ballot.vote_id)
    heads = _name_heads(engine, ballot)
    foot = node("div", node("p", "Your vote was taken back.", cls="quiet"), _next_buttons())
    return _board_value(
        ballot.picks,
        board.render_columns(frame, board.find_reference(ballot.mixes), session.labels),
        heads,
        foot,
    )


def _name_heads(engine: Engine, ballot: Ballot, chosen: int | None = None) -> list[Node]:
    kinds = {a.id: a.kind for a in engine.library.mixable_adapters()}
    heads = []
    for place, mix in enumerate(ballot.mixes):
        letter = node("strong", LETTERS[place], cls="letter")
        name = node("strong", mix.name or str(mix), cls="letter-name")
        mark = node("span", "Your vote", cls="chip good") if place == chosen else None
        heads.append(node("div", letter, name, mark, cls=f"col-head {mix_choices.kind_of(mix, kinds)}"))
    return heads


def is_covered(session: Session) -> bool:
    """Whether a blind test waits for its vote, so that no name may be shown."""
    return session.ballot is not None and not session.ballot.is_closed


def render_tally(engine: Engine) -> Node:
    """All votes so far."""
    standings = engine.votes.tally()
    if not standings:
        return NO_VOTES
    bases = {s.base for s in standings}
    note = (
        "A mix is identified by its adapters' files and weights, not by its name. The win rate leaves out "
        "“No difference” votes. Expected by chance is the win rate if all answers were equally good. "
        "The interval is Wilson's and assumes that votes are independent."
    )
    return node("div", _tally_table(engine, standings, len(bases) > 1), node("p", note, cls="quiet below"))


def delete_votes(engine: Engine) -> Node:
    """Deletes every vote.

    Raises:
        NotFound: no vote was cast yet.
    """
    if not engine.votes.tally():
        raise NotFound("No votes to delete.", "Start a blind test first.")
    engine.votes.reset()
    return NO_VOTES


def _tally_table(engine: Engine, standings: list[Standing], bases: bool = False) -> Node:
    labels = engine.library.labels()
    known = {c["id"]: c["name"] for c in mix_choices.list_choices(engine)}
    rows = []
    for s in standings:
        low, high = s.interval
        figures = [
            s.votes,
            s.wins,
            s.ties,
            formatting.format_percent(s.win_rate),
            f"{100 * low:.0f} to {100 * high:.0f} %" if s.decisive_votes else formatting.NONE,
            formatting.format_percent(s.chance_rate),
        ]
        name = node("div", node("strong", _name(s, labels, known)), _details(s, labels))
        rows.append([name, *figures, *([formatting.format_base(s.base)] if bases else [])])
    headings = HEADINGS + (["Base"] if bases else [])
    return node("div", table(headings, rows, "Blind-test votes for each mix", NUMERIC), cls="tally")


def _name(standing: Standing, labels: Mapping[str, str], known: Mapping[str, str]) -> str:
    """The present name of a mix, or what it was called in its votes if an adapter of it was deleted.

    Args:
        labels: the names of the adapters, by id.
        known: the names of the mixes that can be chosen, by id.
    """
    if not set(standing.weights) <= set(labels):
        return standing.name
    mix = _mix_of(standing)
    return known.get(str(mix)) or name_mix(mix, labels)


def _mix_of(standing: Standing) -> Mix:
    return Mix(weights=standing.weights, tilt=standing.tilt, auto=standing.auto)


def _details(standing: Standing, labels: Mapping[str, str]) -> Node:
    """The weights and checksums of a mix, folded away."""
    parts, mix = [], _mix_of(standing)
    for adapter, weight in standing.weights.items():
        digest, tilt = standing.adapters.get(adapter, ""), standing.tilt.get(adapter, 0.0)
        direction = "deep" if tilt > 0 else "shallow"
        depth = f" {direction} {abs(tilt):.2f}" if tilt else ""
        name = labels.get(adapter, answers.DELETED)
        amount = format_weight(mix, adapter) if adapter in mix.auto else f"{weight:+.2f}"
        parts.append(f"{name} {amount}{depth} ({digest if ' ' in digest else digest[:8]})")
    formula = node("p", " · ".join(["base", *parts]), cls="checksums")
    return node("details", node("summary", "Details"), formula, cls="stamp-fold")


def _next_buttons(undo: dict[str, Any] | None = None) -> Node:
    again = button(
        "Test again", {"again": True}, "primary", title="Starts another blind test with the prompt above"
    )
    back = button("Take my vote back", undo) if undo else None
    return node("div", again, back, button("Change the mixes", {"leave": True}), cls="row")


def _board_value(picks: list[str], columns: list[Node], heads: list[Node], foot: Node) -> dict[str, Any]:
    return {"picks": picks, "touched": True, "columns": columns, "blind": {"heads": heads, "foot": foot}}
