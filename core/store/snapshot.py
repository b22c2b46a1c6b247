"""The files of a workspace as they are at one moment, while a studio uses it. `core.store.backup` packs them.

Each item is linked into a temporary folder under its lock. A run that is training is taken with its committed
checkpoints, as if its process had been killed at that moment. Records that name other items are linked before
them: grids before runs, runs before adapters and datasets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.errors import StorageError, StudioError
from core.store import adapters, experiments, exports, grids, mixes, reports, runs
from core.store.files import delete, ensure_space, storage_error
from core.store.records import read_object
from core.store.workspace import ANSWERS, FILE_KINDS, KINDS, Workspace

TRASH, BASES = "trash", "bases"
# An item is linked before the items that it names.
LINK_ORDER = (
    "experiments", "grids", "mixes", "reports", "maps", "runs", "adapters", "datasets", "exports", TRASH,
)  # fmt: skip
# Logs that are appended to are copied: a link would grow with the original.
APPENDED = re.compile(
    r"runs/[^/]+/[^/]+\.(?:jsonl|log)|mixes/votes\.jsonl|promotions\.jsonl|answers/[^/]+\.jsonl|"
    r"experiments/[^/]+/(?:cells/)?[^/]+\.jsonl"
)
# Names that every system can store: not those of devices of Windows, nor with a dot or blank at the end.
DEVICES = r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])"
_PART = (
    rf"(?!(?i:{DEVICES})(?:\.|/|$))[^\x00-\x1f\x7f/\\:*?\"<>|. ]"
    r"(?:[^\x00-\x1f\x7f/\\:*?\"<>|]{0,198}[^\x00-\x1f\x7f/\\:*?\"<>|. ])?"
)
NAMES = re.compile(
    rf"\w[\w-]*\.jsonl?|{ANSWERS}/[\d-]{{10}}\.jsonl|(?:{'|'.join(LINK_ORDER)})(?:/{_PART}){{1,12}}"
)
ATTEMPTS = 5  # to link an item that is being replaced
LOADERS: dict[str, Callable[[Workspace, str], Any]] = {  # raise for a damaged item
    "experiments": experiments.load,
    "runs": runs.load,
    "adapters": adapters.load,
    "mixes": mixes.load,
    "grids": grids.load,
    "reports": reports.load,
    "datasets": lambda workspace, item_id: read_object(workspace.path("datasets", item_id, "dataset.json")),
    "maps": lambda workspace, item_id: read_object(workspace.path("maps", item_id, "map.json")),
}


@contextlib.contextmanager
def open_snapshot(workspace: Workspace, with_trash: bool) -> Iterator[Snapshot]:
    """Takes a snapshot, and removes its links at the end of the block."""
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(workspace.temporary_folder())
            snapshot = Snapshot(workspace, place, with_trash)
        except StorageError:  # a read-only or full disk is read in place: no studio can write to it
            snapshot = Snapshot(workspace, None, with_trash)
        yield snapshot


class Snapshot:
    """The files of a workspace.

    Args:
        place: the folder that receives links to the files; None names the files where they are.
        with_trash: collect the deleted items, too.

    Attributes:
        members: name in the workspace -> file with its content.
        items: kind -> ids, oldest first.
        modified: name of an item's folder or file -> its time, in nanoseconds.
        damaged: name of an item that cannot be read -> why; its files are members like others.
        left_out: name of a file that is not a member -> why.

    Raises:
        StorageError: `place` cannot receive more. Busy: an item was changed for ten seconds.
    """

    def __init__(self, workspace: Workspace, place: Path | None, with_trash: bool) -> None:
        self._workspace, self._place = workspace, place
        self.members: dict[str, Path] = {}
        self.items: dict[str, list[str]] = {}
        self.modified: dict[str, int] = {}
        self.damaged: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self._folded: set[str] = set()
        try:
            self._add_loose_files(workspace.root, "")
            if (answers := workspace.root / ANSWERS).is_dir():
                self._add_loose_files(answers, f"{ANSWERS}/")
            for kind in LINK_ORDER if with_trash else LINK_ORDER[:-1]:
                self._add_kind(kind)
            for base_id in workspace.ids(BASES):
                self.left_out[f"{BASES}/{base_id}"] = "Bases are not packed: add its file again."
        except OSError as e:
            raise storage_error(e, place or workspace.root) from e

    def _add_kind(self, kind: str) -> None:
        """Adds all items of a kind, and the files beside them, such as the log of the votes."""
        folder = self._workspace.root / kind
        if not folder.is_dir():
            return
        if kind == TRASH:
            for path in sorted(p for p in folder.iterdir() if p.is_dir()):
                self._add_folder(path, f"{TRASH}/{path.name}")
            return
        self.items[kind] = []
        for item_id in self._workspace.ids(kind):
            if kind == exports.KIND and (folder / item_id / exports.RECORD).exists():
                self.left_out[f"{kind}/{item_id}"] = "Exports are not packed: export it again."
                continue
            with self._lock(kind, item_id):
                self._add_item(kind, item_id)
        self._add_loose_files(folder, f"{kind}/")

    def _add_loose_files(self, folder: Path, prefix: str) -> None:
        """Adds the files of a folder that do not belong to an item: base.json, votes.jsonl, lineup.json."""
        for path in sorted(folder.iterdir()):
            name = prefix + path.name
            is_known = name in self.modified or name in self.left_out
            if is_known or name in (*KINDS, TRASH, ANSWERS) or _is_of_this_machine(path):
                continue
            if path.is_file() and not path.is_symlink() and path.suffix in (".json", ".jsonl"):
                self._add_file(path, name)
            else:
                self.left_out[name] = "It does not belong to the workspace."

    def _lock(self, kind: str, item_id: str) -> contextlib.AbstractContextManager[None]:
        return self._workspace.lock(kind, item_id) if self._place else contextlib.nullcontext()

    def _add_item(self, kind: str, item_id: str) -> None:
        path = self._workspace.path(kind, item_id)
        name = f"{kind}/{path.name}"
        try:
            for _ in range(ATTEMPTS):
                before = path.stat()
                if kind in FILE_KINDS:
                    self._add_file(path, name)
                else:
                    self._add_folder(path, name)
                if os.path.samestat(before, path.stat()):
                    break
                self._drop(name)  # it was replaced in the meantime
        except FileNotFoundError:  # it was deleted in the meantime
            self._drop(name)
            return
        self.items[kind].append(item_id)
        self.modified[name] = before.st_mtime_ns
        if kind in LOADERS:
            try:
                LOADERS[kind](self._workspace, item_id)
            except StudioError as e:
                self.damaged[name] = e.what

    def _add_folder(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.iterdir()):
            name = f"{prefix}/{path.name}"
            if _is_of_this_machine(path):
                continue
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                self.left_out[name] = "It is a link or a device, not a regular file."
            elif path.is_file():
                with contextlib.suppress(FileNotFoundError):
                    self._add_file(path, name)
            elif not path.name.startswith("checkpoint-"):
                self._add_folder(path, name)
            elif (path / "MANIFEST.json").is_file():  # others are not committed yet
                self._add_checkpoint(path, name)

    def _add_checkpoint(self, folder: Path, prefix: str) -> None:
        """Adds a checkpoint, unless the run that is training removes it in the meantime."""
        self._add_folder(folder, prefix)
        if not (folder / "MANIFEST.json").is_file():  # the first file that is removed
            self._drop(prefix)

    def _drop(self, prefix: str) -> None:
        """Removes an item or a checkpoint from the snapshot."""
        for name in [n for n in self.members if n == prefix or n.startswith(f"{prefix}/")]:
            self._folded.discard(_fold(name))
            del self.members[name]
        if self._place is not None:
            delete(self._place / prefix)

    def _add_file(self, path: Path, name: str) -> None:
        folded = _fold(name)
        if not NAMES.fullmatch(name):
            self.left_out[name] = "Its name is not portable."
        elif folded in self._folded:
            self.left_out[name] = "Its name differs from another one in upper and lower case only."
        elif self._place is None:
            self.members[name] = path
        else:
            _link(path, self._place / name, is_appended=APPENDED.fullmatch(name) is not None)
            self.members[name] = self._place / name
        self._folded.add(folded)


def _fold(name: str) -> str:
    """What a disk compares that ignores case (Windows, macOS) and the form of accents (macOS)."""
    return unicodedata.normalize("NFC", name).casefold()


def _is_of_this_machine(path: Path) -> bool:
    """Whether a file is a lock, a draft, or a file of the system's file browser."""
    return path.name.startswith(".") or path.suffix in (".lock", ".partial")


def _link(source: Path, target: Path, is_appended: bool) -> None:
    """Links a file that is only ever replaced, and copies one that grows; copies where links are missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_appended and hasattr(os, "link"):
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise
    ensure_space(target.parent, source.stat().st_size)
    shutil.copyfile(source, target)
    if is_appended:
        _cut_torn_line(target)


def _cut_torn_line(path: Path) -> None:
    """Cuts a last line that was being written while the log was copied."""
    with open(path, "rb+") as f:
        end = f.read().rfind(b"\n") + 1
        f.truncate(end)
