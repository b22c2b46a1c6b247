"""The terminal's verbs over one dataset: `data inspect`, `derive`, `note`, `card` and `download`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from core.cli.common import REFRESH_SECONDS, AddVerb, ProgressBar
from core.data.derivation.operations import OPERATIONS
from core.data.inspection.personal_data import KINDS
from core.data.inspection.records import Inspection, Repeats, TokenFindings
from core.engine import Engine
from core.engine.inspection import MAX_LENGTH
from core.errors import NotFound, StudioError

BAR_WIDTH = 30  # characters


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the verbs to the group `data`."""
    p = add(
        group,
        "inspect",
        inspect_data,
        "Show lengths, repeats, languages, leaks and personal data of a dataset.",
        needs_model=True,
    )
    p.add_argument("dataset")
    p.add_argument(
        "--max-length", type=int, default=MAX_LENGTH, help=f"Tokens of a training row. Default: {MAX_LENGTH}."
    )
    p = add(group, "derive", derive_data, "Make a new dataset from one, or from several of one kind.")
    p.add_argument("operation", choices=[name.replace("_", "-") for name in OPERATIONS])
    p.add_argument("datasets", nargs="+", metavar="DATASET")
    p.add_argument("--name", default="", help="Default: the name of the first dataset and the operation.")
    p.add_argument("--near", action="store_true", help="dedup: also of rows that are nearly equal.")
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="redact: which personal data.")
    p.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="SPLIT:NUMBER",
        help="leave-out: a row, counted from 0 in its split, for example train:12.",
    )
    p.add_argument("--empty", action="store_true", help="leave-out: the empty rows, instead of --row.")
    p = add(group, "note", annotate_data, "Change your own note of a dataset.")
    p.add_argument("dataset")
    p.add_argument("note")
    add(group, "card", show_card, "Print the data card of a dataset.").add_argument("dataset")
    p = add(group, "download", download_data, "Write a zip of a dataset with its card and splits.")
    p.add_argument("dataset")
    p.add_argument("path", nargs="?", type=Path, help="Default: the id of the dataset, in this folder.")


def find_dataset(engine: Engine, given: str) -> str:
    """The id of a dataset that is given by its id or its name.

    Raises:
        NotFound: there is none, or several have this name.
    """
    found = [d.id for d in engine.datasets.list() if given in (d.id, d.name)]
    if given in found:
        return given
    if len(found) != 1:
        problem = (
            f"{len(found)} datasets are called {given!r}." if found else f"No dataset is called {given!r}."
        )
        raise NotFound(problem, "See `data list` for the ids.")
    return found[0]


def inspect_data(engine: Engine, args: argparse.Namespace) -> Any:
    key = engine.inspection.start(find_dataset(engine, args.dataset), args.max_length)
    bar = ProgressBar()
    while not (status := engine.inspection.status(key)).has_ended:
        bar.show(status.done / status.total if status.total else 0.0, status.text)
        time.sleep(REFRESH_SECONDS)
    bar.show(1.0, status.text)
    inspection = engine.inspection.get(key)
    if inspection is None:
        raise StudioError(status.problem or "The inspection was cancelled.")
    _print_inspection(inspection)
    return inspection.to_json()


def _print_inspection(found: Inspection) -> None:
    print(f"Rows: {found.rows:,} {found.scope}".rstrip())
    for size in found.splits:
        tokens = f"{size.tokens:,} tokens" if found.tokens else f"{size.characters:,} characters"
        print(f"  {size.split:<6} {size.rows:>9,} rows  {tokens}, {size.share:.1%}")
    _print_repeats("Repeats of a question or text", found.repeats)
    _print_repeats("Nearly equal rows", found.near)
    print(f"Other answers to the same question: {found.conflicts.rows:,}")
    print(f"Empty rows: {found.empty.rows:,}")
    print("Languages: " + ", ".join(f"{x.name} {x.share:.1%}" for x in found.languages))
    for leak in found.leaks:
        near = f" and {leak.near_rows:,} nearly equal ones" if leak.near_rows else ""
        print(
            f"In common with {leak.dataset_name}: {leak.rows:,} rows{near} of {leak.split} are in its "
            f"{leak.other_split} split"
        )
    for data in found.personal:
        print(f"{data.label}: {data.hits:,} in {data.rows:,} rows, such as {', '.join(data.examples)}")
    if found.tokens is None:
        print(found.tokens_problem)
    else:
        _print_tokens(found.tokens)


def _print_repeats(title: str, repeats: Repeats) -> None:
    across = f", {repeats.across_splits:,} of them across splits" if repeats.across_splits else ""
    groups = f" in {repeats.groups:,} groups{across}" if repeats.groups else ""
    print(f"{title}: {repeats.rows:,}{groups}")


def _print_tokens(tokens: TokenFindings) -> None:
    lengths = tokens.lengths
    print(
        f"Tokens of {tokens.base}: {lengths.tokens:,} in {lengths.rows:,} rows; shortest {lengths.shortest}, "
        f"median {lengths.median}, longest {lengths.longest}"
    )
    what = "cut" if lengths.cuts else "split into windows"
    print(
        f"Longer than {lengths.max_length} tokens: {lengths.over:,} rows ({lengths.over_share:.1%}), {what}"
    )
    most = max((b.rows for b in lengths.bins), default=1)
    for b in lengths.bins:
        print(f"  {b.low:>6}-{b.high:<6} {b.rows:>8,} {'#' * round(BAR_WIDTH * b.rows / most)}")
    print(f"Rows with control tokens written out: {tokens.forged.rows:,}")
    if tokens.refused:
        print(f"Rows that the chat template refuses: {tokens.refused:,} ({tokens.refusal})")
    if tokens.packed:
        row = tokens.packed
        sizes = " + ".join(str(segment.length) for segment in row.segments)
        print(f"First packed row of {row.rows:,}: {sizes} tokens, {row.padding} padding; fill {row.fill:.1%}")


def derive_data(engine: Engine, args: argparse.Namespace) -> Any:
    ids = [find_dataset(engine, given) for given in args.datasets]
    operation = args.operation.replace("-", "_")
    name = args.name or f"{engine.datasets.get(ids[0]).name[:100]} ({args.operation})"
    rows = _read_rows(args.row)
    dataset = engine.datasets.derive(ids, operation, name, args.near, args.kinds, rows, args.empty)
    print(f"{dataset.id}: {dataset.rows} {dataset.kind} rows, {dataset.splits}")
    for note in dataset.notes:
        print(f"Note: {note}")
    return dataset


def _read_rows(given: list[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for text in given:
        split, _, number = text.partition(":")
        if not number.isdecimal():
            raise StudioError(f"A row must look like train:12, got {text!r}.")
        rows.setdefault(split, []).append(int(number))
    return rows


def annotate_data(engine: Engine, args: argparse.Namespace) -> Any:
    dataset = engine.datasets.annotate(find_dataset(engine, args.dataset), args.note)
    print(f"{dataset.id}: {dataset.note}")
    return dataset


def show_card(engine: Engine, args: argparse.Namespace) -> Any:
    card = engine.datasets.card(find_dataset(engine, args.dataset))
    if not args.json:
        sys.stdout.write(card)
    return {"card": card}


def download_data(engine: Engine, args: argparse.Namespace) -> Any:
    dataset_id = find_dataset(engine, args.dataset)
    path = engine.datasets.download(dataset_id, args.path or Path(f"{dataset_id}.zip"))
    print(f"{path}: {path.stat().st_size:,} bytes")
    return {"path": str(path)}
