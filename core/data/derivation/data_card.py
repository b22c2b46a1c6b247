"""The data card of a dataset, and its download: a zip that `datasets.load_dataset` and the Hub understand.

    <id>.zip   README.md               the card: YAML front matter, then what is known about the rows
               data/train.jsonl        canonical rows; every row of all splits has the same keys
               data/validation.jsonl
               data/test.jsonl         a split without rows has no file
               adapter-studio.json     the splits, for an import of the whole zip; see `split_record`

Source of the front matter: https://huggingface.co/docs/hub/datasets-cards
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data.datasets import DAMAGED, Dataset, load_dataset
from core.data.formats.compressed import RECORD
from core.data.inspection.languages import detect_language
from core.data.inspection.row_checks import show_row
from core.data.split_record import write_record
from core.data.splits import SPLITS
from core.errors import StorageError, StudioError
from core.store.files import atomic_write
from core.store.workspace import Workspace

HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
SAMPLE_ROWS = 500  # rows whose language is detected
LANGUAGE_SHARE = 0.05  # share of the rows from which a language is named
LINE_LIMIT, LIST_LIMIT = 500, 50  # characters of a line; entries of a list
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&-])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\ud800-\udfff]")


def write_card(workspace: Workspace, dataset: Dataset) -> str:
    """The card of a dataset.

    Raises:
        StorageError: its rows cannot be read.
    """
    import yaml

    front = yaml.safe_dump(
        _describe_for_hub(workspace, dataset), sort_keys=False, allow_unicode=True, width=1000
    )
    return f"---\n{front}---\n\n" + "\n".join(_list_lines(workspace, dataset)) + "\n"


def _describe_for_hub(workspace: Workspace, dataset: Dataset) -> dict[str, Any]:
    front: dict[str, Any] = {"pretty_name": _clean(dataset.name)}
    if languages := _detect_languages(workspace, dataset):
        front["language"] = languages
    is_task = dataset.kind == "task"
    front["task_categories"] = ["question-answering" if is_task else "text-generation"]
    front["size_categories"] = [next((name for limit, name in SIZES if dataset.rows < limit), "10M<n<100M")]
    front["tags"] = ["conversational"] if is_task else ["text"]
    files = [
        {"split": HUB_SPLITS[split], "path": f"data/{HUB_SPLITS[split]}.jsonl"}
        for split in SPLITS
        if dataset.splits[split]
    ]
    front["configs"] = [{"config_name": "default", "data_files": files}]
    return front


def _detect_languages(workspace: Workspace, dataset: Dataset) -> list[str]:
    """The languages of the first rows of the largest split, the most frequent first."""
    split = max(SPLITS, key=lambda s: dataset.splits[s])
    counts = Counter[str]()
    for i, row in enumerate(iterate_rows(workspace, dataset, split)):
        if i >= SAMPLE_ROWS:
            break
        counts[detect_language(show_row(row))] += 1
    least = LANGUAGE_SHARE * counts.total()
    return [code for code, n in counts.most_common() if code and n >= least]


def _list_lines(workspace: Workspace, dataset: Dataset) -> Iterator[str]:
    yield f"# {escape(dataset.name)}"
    yield ""
    if dataset.note:
        for line in dataset.note.split("\n")[:LIST_LIMIT]:
            yield escape(line)
        yield ""
    kind = "Questions with answers" if dataset.kind == "task" else "Text"
    yield f"{kind}, {dataset.rows:,} rows. Written by Adapter Studio."
    if dataset.purpose == "evaluation":
        yield ""
        yield "**For evaluation only**: nothing should be trained on these rows."
    yield ""
    yield "| split | rows |"
    yield "|---|---|"
    for split in SPLITS:
        if dataset.splits[split]:
            yield f"| {HUB_SPLITS[split]} | {dataset.splits[split]:,} |"
    yield ""
    yield from _list_format(dataset)
    yield from _list_origin(workspace, dataset)
    yield from _list_section("Notes", dataset.notes)
    if dataset.types:
        yield from _list_section("Types of rows", [f"{t or 'none'}: {n:,}" for t, n in dataset.types.items()])


def _list_format(dataset: Dataset) -> Iterator[str]:
    yield "## Format"
    yield ""
    if dataset.kind == "task":
        yield "Each row has `messages`, a list of `role` (system, user, assistant or tool) and `content`."
        yield "A `weight` of 0 marks an answer that is context and is not trained."
    else:
        yield "Each row has a `text`. Sections of a document have its name, `document`, and a number, `part`."
    yield ""
    if dataset.parents:
        yield "Each row has the split that it has in the dataset it comes from, or one that is held out more."
        yield ""
    elif dataset.purpose == "training":
        shares = ", ".join(f"{share:.0%}" for share in dataset.ratios)
        yield f"The splits were drawn with the seed {dataset.seed} and the shares {shares}; rows that ask the"
        yield "same, or read the same, are in one split."
        yield ""


def _list_origin(workspace: Workspace, dataset: Dataset) -> Iterator[str]:
    yield "## Origin"
    yield ""
    yield f"- Made on {time.strftime('%Y-%m-%d', time.gmtime(dataset.created))}"
    yield f"- SHA-256 of the rows and their split: `{dataset.sha256}`"
    for file in dataset.files[:LIST_LIMIT]:
        name, size = escape(str(file.get("name"))), int(file.get("bytes", 0))
        yield f"- Read from {name}, {size:,} bytes, SHA-256 `{_clean(str(file.get('sha256')))}`"
    if len(dataset.files) > LIST_LIMIT:
        yield f"- and {len(dataset.files) - LIST_LIMIT:,} more files"
    for parent in dataset.parents:
        yield f"- Made from {escape(_name_parent(workspace, parent))} by {escape(dataset.operation)}"
    roles = ", ".join(f"{escape(role)} = {escape(column)}" for role, column in dataset.roles.items())
    if roles:
        yield f"- Columns by their role: {roles}"
    yield ""


def _name_parent(workspace: Workspace, dataset_id: str) -> str:
    try:
        return f"{load_dataset(workspace, dataset_id).name} ({dataset_id})"
    except StudioError:  # deleted
        return f"{dataset_id}, which was deleted"


def _list_section(title: str, entries: Sequence[str]) -> Iterator[str]:
    if not entries:
        return
    yield f"## {title}"
    yield ""
    for entry in entries[:LIST_LIMIT]:
        yield f"- {escape(entry)}"
    if len(entries) > LIST_LIMIT:
        yield f"- and {len(entries) - LIST_LIMIT:,} more"
    yield ""


def escape(text: str) -> str:
    """A text on one line of Markdown, in which nothing is markup, at most LINE_LIMIT characters long."""
    return _SPECIAL.sub(r"\\\1", _clean(text))


def _clean(text: str) -> str:
    line = _CONTROL.sub(" ", " ".join(text.split()))
    return line if len(line) <= LINE_LIMIT else line[: LINE_LIMIT - 1] + "…"


# --- the download


@dataclass
class _Keys:
    """The keys that rows and their messages have anywhere in a dataset, in the order of their first use."""

    row: dict[str, None] = field(default_factory=dict)
    message: dict[str, None] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        self.row.update(dict.fromkeys(row))
        for message in row.get("messages", ()):
            self.message.update(dict.fromkeys(message))

    def fill(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with all keys; a table has one type for each column, and null where there is nothing."""
        full = {key: row.get(key) for key in self.row}
        if "messages" in row:
            full["messages"] = [{key: m.get(key) for key in self.message} for m in row["messages"]]
        return full


def write_download(workspace: Workspace, dataset: Dataset, path: Path) -> Path:
    """Writes the card and the splits of a dataset as a zip; it appears complete or not at all.

    Returns:
        `path`.

    Raises:
        StorageError: the rows cannot be read, or the file cannot be written.
    """
    keys = _Keys()
    for split in SPLITS:
        for row in iterate_rows(workspace, dataset, split):
            keys.add(row)
    with atomic_write(path) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.md", write_card(workspace, dataset))
        files: dict[str, tuple[str, str]] = {}
        for split in SPLITS:
            if not dataset.splits[split]:
                continue
            name, sha = f"data/{HUB_SPLITS[split]}.jsonl", hashlib.sha256()
            with archive.open(name, "w", force_zip64=True) as member:
                for row in iterate_rows(workspace, dataset, split):
                    line = json.dumps(keys.fill(row), ensure_ascii=False).encode() + b"\n"
                    sha.update(line)
                    member.write(line)
            files[split] = (name, sha.hexdigest())
        archive.writestr(RECORD, write_record(dataset.kind, dataset.purpose, files, dataset.cuts))
    return path


def iterate_rows(workspace: Workspace, dataset: Dataset, split: str) -> Iterator[dict[str, Any]]:
    """The canonical rows of a split, one after the other.

    Raises:
        StorageError: they cannot be read.
    """
    path = workspace.path("datasets", dataset.id, "splits", f"{dataset.id}_{split}.jsonl")
    try:
        with open(path, "rb") as f:
            for line in f:
                yield json.loads(line)
    except (OSError, ValueError, RecursionError) as e:
        raise StorageError(f"{path.name} cannot be read: {e}.", DAMAGED) from e
