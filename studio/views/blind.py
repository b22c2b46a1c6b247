"""The blind test: the same answers without their names, a vote, and then the names.

Knows the ballot, which stays on this side of the wire until someone has voted, and the tally. Knows
nothing of how votes are kept.

    shuffle ─> letters, plain text ─> all written: vote buttons ─> vote ─> names, stamps, tally ─> again
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.engine import Engine
from core.errors import NotFound, SpecError, StudioError
from core.spec.mix import Mix, Sampling
from core.store.votes import Standing
from studio import formatting, session
from studio.components import board
from studio.session import Talk
from studio.tree import Node, button, empty, node, table

LETTERS = "ABCDEF"
OVER = "This blind test is over."
NO_VOTES = empty(
    "No votes yet", "Press Blind test: the answers come without their names, and whoever reads them votes."
)
HEADINGS = ["Mix", "Shown", "Won", "No difference", "Share of the decided", "95 % interval", "By chance"]
NUMERIC = frozenset(range(1, len(HEADINGS)))


@dataclass
class Ballot:
    """A blind test under way: which mix is under which letter. It lives in the visitor's `Talk` and is never sent.

    Attributes:
        mixes: in the order of the letters.
        picks: what the board showed before, in its own order.
        papers: one vote; whoever takes it votes, so that two clicks are one vote.
        vote: the id of the vote that was cast.
    """

    mixes: list[Mix]
    picks: list[str]
    papers: list[str] = field(default_factory=lambda: ["one"])
    vote: str = ""

    @property
    def voted(self) -> bool:
        return not self.papers


def frames(
    engine: Engine,
    talking: Talk,
    prompt: str,
    mixes: Sequence[Mix],
    picks: list[str],
    sampling: Sampling,
    same_dice: bool,
    dice: random.Random,
) -> Iterator[dict[str, Any]]:
    """Shuffles the mixes, asks them all and yields the board without a trace of which is which.

    Raises:
        SpecError: a mix that is picked twice.
    """
    if len({str(m) for m in mixes}) < len(mixes):
        raise SpecError("Two columns hold the same mix.", "Pick a different mix in each.")
    shuffled = list(mixes)
    dice.shuffle(shuffled)
    for frame in session.frames(
        engine, talking, prompt, shuffled, sampling, same_dice=same_dice, ballot=Ballot(shuffled, picks)
    ):
        stopped = any(c.reason == "cancelled" for c in frame.columns)
        yield {
            **covered(frame, picks, "" if stopped else str(talking.serial), stopped),
            "serial": talking.serial,
        }


def covered(frame: Any, picks: list[str], round_id: str, stopped: bool = False) -> dict[str, Any]:
    """The board while nobody has voted: letters and texts, and buttons once all is written."""
    ready = frame.done and not stopped
    columns = []
    for place, column in enumerate(frame.columns):
        vote = (
            button(
                "This one",
                {"vote": place, "round": round_id},
                "primary",
                aria_label=f"Answer {LETTERS[place]} is the best",
            )
            if ready
            else None
        )
        columns.append(
            node("div", board.text(column, [node("span", column.text)] if column.text else []), vote)
        )
    if stopped:
        foot = node(
            "div",
            node(
                "p", "Stopped before every answer was written, so there is nothing to vote on.", cls="quiet"
            ),
            _onwards(),
        )
    elif ready:
        foot = node(
            "div",
            node("p", "Which answer is the best?"),
            button("No difference", {"vote": None, "round": round_id}),
            cls="row asking",
        )
    else:
        foot = node("div", node("p", "You can vote when every answer is written.", cls="quiet"))
    return _value(
        picks,
        columns,
        [
            node("div", node("strong", LETTERS[i], cls="letter"), cls="col-head covered")
            for i in range(len(frame.columns))
        ],
        foot,
    )


def voted(engine: Engine, talking: Talk, said: Any) -> dict[str, Any]:
    """Counts the vote that a button reports, and uncovers the board.

    Raises:
        SpecError: the test is over, not yet written, or voted on already.
    """
    ballot, frame = talking.ballot, talking.frame
    said = said if isinstance(said, dict) else {}
    if ballot is None or frame is None or said.get("round") != str(talking.serial):
        raise SpecError(OVER, "Start another one.")
    chosen = said.get("vote")
    if not frame.done:
        raise SpecError("The answers are still being written.", "Vote when every one is there.")
    if chosen is not None and not (type(chosen) is int and 0 <= chosen < len(frame.columns)):
        raise SpecError(f"There is no answer {chosen!r}.", "Choose one of those shown.")
    try:
        paper = ballot.papers.pop()
    except IndexError:
        raise SpecError("You have voted on this one already.", "Start another blind test.") from None
    try:
        vote = engine.vote(talking.prompt, [c.stamp for c in frame.columns], chosen)
    except StudioError:
        ballot.papers.append(paper)
        raise
    ballot.vote = vote.id
    return uncovered(engine, talking, vote)


def uncovered(engine: Engine, talking: Talk, vote: Any) -> dict[str, Any]:
    """The board after the vote: names, stamps, marks, and what all votes say about these mixes."""
    ballot, frame = talking.ballot, talking.frame
    chosen = (
        "You found no difference."
        if vote.chosen is None
        else f"You chose {LETTERS[vote.chosen]}: {ballot.mixes[vote.chosen].name or ballot.mixes[vote.chosen]}."
    )
    here = set(vote.identities)
    standings = [s for s in engine.tally() if s.identity in here]
    said = node(
        "div",
        node("p", node("strong", chosen), " All votes on these mixes so far:"),
        _onwards({"undo": True}),
        cls="row spread",
    )
    return _value(
        ballot.picks,
        board.columns(frame, board.reference(ballot.mixes)),
        _heads(engine, ballot, vote.chosen),
        node("div", said, _table(standings)),
    )


def withdrawn(engine: Engine, talking: Talk) -> dict[str, Any]:
    """Takes the last vote back; the names stay open, so this test is over."""
    ballot, frame = talking.ballot, talking.frame
    if ballot is None or not ballot.vote:
        raise SpecError(OVER, "Start another one.")
    engine.withdraw_vote(ballot.vote)
    heads = _heads(engine, ballot)
    foot = node("div", node("p", "The vote was taken back.", cls="quiet"), _onwards())
    return _value(ballot.picks, board.columns(frame, board.reference(ballot.mixes)), heads, foot)


def _heads(engine: Engine, ballot: Ballot, chosen: int | None = None) -> list[Node]:
    kinds = {a["id"]: a["kind"] for a in engine.mixable()}
    heads = []
    for place, mix in enumerate(ballot.mixes):
        mark = node("span", "Your vote", cls="chip good") if place == chosen else None
        name = node("strong", mix.name or str(mix), cls="letter-name")
        heads.append(
            node(
                "div",
                node("strong", LETTERS[place], cls="letter"),
                name,
                mark,
                cls=f"col-head {session.kind_of(mix, kinds)}",
            )
        )
    return heads


def secret(talking: Talk) -> bool:
    """Whether names must not be told, because a test waits for its vote."""
    return talking.ballot is not None and not talking.ballot.voted


def tally(engine: Engine) -> Node:
    """All votes so far."""
    standings = engine.tally()
    if not standings:
        return NO_VOTES
    bases = {s.base for s in standings}
    note = (
        "A mix is told by its adapters' files and weights, not by its name. By chance is what it would win if all answers were alike; "
        "the interval is Wilson's and takes the votes for independent of each other."
    )
    return node("div", _table(standings, len(bases) > 1), node("p", note, cls="quiet below"))


def emptied(engine: Engine) -> Node:
    """Deletes every vote.

    Raises:
        NotFound: there is none.
    """
    if not engine.tally():
        raise NotFound("There are no votes to delete.", "Start a blind test first.")
    engine.reset_votes()
    return NO_VOTES


def _table(standings: list[Standing], bases: bool = False) -> Node:
    rows = []
    for s in standings:
        low, high = s.interval
        figures = [
            s.shown,
            s.won,
            s.ties,
            formatting.percent(s.share),
            f"{100 * low:.0f} to {100 * high:.0f} %" if s.decided else formatting.NONE,
            formatting.percent(s.chance),
        ]
        name = node("div", node("strong", s.name), node("div", _formula(s), cls="quiet"))
        rows.append([name, *figures, *([formatting.base(s.base)] if bases else [])])
    return node(
        "div",
        table(
            HEADINGS + (["Base"] if bases else []), rows, "Votes of the blind tests, for each mix", NUMERIC
        ),
        cls="tallied",
    )


def _formula(standing: Standing) -> str:
    parts = []
    for adapter, weight in standing.weights.items():
        digest, tilt = standing.adapters.get(adapter, ""), standing.tilt.get(adapter, 0.0)
        leaning = f" {'deep' if tilt > 0 else 'shallow'} {abs(tilt):.2f}" if tilt else ""
        parts.append(f"{adapter} {weight:+.2f}{leaning} ({digest if ' ' in digest else digest[:8]})")
    return " · ".join(["base", *parts])


def _onwards(undo: dict[str, Any] | None = None) -> Node:
    back = button("Take the vote back", undo) if undo else None
    return node(
        "div",
        button("Again", {"again": True}, "primary", title="Shuffles anew, with the prompt above"),
        back,
        button("Change the mixes", {"leave": True}),
        cls="row",
    )


def _value(picks: list[str], columns: list[Node], heads: list[Node], foot: Node) -> dict[str, Any]:
    return {"picks": picks, "touched": True, "columns": columns, "blind": {"heads": heads, "foot": foot}}
