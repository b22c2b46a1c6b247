"""The terminal's verb over splits: `data split`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli.common import AddVerb
from core.data.splits import RATIOS, check_ratios
from core.data.splits_files import FOLDER, SplitOptions, write_splits
from core.data.splits_stratified import MODES
from core.spec.settings import SEED
from core.store.workspace import Workspace


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds `data split`."""
    help = "Write a dataset as files of its splits, stratified by document and type."
    p = add(group, "split", split_data, help, needs_engine=False, needs_workspace=True)
    p.add_argument("dataset", help="Id of the dataset.")
    p.add_argument("--tag", required=True, help="The files are TAG_train.jsonl, TAG_val.jsonl and so on.")
    p.add_argument("--out", type=Path, default=FOLDER, help=f"The folder to write. Default: {FOLDER}.")
    p.add_argument(
        "--by",
        choices=MODES,
        default="row",
        help="row (the default) spreads the rows of every document over the splits; document keeps a "
        "document whole, so that the test asks about texts that were never seen.",
    )
    p.add_argument(
        "--document",
        default="",
        metavar="COLUMN",
        help="Column of the imported files that names the document of a row, such as paper_id. "
        "Default: found by its name.",
    )
    p.add_argument("--seed", type=int, default=SEED, help=f"Recorded beside the files. Default: {SEED}.")
    p.add_argument(
        "--ratios", type=float, nargs=3, default=RATIOS, metavar="SHARE", help="Of train, val and test."
    )
    p.add_argument("--zip", action="store_true", help="Also write TAG.zip; `data add` keeps its splits.")
    p.add_argument("--replace", action="store_true", help="Replace files of this tag that differ.")


def split_data(engine: Any, args: argparse.Namespace) -> Any:
    options = SplitOptions(
        tag=args.tag,
        by=args.by,
        column=args.document,
        seed=args.seed,
        ratios=check_ratios(args.ratios),
        zipped=args.zip,
        replace=args.replace,
    )
    written = write_splits(Workspace(args.workspace), args.dataset, options, args.out)
    for path in written.files:
        print(f"wrote {path}")
    counts = ", ".join(f"{name} {rows}" for name, rows in written.rows.items())
    print(f"{counts}; seed {args.seed}; by {args.by}")
    if written.column:
        print(f"Documents: {written.documents} different ones, from {written.column}.")
    else:
        print("The rows name no document, so they are stratified by type alone; --document names a column.")
    return written
