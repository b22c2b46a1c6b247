"""Votes of blind tests on disk: what was shown, what was chosen, and what it adds up to.

Knows mixes/votes.jsonl and Wilson's interval. Knows nothing of models, nor of who voted.

    {"kind": "vote", "id", "time", "prompt", "base", "base_fingerprint", "quantization", "sampling", "shown": [...], "chosen": 1}
    {"kind": "withdrawn", "vote": id}
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from core.errors import NotFound, SpecError
from core.store.event_log import EventLog, read_since
from core.store.workspace import Workspace, storage_error

Z = 1.959963984540054  # the standard normal's 97.5 % point: an interval of 95 %
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
class Shown:
    """One answer of a blind test, in the words of its stamp.

    Attributes:
        weights: adapter id -> weight.
        adapters: adapter id -> sha256 of the weights that were active, or "in training".
        tilt: adapter id -> how its weight leans with depth, where it does.
        seed: what it was drawn with.
    """

    name: str
    weights: dict[str, float]
    adapters: dict[str, str]
    tilt: dict[str, float] = field(default_factory=dict)
    seed: int = 0

    def identity(self, base_fingerprint: str) -> str:
        """What makes it the same mix wherever and under whichever name: the base, the files and their weights."""
        parts = sorted([self._file(a), w, self.tilt.get(a, 0.0)] for a, w in self.weights.items())
        return hashlib.sha256(json.dumps([base_fingerprint, parts]).encode()).hexdigest()[:16]

    def _file(self, adapter: str) -> str:
        digest = self.adapters.get(adapter, "")
        return (
            digest if digest and " " not in digest else f"{digest} {adapter}"
        )  # in training there is no file yet, only the id


@dataclass(frozen=True)
class Vote:
    """One vote: the answers in the order in which they were shown, and the place of the chosen one, None for no difference."""

    id: str
    time: float
    prompt: str
    base: str
    base_fingerprint: str
    quantization: str
    sampling: dict[str, Any]
    shown: tuple[Shown, ...]
    chosen: int | None

    @property
    def identities(self) -> list[str]:
        """The identity of the mix at each place."""
        return [s.identity(self.base_fingerprint) for s in self.shown]


@dataclass
class Standing:
    """What all votes say about one mix.

    Attributes:
        name: what it was called last.
        shown: votes in which it took part.
        won: votes that chose it.
        ties: votes that found no difference.
        by_chance: wins to be expected of the decided votes if all answers were alike.
    """

    identity: str
    name: str
    base: str
    weights: dict[str, float]
    adapters: dict[str, str]
    tilt: dict[str, float] = field(default_factory=dict)
    votes: int = 0
    wins: int = 0
    ties: int = 0
    expected_wins: float = 0.0

    @property
    def decided_votes(self) -> int:
        """Votes in which it took part and something was chosen."""
        return self.votes - self.ties

    @property
    def win_rate(self) -> float | None:
        """Share of the decided votes that it won; None without any."""
        return self.wins / self.decided_votes if self.decided_votes else None

    @property
    def chance_rate(self) -> float | None:
        """The share that it would win if all answers were alike."""
        return self.expected_wins / self.decided_votes if self.decided_votes else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson(self.wins, self.decided_votes)


def wilson(won: int, decided: int) -> tuple[float, float]:
    """The score interval of a share, 95 %: it stays within 0 and 1 and holds for few votes too.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927), 209-212.

    Returns:
        (low, high); everything is possible without votes.
    """
    if not decided:
        return 0.0, 1.0
    share, z2 = won / decided, Z * Z
    middle = (share + z2 / (2 * decided)) / (1 + z2 / decided)
    half = Z / (1 + z2 / decided) * math.sqrt(share * (1 - share) / decided + z2 / (4 * decided * decided))
    return max(0.0, middle - half), min(1.0, middle + half)


def cast(workspace: Workspace, prompt: str, stamps: Sequence[dict[str, Any]], chosen: int | None) -> Vote:
    """Keeps a vote.

    Args:
        stamps: of the answers, in the order in which they were shown (see `Resident.stamp`).
        chosen: the place of the chosen answer, None for no difference.

    Raises:
        SpecError: fewer than two answers, one without a stamp, or no such place.
    """
    if len(stamps) < 2 or not all("weights" in s for s in stamps):
        raise SpecError(f"{len(stamps)} answers were voted on.", "A vote needs two or more that are written.")
    if chosen is not None and not 0 <= chosen < len(stamps):
        raise SpecError(f"There is no answer {chosen!r}.", f"Choose one of the {len(stamps)}, or none.")
    shown = tuple(
        Shown(
            name=str(s.get("mix", "")),
            weights=dict(s["weights"]),
            adapters=dict(s.get("adapters", {})),
            tilt={a: t for a, t in s.get("tilt", {}).items() if t},
            seed=int(s.get("sampling", {}).get("seed", 0)),
        )
        for s in stamps
    )
    base, fingerprint, quantization = (
        str(stamps[0].get(k, "")) for k in ("base", "base_fingerprint", "quantization")
    )
    sampling = dict(stamps[0].get("sampling", {}))
    vote = Vote(
        secrets.token_hex(6),
        round(time.time(), 3),
        prompt,
        base,
        fingerprint,
        quantization,
        sampling,
        shown,
        chosen,
    )
    EventLog(workspace.votes_path).append("vote", **asdict(vote))
    return vote


def withdraw(workspace: Workspace, vote_id: str) -> None:
    """Takes a vote back; the line stays and no longer counts.

    Raises:
        NotFound: there is no such vote.
    """
    if all(v.id != vote_id for v in load_all(workspace)):
        raise NotFound(f"There is no vote {vote_id!r}.", "It may have been taken back already.")
    EventLog(workspace.votes_path).append("withdrawn", vote=vote_id)


def reset(workspace: Workspace) -> None:
    """Deletes every vote."""
    try:
        workspace.votes_path.unlink(missing_ok=True)
    except OSError as e:
        raise storage_error(e, workspace.votes_path) from e


def load_all(workspace: Workspace) -> list[Vote]:
    """Every vote that counts, oldest first; lines that a crash tore or a hand spoiled are passed over."""
    found: dict[str, Vote] = {}
    cursor, more = 0, True
    while more:
        events, end = read_since(workspace.votes_path, cursor)
        more, cursor = end != cursor, end
        for event in events:
            if event.get("kind") == "withdrawn":
                found.pop(str(event.get("vote")), None)
            elif vote := _read(event):
                found[vote.id] = vote
    return list(found.values())


def _read(event: dict[str, Any]) -> Vote | None:
    try:
        given = {f.name: event[f.name] for f in fields(Vote)}
        vote = Vote(**{**given, "shown": tuple(Shown(**s) for s in event["shown"])})
        whole = len(vote.identities) > 1 and (vote.chosen is None or vote.chosen in range(len(vote.shown)))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return vote if whole else None


def tally(votes: Sequence[Vote]) -> list[Standing]:
    """What the votes add up to, a Standing a mix, the highest share first.

    Mixes are told apart by what they are made of, not by their names: a renamed mix keeps its votes, and
    another mix under an old name starts anew.
    """
    found: dict[str, Standing] = {}
    for vote in votes:
        identities = vote.identities
        here = dict(zip(identities, vote.shown, strict=True))  # the same mix twice took part once
        for identity, shown in here.items():
            standing = found.setdefault(
                identity, Standing(identity, shown.name, vote.base, shown.weights, shown.adapters, shown.tilt)
            )
            standing.name = shown.name or standing.name
            standing.votes += 1
            if vote.chosen is None:
                standing.ties += 1
            else:
                standing.wins += identities[vote.chosen] == identity
                standing.expected_wins += 1 / len(here)
    return sorted(found.values(), key=lambda s: (-(s.win_rate or 0.0), -s.votes, s.name))


def make_rows(votes: Sequence[Vote]) -> list[list[Any]]:
    """One row for each answer that was voted on, below a row of headings."""
    rows: list[list[Any]] = [list(HEADINGS)]
    for vote in votes:
        about = [vote.base, vote.base_fingerprint, vote.quantization]
        for place, s in enumerate(vote.shown):
            weights = (
                " + ".join(
                    f"{a}={w:g}" + (f"@{s.tilt[a]:g}" if a in s.tilt else "") for a, w in s.weights.items()
                )
                or "base"
            )
            verdict = "no difference" if vote.chosen is None else "yes" if place == vote.chosen else "no"
            adapters = " ".join(f"{a}:{digest}" for a, digest in s.adapters.items())
            drawn = json.dumps(vote.sampling, ensure_ascii=False)
            rows.append(
                [
                    vote.id,
                    vote.time,
                    vote.prompt,
                    "ABCDEFGH"[place % 8],
                    s.name,
                    weights,
                    verdict,
                    *about,
                    adapters,
                    s.seed,
                    drawn,
                ]
            )
    return rows
