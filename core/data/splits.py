"""Stratified splits of canonical rows into train, val and test.

The same rows and seed always give the same split, every type is spread over the three splits, and no question
falls into two splits: rows that ask the same, and texts that read the same, form a group.

    rows that ask the same form a group ─┐  groups sorted by type, within a type by a hash of seed and content
                                         ▼
    a a a a a b b b b c c c c c c c    each group goes to the split that is furthest below its share of rows:
    T T v T t T T T v T T t T T T v    after n rows every split holds its share of n, give or take two rows

Where groups have several rows, a split may miss its share by the rows of the largest group as well.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import DataError, SpecError
from core.spec.settings import SEED

SPLITS = ("train", "val", "test")
RATIOS = (0.70, 0.15, 0.15)
_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff]+")  # soft hyphen, zero width
# Invisible characters and typographic quotes; a text without them is left as it is.
_ODD = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff‘’‚‛“”„‟«»]")
_QUOTES = str.maketrans({**dict.fromkeys("‘’‚‛", "'"), **dict.fromkeys("“”„‟«»", '"')})
# What does not count around a text: "Where is it?" asks what "where is it" asks.
_BEFORE, _AFTER = "¿¡\"' ", ".,;:!?。、\"' "


def check_ratios(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Checks the ratios of train, val and test.

    Returns:
        The ratios as floats.

    Raises:
        SpecError: they are not three shares above 0 that sum to 1.
    """
    is_valid = (
        len(ratios) == 3
        and all(isinstance(r, (int, float)) and 0 < r < 1 for r in ratios)
        and math.isclose(sum(ratios), 1.0, abs_tol=1e-6)
    )
    if not is_valid:
        raise SpecError(
            f"Split ratios must be three shares above 0 that sum to 1, got {tuple(ratios)!r}.",
            "Give train, val and test, for example 0.7, 0.15, 0.15.",
        )
    return (float(ratios[0]), float(ratios[1]), float(ratios[2]))


def content_key(row: Mapping[str, Any]) -> str:
    """Builds a key that is equal for two canonical rows of equal content, whatever their types."""
    if "text" in row:
        return str(row["text"])
    return "".join(f"{m['role']}:{len(m['content'])}:{m['content']}" for m in row["messages"])


def question_key(row: Mapping[str, Any]) -> str:
    """Builds a key that is equal for two canonical rows that ask the same, or whose texts read the same.

    What a task row asks are its messages before the first trained answer, without those of the assistant. An
    answer that opens the conversation does not count as the first one. Texts are compared without case,
    compatibility forms (NFKC), the number of blanks and punctuation at their ends.
    """
    if "text" in row:
        return normalize_text(str(row["text"]))
    return "".join(f"{role}:{len(text)}:{text}" for role, text in list_question_parts(row))


def list_question_parts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts of what a canonical row asks, each as (role, normalized text); the role of a text is ""."""
    if "text" in row:
        return [("", normalize_text(str(row["text"])))]
    return [(role, normalize_text(text)) for role, text in list_question_messages(row["messages"])]


def list_question_messages(messages: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The messages that ask, each as (role, text); see `question_key`."""
    asking: list[tuple[str, str]] = []
    has_question = False
    for message in messages:
        if message["role"] != "assistant":
            asking.append((message["role"], message["content"]))
            has_question = has_question or message["role"] == "user"
        elif has_question and message.get("weight", 1):
            break
    return asking


def normalize_text(text: str) -> str:
    """A text without case, compatibility forms, invisible characters and punctuation at its ends.

    Its blanks become one space; typographic quotes become plain ones. Punctuation alone stays.
    """
    if text.isascii():  # several times faster
        words = " ".join(text.lower().split())
    else:
        folded = _normalize_forms(_normalize_forms(text).casefold())
        if _ODD.search(folded):
            folded = _INVISIBLE.sub("", folded.translate(_QUOTES))
        words = " ".join(folded.split())
    return words.lstrip(_BEFORE).rstrip(_AFTER) or words


def _normalize_forms(text: str) -> str:
    return text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text)


def list_questions(rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Hashes what each row asks; see `question_key`."""
    return [hash_question(row) for row in rows]


def hash_question(row: Mapping[str, Any]) -> bytes:
    """Hashes what a row asks; see `question_key`."""
    return hashlib.sha256(question_key(row).encode("utf-8", "surrogatepass")).digest()


def count_repeats(rows: Sequence[Mapping[str, Any]], questions: Sequence[bytes] | None = None) -> int:
    """Counts the rows that ask what an earlier row asks, or read as an earlier one.

    Args:
        rows: canonical rows.
        questions: the result of `list_questions`, if it is known already.
    """
    return len(rows) - len(set(list_questions(rows) if questions is None else questions))


def link_groups(questions: Sequence[bytes], groups: Sequence[Sequence[int]]) -> list[bytes]:
    """Gives rows that belong together one key, so that they fall into one split.

    Args:
        questions: the result of `list_questions`.
        groups: indices of rows that belong together; groups that share a row or a question become one.
    """
    parents: dict[bytes, bytes] = {}

    def find(key: bytes) -> bytes:
        while (parent := parents.get(key, key)) != key:
            key = parent
        return key

    for group in groups:
        first = find(questions[group[0]])
        for index in group[1:]:
            parents[find(questions[index])] = first
    return [find(question) for question in questions]


def split(
    rows: Sequence[Mapping[str, Any]],
    seed: int = SEED,
    ratios: Sequence[float] = RATIOS,
    questions: Sequence[bytes] | None = None,
    weights: Sequence[int] | None = None,
    keys: Sequence[tuple[str, bytes]] | None = None,
) -> dict[str, list[int]]:
    """Splits canonical rows. The result depends on their content and the seed, not on their order.

    Args:
        rows: canonical rows.
        seed: another seed gives another split.
        ratios: shares of train, val and test.
        questions: the result of `list_questions`, if it is known already.
        weights: what the shares are of, for each row; None counts every row once.
        keys: the `sort_key` of each row, if it is known already.

    Returns:
        "train", "val" and "test", each with ascending indices into `rows`; every index occurs once.

    Raises:
        DataError: there are fewer than three different questions or texts.
        SpecError: the ratios are not valid.
    """
    shares = check_ratios(ratios)
    by_question: dict[bytes, list[int]] = {}
    for index, question in enumerate(list_questions(rows) if questions is None else questions):
        by_question.setdefault(question, []).append(index)
    check_distinct(len(by_question))

    def sort_key_of(group: list[int]) -> tuple[str, bytes]:
        if keys is not None and len(group) == 1:
            return keys[group[0]]
        kind = min(str(rows[i].get("type", "")) for i in group)
        return kind, _hash_content(min(content_key(rows[i]) for i in group), seed)

    groups = sorted(by_question.values(), key=sort_key_of)
    if weights is not None:
        parts = _assign(groups, shares, [max(1, sum(weights[i] for i in g)) for g in groups])
        return {name: sorted(i for group in part for i in group) for name, part in zip(SPLITS, parts)}
    # Equal rows count once, unless they are so many that the sizes would miss their shares.
    distinct = [1 if len(g) == 1 else len({content_key(rows[i]) for i in g}) for g in groups]
    parts = _assign(groups, shares, distinct)
    slack = max(map(len, groups)) + 1
    if any(abs(sum(map(len, p)) - share * len(rows)) > slack for p, share in zip(parts, shares)):
        parts = _assign(groups, shares, list(map(len, groups)))
    return {name: sorted(i for group in part for i in group) for name, part in zip(SPLITS, parts)}


def check_distinct(count: int) -> None:
    """Checks that every split gets a row.

    Raises:
        DataError: there are fewer than three different questions or texts.
    """
    if count < len(SPLITS):
        raise DataError(
            f"A dataset needs at least 3 different rows, one each for train, val and test, got {count}.",
            "Rows that ask the same question count as one. Add rows, or split one long text into documents "
            "with lines of only `---` between blank lines.",
        )


def sort_key(row: Mapping[str, Any], seed: int) -> tuple[str, bytes]:
    """The place of a row among the groups of one row: by its type, then by a hash of seed and content."""
    return str(row.get("type", "")), _hash_content(content_key(row), seed)


def _hash_content(content: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{content}".encode("utf-8", "surrogatepass")).digest()


def _assign(
    groups: Sequence[list[int]], shares: Sequence[float], weights: Sequence[int]
) -> list[list[list[int]]]:
    """Assigns each group in turn to the split that is furthest below its share of the weights so far."""
    parts: list[list[list[int]]] = [[], [], []]
    sizes, done = [0, 0, 0], 0
    for group, weight in zip(groups, weights):
        done += weight
        deficits = [share * done - size for share, size in zip(shares, sizes)]
        chosen = deficits.index(max(deficits))
        parts[chosen].append(group)
        sizes[chosen] += weight
    for part in parts:
        if not part:  # very small data: take the smallest group from the split with most groups
            largest = max(parts, key=len)
            smallest = min(map(len, largest))
            last = max(i for i, group in enumerate(largest) if len(group) == smallest)
            part.append(largest.pop(last))
    return parts
