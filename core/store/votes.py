"""The votes of blind tests: mixes/votes.jsonl, and what they say about each mix.

A vote is a `VoteEvent`; withdrawing it appends a `WithdrawnEvent` (`core.store.events`). Mixes are compared
by the base, the sha256 of their adapters, and their weights, tilts and gates, as recorded in the stamps of
the answers. So a mix keeps its votes when it is renamed, and another mix under its old name starts without
votes.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from core.errors import DamagedRecord, NotFound, SpecError
from core.spec.mix import format_auto
from core.store.event_log import EventLog, parse_line, read_all
from core.store.events import VoteEvent, WithdrawnEvent, is_kind
from core.store.files import atomic_write, delete, storage_error
from core.store.record_types import Mismatch, Time, check_type
from core.store.workspace import Workspace

Z = 1.959963984540054  # the 97.5 % point of the standard normal distribution: a 95 % interval
LETTERS = "ABCDEFGH"  # what the page calls the answers
HEADINGS = (
    "vote",
    "time",
    "prompt",
    "place",
    "mix",
    "weights",
    "chosen",
    "base",
    "base_fingerprint",
    "quantization",
    "adapters",
    "seed",
    "sampling",
)


@dataclass(frozen=True)
class BlindAnswer:
    """One answer of a blind test, as its stamp describes it.

    Attributes:
        name: of the mix.
        weights: adapter id -> weight.
        adapters: adapter id -> sha256 of the active weights, or "in training".
        tilt: adapter id -> tilt, where it is not zero.
        seed: of its sampling.
        auto: adapter id -> gate, for weights on Auto; their weight is the one where the gate is open.
    """

    name: str
    weights: dict[str, float]
    adapters: dict[str, str]
    tilt: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    auto: dict[str, str] = field(default_factory=dict)

    def identity(self, base_fingerprint: str) -> str:
        """A checksum of the mix: of the base, and of the files, weights, tilts and gates of its adapters."""
        parts = sorted(
            [self._file(a), w, self.tilt.get(a, 0.0), *([self.auto[a]] if a in self.auto else [])]
            for a, w in self.weights.items()
        )
        return hashlib.sha256(json.dumps([base_fingerprint, parts]).encode()).hexdigest()[:16]

    def _file(self, adapter: str) -> str:
        digest = self.adapters.get(adapter, "")
        is_file = digest and " " not in digest  # an adapter in training has no file yet, only its id
        return digest if is_file else f"{digest} {adapter}"


@dataclass(frozen=True)
class Vote:
    """One vote.

    Attributes:
        time: Unix seconds.
        shown: the answers, in the order in which the page showed them.
        chosen: index of the chosen answer, or None for no difference.
    """

    id: str
    time: Time
    prompt: str
    base: str
    base_fingerprint: str
    quantization: str
    sampling: dict[str, Any]
    shown: tuple[BlindAnswer, ...]
    chosen: int | None

    @property
    def identities(self) -> list[str]:
        """The identity of the mix of each answer."""
        return [answer.identity(self.base_fingerprint) for answer in self.shown]


@dataclass
class Standing:
    """What all votes say about one mix.

    Attributes:
        name: the newest name of the mix.
        votes: votes in which it took part.
        wins: votes that chose it.
        ties: votes that found no difference.
        expected_wins: the number of wins to expect if all answers are equally good.
    """

    identity: str
    name: str
    base: str
    weights: dict[str, float]
    adapters: dict[str, str]
    tilt: dict[str, float] = field(default_factory=dict)
    auto: dict[str, str] = field(default_factory=dict)
    votes: int = 0
    wins: int = 0
    ties: int = 0
    expected_wins: float = 0.0

    @property
    def decisive_votes(self) -> int:
        """Votes in which it took part and that chose an answer."""
        return self.votes - self.ties

    @property
    def win_rate(self) -> float | None:
        """Wins divided by decisive votes; None without decisive votes."""
        return self.wins / self.decisive_votes if self.decisive_votes else None

    @property
    def chance_rate(self) -> float | None:
        """The expected win rate if all answers are equally good."""
        return self.expected_wins / self.decisive_votes if self.decisive_votes else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the win rate."""
        return wilson(self.wins, self.decisive_votes)


def wilson(wins: int, votes: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion; it stays within 0 and 1 and is sound for few votes.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22
        (1927), 209-212.

    Returns:
        (low, high); (0, 1) without votes.
    """
    if not votes:
        return 0.0, 1.0
    rate, z2 = wins / votes, Z * Z
    center = (rate + z2 / (2 * votes)) / (1 + z2 / votes)
    half = Z / (1 + z2 / votes) * math.sqrt(rate * (1 - rate) / votes + z2 / (4 * votes * votes))
    return max(0.0, center - half), min(1.0, center + half)


def cast(workspace: Workspace, prompt: str, stamps: Sequence[dict[str, Any]], chosen: int | None) -> Vote:
    """Records a vote.

    Args:
        stamps: of the answers, in the order in which the page showed them (see `Resident.stamp`); `gates` of
            a stamp are those of its mix, by adapter id.
        chosen: index of the chosen answer, or None for no difference.

    Raises:
        SpecError: fewer than two answers, an answer without a complete stamp, or an index out of range.
    """
    complete = sum("weights" in s for s in stamps)
    if complete < max(2, len(stamps)):
        raise SpecError(
            f"A vote needs two or more answers, all of them complete, got {complete} of {len(stamps)}.",
            "Wait until every answer is written, then vote.",
        )
    if chosen is not None and not 0 <= chosen < len(stamps):
        raise SpecError(
            f"The chosen answer must be from 0 to {len(stamps) - 1}, or none, got {chosen!r}.",
            "Choose one of the answers.",
        )
    answers = tuple(
        BlindAnswer(
            name=str(s.get("mix", "")),
            weights=dict(s["weights"]),
            adapters=dict(s.get("adapters", {})),
            tilt={a: t for a, t in s.get("tilt", {}).items() if t},
            seed=int(s.get("sampling", {}).get("seed", 0)),
            auto=dict(s.get("gates", {})),
        )
        for s in stamps
    )
    first = stamps[0]
    vote = Vote(
        id=secrets.token_hex(6),
        time=round(time.time(), 3),
        prompt=prompt,
        base=str(first.get("base", "")),
        base_fingerprint=str(first.get("base_fingerprint", "")),
        quantization=str(first.get("quantization", "")),
        sampling=dict(first.get("sampling", {})),
        shown=answers,
        chosen=chosen,
    )
    with _lock(workspace):
        EventLog(workspace.votes_path).append("vote", **asdict(vote))
    return vote


def _lock(workspace: Workspace) -> AbstractContextManager[None]:
    """Held while the log changes: a vote that is cast while the log is written again would be lost."""
    return workspace.lock("mixes", "votes")


def withdraw(workspace: Workspace, vote_id: str) -> None:
    """Withdraws a vote. Its line stays in the log and no longer counts.

    Raises:
        NotFound: no such vote.
    """
    if all(v.id != vote_id for v in load_all(workspace)):
        raise NotFound(f"The workspace has no vote {vote_id!r}.", "It may have been withdrawn already.")
    with _lock(workspace):
        EventLog(workspace.votes_path).append("withdrawn", vote=vote_id)


def reset(workspace: Workspace) -> None:
    """Deletes every vote."""
    with _lock(workspace):
        _delete_log(workspace)


def _delete_log(workspace: Workspace) -> None:
    try:
        delete(workspace.votes_path)
    except OSError as e:
        raise storage_error(e, workspace.votes_path) from e


def load_all(workspace: Workspace) -> list[Vote]:
    """Every vote that counts, oldest first; damaged lines are skipped, and so is a log that is not a file."""
    votes: dict[str, Vote] = {}
    try:
        events = read_all(workspace.votes_path)
    except DamagedRecord:
        return []
    for event in events:
        if is_kind(event, WithdrawnEvent):
            votes.pop(event["vote"], None)
        elif is_kind(event, VoteEvent) and (vote := _parse(event)):
            votes[vote.id] = vote
    return list(votes.values())


def _parse(event: Mapping[str, Any]) -> Vote | None:
    """The vote of an event, or None if it is damaged."""
    try:
        vote: Vote = check_type(Vote, event)
    except Mismatch:
        return None
    is_valid = len(vote.shown) > 1 and (vote.chosen is None or vote.chosen in range(len(vote.shown)))
    return vote if is_valid else None


def count_damaged_lines(workspace: Workspace) -> int:
    """Lines of the log that are neither a vote nor a withdrawal.

    Raises:
        DamagedRecord: the log is not a file that can be read.
    """
    return sum(not _is_readable(event) for event in read_all(workspace.votes_path))


def remove_damaged_lines(workspace: Workspace) -> None:
    """Writes the log again without the damaged lines; deletes it if it is not a file.

    Raises:
        StorageError: it could not be written.
    """
    with _lock(workspace):
        try:
            lines = workspace.votes_path.read_bytes().split(b"\n")
        except OSError:
            _delete_log(workspace)
            return
        with atomic_write(workspace.votes_path) as f:
            f.writelines(line + b"\n" for line in lines if _is_readable(parse_line(line)))


def _is_readable(event: Mapping[str, Any]) -> bool:
    return is_kind(event, WithdrawnEvent) or (is_kind(event, VoteEvent) and _parse(event) is not None)


def tally(votes: Sequence[Vote]) -> list[Standing]:
    """Counts the votes of each mix; the highest win rate comes first."""
    standings: dict[str, Standing] = {}
    for vote in votes:
        identities = vote.identities
        answers = dict(zip(identities, vote.shown, strict=True))  # a mix that was shown twice counts once
        for identity, answer in answers.items():
            standing = standings.setdefault(
                identity,
                Standing(
                    identity,
                    answer.name,
                    vote.base,
                    answer.weights,
                    answer.adapters,
                    answer.tilt,
                    answer.auto,
                ),
            )
            standing.name = answer.name or standing.name
            standing.votes += 1
            if vote.chosen is None:
                standing.ties += 1
            else:
                standing.wins += identities[vote.chosen] == identity
                standing.expected_wins += 1 / len(answers)
    return sorted(standings.values(), key=lambda s: (-(s.win_rate or 0.0), -s.votes, s.name))


def make_rows(votes: Sequence[Vote]) -> list[list[Any]]:
    """A table of the votes: the headings, then one row for each answer."""
    rows: list[list[Any]] = [list(HEADINGS)]
    for vote in votes:
        for place, answer in enumerate(vote.shown):
            rows.append(
                [
                    vote.id,
                    vote.time,
                    vote.prompt,
                    LETTERS[place % len(LETTERS)],
                    answer.name,
                    _format_weights(answer),
                    _format_choice(vote, place),
                    vote.base,
                    vote.base_fingerprint,
                    vote.quantization,
                    " ".join(f"{a}:{digest}" for a, digest in answer.adapters.items()),
                    answer.seed,
                    json.dumps(vote.sampling, ensure_ascii=False),
                ]
            )
    return rows


def _format_weights(answer: BlindAnswer) -> str:
    parts = []
    for a, w in answer.weights.items():
        gate = f"{format_auto(answer.auto[a])}:" if a in answer.auto else ""
        tilt = f"@{answer.tilt[a]:g}" if a in answer.tilt else ""
        parts.append(f"{a}={gate}{w:g}{tilt}")
    return " + ".join(parts) or "base"


def _format_choice(vote: Vote, place: int) -> str:
    if vote.chosen is None:
        return "no difference"
    return "yes" if place == vote.chosen else "no"
