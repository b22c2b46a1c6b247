"""The adapters of the library: a folder each in PEFT's layout, with provenance and checksums.

    adapters/<id>/adapter_model.safetensors   the weights (`core.store.adapter_weights` checks them)
                  adapter_config.json         fields of a LoraConfig (`core.store.adapter_config` checks them)
                  EXPERIMENT_METADATA.json    name, kind, base, dataset, settings, results
                  checksums.txt               the sha256 of every other file
                  README.md                   the model card
                  training_rows.json          what it has seen (`core.data.training_rows`), where it is known

Whether an adapter fits the resident base is decided by the fingerprint of the base and the shapes of the
tensors, when it is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

from core.errors import AdapterError, Busy, DamagedRecord, StorageError, StudioError
from core.store import adapter_weights
from core.store.adapter_config import OWN_FORMS, describe_own_weights, parse_config
from core.store.adapter_files import (
    CARD,
    CHECKSUMS,
    REWRITTEN,
    find_repairable,
    read_checksums,
    write_checksums,
)
from core.store.adapter_files import CONFIG as CONFIG
from core.store.adapter_files import METADATA as METADATA
from core.store.adapter_files import WEIGHTS as WEIGHTS
from core.store.adapter_files import verify_folder as verify_folder
from core.store.adapter_weights import check_weights
from core.store.files import atomic_write, link_folder, sha256_of, write_json
from core.store.model_card import format_model_card
from core.store.record_types import Between, OneOf, Time, check_type
from core.store.records import check_file, load_items, read_object, report_damage, sum_sizes
from core.store.workspace import Draft, Workspace, check_name

logger = logging.getLogger(__name__)

T = TypeVar("T")
FORMAT = 1
ATTEMPTS = 20  # to read a folder that is being replaced


@dataclass(frozen=True)
class Adapter:
    """An adapter of the library.

    Attributes:
        bytes: size of its folder.
        created: Unix seconds.
        run: the run that trained it, or "".
        stacked_on: id of its parent adapter: the adapter that was frozen and active while it trained; or "".
        alone: why it can only be used alone in its column, as a clause, or "".
        form: what it is, as a noun, where it is more than plain LoRA; or "".
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
    alone: str = ""
    form: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def repairs(self) -> str:
        """Names of the files that were written again because they did not match the others; usually ""."""
        names = self.metadata.get("repaired")
        return " and ".join(str(n) for n in names) if isinstance(names, list) else ""

    @property
    def training_data(self) -> frozenset[str]:
        """Ids and sha256 of its training data and replay data; for a baked adapter, of all its parts."""
        settings, data = self.metadata.get("hyperparameters") or {}, self.metadata.get("dataset") or {}
        replay = settings.get("replay_dataset") if settings.get("replay_share") else ""
        own = {str(x) for x in (self.dataset, replay, data.get("sha256")) if x}
        return frozenset(own | {str(x) for x in self.metadata.get("learned_from") or ()})


class _Base(TypedDict, total=False):
    name: str
    fingerprint: str


class _Origin(TypedDict, total=False):
    """A dataset or an adapter that the metadata names."""

    id: str
    name: str
    sha256: str


class _Part(TypedDict):
    """An adapter that a mix was baked of."""

    name: str
    sha256: str
    weight: float


class _Required(TypedDict):
    name: str
    sha256: str
    created: Time


class _Metadata(_Required, total=False):
    """The keys of EXPERIMENT_METADATA.json that are read; it has others, for people."""

    format: Annotated[int, Between(1, FORMAT)]
    kind: Annotated[str, OneOf(("domain", "task", "mix"))]
    base: _Base | None
    dataset: _Origin | None
    stacked_on: _Origin | None
    run: str | None
    trained_with: dict[str, float] | None
    domain_dropout: float | None
    hyperparameters: dict[str, Any] | None
    results: dict[str, Any] | None
    learned_from: list[str] | None
    baked_from: list[_Part] | None


def add(
    workspace: Workspace,
    adapter_id: str,
    name: str,
    write_weights: Callable[[Path], None],
    config: dict[str, Any],
    metadata: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> Adapter:
    """Adds an adapter to the library. It appears complete or not at all, and replaces one with the same id.

    The adapter of a stopped run is replaced when the run is resumed. It keeps the display name that the user
    gave it.

    Args:
        adapter_id: the id that was reserved when its run was created.
        write_weights: writes the safetensors file at the path that it receives.
        config: fields of a LoraConfig.
        metadata: provenance; `id`, `name`, `sha256` and `created` are added here.
        files: further files of the folder, by name, such as the record of the training rows.

    Raises:
        AdapterError: the weights or the config are invalid. StorageError: the files could not be written.
    """
    clean = check_name(name)
    with (
        workspace.lock("adapters", adapter_id),
        workspace.build("adapters", name, adapter_id, replace=True) as draft,
    ):
        with contextlib.suppress(StudioError):  # there is none, or it is damaged
            clean = load(workspace, adapter_id).name
        adapter_weights.write_weights(write_weights, draft.path / WEIGHTS)
        write_json(draft.path / CONFIG, config)
        check_weights(draft.path, parse_config(config, only_plain=False))
        for file, content in (files or {}).items():
            with atomic_write(draft.path / file) as f:
                f.write(content)
            draft.expect(file)
        full = {
            "format": FORMAT,
            "id": adapter_id,
            "name": clean,
            "sha256": sha256_of(draft.path / WEIGHTS),
            "created": time.time(),
            **metadata,
        }
        _write_metadata(draft, full, config)
    return load(workspace, adapter_id)


def _write_metadata(
    draft: Draft, metadata: dict[str, Any], config: dict[str, Any], known: dict[str, str] | None = None
) -> None:
    """Writes the metadata into a draft, and the model card and checksums that follow from it.

    Args:
        known: file name -> sha256 of files that did not change.
    """
    write_json(draft.path / METADATA, metadata)
    with atomic_write(draft.path / CARD, "w") as f:
        f.write(format_model_card(metadata, config))
    write_checksums(draft.path, known)
    draft.expect(WEIGHTS, CONFIG, METADATA, CHECKSUMS, CARD)


def read_files(workspace: Workspace, adapter_id: str, read: Callable[[Path], T]) -> T:
    """Calls `read` with the folder of an adapter; again, if the adapter is replaced meanwhile.

    Raises:
        NotFound: no such adapter. Also what `read` raises.
    """
    for _ in range(ATTEMPTS):
        folder = workspace.find("adapters", adapter_id)
        try:
            before = _identify(folder)
        except FileNotFoundError:  # between the two renames of a replacement
            continue
        try:
            return read(folder)
        except (StudioError, OSError):
            with contextlib.suppress(FileNotFoundError):
                if _identify(workspace.find("adapters", adapter_id)) == before:
                    raise
    return read(workspace.find("adapters", adapter_id))


def _identify(folder: Path) -> tuple[int, int]:
    """What tells a folder from one that has replaced it. The second one after it may have its inode again."""
    found = folder.stat()
    return found.st_ino, found.st_ctime_ns


def load(workspace: Workspace, adapter_id: str) -> Adapter:
    """Reads the record of an adapter.

    Raises:
        NotFound: no such adapter. DamagedRecord: its metadata, config or weights are damaged.
    """
    return workspace.records.read(
        ("adapters", adapter_id),
        ("", METADATA, CONFIG, WEIGHTS),
        lambda: read_files(workspace, adapter_id, lambda folder: _load_folder(folder, adapter_id)),
    )


def _read_metadata(folder: Path) -> dict[str, Any]:
    metadata = read_object(folder / METADATA)
    with report_damage(folder / METADATA):
        check_type(_Metadata, metadata)
    return metadata


def _read_config(folder: Path) -> dict[str, Any]:
    with report_damage(folder / CONFIG):
        return parse_config(read_object(folder / CONFIG), only_plain=False)


def _load_folder(folder: Path, adapter_id: str) -> Adapter:
    meta, config = _read_metadata(folder), _read_config(folder)
    with report_damage(folder / WEIGHTS):
        check_file(folder / WEIGHTS)
        adapter_weights.check_size(folder / WEIGHTS)
    base, data = meta.get("base") or {}, meta.get("dataset") or {}
    return Adapter(
        id=adapter_id,
        name=meta["name"],
        kind=meta.get("kind", "task"),
        base=base.get("name", ""),
        base_fingerprint=base.get("fingerprint", ""),
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        target_modules=tuple(config.get("target_modules", ())),
        sha256=meta["sha256"],
        bytes=sum_sizes(folder),
        created=float(meta["created"]),
        dataset=data.get("id", ""),
        dataset_name=data.get("name", ""),
        run=meta.get("run") or "",
        stacked_on=(meta.get("stacked_on") or {}).get("id", ""),
        alone=describe_own_weights(config),
        form=next((noun for setting, noun in OWN_FORMS.items() if config.get(setting)), ""),
        results=meta.get("results") or {},
        metadata=meta,
    )


def check_parent(adapter: Adapter) -> None:
    """Checks that a run can be stacked on an adapter: peft's own forward runs it while the run trains.

    Raises:
        AdapterError: it is not plain LoRA.
    """
    if adapter.form:
        raise AdapterError(
            f"A run cannot be stacked on {adapter.name!r}, {adapter.form}: only plain LoRA can be active "
            "while another adapter trains.",
            "Choose another parent, or train without one.",
        )


def load_all(workspace: Workspace) -> list[Adapter]:
    """Every adapter that can be read, newest first."""
    return sorted(load_items(workspace, "adapters", load)[0], key=lambda a: -a.created)


def rename(workspace: Workspace, adapter_id: str, name: str) -> Adapter:
    """Changes the display name; the weights and their sha256 stay the same.

    Raises:
        InvalidName, NotFound, DamagedRecord, StorageError. Busy: another process changes the adapter.
    """
    clean = check_name(name)
    return _rewrite(workspace, adapter_id, lambda metadata: {**metadata, "name": clean})


def add_results(
    workspace: Workspace, adapter_id: str, results: dict[str, Any], provenance: dict[str, Any] | None = None
) -> Adapter:
    """Adds results that were measured after the adapter was saved; its weights stay the same.

    Args:
        provenance: further metadata fields to set.

    Raises:
        NotFound, DamagedRecord, StorageError. Busy: another process changes the adapter.
    """

    def change(metadata: dict[str, Any]) -> dict[str, Any]:
        recorded = metadata.get("results") or {}
        return {**metadata, **(provenance or {}), "results": {**recorded, **results}}

    return _rewrite(workspace, adapter_id, change)


def set_gate(workspace: Workspace, adapter_id: str, gate: dict[str, Any], sha256: str = "") -> Adapter:
    """Stores the calibration of an adapter's gate in place of an earlier one; its weights stay the same.

    Args:
        gate: as `core.store.gate_records` makes it.
        sha256: of the weights that were measured; "" for a note, which needs none.

    Raises:
        Busy: the weights were replaced meanwhile, or another process changes the adapter.
        NotFound, DamagedRecord, StorageError
    """

    def change(metadata: dict[str, Any]) -> dict[str, Any]:
        if sha256 and metadata["sha256"] != sha256:
            raise Busy("The adapter was trained further while it was measured.", "Calibrate it again.")
        return {**metadata, "gate": gate}

    return _rewrite(workspace, adapter_id, change)


def _rewrite(
    workspace: Workspace, adapter_id: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Adapter:
    """Replaces the metadata, model card and checksums of an adapter in one step; its other files are linked.

    Args:
        change: from the metadata on disk to the new metadata.
    """
    with workspace.lock("adapters", adapter_id):
        folder = workspace.find("adapters", adapter_id)
        metadata, config = _read_metadata(folder), _read_config(folder)
        digests, _ = read_checksums(folder)
        known = {name: digest for name, digest in digests.items() if name not in REWRITTEN}
        with workspace.build("adapters", adapter_id, adapter_id, replace=True) as draft:
            link_folder(folder, draft.path, REWRITTEN)
            _write_metadata(draft, change(metadata), config, known)
    return load(workspace, adapter_id)


def verify(workspace: Workspace, adapter_id: str) -> list[str]:
    """Checks the files of an adapter in the library; see `verify_folder`.

    Where the weights, the config and the metadata prove to be the ones that were saved, a model card or
    checksums that do not match them are written again.

    Returns:
        What was checked and what was repaired, one sentence each.

    Raises:
        NotFound. AdapterError: a file was changed, is missing, or is invalid. DamagedRecord: a file cannot be
            read.
    """
    try:
        return read_files(workspace, adapter_id, verify_folder)
    except (AdapterError, DamagedRecord) as e:
        repaired: list[str] = []
        with contextlib.suppress(AdapterError, DamagedRecord):
            repaired = read_files(workspace, adapter_id, find_repairable)
        if not repaired:
            raise e
    said = (
        f"{' and '.join(repaired)} did not match the other files, as after an interrupted change. "
        "The weights have the sha256 that is recorded with them"
    )
    try:
        _rewrite(workspace, adapter_id, lambda metadata: {**metadata, "repaired": repaired})
    except (StorageError, Busy) as e:
        logger.warning("The adapter %r: %s and are used; not repaired: %s", adapter_id, said, e)
        return [f"{said} and are used. The files could not be written again: {e.what}"]
    logger.warning("The adapter %r: %s; the files were written again.", adapter_id, said)
    return [*read_files(workspace, adapter_id, verify_folder), f"{said}; the files were written again."]


def export_zip(workspace: Workspace, adapter_id: str) -> Path:
    """Writes the folder of an adapter to exports/<id>/<id>.zip; returns the path."""
    target = workspace.path("exports", adapter_id, f"{adapter_id}.zip")

    def write(folder: Path) -> None:
        with atomic_write(target) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as z:
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith("."):
                    z.write(file, f"{adapter_id}/{file.name}")

    read_files(workspace, adapter_id, write)
    return target
