"""The terminal's verbs over a whole workspace: `workspace` (backup and move) and `trash`."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.cli.common import AddVerb, ProgressBar
from core.errors import NotFound
from core.store import backup
from core.store.archives import ArchiveProgress
from core.store.backup import BackupRecord
from core.store.workspace import KINDS, Workspace


def add_workspace_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `workspace`."""
    help = "Write one zip file with everything that a workspace holds; a studio may be running meanwhile."
    p = add(group, "pack", pack, help, needs_engine=False, needs_workspace=True)
    p.add_argument("file", type=Path, help="The zip file to write.")
    p.add_argument("--trash", action="store_true", help="Pack deleted items, too.")
    help = "Make a workspace from a backup. Every file is verified before the folder appears."
    p = add(group, "unpack", unpack, help, needs_engine=False)
    p.add_argument("file", type=Path, help="A file that `workspace pack` wrote.")
    p.add_argument("folder", type=Path, help="A folder that does not exist yet, or is empty.")


def add_trash_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `trash`."""
    add(group, "list", list_trash, "List deleted items.", needs_engine=False, needs_workspace=True)
    p = add(group, "restore", restore, "Undo a deletion.", needs_engine=False, needs_workspace=True)
    p.add_argument("item", help="Id or name of a deleted item, or its entry in the trash.")
    help = "Delete the items in the trash for good."
    add(group, "empty", empty_trash, help, needs_engine=False, needs_workspace=True)


# --- backups


def pack(engine: Any, args: argparse.Namespace) -> Any:
    bar = ProgressBar()
    record = backup.pack(
        args.workspace, args.file, args.trash, report=lambda p: _show_progress(bar, "packing", p)
    )
    bar.show(1.0, f"packing: {record.files} files, {record.bytes / 1e6:.1f} MB")
    size = args.file.stat().st_size
    print(f"wrote {args.file}: {_count_items(record)}, {size / 1e6:.1f} MB")
    _print_remarks(record)
    return {"file": str(args.file), "file_bytes": size, **_summarize(record)}


def unpack(engine: Any, args: argparse.Namespace) -> Any:
    bar = ProgressBar()
    record = backup.unpack(args.file, args.folder, report=lambda p: _show_progress(bar, "unpacking", p))
    bar.show(1.0, f"unpacking: {record.files} files, {record.bytes / 1e6:.1f} MB")
    print(f"unpacked and verified {args.folder}: {_count_items(record)}")
    _print_remarks(record)
    return {"workspace": str(args.folder), **_summarize(record)}


def _show_progress(bar: ProgressBar, activity: str, progress: ArchiveProgress) -> None:
    bar.show(min(0.99, progress.done / max(progress.total, 1)), f"{activity}: {progress.name}")


def _count_items(record: BackupRecord) -> str:
    return ", ".join(f"{len(ids)} {kind}" for kind, ids in sorted(record.items.items()) if ids) or "no items"


def _print_remarks(record: BackupRecord) -> None:
    for name, why in record.damaged.items():
        print(f"damaged, packed as it is: {name}: {why}")
    for name, why in record.left_out.items():
        print(f"not packed: {name}: {why}")


def _summarize(record: BackupRecord) -> dict[str, Any]:
    values = asdict(record)
    del values["modified"]
    return values


# --- the trash


def list_trash(engine: Any, args: argparse.Namespace) -> Any:
    items = _open(args).trash()
    for item in items:
        deleted = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.deleted))
        print(f"{item.entry:<50} {item.kind:<8} {item.bytes / 1e6:>10.1f} MB  {deleted}  {item.name}")
    return items


def restore(engine: Any, args: argparse.Namespace) -> Any:
    workspace = _open(args)
    for item in workspace.trash():  # the newest first
        if args.item in (item.entry, item.id, item.name):
            restored = workspace.restore(item.entry)
            print(f"restored {restored.id}")
            return restored
    raise NotFound(f"The trash has no item {args.item!r}.", "`trash list` shows all deleted items.")


def empty_trash(engine: Any, args: argparse.Namespace) -> Any:
    workspace = _open(args)
    freed = sum(item.bytes for item in workspace.trash())
    count = workspace.empty_trash()
    print(f"deleted {count} items for good, {freed / 1e6:.1f} MB")
    return {"emptied": count, "bytes": freed}


def _open(args: argparse.Namespace) -> Workspace:
    """The workspace; a mistyped folder is not created."""
    if not any((args.workspace / kind).is_dir() for kind in KINDS):
        raise NotFound(f"{str(args.workspace)!r} is not a workspace.", "Give its folder with --workspace.")
    return Workspace(args.workspace)
