"""The seed of a Space: adapters and mixes that it copies into its storage at its first start.

    seed/SEED.json                the sha256 of every other file
         adapters/<id>/*          as they are in a workspace
         mixes/<id>.json

Each item appears whole. A start that was killed is continued by the next one. A seed is planted once in a
storage, so that an item that was deleted there does not return; a changed seed adds its new items.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import SpecError, StorageError, StudioError
from core.space.selection import Selection
from core.store import adapters, mixes
from core.store.files import atomic_write, ensure_space, read_json, sha256_of, storage_error, write_json
from core.store.workspace import Workspace

RECORD = "SEED.json"
FORMAT = 1
MEMBER = re.compile(
    r"adapters/([a-z0-9][a-z0-9-]{0,63})/[\w-][\w.-]{0,99}|mixes/([a-z0-9][a-z0-9-]{0,63})\.json"
)


@dataclass(frozen=True)
class Planted:
    """What a start added to the storage.

    Attributes:
        adapters, mixes: ids.
        skipped: why an item was not added, one sentence each.
    """

    adapters: tuple[str, ...] = ()
    mixes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def write_seed(workspace: Workspace, selection: Selection, folder: Path) -> dict[str, str]:
    """Copies the chosen items, each verified before and after.

    Args:
        folder: is created.

    Returns:
        file name -> sha256, as in SEED.json.

    Raises:
        AdapterError, DamagedRecord: an adapter is damaged. DiskFull, StorageError
    """
    ensure_space(folder.parent, sum(a.bytes for a in selection.adapters))
    try:
        for adapter in selection.adapters:
            adapters.verify(workspace, adapter.id)
            _copy_adapter(workspace, adapter.id, folder / "adapters" / adapter.id)
        for mix in selection.mixes:
            target = folder / "mixes" / f"{mix.id}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(workspace.find("mixes", mix.id), target)
        folder.mkdir(exist_ok=True)
        files = {
            path.relative_to(folder).as_posix(): sha256_of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    except OSError as e:
        raise storage_error(e, folder) from e
    write_json(folder / RECORD, {"format": FORMAT, "files": files})
    return files


def _copy_adapter(workspace: Workspace, adapter_id: str, target: Path) -> None:
    def copy(folder: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)  # of a copy during which the adapter was replaced
        target.mkdir(parents=True)
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".partial":
                shutil.copyfile(path, target / path.name)
        adapters.verify_folder(target)

    adapters.read_files(workspace, adapter_id, copy)


def plant_seed(folder: Path, workspace: Workspace) -> Planted:
    """Adds the items of a seed to a workspace, unless this seed was planted there before.

    Args:
        folder: the seed; nothing happens without it.

    Raises:
        StorageError: a file of the seed is missing or has changed; nothing is added then. Or the workspace
            cannot be written.
    """
    if not (folder / RECORD).is_file():
        return Planted()
    digest = sha256_of(folder / RECORD)
    if _read_digest(workspace) == digest:
        return Planted()
    files = _read_files(folder)
    items = {kind: sorted(set(_ids(files, kind))) for kind in ("adapters", "mixes")}
    added = [a for a in items["adapters"] if _plant_adapter(folder / "adapters" / a, workspace, a)]
    added_mixes, skipped = [], []
    for mix_id in items["mixes"]:
        try:
            if _plant_mix(folder / "mixes" / f"{mix_id}.json", workspace, mix_id):
                added_mixes.append(mix_id)
        except SpecError as e:
            skipped.append(e.what)
    write_json(workspace.seed_path, {"sha256": digest})
    return Planted(tuple(added), tuple(added_mixes), tuple(skipped))


def _read_digest(workspace: Workspace) -> str:
    """The sha256 of the seed that was planted last; "" without one."""
    if not workspace.seed_path.exists():
        return ""
    value = read_json(workspace.seed_path)
    return str(value.get("sha256", "")) if isinstance(value, dict) else ""


def _read_files(folder: Path) -> dict[str, str]:
    """The files of a seed, all verified.

    Raises:
        StorageError: a name is not allowed, or a file is missing or has changed.
    """
    value = read_json(folder / RECORD)
    files: Any = value.get("files") if isinstance(value, dict) and value.get("format") == FORMAT else None
    if not isinstance(files, dict) or not all(MEMBER.fullmatch(str(name)) for name in files):
        raise StorageError(f"{RECORD} is not a list of adapters and mixes.", "Build the Space again.")
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink() or sha256_of(path) != digest:
            raise StorageError(
                f"{name} of the seed is missing or has changed since the Space was built.",
                "Push the folder again, with its large files (git LFS).",
            )
    return {str(name): str(digest) for name, digest in files.items()}


def _ids(files: dict[str, str], kind: str) -> list[str]:
    matches = [match for match in map(MEMBER.fullmatch, files) if match]
    group = 1 if kind == "adapters" else 2
    return [match.group(group) for match in matches if match.group(group)]


def _plant_adapter(source: Path, workspace: Workspace, adapter_id: str) -> bool:
    """Copies an adapter as a draft, and commits it; returns whether it is new."""
    if workspace.path("adapters", adapter_id).exists():
        return False
    adapters.verify_folder(source)
    with workspace.build("adapters", adapter_id, adapter_id) as draft:
        ensure_space(draft.path, sum(path.stat().st_size for path in source.iterdir()))
        for path in source.iterdir():
            shutil.copyfile(path, draft.path / path.name)
            draft.expect(path.name)
    return True


def _plant_mix(source: Path, workspace: Workspace, mix_id: str) -> bool:
    """Copies a mix; returns whether it is new.

    Raises:
        SpecError: another mix has its name.
    """
    with workspace.lock("mixes"):
        target = workspace.path("mixes", mix_id)
        if target.exists():
            return False
        value = read_json(source)
        taken = {mix.name for mix in mixes.load_all(workspace)}
        if value["name"] in taken:
            raise SpecError(f"The mix {value['name']!r} was not added: another one has its name.")
        with atomic_write(target) as f:
            f.write(source.read_bytes())
    return True


def describe_failure(error: StudioError) -> str:
    """What visitors of the page read when a seed cannot be planted."""
    return f"The adapters and mixes that come with this Space could not be added. {error}"
