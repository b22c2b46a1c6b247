"""Splits that are stratified by document and type, and splits that keep documents whole.

    by row        every document and every type is spread over the three splits, in proportion:
                  each (type, document) is within one row of its 70/15/15
    by document   a document lies in one split, so that the test asks about texts that were never seen;
                  every type is as near to 70/15/15 as whole documents allow

Rows that ask the same (`splits.question_key`) are one group and lie in one split; proportions count groups.
The result depends on the rows' content and the seed, not on their order.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from core.data.splits import (
    RATIOS,
    SPLITS,
    check_distinct,
    check_ratios,
    content_key,
    link_groups,
    list_questions,
)
from core.errors import DataError, SpecError
from core.spec.settings import SEED

MODES = ("row", "document")
Stratum = tuple[str, str]  # type, document


def split_by_stratum(
    rows: Sequence[Mapping[str, Any]],
    documents: Sequence[str],
    by: str = "row",
    seed: int = SEED,
    ratios: Sequence[float] = RATIOS,
) -> dict[str, list[int]]:
    """Splits canonical rows by their document and type.

    Args:
        rows: canonical rows.
        documents: the document of each row, such as the id of a paper; "" is a document, too.
        by: "row" spreads every document over the splits, "document" keeps it whole.
        ratios: shares of train, val and test.

    Returns:
        "train", "val" and "test", each with ascending indices into `rows`; every index occurs once, and no
        split is empty.

    Raises:
        DataError: there are fewer than three different rows or, by document, documents.
        SpecError: the ratios or `by` are not valid.
    """
    shares = check_ratios(ratios)
    if by not in MODES:
        raise SpecError(f"Splits are made by {' or '.join(MODES)}, got {by!r}.", "Choose one of them.")
    if by == "document":
        parts = _split_documents(rows, documents, seed, shares)
    else:
        parts = _split_rows(rows, documents, seed, shares)
    return {name: sorted(i for group in part for i in group) for name, part in zip(SPLITS, parts)}


# --- by row


def _split_rows(
    rows: Sequence[Mapping[str, Any]], documents: Sequence[str], seed: int, shares: Sequence[float]
) -> list[list[list[int]]]:
    groups: dict[bytes, list[int]] = {}
    for index, question in enumerate(list_questions(rows)):
        groups.setdefault(question, []).append(index)
    check_distinct(len(groups))
    strata: dict[Stratum, list[list[int]]] = {}
    for group in groups.values():
        stratum = min((str(rows[i].get("type", "")), documents[i]) for i in group)
        strata.setdefault(stratum, []).append(group)
    parts: list[list[list[int]]] = [[], [], []]
    debts: dict[str, list[float]] = {}  # of all rows under "all", of each type under its name
    for stratum in sorted(strata, key=lambda s: (s[0], _hash(f"{seed}:{s[1]}"))):
        members = sorted(strata[stratum], key=lambda group: _hash_group(rows, group, seed))
        counts = _divide(len(members), shares, debts, stratum[0])
        for part, count in zip(parts, counts):
            part += members[:count]
            members = members[count:]
    _fill_empty(parts)
    return parts


def _divide(count: int, shares: Sequence[float], debts: dict[str, list[float]], kind: str) -> list[int]:
    """How many of the rows of one stratum each split gets: its share, rounded down or up.

    What rounding leaves goes to the splits that are furthest below their share so far, of this type and of
    all rows.

    Args:
        debts: what each split is short of its share; updated.
    """
    exact = [round(share * count, 9) for share in shares]
    counts = [math.floor(e) for e in exact]
    of_type, of_all = (debts.setdefault(name, [0.0] * len(shares)) for name in (f"type {kind}", "all"))
    open_splits = [s for s, e in enumerate(exact) if e > counts[s]]
    open_splits.sort(key=lambda s: -(of_type[s] + of_all[s] + 2 * (exact[s] - counts[s])))
    for s in open_splits[: count - sum(counts)]:
        counts[s] += 1
    for debt in (of_type, of_all):
        for s in range(len(shares)):
            debt[s] += exact[s] - counts[s]
    return counts


# --- by document


def _split_documents(
    rows: Sequence[Mapping[str, Any]], documents: Sequence[str], seed: int, shares: Sequence[float]
) -> list[list[list[int]]]:
    of_document: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        of_document.setdefault(document, []).append(index)
    questions = list_questions(rows)
    whole: dict[bytes, list[int]] = {}  # documents that share a question are one
    for index, key in enumerate(link_groups(questions, list(of_document.values()))):
        whole.setdefault(key, []).append(index)
    if len(whole) < len(SPLITS):
        raise DataError(
            f"A split by document needs at least 3 documents without common questions, got {len(whole)}.",
            "Split by row, or name the column with the documents.",
        )
    sizes = [_count_types(rows, group, questions) for group in whole.values()]
    totals = sum(sizes, Counter[str]())
    order = sorted(
        zip(whole.values(), sizes, strict=True),
        key=lambda pair: (-pair[1].total(), _hash_group(rows, pair[0], seed)),
    )
    parts: list[list[list[int]]] = [[], [], []]
    filled: list[Counter[str]] = [Counter(), Counter(), Counter()]
    for group, size in order:
        costs = [_cost(size, filled[s], totals, share) for s, share in enumerate(shares)]
        chosen = costs.index(min(costs))
        parts[chosen].append(group)
        filled[chosen] += size
    _fill_empty(parts)
    return parts


def _count_types(
    rows: Sequence[Mapping[str, Any]], group: Sequence[int], questions: Sequence[bytes]
) -> Counter[str]:
    """Different questions of each type."""
    types: dict[bytes, str] = {}
    for i in group:
        kind = str(rows[i].get("type", ""))
        types[questions[i]] = min(kind, types.get(questions[i], kind))
    return Counter(types.values())


def _cost(size: Counter[str], filled: Counter[str], totals: Counter[str], share: float) -> float:
    """By how much the squared distance of a split to its share grows with these rows, over all types."""
    return sum(n * (2 * (filled[t] - share * totals[t]) + n) / totals[t] for t, n in size.items())


# --- both


def _fill_empty(parts: list[list[list[int]]]) -> None:
    """Gives an empty split the smallest group of the largest one; only very small data needs it."""
    for part in parts:
        if not part:
            largest = max(parts, key=len)
            smallest = min(map(len, largest))
            last = max(i for i, group in enumerate(largest) if len(group) == smallest)
            part.append(largest.pop(last))


def _hash_group(rows: Sequence[Mapping[str, Any]], group: Sequence[int], seed: int) -> bytes:
    """A place in the order of groups that depends on the seed and on what the rows say."""
    return _hash(f"{seed}:{min(content_key(rows[i]) for i in group)}")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
