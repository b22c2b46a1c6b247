"""Leaks between datasets: rows that one dataset trains on and another one measures on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.datasets import Dataset, list_datasets, read_split
from core.data.inspection.boilerplate import strip_instructions
from core.data.inspection.near_duplicates import (
    THRESHOLD,
    compute_jaccard,
    count_shingles,
    find_near_duplicates,
)
from core.data.inspection.records import EXAMPLE_LIMIT, Leak, PairExample
from core.data.inspection.row_checks import NEAR_ROWS, Rows, Step, question_text
from core.data.splits import list_questions
from core.errors import StudioError
from core.store.workspace import Workspace

SHARED_ROWS = 200_000  # rows of each dataset that are compared at an import
COMPARED = 20  # rows of the other dataset in one group that a row is compared with


@dataclass(frozen=True)
class OtherDataset:
    """Another dataset of the same kind, with its rows."""

    id: str
    name: str
    rows: Rows


@dataclass(frozen=True)
class _Side:
    """The rows of one split of one dataset."""

    rows: Rows
    indices: list[int]
    questions: list[bytes]

    @classmethod
    def of(cls, rows: Rows, split: str) -> _Side:
        indices = rows.pick(split)
        return cls(rows, indices, list_questions([rows.rows[i] for i in indices]))


def find_leaks(
    rows: Rows, others: Sequence[OtherDataset], step: Step = lambda text, done, total: None
) -> list[Leak]:
    """Compares the train split with the test splits of other datasets, and the test split with their train.

    Equal questions and texts are searched in all rows, nearly equal ones in the first `NEAR_ROWS` of the two.

    Args:
        others: other datasets of the same kind.
        step: receives the progress.

    Returns:
        The leaks, the largest first.
    """
    own = {split: _Side.of(rows, split) for split in ("train", "test")}
    leaks = []
    for done, other in enumerate(others):
        step(f"Comparing with {other.name}", done, len(others))
        for split, other_split in (("train", "test"), ("test", "train")):
            leak = _compare(own[split], _Side.of(other.rows, other_split), other, split, other_split)
            if leak.rows or leak.near_rows:
                leaks.append(leak)
    return sorted(leaks, key=lambda leak: -(leak.rows + leak.near_rows))


def _compare(own: _Side, theirs: _Side, other: OtherDataset, split: str, other_split: str) -> Leak:
    first = {question: i for i, question in reversed(list(enumerate(theirs.questions)))}
    equal = [i for i, question in enumerate(own.questions) if question in first]
    pairs = [(i, first[own.questions[i]], 1.0) for i in equal]
    rest = [i for i in range(len(own.questions)) if own.questions[i] not in first]
    near = _find_near(own, rest, theirs)
    examples = [
        PairExample(own.rows.example(own.indices[a]), theirs.rows.example(theirs.indices[b]), round(value, 3))
        for a, b, value in [*pairs, *near][:EXAMPLE_LIMIT]
    ]
    return Leak(other.id, other.name, split, other_split, len(equal), len(near), examples)


def _find_near(own: _Side, rest: Sequence[int], theirs: _Side) -> list[tuple[int, int, float]]:
    """Rows of `rest` that are nearly equal to a row of the other side: (own row, other row, similarity)."""
    half = NEAR_ROWS // 2
    if not rest or not theirs.indices:
        return []
    mine = [question_text(own.rows.rows[own.indices[i]]) for i in rest[:half]]
    other = [question_text(theirs.rows.rows[i]) for i in theirs.indices[:half]]
    if own.rows.kind == "task":
        stripped = strip_instructions([*mine, *other])
        mine, other = stripped[: len(mine)], stripped[len(mine) :]
    found = []
    for group in find_near_duplicates([*mine, *other]):
        partners = [i - len(mine) for i in group if i >= len(mine)][:COMPARED]
        for i in (i for i in group if i < len(mine)) if partners else ():
            shingles = count_shingles(mine[i])
            value, partner = max((compute_jaccard(shingles, count_shingles(other[j])), -j) for j in partners)
            if value >= THRESHOLD:
                found.append((rest[i], -partner, value))
    return found


def describe_shared_rows(workspace: Workspace, dataset: Dataset) -> list[str]:
    """Says which rows of a new dataset are in another one, where one of the two is for evaluation only.

    Equal questions and texts are searched in the first `SHARED_ROWS` rows of each.

    Returns:
        Sentences for the notes of the dataset.
    """
    is_evaluation = dataset.purpose == "evaluation"
    others = [
        other
        for other in list_datasets(workspace)
        if other.id != dataset.id
        and other.kind == dataset.kind
        and (is_evaluation or other.purpose == "evaluation")
        and not (is_evaluation and other.purpose == "evaluation")
    ]
    if not others:
        return []
    own, other_split = ("test", "train") if is_evaluation else ("train", "test")
    questions = list_questions(_read(workspace, dataset, own))
    notes = []
    for other in others:
        known = set(list_questions(_read(workspace, other, other_split)))
        if count := sum(question in known for question in questions):
            notes.append(_name_other(count, other, is_evaluation))
    return notes


def _name_other(count: int, other: Dataset, is_evaluation: bool) -> str:
    rows = "1 row is" if count == 1 else f"{count:,} rows are"
    if is_evaluation:
        return (
            f"{rows} also in the training split of {other.name!r}: adapters trained on it know the answers."
        )
    return (
        f"{rows} also in {other.name!r}, which is for evaluation only: training on them spoils its figures."
    )


def _read(workspace: Workspace, dataset: Dataset, split: str) -> list[dict[str, Any]]:
    try:
        return read_split(workspace, dataset.id, split, limit=SHARED_ROWS)
    except StudioError:  # deleted or damaged since it was listed
        return []
