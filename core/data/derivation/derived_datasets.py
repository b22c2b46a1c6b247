"""Datasets that are made from others: without duplicates, redacted, or merged. Datasets never change.

A row keeps its split, so that what was held out stays held out. Where two parents have one question in two
splits, all rows that ask it go to the one that is held out more: test before validation, validation before
training.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.data.dataset_records import Dataset, load_dataset
from core.data.dataset_writer import RowsFile, write_splits
from core.data.splits import SPLITS, list_questions
from core.errors import DataError, SpecError
from core.store.files import ensure_space, write_json
from core.store.workspace import Workspace, check_name

OPERATIONS = ("dedup", "redact", "merge", "leave_out")


def write_dataset_from_rows(
    workspace: Workspace,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    name: str,
    kind: str,
    parents: Sequence[str],
    operation: str,
    notes: Sequence[str] = (),
) -> Dataset:
    """Writes canonical rows as a new dataset.

    Args:
        rows: for "train", "val" and "test" the canonical rows; a row of a parent is given under the split
            that it has there. A split that is missing has no rows.
        name: display name.
        kind: "domain" or "task".
        parents: ids of the datasets that the rows come from; at least one.
        operation: one of OPERATIONS.
        notes: sentences about what the operation did.

    Returns:
        The dataset. It is for evaluation if every parent is.

    Raises:
        SpecError: unknown operation, kind or split, or no parent. NotFound: a parent does not exist.
        DataError: a split would have no rows, and its parents had some.
        StorageError: the disk is full or cannot be written.
    """
    if operation not in OPERATIONS or not parents or not set(rows) <= set(SPLITS):
        raise SpecError(
            f"A derived dataset needs a parent, splits of {', '.join(SPLITS)}, and one of the operations "
            f"{', '.join(OPERATIONS)}; got {len(parents)} parents, {', '.join(rows)}, {operation!r}."
        )
    sources = [load_dataset(workspace, parent) for parent in parents]
    if any(source.kind != kind for source in sources):
        raise SpecError(f"All parents must be {kind} datasets.", "Choose datasets of one kind.")
    name = check_name(name)
    first = sources[0]
    everything = [row for split in SPLITS for row in rows.get(split, ())]
    chosen = [index for index, split in enumerate(SPLITS) for _ in rows.get(split, ())]
    questions = list_questions(everything)
    held_out: dict[bytes, int] = {}
    for question, index in zip(questions, chosen):
        held_out[question] = max(index, held_out.get(question, 0))
    codes = np.fromiter((held_out[q] for q in questions), np.uint8, len(questions))
    sizes = {split: int((codes == index).sum()) for index, split in enumerate(SPLITS)}
    for split, size in sizes.items():
        if not size and any(source.splits[split] for source in sources):
            raise DataError(
                f"The {split} split of the new dataset would be empty.",
                "Keep some of its rows, or import the rows as a new dataset, which splits them again.",
            )
    with workspace.build("datasets", name) as draft:
        with RowsFile(draft.path / "rows.jsonl") as file:
            file.write_rows(everything)
        ensure_space(workspace.root, file.size)
        digests = write_splits(file.path, file.lengths(), codes, draft.path, draft.id)
        dataset = Dataset(
            id=draft.id,
            name=name,
            kind=first.kind,
            rows=len(everything),
            splits=sizes,
            seed=first.seed,
            ratios=first.ratios,
            sha256=file.fingerprint(first.seed, first.ratios),
            roles=first.roles,
            columns=list(dict.fromkeys(c for source in sources for c in source.columns)),
            files=[],
            created=time.time(),
            types=dict(Counter(row["type"] for row in everything if "type" in row).most_common()),
            duplicates=len(questions) - len(held_out),
            encoding=first.encoding,
            split_sha256=digests,
            layout=first.layout,
            notes=list(notes),
            purpose="evaluation" if all(s.purpose == "evaluation" for s in sources) else "training",
            parents=list(parents),
            operation=operation,
        )
        write_json(draft.path / "dataset.json", dataclasses.asdict(dataset))
        draft.expect("dataset.json", "rows.jsonl", *(f"splits/{draft.id}_{s}.jsonl" for s in SPLITS))
    return dataset
