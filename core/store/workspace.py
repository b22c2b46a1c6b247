"""The layout of a workspace: every path inside a workspace is formed here, and items appear and vanish whole.

    <root>/datasets/<id>/{source/, rows.jsonl, splits/<id>_{train,val,test}.jsonl, dataset.json}
           runs/<id>/{run.json, events.jsonl, checkpoints/}            (core.store.runs)
           adapters/<id>/{adapter_model.safetensors, adapter_config.json, EXPERIMENT_METADATA.json,
                          checksums.txt, README.md}                    (core.store.adapters)
           mixes/<id>.json   grids/<id>.json   reports/<id>/   maps/<sha256>/map.json   exports/<id>/
           bases/<id>/{source.json, config.json, *.safetensors, tokenizer}   (core.store.converted_bases)
           experiments/<id>/{experiment.json, cells/}                (core.store.experiments)
                            {judge-<key>.jsonl, votes.jsonl}         (core.store.judgements)
           answers/<day>.jsonl    what the answers of a day were like    (core.store.answer_log)
           mixes/votes.jsonl    runs/lineup.json    promotions.jsonl    base.json
           trash/<entry>/       deleted items                          (core.store.trash)
           */.<id>.partial      a draft, not committed yet
           */.<id>.claim        locked by the process that writes the draft
           */.<id>.ready        a complete draft that is about to replace the item of its id
           */.<id>.lock         locked by the process that changes the item

An item appears complete or not at all: it is written as a draft beside its place, flushed to the disk, and
renamed. A draft whose claim is free was left by a killed process, and the next start removes it. Files are
written by `core.store.files`; the module of each kind names the files inside the folder of an item.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import Busy, InvalidName, NotFound, StorageError
from core.store import trash
from core.store.files import delete, remove_partial_file, rename, storage_error, sync_file, sync_folder
from core.store.locks import FileLock
from core.store.permissions import PRIVATE_FOLDER, make_private
from core.store.record_cache import RecordCache
from core.store.trash import TrashedItem

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
KINDS = (
    "datasets", "runs", "adapters", "mixes", "grids", "reports", "maps", "exports", "bases", "experiments",
)  # fmt: skip
FILE_KINDS = ("mixes", "grids")  # an item is one JSON file; items of the other kinds are folders
ANSWERS = "answers"  # the folder of the logs of answers, one for each day
UNIQUE_NAMES = ("mixes",)  # two items of such a kind never have the same display name
SINGULAR = {kind: "mix" if kind == "mixes" else kind[:-1] for kind in KINDS}
NAME_LIMIT = 120  # characters of a display name
# Bidirectional control characters reorder text, so that one name can look like another.
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
LOCK_SECONDS = 10.0  # a change of one item holds its lock for milliseconds
REPLACEMENTS = 3  # of one item, each of which may be between its renames when it is looked for


@dataclass
class Draft:
    """An item that is being written.

    Attributes:
        path: the partial folder to fill.
        expected: names of files and folders inside it that must exist when it is committed.
    """

    id: str
    path: Path
    expected: list[str] = field(default_factory=list)

    def expect(self, *names: str) -> None:
        """Adds names that must exist when the draft is committed."""
        self.expected += names


def make_id(name: str) -> str:
    """A new id from a display name: a readable stem and four random hexadecimal digits."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "unnamed"
    return f"{stem}-{secrets.token_hex(2)}"


def check_name(name: str) -> str:
    """Checks a display name and returns it without surrounding spaces.

    Raises:
        InvalidName: the name is empty, longer than 120 characters, or has slashes or control characters.
    """
    clean = name.strip() if isinstance(name, str) else ""
    allowed = f"Use 1 to {NAME_LIMIT} characters without slashes or control characters."
    if not clean:
        raise InvalidName("The name must not be empty.", allowed)
    if len(clean) > NAME_LIMIT:
        raise InvalidName(f"The name must have at most {NAME_LIMIT} characters, got {len(clean)}.", allowed)
    if (
        any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI for c in clean)
        or "/" in clean
        or "\\" in clean
        or clean.strip(".") == ""
    ):
        raise InvalidName(f"The name {clean!r} is not allowed.", allowed)
    return clean


class Workspace:
    """The folder that holds all datasets, runs, adapters, mixes and reports of one studio."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()
        self.records = RecordCache(self.root)
        try:
            self.root.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            for kind in KINDS:
                (self.root / kind).mkdir(PRIVATE_FOLDER, exist_ok=True)
        except OSError as e:  # a workspace of an older version on a read-only disk can be read
            if not any((self.root / kind).is_dir() for kind in KINDS):
                raise storage_error(e, self.root) from e
        with contextlib.suppress(OSError):  # a workspace of an older version on a read-only disk
            self._trash_path.mkdir(PRIVATE_FOLDER, exist_ok=True)

    def path(self, kind: str, item_id: str, *parts: str) -> Path:
        """The path of an item, or of a file in it; it need not exist.

        Raises:
            InvalidName: the id does not have the form of `make_id`, or the path leaves the folder of the
                item.
        """
        if kind not in KINDS or not isinstance(item_id, str) or not ID.fullmatch(item_id):
            raise InvalidName(
                f"{item_id!r} is not an id of this workspace.",
                "An id has 1 to 64 characters: lowercase letters, digits and hyphens.",
            )
        leaf = item_id + (".json" if kind in FILE_KINDS else "")
        path = self.root.joinpath(kind, leaf, *parts)
        if any("\0" in part for part in parts) or not path.resolve().is_relative_to(self.root / kind / leaf):
            raise InvalidName(
                f"{'/'.join(parts)!r} leaves the folder of {item_id!r}.", "Use plain file names."
            )
        return path

    def find(self, kind: str, item_id: str) -> Path:
        """The path of an existing item.

        Raises:
            NotFound: it does not exist. InvalidName: see `path`.
        """
        path = self.path(kind, item_id)
        if not path.exists() and not self._wait_for_replacement(kind, item_id):
            raise NotFound(
                f"There is no {SINGULAR[kind]} {item_id!r} in this workspace.",
                "See Library for the items of this workspace.",
            )
        return path

    def _wait_for_replacement(self, kind: str, item_id: str) -> bool:
        """Ends a replacement that was cut short between its two renames; returns whether the item exists."""
        for _ in range(REPLACEMENTS):
            if self._dot_path(kind, item_id, "ready").exists():
                with self._claim(kind, item_id, LOCK_SECONDS):
                    self._roll_forward(kind, item_id)
            if self.path(kind, item_id).exists():
                return True
        return False

    def ids(self, kind: str) -> list[str]:
        """The ids of all items of a kind, oldest first."""
        suffix = ".json" if kind in FILE_KINDS else ""
        items = []
        if not (self.root / kind).is_dir():
            return []
        paths = {*(self.root / kind).iterdir()}
        for ready in [path for path in paths if path.suffix == ".ready"]:
            item_id = ready.name.split(".")[1]
            # On a read-only disk, the replacement cannot end.
            with contextlib.suppress(Busy, InvalidName, StorageError):
                if self._wait_for_replacement(kind, item_id):
                    paths.add(self.path(kind, item_id))
        for path in paths:
            # Suppressed: another process has just removed it, or replaces it on a disk that is read-only.
            with contextlib.suppress(OSError, Busy, InvalidName, StorageError):
                if path.suffix == suffix and ID.fullmatch(path.stem):
                    items.append((self._read_time(kind, path), path.stem))
        return [item_id for _, item_id in sorted(items)]

    def _read_time(self, kind: str, path: Path) -> int:
        """When an item was changed last, in nanoseconds; also where it is being replaced at this moment."""
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            self._wait_for_replacement(kind, path.stem)
            return path.stat().st_mtime_ns

    def answers_path(self, day: str) -> Path:
        """The event log of the answers of a day (`core.store.answer_log`)."""
        return self.root / ANSWERS / f"{day}.jsonl"

    @property
    def votes_path(self) -> Path:
        """The event log of the votes of blind tests. Its name is not an id, so it does not count as a mix."""
        return self.root / "mixes" / "votes.jsonl"

    @property
    def run_order_path(self) -> Path:
        """The order of queued runs. Its name is not an id, so it does not count as a run."""
        return self.root / "runs" / "lineup.json"

    @property
    def promotions_path(self) -> Path:
        """The appended record of promotions and rollbacks."""
        return self.root / "promotions.jsonl"

    @property
    def base_path(self) -> Path:
        """The base model that was chosen last."""
        return self.root / "base.json"

    @property
    def templates_path(self) -> Path:
        """Which chat templates of bases are accepted (`core.store.accepted_templates`)."""
        return self.root / "templates.json"

    @property
    def keys_path(self) -> Path:
        """The hashes of the API keys. The leading dot keeps it out of backups."""
        return self.root / ".api_keys.json"

    @property
    def seed_path(self) -> Path:
        """Which seed of a Space was copied into this workspace last (`core.space.seed`)."""
        return self.root / "seed.json"

    @property
    def probes_path(self) -> Path:
        """How fast and how exact 8-bit answers of each base are on this machine; it may be deleted."""
        return self.root / "answer_probes.json"

    # --- writing

    @contextlib.contextmanager
    def lock(self, kind: str, item_id: str = "") -> Iterator[None]:
        """Holds the lock of an item while its record is read, changed and written. Not reentrant.

        Args:
            item_id: "" is the lock of the whole kind, under which names are kept unique.

        Raises:
            Busy: another process has held it for ten seconds. StorageError: the workspace is read-only.
        """
        path = self.path(kind, item_id).with_name(f".{item_id}.lock") if item_id else None
        lock = self._lock_file(path or self.root / kind / ".lock", LOCK_SECONDS)
        try:
            if item_id and self._dot_path(kind, item_id, "ready").exists():
                with contextlib.suppress(Busy), self._claim(kind, item_id):
                    self._roll_forward(kind, item_id)
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def build(self, kind: str, name: str, item_id: str = "", replace: bool = False) -> Iterator[Draft]:
        """Writes an item: fill the folder of the draft inside the block, which commits it at its end.

        After an error the draft is removed. A process that is killed leaves the draft, or the whole item.

        Args:
            kind: a kind whose items are folders.
            name: the display name that a new id is made from.
            item_id: the id, if one is reserved already.
            replace: replace the item of this id, if there is one, in one step.

        Raises:
            Busy: another process writes an item of this id.
            StorageError: the folder could not be written, a name that the draft expects is missing, or the id
                exists already.

        Example:
            >>> with workspace.build("reports", "Notes") as draft:
            ...     write_json(draft.path / "report.json", {})
            ...     draft.expect("report.json")
        """
        claim = contextlib.ExitStack()
        while True:
            chosen = item_id or make_id(name)
            if not item_id and self.path(kind, chosen).exists():
                continue
            try:
                claim.enter_context(self._claim(kind, chosen))
                break
            except Busy:
                if item_id:
                    raise
        with claim:
            draft = Draft(chosen, self._dot_path(kind, chosen, "partial"))
            try:
                self._roll_forward(kind, chosen)
                delete(draft.path)  # left by a killed process: its claim was free
                draft.path.mkdir(PRIVATE_FOLDER, parents=True)
                yield draft
                self._commit(kind, draft, replace)
            except OSError as e:
                raise storage_error(e, self.path(kind, chosen)) from e
            finally:
                delete(draft.path)

    @contextlib.contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """A folder that is removed at the end of the block; after a crash, the next start removes it."""
        item_id = make_id("temporary")
        path = self._dot_path("exports", item_id, "partial")
        with self._claim("exports", item_id):
            try:
                path.mkdir(PRIVATE_FOLDER, parents=True)
                yield path
            except OSError as e:
                raise storage_error(e, path) from e
            finally:
                delete(path)

    def _commit(self, kind: str, draft: Draft, replace: bool) -> None:
        """Flushes a draft to the disk and gives it its name."""
        final = self.path(kind, draft.id)
        if missing := [n for n in draft.expected if not (draft.path / n).exists()]:
            raise StorageError(
                f"{missing[0]} of {final.name!r} vanished while it was written; nothing was saved.",
                "Another process may clean up this workspace. Try again.",
            )
        for path in draft.path.rglob("*"):
            make_private(path)
            if path.is_dir():
                sync_folder(path)
            elif path.is_file():
                sync_file(path)
        sync_folder(draft.path)
        if not final.exists():
            rename(draft.path, final)
            sync_folder(final.parent)
        elif replace:
            ready = self._dot_path(kind, draft.id, "ready")
            rename(draft.path, ready)
            try:
                sync_folder(final.parent)
                self._roll_forward(kind, draft.id)
            except OSError:  # the disk refused: the old item stays
                if final.exists():
                    delete(ready)
                raise
        else:
            raise StorageError(f"{final.name!r} exists already; nothing was changed.", "Choose another id.")

    def _roll_forward(self, kind: str, item_id: str) -> None:
        """Ends a replacement: the complete draft takes the place of the item. Its claim must be held."""
        ready, final = self._dot_path(kind, item_id, "ready"), self.path(kind, item_id)
        if not ready.exists():
            return
        old = final.with_name(f".{item_id}.{secrets.token_hex(4)}.partial")
        if final.exists():
            rename(final, old)
        try:
            rename(ready, final)
        except OSError:
            if old.exists():
                rename(old, final)
            raise
        try:
            sync_folder(final.parent)
        finally:
            delete(old)

    def _dot_path(self, kind: str, item_id: str, suffix: str) -> Path:
        return self.path(kind, item_id).parent / f".{item_id}.{suffix}"

    def _claim(self, kind: str, item_id: str, seconds: float = 0.0) -> FileLock:
        return self._lock_file(self._dot_path(kind, item_id, "claim"), seconds)

    def _lock_file(self, path: Path, seconds: float) -> FileLock:
        try:
            return FileLock(path, seconds, temporary=True)
        except OSError as e:  # the message names the item, or its kind
            name = path.stem.lstrip(".")
            raise storage_error(e, path.with_name(name) if path.suffix else path.parent) from e

    # --- deleting

    def remove(self, kind: str, item_id: str, name: str = "") -> TrashedItem:
        """Moves an item to the trash.

        Args:
            name: its display name; "" reads it from the item.

        Raises:
            NotFound, StorageError
        """
        return trash.move_to_trash(self._trash_path, self.find(kind, item_id), kind, item_id, name)

    def delete(self, kind: str, item_id: str) -> None:
        """Deletes an item for good. It is renamed first, so that a crash leaves no partial item under its id.

        Raises:
            NotFound, StorageError
        """
        path = self.find(kind, item_id)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            rename(path, partial)
        except OSError as e:
            raise storage_error(e, path) from e
        sync_folder(path.parent)
        delete(partial)

    @property
    def _trash_path(self) -> Path:
        return self.root / "trash"

    def trash(self) -> list[TrashedItem]:
        """The deleted items, the newest first."""
        return trash.list_trash(self._trash_path)

    def restore(self, entry: str) -> TrashedItem:
        """Moves a deleted item back.

        Raises:
            NotFound: the trash has no such entry. Busy: its id, or a name that must be unique, is taken.
            InvalidName: another version deleted it, whose kinds are others. StorageError
        """
        item = trash.find_item(self._trash_path, entry)
        path = self.path(item.kind, item.id)
        with self.lock(item.kind):
            self._check_restored_name(item)
            trash.restore_item(self._trash_path, item, path)
        return item

    def _check_restored_name(self, item: TrashedItem) -> None:
        if item.kind not in UNIQUE_NAMES:
            return
        name = trash.read_name(trash.item_path(self._trash_path, item))
        if name and any(trash.read_name(self.path(item.kind, i)) == name for i in self.ids(item.kind)):
            raise Busy(
                f"There is already a {SINGULAR[item.kind]} called {name!r}.",
                "Rename or delete that one first, and restore this one then.",
            )

    def empty_trash(self) -> int:
        """Deletes the items in the trash for good; returns their number.

        Raises:
            StorageError
        """
        return trash.empty(self._trash_path)

    # --- startup

    def remove_partials(self) -> int:
        """Ends replacements and removes drafts and partial files of killed processes; returns their number.

        What a living process is writing stays.
        """
        trash.remove_partials(self._trash_path)
        count = 0
        cells = self.root.glob("experiments/*/cells")
        for folder in (self.root, *(self.root / kind for kind in KINDS), *cells):
            for path in [*folder.glob(".*.partial"), *folder.glob("*/.*.partial")]:
                if path.is_file():
                    count += remove_partial_file(path)
        for kind in KINDS:
            for path in [*(self.root / kind).glob(".*.partial"), *(self.root / kind).glob(".*.ready")]:
                item_id = path.name.split(".")[1]
                if path.is_dir() and ID.fullmatch(item_id):
                    with contextlib.suppress(Busy), self._claim(kind, item_id):
                        self._roll_forward(kind, item_id)
                        if path.suffix == ".partial":
                            delete(path)
                            count += 1
            for path in [*(self.root / kind).glob(".*.claim"), *(self.root / kind).glob(".*lock")]:
                remove_partial_file(path)
        return count
