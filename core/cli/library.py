"""The terminal's verbs over what is stored: `data` and `adapters`. `core/cli/bases.py` has those of bases."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from core.cli.common import AddVerb, ProgressBar, warn_of_damaged
from core.data.datasets import Dataset
from core.engine import Engine
from core.engine.damaged import WORKSPACE, describe_deletion
from core.errors import UnconfirmedRoles
from core.progress import ReadProgress
from core.spec.settings import SEED
from core.spec.training import KINDS
from core.store import artefacts, workspace

HUB_PREFIX = "hub:"
PREVIEW_ROWS = 3
QUIET_SECONDS = 1.0  # an import that ends earlier prints no progress
PREVIEW_WIDTH = 500  # characters of a row


def add_data_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `data`."""
    p = add(group, "preview", preview_data, "Show how files would be imported; nothing is stored.")
    _add_reading_options(p)
    p = add(group, "add", import_data, "Import files or a folder as a dataset.")
    _add_reading_options(p)
    p.add_argument("--yes", action="store_true", help="Confirm the roles that are proposed from the cells.")
    p.add_argument(
        "--evaluation-only",
        action="store_true",
        help="Nothing is ever trained on it; evaluate measures with it.",
    )
    p.add_argument("--config", default="", help="Of a dataset of the Hub, hub:owner/name.")
    p.add_argument("--split", default="", help="Of a dataset of the Hub. Default: train.")
    p.add_argument("--revision", default="", help="Of a dataset of the Hub: branch, tag or commit.")
    p.add_argument("--name", default="", help="Default: the name of the first file.")
    p.add_argument("--seed", type=int, default=SEED, help="Decides the train, validation and test splits.")
    add(group, "list", list_data, "List datasets.")


def _add_reading_options(p: argparse.ArgumentParser) -> None:
    """Adds the files and how they are read."""
    p.add_argument("paths", nargs="+", type=Path)
    p.add_argument("--kind", choices=KINDS, help="domain is text, task is labelled pairs. Default: guessed.")
    p.add_argument(
        "--role",
        action="append",
        default=[],
        metavar="ROLE=COLUMN",
        help="Set the column of a role, for example question=q. Default: guessed.",
    )
    p.add_argument("--encoding", default="utf-8", help="Of text files. Default: utf-8.")


def add_adapter_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `adapters`."""
    add(group, "list", list_adapters, "List adapters.")
    p = add(group, "verify", verify_adapter, "Check the files of an adapter, or of a folder with checksums.")
    p.add_argument("adapter", help="An id, a name, or a folder with checksums.txt.")
    p = add(
        group,
        "fetch",
        fetch_artefact,
        "Copy an adapter or an export from elsewhere, and verify every checksum.",
        needs_engine=False,
    )
    p.add_argument(
        "source", help='A folder, a zip file, a Hub id with @REVISION, or a remote of rclone ("drive:x").'
    )
    p.add_argument("--out", type=Path, required=True, help="The folder to write, which must not exist.")
    add(group, "remove", remove_adapter, "Delete an adapter.").add_argument("adapter")


def preview_data(engine: Engine, args: argparse.Namespace) -> Any:
    preview = engine.datasets.preview(args.paths, args.kind, _read_roles(args), args.encoding)
    layout = f", {preview.layout}" if preview.layout else ""
    print(f"{preview.total} rows read as {preview.kind} data{layout}: {preview.read} can be learned")
    roles = ", ".join(f"{role} = {column}" for role, column in preview.roles.items())
    print(f"Roles: {roles or 'none'}")
    _print_notes(preview)
    for row in preview.canonical[:PREVIEW_ROWS]:
        print(json.dumps(row, ensure_ascii=False)[:PREVIEW_WIDTH])
    if preview.problem:
        print(f"An import would be refused: {preview.problem}")
    return preview


def add_library_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `library`."""
    add(group, "damaged", list_damaged, "List what cannot be read, with the file and the reason.")
    p = add(group, "delete", delete_item, "Move an item to the trash, whether it can be read or not.")
    p.add_argument("kind", choices=(*workspace.KINDS, WORKSPACE))
    p.add_argument("item", help="The id of the item.")


def import_data(engine: Engine, args: argparse.Namespace) -> Any:
    try:
        dataset = _import_paths(engine, args, args.kind, _read_roles(args))
    except UnconfirmedRoles as e:
        if not args.yes:
            raise
        print(f"Confirmed: {e.what}")
        dataset = _import_paths(engine, args, e.kind, e.roles)
    print(f"{dataset.id}: {dataset.rows} {dataset.kind} rows, {dataset.splits}")
    _print_notes(dataset)
    return dataset


def _import_paths(
    engine: Engine, args: argparse.Namespace, kind: str | None, roles: dict[str, str] | None
) -> Dataset:
    """Imports files, or a dataset of the Hub: one path of the form hub:owner/name."""
    first = args.paths[0].as_posix()
    if first.startswith(HUB_PREFIX) and len(args.paths) == 1:
        hub_id = first.removeprefix(HUB_PREFIX)
        return engine.datasets.import_hub(
            hub_id, args.name, args.config, args.split, args.revision, kind, roles, args.seed
        )
    name = args.name or args.paths[0].stem
    bar = ImportBar(quiet=args.json)
    purpose = "evaluation" if args.evaluation_only else "training"
    return engine.datasets.import_files(
        args.paths, name, kind, roles, args.seed, args.encoding, purpose, report=bar.show
    )


class ImportBar:
    """The progress of an import. A short one prints nothing.

    Args:
        quiet: print nothing at all.
    """

    def __init__(self, quiet: bool) -> None:
        self._bar, self._quiet, self._started = ProgressBar(), quiet, time.monotonic()

    def show(self, progress: ReadProgress) -> None:
        """Prints how far the import is, and how long it still takes."""
        seconds = time.monotonic() - self._started
        if self._quiet or seconds < QUIET_SECONDS or not progress.total:
            return
        share = progress.done / progress.total
        left = f", {seconds * (1 - share) / share:.0f} s left" if share else ""
        self._bar.show(min(share, 0.999), f"{progress.text}: {progress.rows:,} rows{left}")


def _read_roles(args: argparse.Namespace) -> dict[str, str] | None:
    return dict(r.split("=", 1) for r in args.role if "=" in r) or None


def _print_notes(data: Any) -> None:
    """Prints what a preview or a dataset says about its rows."""
    for note in data.notes:
        print(f"Note: {note}")
    for skipped in data.skipped:
        print(f"Skipped: {skipped['file']}: {skipped['reason']}")
    if data.duplicates:
        print(f"Repeats of an earlier question or text: {data.duplicates:,}; each stays in the same split.")
    if data.unread:
        print(f"Columns that are not read: {', '.join(data.unread)}")


def list_data(engine: Engine, args: argparse.Namespace) -> Any:
    datasets = engine.datasets.list()
    for d in datasets:
        print(f"{d.id:<40} {d.kind:<7} {d.rows:>8} rows  {d.name}")
    warn_of_damaged(engine, "datasets")
    return datasets


def list_adapters(engine: Engine, args: argparse.Namespace) -> Any:
    adapters = engine.library.adapters()
    for a in adapters:
        print(f"{a.id:<40} {a.kind:<7} rank {a.rank:<4} on {a.base}  {a.name}")
    warn_of_damaged(engine, "adapters")
    return adapters


def list_damaged(engine: Engine, args: argparse.Namespace) -> Any:
    damaged = engine.library.damaged()
    for d in damaged:
        print(f"{d.kind:<10} {d.id:<40} {d.name}\n    {d.file}: {d.reason}")
    if not damaged:
        print("Nothing is damaged.")
    return damaged


def delete_item(engine: Engine, args: argparse.Namespace) -> Any:
    engine.library.delete_damaged(args.kind, args.item)
    print(f"deleted {describe_deletion(args.kind, args.item)}")
    return {"removed": args.item}


def fetch_artefact(engine: Engine, args: argparse.Namespace) -> Any:
    found = artefacts.fetch(args.source, args.out)
    print(f"All {len(found.files)} files have their sha256: {found.folder}")
    for name in found.unlisted:
        print(f"not in {artefacts.CHECKSUMS}, and not verified: {name}")
    print(f"`adapters add {found.folder}` examines an adapter and adds it to the library.")
    return {"folder": str(found.folder), "files": found.files, "unlisted": found.unlisted}


def verify_adapter(engine: Engine, args: argparse.Namespace) -> Any:
    if (Path(args.adapter) / artefacts.CHECKSUMS).is_file():
        found = artefacts.verify(Path(args.adapter))
        print(f"All {len(found.files)} files have their sha256.")
        return {"checked": [f"{n} has its sha256." for n in found.files], "unlisted": found.unlisted}
    checks = engine.library.verify(engine.library.find_adapter(args.adapter))
    print("\n".join(checks))
    return {"checked": checks}


def remove_adapter(engine: Engine, args: argparse.Namespace) -> Any:
    adapter_id = engine.library.find_adapter(args.adapter)
    engine.library.delete("adapters", adapter_id)
    print(f"deleted {adapter_id}")
    return {"removed": adapter_id}
