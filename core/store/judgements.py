"""What judges and people said about the answers of an experiment, appended beside its cells.

    experiments/<id>/judge-<key>.jsonl   a judge, then its verdicts
                     votes.jsonl         what people said, the newest line about an answer counts

The key of a judge is a sha256 over everything that its verdicts depend on, so a judge that is started again
reads only what it has not read. A line that a crash has cut short is left out.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from core.errors import StudioError
from core.spec.judge import GOOD, POOR, SKIP, UNREADABLE, JudgeSpec
from core.store.experiments import KIND, append_line, read_lines
from core.store.record_types import Figure, OneOf, Time, check_type
from core.store.workspace import Workspace

VOTES = "votes.jsonl"
REPLY_LIMIT = 400  # characters of a reply that are kept
_JUDGE = re.compile(r"judge-([0-9a-f]{16})\.jsonl")


@dataclass(frozen=True)
class StoredJudge:
    """A judge of an experiment.

    Attributes:
        spec: a `JudgeSpec` as JSON.
        conditions: everything that its key covers.
    """

    key: str
    spec: dict[str, Any]
    conditions: dict[str, Any]
    created: Time = field(default_factory=time.time)

    @property
    def settings(self) -> JudgeSpec:
        """Its settings."""
        return JudgeSpec.from_json(self.spec)


@dataclass(frozen=True)
class Verdict:
    """What a judge said about an answer.

    Attributes:
        answer: the key of a `ShownAnswer`.
        nats: by how much the likelihood of Good exceeds that of Poor, calibrated; 0 from an address.
        reply: what an address wrote, or why a verdict is missing.
    """

    answer: str
    verdict: Annotated[str, OneOf((GOOD, POOR, UNREADABLE))]
    nats: Figure = 0.0
    reply: str = ""


@dataclass(frozen=True)
class PersonVote:
    """What a person said about an answer.

    Attributes:
        answer: the key of a `ShownAnswer`.
        criteria: that the person read; votes by other criteria say nothing about a judge.
    """

    answer: str
    verdict: Annotated[str, OneOf((GOOD, POOR, SKIP))]
    criteria: str
    time: Time = field(default_factory=time.time)


class JudgeLog:
    """The verdicts of a judge: lines that are on the disk when `append` returns."""

    def __init__(self, workspace: Workspace, experiment_id: str, judge: StoredJudge) -> None:
        self._path = _judge_path(workspace, experiment_id, judge.key)
        if load_judge(self._path) is None:
            append_line(self._path, _write_line(judge))

    def append(self, verdict: Verdict) -> None:
        """Appends a verdict.

        Raises:
            NotFound: the experiment was deleted. StorageError
        """
        append_line(self._path, _write_line(verdict))

    def read(self) -> dict[str, Verdict]:
        """The verdicts so far, by the key of their answer."""
        return read_verdicts(self._path)


def list_judges(workspace: Workspace, experiment_id: str) -> list[tuple[StoredJudge, dict[str, Verdict]]]:
    """The judges of an experiment with their verdicts, the oldest judge first."""
    found = []
    for path in workspace.find(KIND, experiment_id).glob("judge-*.jsonl"):
        match = _JUDGE.fullmatch(path.name)
        judge = load_judge(path) if match else None
        if match and judge is not None and judge.key == match[1]:
            found.append((judge, read_verdicts(path)))
    return sorted(found, key=lambda item: item[0].created)


def load_judge(path: Path) -> StoredJudge | None:
    """The judge of a file; None where its line is missing or damaged."""
    for record in read_lines(path):
        with contextlib.suppress(ValueError, StudioError):  # a verdict, or a judge of another version
            judge: StoredJudge = check_type(StoredJudge, record)
            _ = judge.settings  # checks their limits
            return judge
    return None


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """The verdicts of a file, by the key of their answer; the newest one counts."""
    found: dict[str, Verdict] = {}
    for record in read_lines(path):
        with contextlib.suppress(ValueError):  # the judge itself, another version, or a damaged line
            verdict: Verdict = check_type(Verdict, record)
            found[verdict.answer] = verdict
    return found


def append_vote(workspace: Workspace, experiment_id: str, vote: PersonVote) -> None:
    """Appends what a person said.

    Raises:
        NotFound, StorageError
    """
    append_line(workspace.find(KIND, experiment_id) / VOTES, _write_line(vote))


def read_votes(workspace: Workspace, experiment_id: str, criteria: str) -> dict[str, str]:
    """What people said by some criteria, by the key of the answer; the newest vote counts."""
    found: dict[str, str] = {}
    for record in read_lines(workspace.path(KIND, experiment_id, VOTES)):
        with contextlib.suppress(ValueError):
            vote: PersonVote = check_type(PersonVote, record)
            if vote.criteria == criteria:
                found[vote.answer] = vote.verdict
    return found


def _judge_path(workspace: Workspace, experiment_id: str, key: str) -> Path:
    return workspace.find(KIND, experiment_id) / f"judge-{key}.jsonl"


def _write_line(record: Any) -> str:
    return json.dumps(asdict(record), ensure_ascii=False) + "\n"
