"""The adapters of the library: a folder each in PEFT's layout, with provenance and checksums.

    adapters/<id>/adapter_model.safetensors   the weights (`core.store.adapter_weights` checks them)
                  adapter_config.json         fields of a LoraConfig (`core.store.adapter_config` checks them)
                  EXPERIMENT_METADATA.json    name, kind, base, dataset, settings, results
                  checksums.txt               the sha256 of every other file
                  README.md                   the model card

Whether an adapter fits the resident base is decided by the fingerprint of the base and the shapes of the
tensors, when it is loaded.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import AdapterError
from core.store import adapter_config, adapter_weights
from core.store.adapter_config import UNMIXABLE, parse_config
from core.store.adapter_weights import check_weights
from core.store.files import atomic_write, read_json, sha256_of, write_json
from core.store.model_card import format_model_card
from core.store.workspace import Workspace, check_name

WEIGHTS = adapter_weights.FILE
CONFIG = adapter_config.FILE
METADATA = "EXPERIMENT_METADATA.json"
CHECKSUMS = "checksums.txt"
CARD = "README.md"
FORMAT = 1
CODE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".py", ".ckpt")  # loading such files can run code


@dataclass(frozen=True)
class Adapter:
    """An adapter of the library.

    Attributes:
        bytes: size of its folder.
        created: Unix seconds.
        run: the run that trained it, or "".
        stacked_on: id of its parent adapter: the adapter that was frozen and active while it trained; or "".
        unmixable: why it cannot be mixed live, as a clause, or "".
    """

    id: str
    name: str
    kind: str
    base: str
    base_fingerprint: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    sha256: str
    bytes: int
    created: float
    dataset: str = ""
    dataset_name: str = ""
    run: str = ""
    stacked_on: str = ""
    unmixable: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def training_data(self) -> frozenset[str]:
        """Ids and sha256 of its training data and replay data; for a baked adapter, of all its parts."""
        settings, data = self.metadata.get("hyperparameters") or {}, self.metadata.get("dataset") or {}
        replay = settings.get("replay_dataset") if settings.get("replay_share") else ""
        own = {str(x) for x in (self.dataset, replay, data.get("sha256")) if x}
        return frozenset(own | {str(x) for x in self.metadata.get("learned_from") or ()})


def add(
    workspace: Workspace,
    adapter_id: str,
    name: str,
    write_weights: Callable[[Path], None],
    config: dict[str, Any],
    metadata: dict[str, Any],
) -> Adapter:
    """Adds an adapter to the library. It appears complete or not at all, and replaces one with the same id.

    Args:
        adapter_id: the id that was reserved when its run was created.
        write_weights: writes the safetensors file at the path that it receives.
        config: fields of a LoraConfig.
        metadata: provenance; `id`, `name`, `sha256` and `created` are added here.

    Raises:
        AdapterError: the weights or the config are invalid. StorageError: the files could not be written.
    """
    # A stopped run that was resumed replaces its adapter.
    with workspace.build("adapters", name, adapter_id, replace=True) as draft:
        write_weights(draft.path / WEIGHTS)
        write_json(draft.path / CONFIG, config)
        check_weights(draft.path, parse_config(config, for_mixing=False))
        full = {
            "format": FORMAT,
            "id": adapter_id,
            "name": check_name(name),
            "sha256": sha256_of(draft.path / WEIGHTS),
            "created": time.time(),
            **metadata,
        }
        _write_metadata(draft.path, full, config)
        draft.expect(WEIGHTS, CONFIG, METADATA, CHECKSUMS, CARD)
    return load(workspace, adapter_id)


def _write_metadata(folder: Path, metadata: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the metadata, and the model card and checksums that follow from it."""
    write_json(folder / METADATA, metadata)
    with atomic_write(folder / CARD, "w") as f:
        f.write(format_model_card(metadata, config))
    _write_checksums(folder)


def _write_checksums(folder: Path) -> None:
    names = sorted(
        p.name for p in folder.iterdir() if p.is_file() and p.name != CHECKSUMS and not p.name.startswith(".")
    )
    with atomic_write(folder / CHECKSUMS, "w") as f:
        f.writelines(f"{sha256_of(folder / n)}  {n}\n" for n in names)


def load(workspace: Workspace, adapter_id: str) -> Adapter:
    """Reads the record of an adapter.

    Raises:
        NotFound: no such adapter. StorageError: its metadata is damaged.
    """
    folder = workspace.find("adapters", adapter_id)
    meta, config = read_json(folder / METADATA), read_json(folder / CONFIG)
    base, data = meta.get("base") or {}, meta.get("dataset") or {}
    return Adapter(
        id=adapter_id,
        name=meta.get("name", adapter_id),
        kind=meta.get("kind", "task"),
        base=base.get("name", ""),
        base_fingerprint=base.get("fingerprint", ""),
        rank=int(config.get("r", 0)),
        alpha=float(config.get("lora_alpha", 0)),
        target_modules=tuple(config.get("target_modules", ())),
        sha256=meta.get("sha256", ""),
        bytes=sum(p.stat().st_size for p in folder.iterdir() if p.is_file()),
        created=float(meta.get("created", 0)),
        dataset=data.get("id", ""),
        dataset_name=data.get("name", ""),
        run=meta.get("run", ""),
        stacked_on=(meta.get("stacked_on") or {}).get("id", ""),
        unmixable=UNMIXABLE["use_dora"].reason if config.get("use_dora") else "",
        results=meta.get("results", {}),
        metadata=meta,
    )


def rename(workspace: Workspace, adapter_id: str, name: str) -> Adapter:
    """Changes the display name; the weights and their sha256 stay the same."""
    folder = workspace.find("adapters", adapter_id)
    meta = read_json(folder / METADATA)
    meta["name"] = check_name(name)
    write_json(folder / METADATA, meta)
    _write_checksums(folder)
    return load(workspace, adapter_id)


def add_results(
    workspace: Workspace, adapter_id: str, results: dict[str, Any], provenance: dict[str, Any] | None = None
) -> Adapter:
    """Adds results that were measured after the adapter was saved; its weights stay the same.

    Args:
        provenance: further metadata fields to set.
    """
    folder = workspace.find("adapters", adapter_id)
    meta = read_json(folder / METADATA)
    meta = {**meta, **(provenance or {}), "results": {**meta.get("results", {}), **results}}
    _write_metadata(folder, meta, read_json(folder / CONFIG))
    return load(workspace, adapter_id)


def verify(workspace: Workspace, adapter_id: str) -> list[str]:
    """Checks the files of an adapter in the library; see `verify_folder`."""
    return verify_folder(workspace.find("adapters", adapter_id))


def verify_folder(folder: Path) -> list[str]:
    """Checks the files of an adapter: checksums, tensor names, shapes and finite values.

    Args:
        folder: in the library or elsewhere; its name is the adapter's id.

    Returns:
        What was checked, one sentence each.

    Raises:
        AdapterError: a file was changed, is missing, or is invalid.
    """
    entries = _read_checksums(folder)
    checksums = dict(entries)
    for name in (WEIGHTS, CONFIG, METADATA):
        if name not in checksums:
            raise AdapterError(f"{CHECKSUMS} does not list {name}.", "Restore the folder from a backup.")
    for name, digest in entries:
        if "/" in name or not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise AdapterError(
                f"{name} of the adapter {folder.name!r} is missing or has changed since it was saved.",
                "Restore it from a backup, or train the adapter again.",
            )
    if read_json(folder / METADATA).get("sha256") != checksums[WEIGHTS]:
        raise AdapterError(
            f"The sha256 in {METADATA} of the adapter {folder.name!r} is not that of {WEIGHTS}.",
            "Restore the folder from a backup.",
        )
    for file in folder.iterdir():
        if file.suffix in CODE_SUFFIXES:
            raise AdapterError(
                f"The adapter folder holds {file.name}, which could run code.",
                "Delete that file: only safetensors files are used.",
            )
    config = parse_config(read_json(folder / CONFIG), for_mixing=False)
    tensors, values = check_weights(folder, config)
    return [
        f"All {len(entries)} files have the sha256 that was saved with them.",
        f"All {tensors} tensors have the names and shapes of a rank-{config['r']} adapter.",
        f"All {values:,} values are finite.",
    ]


def _read_checksums(folder: Path) -> list[tuple[str, str]]:
    """(file name, sha256) of every line."""
    path = folder / CHECKSUMS
    if not path.is_file():
        raise AdapterError(
            f"The adapter {folder.name!r} has no {CHECKSUMS}.",
            "Restore the folder from a backup, or train the adapter again.",
        )
    lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines() if "  " in line]
    return [(name, digest) for digest, name in lines]


def export_zip(workspace: Workspace, adapter_id: str) -> Path:
    """Writes the folder of an adapter to exports/<id>/<id>.zip; returns the path."""
    folder = workspace.find("adapters", adapter_id)
    target = workspace.path("exports", adapter_id, f"{adapter_id}.zip")
    with atomic_write(target) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as z:
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                z.write(file, f"{adapter_id}/{file.name}")
    return target
