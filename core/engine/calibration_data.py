"""Which rows the gate of an adapter is calibrated on: its own, and those of others.

Its own are the validation rows of its dataset. Others are the general text that is replayed in training, and
the validation rows of the datasets of other adapters. Left out are its own dataset, copies of that, and the
datasets of its parents and children: a task that is stacked on a domain goes with it, not against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.datasets import Dataset, iterate_split, list_datasets, load_dataset
from core.data.samples import Samples, read_lines
from core.errors import NotFound, SpecError, StudioError
from core.evaluate.gate_prompts import PromptSource, list_prompts, spread_evenly
from core.spec.gate import MINIMUM_ROWS
from core.store import adapters as adapter_store
from core.store.adapters import Adapter
from core.store.files import sha256_of
from core.store.workspace import Workspace

GENERAL = "general"  # in place of the id of a dataset
GENERAL_NAMES = {False: "general text", True: "general questions"}  # by whether only questions are used
ROWS = 512  # of a split that prompts are drawn from
SOURCES = 12  # datasets of other adapters, the newest ones
SPLITS = ("val", "test", "train")  # the first one with enough rows is used


@dataclass(frozen=True)
class Choice:
    """The data of a calibration.

    Attributes:
        own, others: what prompts are drawn from.
        has_own_questions: whether its own prompts are questions; else they are sentences of documents.
        only_questions: whether the other prompts are questions, too, by the user's choice.
    """

    own: PromptSource
    others: tuple[PromptSource, ...]
    has_own_questions: bool
    only_questions: bool = False


def choose_data(
    workspace: Workspace,
    samples: Samples,
    adapter: Adapter,
    own: str | None = None,
    against: Sequence[str] = (),
    questions: bool = False,
    texts: Sequence[str] = (),
) -> Choice:
    """Reads the rows of a calibration; see `core.engine.calibration.Calibration.start`.

    Args:
        samples: whose general text suits the base of the adapter.

    Raises:
        SpecError, NotFound, StorageError
    """
    dataset = None if texts else _find_own(workspace, adapter, own)
    only_questions = questions or bool(texts)
    if texts:
        rows = [make_question(text) for text in texts]
        source = PromptSource("your list", rows)
    else:
        assert dataset is not None
        _require_labels(dataset, only_questions, "own")
        source = PromptSource(dataset.name, read_rows(workspace, dataset))
    if against:
        others = [
            _read_source(workspace, samples, dataset, chosen, only_questions)
            for chosen in dict.fromkeys(against)
        ]
    else:
        known = [d for d in (dataset, _find_training_data(workspace, adapter)) if d is not None]
        others = _find_others(workspace, samples, adapter, known, only_questions)
    is_labelled = bool(texts) or (dataset is not None and dataset.kind == "task")
    return Choice(source, tuple(others), is_labelled, only_questions)


def _find_own(workspace: Workspace, adapter: Adapter, own: str | None) -> Dataset:
    """The dataset with the adapter's own prompts."""
    if own:
        return load_dataset(workspace, own)
    fix = "Choose a dataset that is like what it is for."
    if not adapter.dataset:
        made = (
            "imported" if adapter.metadata.get("imported") else "not trained on a dataset of this workspace"
        )
        raise SpecError(f"{adapter.name!r} was {made}, so that its own data is not known.", fix).at("own")
    try:
        return load_dataset(workspace, adapter.dataset)
    except NotFound:
        raise SpecError(
            f"The dataset that {adapter.name!r} was trained on is not in the workspace any more.", fix
        ).at("own") from None


def _require_labels(dataset: Dataset, only_questions: bool, field: str) -> None:
    if only_questions and dataset.kind != "task":
        raise SpecError(
            f"{dataset.name!r} has documents, and only questions are to be used.",
            "Choose labelled data, or allow sentences of documents.",
        ).at(field)


def _read_source(
    workspace: Workspace, samples: Samples, own: Dataset | None, chosen: str, only_questions: bool
) -> PromptSource:
    """A source that the user chose."""
    if chosen == GENERAL:
        return read_general(samples, only_questions)
    dataset = load_dataset(workspace, chosen)
    if own is not None and dataset.id == own.id:
        raise SpecError(
            f"{dataset.name!r} is on both sides of the calibration.", "Choose another dataset against it."
        ).at("against")
    _require_labels(dataset, only_questions, "against")
    return PromptSource(dataset.name, read_rows(workspace, dataset))


def _find_training_data(workspace: Workspace, adapter: Adapter) -> Dataset | None:
    try:
        return load_dataset(workspace, adapter.dataset) if adapter.dataset else None
    except StudioError:  # deleted or damaged since
        return None


def _find_others(
    workspace: Workspace,
    samples: Samples,
    adapter: Adapter,
    known: Sequence[Dataset],
    only_questions: bool,
) -> list[PromptSource]:
    """General text, and the datasets of other adapters of the same base; what cannot be read is left out.

    Args:
        known: the adapter's own data.
    """
    sources = []
    replay = _find_replay(workspace, adapter)
    used = set()
    if replay is not None and not only_questions and replay.id not in {d.id for d in known}:
        sources.append(PromptSource(replay.name, read_rows(workspace, replay)))
        used.add(replay.id)
    elif not _is_general(samples, known, only_questions):
        sources.append(read_general(samples, only_questions))
    for dataset_id in list_other_datasets(workspace, adapter, known):
        if len(sources) > SOURCES:
            break
        try:
            dataset = load_dataset(workspace, dataset_id)
            if dataset.id in used or (only_questions and dataset.kind != "task"):
                continue
            sources.append(PromptSource(dataset.name, read_rows(workspace, dataset)))
        except StudioError:  # deleted or damaged since
            continue
    return sources


def suggest_others(workspace: Workspace, samples: Samples, adapter: Adapter) -> list[str]:
    """What an adapter is calibrated against by default: ids of datasets, and GENERAL."""
    data = _find_training_data(workspace, adapter)
    known = [data] if data else []
    replay = _find_replay(workspace, adapter)
    first = [GENERAL] if not _is_general(samples, known, only_questions=False) else []
    if replay is not None and replay.id not in {d.id for d in known}:
        first = [replay.id]
    return list(dict.fromkeys([*first, *list_other_datasets(workspace, adapter, known)]))[: SOURCES + 1]


def list_other_datasets(workspace: Workspace, adapter: Adapter, known: Sequence[Dataset] = ()) -> list[str]:
    """Ids of the datasets of other adapters that an adapter is calibrated against, the newest one's first.

    Args:
        known: the adapter's own data, which is left out with its copies.
    """
    listed = adapter_store.load_all(workspace)
    relatives = _find_relatives(adapter, listed)
    excluded = {adapter.dataset, *(a.dataset for a in listed if a.id in relatives)}
    family = {i for dataset in known for i in _find_copies(workspace, dataset)}
    fitting = [a for a in listed if a.base_fingerprint == adapter.base_fingerprint and a.id not in relatives]
    return [d for d in dict.fromkeys(a.dataset for a in fitting) if d and d not in excluded | family]


def _find_relatives(adapter: Adapter, listed: Sequence[Adapter]) -> set[str]:
    """Ids of an adapter, its parents and its children."""
    parents = {a.id: a.stacked_on for a in listed}
    found = {adapter.id}
    above = adapter.stacked_on
    while above and above not in found:
        found.add(above)
        above = parents.get(above, "")
    below = {adapter.id}
    while below:
        below = {a.id for a in listed if a.stacked_on in below} - found
        found |= below
    return found


def _find_copies(workspace: Workspace, own: Dataset) -> set[str]:
    """Ids of a dataset, of its equals, of what it was made from, and of what was made from it."""
    listed = list_datasets(workspace)
    related = {d.id for d in listed if d.sha256 == own.sha256 or own.id in d.parents}
    return {own.id, *own.parents, *related}


def _find_replay(workspace: Workspace, adapter: Adapter) -> Dataset | None:
    """The dataset that was replayed when an adapter was trained, in place of the general text."""
    settings = adapter.metadata.get("hyperparameters") or {}
    name = settings.get("replay_dataset") if settings.get("replay_share") else ""
    try:
        return load_dataset(workspace, str(name)) if name else None
    except StudioError:
        return None


def read_general(samples: Samples, only_questions: bool = False) -> PromptSource:
    """The general text that is replayed in training, or general questions."""
    if only_questions:
        rows = [make_question(str(row["question"])) for row in read_lines(samples.task)]
    else:
        rows = [{"text": text} for text in samples.texts("general")]
    return PromptSource(GENERAL_NAMES[only_questions], rows)


def make_question(text: str) -> dict[str, Any]:
    """A row with a question and no answer."""
    return {"messages": [{"role": "user", "content": text}]}


def _is_general(samples: Samples, known: Sequence[Dataset], only_questions: bool) -> bool:
    """Whether one of the datasets was imported from the file that the general prompts come from."""
    file = samples.task if only_questions else samples.folder / "general.txt"
    digests = {f["sha256"] for dataset in known for f in dataset.files}
    return bool(digests) and sha256_of(file) in digests


def read_rows(workspace: Workspace, dataset: Dataset) -> list[dict[str, Any]]:
    """Rows of the first split that gives enough prompts; of all splits, where none does.

    Of a large split, ROWS rows are read that are spread evenly over it.

    Raises:
        StorageError: a split is damaged.
    """
    rows: list[dict[str, Any]] = []
    for split in SPLITS:
        count = dataset.splits.get(split, 0)
        chosen = set(spread_evenly(count)[:ROWS])
        found = [r for i, r in enumerate(iterate_split(workspace, dataset.id, split)) if i in chosen]
        if _has_enough(found):
            return found
        rows += found
    return rows


def _has_enough(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether rows give MINIMUM_ROWS different prompts."""
    texts: set[str] = set()
    for row in rows:
        texts |= {str(prompt[-1]["content"]).strip() for prompt in list_prompts(row)}
        if len(texts) >= MINIMUM_ROWS:
            return True
    return False
