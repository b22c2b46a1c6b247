"""How rows of datasets become rows of a new one: without repeats, redacted, merged, or with rows left out.

Each function takes the rows of the three splits and returns those of the new dataset, with sentences about
what changed. No row moves into a split that is held out less. `derived_datasets` writes the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from core.data.datasets import Dataset, load_dataset, read_split
from core.data.derivation.derived_datasets import write_dataset_from_rows
from core.data.inspection.near_duplicates import find_near_duplicates
from core.data.inspection.personal_data import KINDS, LABELS, placeholder, redact_row
from core.data.inspection.row_checks import (
    answer_key,
    from_splits,
    group_equal,
    group_near,
    is_blank,
    question_text,
)
from core.data.splits import SPLITS, content_key, list_questions
from core.errors import SpecError
from core.store.workspace import Workspace

HELD_OUT_NAMES = {"val": "validation", "test": "test"}
Splits = Mapping[str, Sequence[Mapping[str, Any]]]  # split to canonical rows
Derived = tuple[dict[str, list[dict[str, Any]]], list[str]]  # the rows, and sentences about them


def remove_repeats(splits: Splits, near: bool = False) -> Derived:
    """Leaves one row of each question or text.

    Of a group the row stays that is held out most, test before validation before train, and of several in
    one split the first. So a row of the train split that repeats one of the test split is removed.

    Args:
        near: also of rows that are nearly equal: texts, or questions with the same answer.
    """
    rows = from_splits("", splits)
    equal = group_equal(list_questions(rows.rows))
    removed: set[int] = set()
    others_answers = 0

    def keep_one(group: Iterable[int]) -> set[int]:
        return set(sorted(group, key=lambda i: (-rows.places[i][0], i))[1:])

    for group in equal:
        others = keep_one(group)
        (kept,) = set(group) - others
        removed |= others
        others_answers += sum(answer_key(rows.rows[i]) != answer_key(rows.rows[kept]) for i in others)
    notes = []
    if removed:
        what = "text" if "text" in rows.rows[0] else "question"
        notes.append(f"{count_rows(len(removed))} removed, because another row has the same {what}.")
    if others_answers:
        notes.append(f"Of these, {others_answers:,} had another answer than the row that stays.")
    if near:
        nearly: set[int] = set()
        left = [i for i in range(len(rows.rows)) if i not in removed]
        for group in group_near([rows.rows[i] for i in left]):
            nearly |= keep_one(left[i] for i in group)
        removed |= nearly
        if nearly:
            notes.append(f"{count_rows(len(nearly))} removed as nearly equal to another row.")
    notes = notes or ["No repeats were found."]
    return _take(splits, lambda split, number: True, removed), notes


def redact(splits: Splits, kinds: Sequence[str] = KINDS) -> Derived:
    """Puts placeholders such as [EMAIL] in the place of personal data.

    Args:
        kinds: of `personal_data.KINDS`.

    Raises:
        SpecError: an unknown kind.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise SpecError(
            f"The kinds of personal data are {', '.join(KINDS)}, got {unknown[0]!r}.", "Choose among these."
        )
    counts, changed = Counter[str](), 0
    result: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        result[split] = []
        for row in splits.get(split, ()):
            clean, found = redact_row(row, tuple(kinds))
            counts.update(found)
            changed += bool(found)
            result[split].append(clean)
    notes = [f"{LABELS[kind]}: {n:,} replaced by {placeholder(kind)}." for kind, n in counts.most_common()]
    rows = "1 row was changed" if changed == 1 else f"{changed:,} rows were changed"
    return result, [*notes, f"{rows}."] if notes else ["No personal data was found."]


def leave_out(splits: Splits, rows: Mapping[str, Sequence[int]]) -> Derived:
    """Leaves out chosen rows.

    Args:
        rows: split to the numbers of its rows, from 0.

    Raises:
        SpecError: a split or row does not exist, or no row is chosen.
    """
    for split, numbers in rows.items():
        size = len(splits.get(split, ()))
        for number in numbers:
            if not 0 <= number < size:
                raise SpecError(
                    f"The split {split!r} has {size:,} rows, got the row {number:,}.", "Choose one of them."
                )
    chosen = {(split, number) for split, numbers in rows.items() for number in numbers}
    if not chosen:
        raise SpecError("No row was chosen.", "Choose the rows to leave out.")
    kept = _take(splits, lambda split, number: (split, number) not in chosen, set())
    return kept, [f"{count_rows(len(chosen))} left out by hand."]


def leave_out_empty(splits: Splits) -> Derived:
    """Leaves out the rows that an inspection counts as empty: blank texts, and rows without an answer."""
    rows = {s: [i for i, row in enumerate(splits.get(s, ())) if is_blank(row)] for s in SPLITS}
    count = sum(map(len, rows.values()))
    if not count:
        return _take(splits, lambda split, number: True, set()), ["No empty rows were found."]
    kept, _ = leave_out(splits, rows)
    return kept, [f"{count_rows(count)} left out, because there was nothing to learn."]


def merge(parents: Sequence[tuple[str, Splits]]) -> Derived:
    """Merges the rows of several datasets of one kind; each row keeps its split.

    A row that another parent has in the same words is taken once. Where parents have one question, or nearly
    equal texts, in two splits, all rows of it go to the split that is held out most.

    Args:
        parents: name and splits of each.
    """
    rows: list[dict[str, Any]] = []
    codes: list[int] = []  # of each row the index of its split in SPLITS
    owners: list[int] = []
    first: dict[tuple[str, str], int] = {}
    repeated = 0
    taken: set[str] = set()
    for owner, (name, splits) in enumerate(parents):
        documents = {str(r["document"]) for s in SPLITS for r in splits.get(s, ()) if "document" in r}
        for code, split in enumerate(SPLITS):
            for row in splits.get(split, ()):
                key = (content_key(row), str(row.get("type", "")))
                known = first.setdefault(key, len(rows))
                if known < len(rows) and owners[known] != owner:
                    codes[known] = max(codes[known], code)
                    repeated += 1
                    continue
                changed = dict(row)
                if str(row.get("document")) in taken:  # another document of the same name
                    changed["document"] = f"{row['document']} ({name})"
                rows.append(changed)
                codes.append(code)
                owners.append(owner)
        taken |= documents
    before = list(codes)
    questions = list_questions(rows)
    groups = [*group_equal(questions), *_group_near_texts(rows, owners)]
    for group in _connect(groups):
        code = max(codes[i] for i in group)
        for i in group:
            codes[i] = code
    moved = Counter(SPLITS[code] for code, old in zip(codes, before, strict=True) if code != old)
    notes = [f"{' and '.join(repr(name) for name, _ in parents)} were merged."]
    if repeated:
        notes.append(f"{count_rows(repeated)} taken once, because several of the datasets have the same.")
    for split, n in moved.items():
        verb = "row was" if n == 1 else "rows were"
        why = "because another dataset has the question or text there"
        notes.append(f"{n:,} {verb} moved to the {HELD_OUT_NAMES[split]} split, {why}.")
    result = {
        split: [row for row, c in zip(rows, codes, strict=True) if c == code]
        for code, split in enumerate(SPLITS)
    }
    return result, notes


def _group_near_texts(rows: Sequence[Mapping[str, Any]], owners: Sequence[int]) -> list[list[int]]:
    """Groups of nearly equal texts of several parents.

    Conversations are not grouped: many of them may share a long instruction and differ in a word that counts.
    """
    if not rows or "text" not in rows[0]:
        return []
    groups = find_near_duplicates([question_text(row) for row in rows])
    return [group for group in groups if len({owners[i] for i in group}) > 1]


def _connect(groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Joins groups that share a row."""
    parents: dict[int, int] = {}

    def find(i: int) -> int:
        while (parent := parents.get(i, i)) != i:
            i = parent
        return i

    for group in groups:
        for i in group[1:]:
            parents[find(i)] = find(group[0])
    members: dict[int, list[int]] = {}
    for i in sorted({i for group in groups for i in group}):
        members.setdefault(find(i), []).append(i)
    return list(members.values())


def _take(
    splits: Splits, is_wanted: Callable[[str, int], bool], removed: set[int]
) -> dict[str, list[dict[str, Any]]]:
    """The rows that are wanted, without those whose number over all splits is in `removed`."""
    result: dict[str, list[dict[str, Any]]] = {}
    index = 0
    for split in SPLITS:
        result[split] = []
        for number, row in enumerate(splits.get(split, ())):
            if index not in removed and is_wanted(split, number):
                result[split].append(dict(row))
            index += 1
    return result


def count_rows(count: int) -> str:
    """How many rows, as the beginning of a sentence: "1 row was", "2 rows were"."""
    return "1 row was" if count == 1 else f"{count:,} rows were"


OPERATIONS = ("dedup", "redact", "leave_out", "merge")


def derive_dataset(
    workspace: Workspace,
    dataset_ids: Sequence[str],
    operation: str,
    name: str,
    near: bool = False,
    kinds: Sequence[str] = KINDS,
    rows: Mapping[str, Sequence[int]] | None = None,
    empty: bool = False,
) -> Dataset:
    """Makes a new dataset from others, which stay as they are.

    Args:
        dataset_ids: the parents: one, or several of one kind for "merge".
        operation: "dedup" (one row of each question or text), "redact" (placeholders for personal data),
            "leave_out" (without chosen rows) or "merge".
        name: display name of the new dataset.
        near: for "dedup": also of nearly equal rows.
        kinds: for "redact": which kinds of personal data.
        rows: for "leave_out": split to the numbers of its rows, from 0.
        empty: for "leave_out": the empty rows instead.

    Returns:
        The new dataset, with its parents, operation and notes of what changed.

    Raises:
        SpecError: unknown operation, kind or row, or the wrong number or kinds of parents.
        NotFound, InvalidName, StorageError. DataError: a split would be empty.
    """
    if operation not in OPERATIONS:
        raise SpecError(
            f"The operation must be one of {', '.join(OPERATIONS)}, got {operation!r}.", "Choose one of them."
        )
    is_merge = operation == "merge"
    count = len(set(dataset_ids))
    if count != len(dataset_ids) or (count < 2 if is_merge else count != 1):
        number = "two or more different datasets" if is_merge else "one dataset"
        raise SpecError(
            f"The operation {operation} needs {number}, got {len(dataset_ids)}.", "Choose others."
        )
    parents = [load_dataset(workspace, dataset_id) for dataset_id in dataset_ids]
    if len({parent.kind for parent in parents}) != 1:
        raise SpecError(
            "Text and question-and-answer datasets cannot be merged.", "Choose datasets of one kind."
        )
    splits = [{s: read_split(workspace, parent.id, s) for s in SPLITS} for parent in parents]
    if operation == "merge":
        derived, notes = merge([(p.name, s) for p, s in zip(parents, splits, strict=True)])
    elif operation == "dedup":
        derived, notes = remove_repeats(splits[0], near)
    elif operation == "redact":
        derived, notes = redact(splits[0], kinds)
    elif empty:
        derived, notes = leave_out_empty(splits[0])
    else:
        derived, notes = leave_out(splits[0], rows or {})
    return write_dataset_from_rows(workspace, derived, name, parents[0].kind, dataset_ids, operation, notes)
