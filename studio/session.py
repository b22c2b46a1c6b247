"""One visitor's answers: the stream under way, and what the last comparison said.

Knows how a new question ends the old one, and how a comparison reads as Markdown. Knows nothing of
the components that show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.engine import Engine
from core.spec.mix import Mix, Sampling, by_depth
from studio import fields, formatting
from studio.tree import Node, node

SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop")


@dataclass
class Talk:
    """Lives in `gr.State`; every session has its own."""

    serial: int = 0
    stream: Any = None
    prompt: str = ""
    names: list[str] = field(default_factory=list)
    frame: Any = None
    ballot: Any = None  # of the blind test under way, which the page must not know

    def __deepcopy__(self, memo: Any) -> Talk:
        return Talk()  # Gradio copies a state's first value for each session

    def stop(self) -> None:
        """Ends the answer under way; whoever reads it gets no more frames."""
        self.serial += 1
        self.ballot = None
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def drawn(values: Sequence[Any]) -> Sampling:
    """What the components of the fields in `SAMPLING` hold."""
    return Sampling(**fields.read(Sampling, dict(zip(SAMPLING, values, strict=True))))


def retuned(engine: Engine, talk: Talk, mixes: Sequence[Mix]) -> bool:
    """Lets the answer under way go on under other mixes; false if none is."""
    if talk.stream is None or talk.frame is None or talk.frame.done:
        return False
    engine.retune(talk.stream, mixes)
    return True


def frames(
    engine: Engine,
    talk: Talk,
    prompt: str,
    mixes: Sequence[Mix],
    sampling: Sampling,
    chat: bool = True,
    same_dice: bool = True,
    ballot: Any = None,
) -> Iterator[Any]:
    """Asks all mixes at once and yields the engine's frames until the answer ends or another replaces it."""
    talk.stop()
    serial = talk.serial
    stream = engine.stream(prompt, mixes, sampling, chat, same_dice)
    talk.stream, talk.prompt, talk.names, talk.frame, talk.ballot = (
        stream,
        prompt,
        [m.name or str(m) for m in mixes],
        None,
        ballot,
    )
    try:
        for frame in stream:
            if talk.serial != serial:
                break
            talk.frame = frame
            yield frame
        if (
            talk.stream is None and talk.frame is not None and not talk.frame.done
        ):  # stopped, not replaced: what is written stays
            talk.frame = _ended(talk.frame)
            yield talk.frame
    finally:
        stream.close()


def _ended(frame: Any) -> Any:
    """A frame whose unfinished columns are marked as stopped."""
    return replace(
        frame,
        columns=[c if c.done else replace(c, done=True, reason="cancelled") for c in frame.columns],
        done=True,
    )


def choices(engine: Engine, present: Mix | None = None) -> list[dict[str, str]]:
    """Every mix there is to pick: the usual ones, the saved ones, and the mixer's. The id is the mix itself, as text."""
    kinds = {
        a["id"] if isinstance(a, dict) else a.id: a["kind"] if isinstance(a, dict) else a.kind
        for a in engine.mixable()
    }
    saved = [m.mix for m in engine.mixes() if set(m.weights) <= set(kinds)]
    own = [replace(present, name=f"Mixer: {present.name}"[:120])] if present and present.weights else []
    usual = engine.default_mixes()
    leaning = [by_depth(*m.weights) for m in usual if len(m.weights) == 2]
    found: dict[str, dict[str, str]] = {}
    for mix in [*usual, *leaning, *saved, *own]:
        found.setdefault(
            str(mix), {"id": str(mix), "name": mix.name or str(mix), "kind": kind_of(mix, kinds)}
        )
    return list(found.values())


def kind_of(mix: Mix, kinds: dict[str, str]) -> str:
    """The colour of a mix: base, one adapter's kind, or mix."""
    if not mix.weights:
        return "base"
    return kinds.get(next(iter(mix.weights)), "mix") if len(mix.weights) == 1 else "mix"


def named(engine: Engine, ids: Sequence[str], present: Mix | None = None) -> list[Mix]:
    """Mixes from the ids of `choices`, each with its name.

    Raises:
        SpecError: an id that is no mix.
    """
    names = {c["id"]: c["name"] for c in choices(engine, present)}
    return [Mix.parse(i, name=names.get(i, i)[:120]) for i in ids]


def written(column: Any) -> list[Node]:
    """An answer's text, with a mark where its mix changed."""
    pieces, start = [], 0
    for turn in column.turns:
        active = " ".join(f"{i} {w:+.2f}" for i, w in turn.stamp["weights"].items()) or "base"
        pieces += [
            node("span", column.text[start : turn.at]),
            node("span", turn.mix, cls="turn", title=f"From here on: {active}", role="note"),
        ]
        start = turn.at
    return [*pieces, node("span", column.text[start:] or ("" if pieces else silent(column)))]


def silent(column: Any) -> str:
    """What stands in the place of an answer without text."""
    return "(ended without a word)" if column.reason == "end" else "…"


def stamp(column: Any) -> str:
    """What the model had active for an answer, in one line."""
    active = column.stamp.get("weights") or {}
    digests = column.stamp.get("adapters") or {}
    tilt = column.stamp.get("tilt") or {}
    parts = [
        f"{i} {w:+.2f}{f' @{tilt[i]:g}' if i in tilt else ''} ({_digest(digests.get(i, ''))})"
        for i, w in active.items()
    ]
    return "base" + "".join(f" · {p}" for p in parts)


def _digest(said: str) -> str:
    return said if " " in said else said[:8] or "in training"


def speed(column: Any) -> str:
    """Tokens and tokens per second of a column."""
    rate = column.tokens / column.seconds if column.seconds else 0.0
    ended = {"length": ", cut at the limit", "cancelled": ", stopped"}.get(column.reason, "")
    return f"{column.tokens} tokens · {rate:.0f} tokens/s{ended}"


def markdown(talk: Talk) -> str:
    """The last comparison as a Markdown document; every text in it is escaped."""
    if talk.frame is None:
        return ""
    lines = ["# Comparison", "", f"**Prompt:** {formatting.markdown_text(talk.prompt)}", ""]
    for name, column in zip(talk.names, talk.frame.columns, strict=True):
        body = "\n".join("> " + formatting.markdown_text(line) for line in column.text.splitlines() or [""])
        lines += [
            f"## {formatting.markdown_text(name)}",
            "",
            body,
            "",
            f"{speed(column)}  ",
            f"`{stamp(column)}`",
            "",
        ]
    first = talk.frame.columns[0].stamp if talk.frame.columns else {}
    settings = first.get("sampling") or {}
    lines += ["---", "", f"Base model: {formatting.markdown_text(str(first.get('base', '')))}  "]
    lines += (
        ["Sampling: " + ", ".join(f"{k} = {v}" for k, v in settings.items())]
        if isinstance(settings, dict)
        else []
    )
    return "\n".join(lines) + "\n"
