"""The split of the rows of one reading, by its kind and purpose."""

from __future__ import annotations

from core.data.reading import Reading
from core.data.splits import SPLITS, count_repeats, link_groups, list_questions, split
from core.errors import SpecError

PURPOSES = ("training", "evaluation")
LARGE = 200_000  # rows from which on the rule of `large_splits` is used
NEAR_LIMIT = 50_000  # sections among which near-duplicates are searched for the split


def assign_splits(result: Reading, seed: int, purpose: str) -> tuple[dict[str, list[int]], int]:
    """Splits the rows of a reading.

    Returns:
        Indices of each split; how many rows ask or read as an earlier one.

    Raises:
        SpecError: the purpose is unknown. DataError: there are too few different rows.
    """
    check_purpose(purpose)
    rows = result.rows
    if result.splits:
        return _take_splits(result, purpose), count_repeats(rows)
    if len(rows) >= LARGE:
        return _assign_many(result, seed, purpose)
    questions = list_questions(rows)
    duplicates = count_repeats(rows, questions)
    if purpose == "evaluation":
        return {"train": [], "val": [], "test": list(range(len(rows)))}, duplicates
    if not result.cuts:
        return split(rows, seed, questions=questions), duplicates
    from core.data.inspection.near_duplicates import find_near_duplicates  # slow to import

    near = find_near_duplicates([row["text"] for row in rows]) if len(rows) <= NEAR_LIMIT else []
    lengths = [len(row["text"]) for row in rows]
    return split(rows, seed, questions=link_groups(questions, near), weights=lengths), duplicates


def _take_splits(result: Reading, purpose: str) -> dict[str, list[int]]:
    """The splits that the files record; everything is held out for evaluation."""
    if purpose == "evaluation":
        return {"train": [], "val": [], "test": list(range(len(result.rows)))}
    return {name: [i for i, split in enumerate(result.splits) if split == name] for name in SPLITS}


def _assign_many(result: Reading, seed: int, purpose: str) -> tuple[dict[str, list[int]], int]:
    import numpy as np  # small imports do not need it

    from core.data.streaming.large_splits import count_equal, rank_types, split_hashes
    from core.data.streaming.question_hashes import hash_questions

    questions = hash_questions(result.rows)
    if purpose == "evaluation":
        chosen = np.full(len(questions), SPLITS.index("test"), np.uint8)
    else:
        types = rank_types([row.get("type", "") for row in result.rows])
        weights = np.array([len(row["text"]) for row in result.rows]) if result.cuts else None
        chosen = split_hashes(questions, types, seed, weights=weights)
    parts = {name: np.flatnonzero(chosen == index).tolist() for index, name in enumerate(SPLITS)}
    return parts, count_equal(questions)


def check_purpose(purpose: str) -> None:
    """Checks the purpose of a dataset.

    Raises:
        SpecError: it is not one of PURPOSES.
    """
    if purpose not in PURPOSES:
        raise SpecError(
            f"The purpose must be {' or '.join(PURPOSES)}, got {purpose!r}.",
            "Choose evaluation for data that is never trained on.",
        )
