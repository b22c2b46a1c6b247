"""What a judge's verdicts are worth: its agreement with people, and its figures where they count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from core.evaluate.agreement import Kappa, measure_kappa
from core.evaluate.answer_figures import RowFigure, measure_values
from core.evaluate.judging import ShownAnswer
from core.spec.judge import GOOD, KAPPA_FLOOR, NEEDED_VOTES, VERDICTS
from core.store.judgements import StoredJudge, Verdict

METHOD = (
    "share of the answers that the judge calls Good; it counts where Cohen's kappa between the judge and "
    f"people on at least {NEEDED_VOTES} answers lies above {KAPPA_FLOOR} with its whole 95 % interval"
)


@dataclass(frozen=True)
class JudgeResult:
    """A judge of an experiment.

    Attributes:
        name: its model or its mix.
        answers: different answers of the complete rows.
        read: answers with a verdict; `unreadable` of them have one that is neither Good nor Poor.
        kappa: of the verdicts and the votes of people on the same answers; an unreadable verdict disagrees.
        counts: whether its verdicts are shown as figures.
        text: whether they count and why, as a clause.
        shares: row -> share of Good, with its interval over the questions; empty unless they count.
    """

    key: str
    name: str
    criteria: str
    answers: int
    read: int
    unreadable: int
    kappa: Kappa
    counts: bool
    text: str
    shares: Mapping[str, RowFigure] = field(default_factory=dict)

    @property
    def column(self) -> str:
        """The heading of its column."""
        return name_column(self.name)

    def to_json(self) -> dict[str, Any]:
        """The judge as JSON."""
        return {**asdict(self), "column": self.column, "method": METHOD}


def name_column(name: str) -> str:
    """The heading of a judge's column."""
    return f"Judge {name} (share of Good)"


def make_judge_result(
    judge: StoredJudge,
    verdicts: Mapping[str, Verdict],
    shown: Sequence[ShownAnswer],
    votes: Mapping[str, str],
    seed: int = 0,
) -> JudgeResult:
    """The result of a judge.

    Args:
        verdicts, votes: by the key of the answer.
        shown: the answers of the complete rows.
    """
    spec = judge.settings
    read = {s.key: verdicts[s.key].verdict for s in shown if s.key in verdicts}
    pairs = [(said, votes[key]) for key, said in read.items() if votes.get(key) in VERDICTS]
    kappa = measure_kappa(pairs, seed)
    counts, text = weigh(kappa, len(shown))
    unreadable = sum(said not in VERDICTS for said in read.values())
    shares = _measure_shares(shown, read, seed) if counts else {}
    return JudgeResult(
        judge.key, spec.label, spec.criteria, len(shown), len(read), unreadable, kappa, counts, text, shares
    )


def weigh(kappa: Kappa, answers: int) -> tuple[bool, str]:
    """Whether verdicts with this agreement count, and why, as a clause.

    Args:
        answers: different answers of the experiment.
    """
    if kappa.count < NEEDED_VOTES:
        few = f"; this experiment has only {answers} different answers" if answers < NEEDED_VOTES else ""
        return (
            False,
            f"not counted yet: {kappa.count} of {NEEDED_VOTES} answers judged by both it and a person{few}",
        )
    if kappa.value is None or kappa.low is None or kappa.high is None:
        return False, (
            f"does not count: the judge and people gave all {kappa.count} answers the same rating, which "
            "leaves kappa undefined"
        )
    agreement = (
        f"agrees with people by kappa {kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f}) on "
        f"{kappa.count} answers"
    )
    if kappa.low > KAPPA_FLOOR:
        return True, f"counts: {agreement}"
    return False, f"does not count: {agreement}; the lower end must lie above {KAPPA_FLOOR:.2f}"


def _measure_shares(shown: Sequence[ShownAnswer], read: Mapping[str, str], seed: int) -> dict[str, RowFigure]:
    """The share of Good of each row, among its answers with a verdict that can be read."""
    values: dict[str, list[tuple[float, float]]] = {}
    for answer in shown:
        if (said := read.get(answer.key)) in VERDICTS:
            for row in answer.rows:
                values.setdefault(row, []).append((float(said == GOOD), 1.0))
    found = {row: measure_values(of_row, seed=seed) for row, of_row in values.items()}
    return {row: figure for row, figure in found.items() if figure is not None}
