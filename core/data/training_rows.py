"""What an adapter has seen: hashes of the rows that it was trained on, in a file beside its weights.

    adapters/<id>/training_rows.json   {"format": 1,
                                        "trained": base64 of sorted 64-bit hashes of what each row asks,
                                        "validated": the same for the rows that chose its checkpoint,
                                        "unknown": sentences about rows that could not be recorded}

A row counts as trained on if it is in the training split, also where a run ended before it reached the row.
The record holds the rows of everything that the adapter grew from: replay data, the parent adapter that was
active while it trained, the run that it continues, the parts of a bake. So it outlives their deletion. A hash
is `streaming.question_hashes`: rows that ask the same have the same one. It tells whether a row that is at
hand was seen; the row cannot be read from it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.dataset_records import iterate_split, load_dataset
from core.data.streaming.question_hashes import hash_questions
from core.errors import StudioError
from core.spec.training import TrainSpec
from core.store import adapters, runs
from core.store.adapters import Adapter
from core.store.record_types import check_type
from core.store.records import read_object, report_damage
from core.store.workspace import Workspace

FILE = "training_rows.json"
FORMAT = 1
UNKNOWN_LIMIT = 20  # sentences that a record holds


@dataclass(frozen=True)
class TrainingRows:
    """The rows that an adapter has seen.

    Attributes:
        trained: hashes of the rows that it was trained on.
        validated: hashes of the rows whose loss chose its checkpoint.
        unknown: what could not be recorded, one sentence each; empty where the record is complete.
    """

    trained: frozenset[int] = frozenset()
    validated: frozenset[int] = frozenset()
    unknown: tuple[str, ...] = ()

    def to_files(self) -> dict[str, bytes]:
        """The record as a file of the adapter's folder."""
        values = {
            "format": FORMAT,
            "trained": _pack(self.trained),
            "validated": _pack(self.validated),
            "unknown": list(self.unknown[:UNKNOWN_LIMIT]),
        }
        return {FILE: (json.dumps(values, ensure_ascii=False) + "\n").encode()}


def join(records: Iterable[TrainingRows]) -> TrainingRows:
    """The rows of several records together."""
    listed = list(records)
    return TrainingRows(
        frozenset().union(*(r.trained for r in listed)),
        frozenset().union(*(r.validated for r in listed)),
        tuple(dict.fromkeys(sentence for r in listed for sentence in r.unknown)),
    )


def collect_training_rows(workspace: Workspace, spec: TrainSpec) -> TrainingRows:
    """Collects the rows that a run sees, from the datasets and adapters that its settings name."""
    found = [_read_dataset(workspace, spec.dataset)]
    if spec.replay_share and spec.replay_dataset not in ("", spec.dataset):
        found.append(_read_dataset(workspace, spec.replay_dataset))
    if spec.stack_on:
        found.append(_read_ancestor(workspace, spec.stack_on, frozenset()))
    if spec.continue_from:
        try:
            source = runs.load(workspace, spec.continue_from).adapter
        except StudioError:
            found.append(_miss(f"the run {spec.continue_from!r}, which it continues, was deleted"))
        else:
            found.append(_read_ancestor(workspace, source, frozenset()))
    return join(found)


def read_training_rows(workspace: Workspace, adapter: Adapter) -> TrainingRows:
    """Reads what an adapter of the library has seen.

    An adapter without a record, as older versions saved it, is looked up in the datasets and adapters that
    its metadata names, where they are still in the workspace.
    """
    return _read(workspace, adapter, frozenset())


def load_record(folder: Path) -> TrainingRows:
    """Reads the record in an adapter's folder.

    Raises:
        DamagedRecord: it is missing or cannot be read.
    """
    values = read_object(folder / FILE)
    with report_damage(folder / FILE):
        if values.get("format") != FORMAT:
            raise ValueError(f"its format must be {FORMAT}, got {values.get('format')!r}")
        sentences = check_type(list[str], values.get("unknown"))
        return TrainingRows(
            _unpack(values.get("trained")), _unpack(values.get("validated")), tuple(sentences[:UNKNOWN_LIMIT])
        )


def _read(workspace: Workspace, adapter: Adapter, visited: frozenset[str]) -> TrainingRows:
    folder = workspace.find("adapters", adapter.id)
    if (folder / FILE).is_file():
        try:
            return adapters.read_files(workspace, adapter.id, load_record)
        except StudioError as e:
            return _miss(f"the record of {adapter.name!r} cannot be read ({e.what.rstrip('.')})")
    metadata, visited = adapter.metadata, visited | {adapter.id}
    found = []
    if adapter.dataset:
        claimed = str((metadata.get("dataset") or {}).get("sha256", ""))
        found.append(_read_dataset(workspace, adapter.dataset, claimed))
        settings = metadata.get("hyperparameters") or {}
        replay = str(settings.get("replay_dataset") or "")
        if settings.get("replay_share") and replay not in ("", adapter.dataset):
            found.append(_read_dataset(workspace, replay))
    sources = [p.get("id") for p in metadata.get("baked_from") or ()]
    sources += [adapter.stacked_on, (metadata.get("continued_from") or {}).get("adapter")]
    found += [_read_ancestor(workspace, str(s), visited) for s in sources if s and str(s) not in visited]
    if not found:
        return _miss(f"{adapter.name!r} has no record of its training rows")
    return join(found)


def _read_ancestor(workspace: Workspace, adapter_id: str, visited: frozenset[str]) -> TrainingRows:
    try:
        return _read(workspace, adapters.load(workspace, adapter_id), visited)
    except StudioError:
        return _miss(f"the adapter {adapter_id!r}, which it grew from, was deleted or is damaged")


def _read_dataset(workspace: Workspace, dataset_id: str, claimed_sha256: str = "") -> TrainingRows:
    """The rows of a dataset; none of them if it is another one than the metadata names."""
    try:
        dataset = load_dataset(workspace, dataset_id)
        if claimed_sha256 and dataset.sha256 != claimed_sha256:
            return _miss(f"the dataset {dataset_id!r} is not the one that it was trained on")
        splits = [hash_questions(iterate_split(workspace, dataset_id, name)) for name in ("train", "val")]
    except StudioError:
        return _miss(f"the dataset {dataset_id!r} was deleted or is damaged")
    trained, validated = (frozenset(hashes.tolist()) for hashes in splits)
    return TrainingRows(trained, validated)


def _miss(reason: str) -> TrainingRows:
    return TrainingRows(unknown=(f"Not all training rows are known: {reason}.",))


def _pack(hashes: frozenset[int]) -> str:
    return base64.b64encode(np.array(sorted(hashes), "<u8").tobytes()).decode()


def _unpack(text: Any) -> frozenset[int]:
    return frozenset(np.frombuffer(base64.b64decode(str(text), validate=True), "<u8").tolist())


def hash_rows(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The hash of each canonical row, as the record holds it."""
    return [int(h) for h in hash_questions(rows)]
