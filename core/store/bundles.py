"""The record of a bundle: a run that another machine trains, in exports/<run id>/sent.json.

`core.remote.bundle` describes the bundle itself.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from core.errors import NotFound, SpecError
from core.spec.training import QUANTIZATIONS, RunStatus, TrainSpec
from core.store import grids
from core.store.files import write_json
from core.store.record_types import check_type
from core.store.records import load_items, read_object, report_damage
from core.store.runs import Run, RunExtra
from core.store.workspace import ID, Workspace

FORMAT = 1
SENT_FILE = "sent.json"
PACK_AGAIN = "Pack the run again, or use the file as it was packed."
# Attributes of Bundle whose key in bundle.json and sent.json has another name.
_KEYS = {
    "run_id": "run",
    "adapter_id": "adapter",
    "checksum": "key",
    "base_fingerprint": "fingerprint",
    "data_sha256": "data",
    "parent": "below",
}


@dataclass(frozen=True)
class Bundle:
    """A run that another machine trains.

    Attributes:
        run_id, adapter_id: ids of the run and of the adapter that it trains.
        checksum: `grids.spec_checksum` of the spec.
        base: name of the base model; an absolute path for a folder.
        quantization: how the other machine loads the base.
        data_sha256: dataset id to sha256, for every dataset that the run reads.
        parent: id and sha256 of the parent adapter; empty without one.
        extra: what is recorded with the run, such as its grid; the other machine does not receive it.
    """

    run_id: str
    adapter_id: str
    spec: TrainSpec
    checksum: str
    base: str
    base_fingerprint: str
    quantization: str
    data_sha256: dict[str, str]
    parent: dict[str, str] = field(default_factory=dict)
    extra: RunExtra = field(default_factory=RunExtra)

    def to_json(self) -> dict[str, Any]:
        """The object in sent.json; in bundle.json, "extra" is empty."""
        values = {**self.__dict__, "spec": self.spec.to_json(), "extra": self.extra.to_json()}
        return {"format": FORMAT, **{_KEYS.get(name, name): value for name, value in values.items()}}

    @classmethod
    def from_json(cls, raw: Any) -> Bundle:
        """Reads a description, which may come from another machine.

        Raises:
            SpecError: it is not a bundle's description, or its checksum does not match its settings.
        """
        try:
            keys = {f.name: _KEYS.get(f.name, f.name) for f in dataclasses.fields(cls)}
            values = {name: raw[key] for name, key in keys.items()}
            values["spec"] = TrainSpec.from_record(raw["spec"])
            values["extra"] = RunExtra.from_json(raw["extra"])
            values["data_sha256"] = check_type(dict[str, str], values["data_sha256"])
            values["parent"] = check_type(dict[str, str], values["parent"])
            bundle = cls(**values)
            is_valid = bundle._has_valid_fields()
        except KeyError as e:
            raise SpecError(f"The bundle's description has no {e}.", PACK_AGAIN) from e
        except (TypeError, AttributeError, ValueError) as e:
            raise SpecError(f"The bundle's description cannot be read ({e}).", PACK_AGAIN) from e
        if not is_valid or bundle.checksum != grids.spec_checksum(bundle.spec):
            raise SpecError("The bundle's settings do not match its checksum.", PACK_AGAIN)
        return bundle

    def _has_valid_fields(self) -> bool:
        """Whether all texts are texts, all ids have the form of an id, and the quantization exists."""
        texts = [
            self.run_id, self.adapter_id, self.checksum, self.base, self.base_fingerprint, self.quantization,
            *self.data_sha256.values(), *self.parent.values(),
        ]  # fmt: skip
        ids = [self.run_id, self.adapter_id, *self.data_sha256]
        if self.parent:
            ids.append(self.parent["id"])
        return (
            all(isinstance(t, str) for t in texts)
            and all(ID.fullmatch(i) for i in ids)
            and self.quantization in QUANTIZATIONS
            and self.spec.dataset in self.data_sha256
        )

    def to_run(self, status: RunStatus) -> Run:
        """The run of this bundle, with `status` and the present time."""
        return Run(
            id=self.run_id,
            name=self.spec.name,
            kind=self.spec.kind,
            status=status,
            spec=self.spec,
            adapter=self.adapter_id,
            created=time.time(),
            base=self.base,
            base_fingerprint=self.base_fingerprint,
            dataset_sha256=self.data_sha256[self.spec.dataset],
            extra=self.extra,
        )


def list_bundles(workspace: Workspace) -> list[Bundle]:
    """Every bundle that was packed in this workspace and whose record can be read, by run id."""
    found = load_items(workspace, "exports", find_bundle)[0]
    return sorted((b for b in found if b is not None), key=lambda b: b.run_id)


def find_bundle(workspace: Workspace, run_id: str) -> Bundle | None:
    """The bundle of an exported item; None for a download, which has no record.

    Raises:
        NotFound: no such item. DamagedRecord
    """
    folder = workspace.find("exports", run_id)
    path = folder / SENT_FILE
    with report_damage(folder):
        if not any(f.name == SENT_FILE for f in folder.iterdir()):
            return None
    raw = read_object(path)
    with report_damage(path):
        bundle = Bundle.from_json(raw)
        if bundle.run_id != run_id:
            raise ValueError(f"it is the record of {bundle.run_id!r}")
    return bundle


def load_bundle(workspace: Workspace, run_id: str) -> Bundle:
    """The bundle that was packed for a run.

    Raises:
        NotFound: the run was not packed in this workspace. DamagedRecord
    """
    bundle = find_bundle(workspace, run_id) if workspace.path("exports", run_id).exists() else None
    if bundle is None:
        raise NotFound(
            f"The run {run_id!r} was not packed in this workspace.",
            "Collect a result in the workspace that packed its bundle.",
        )
    return bundle


def save_bundle(workspace: Workspace, bundle: Bundle) -> None:
    """Records what was packed.

    Raises:
        StorageError: it could not be written.
    """
    write_json(workspace.path("exports", bundle.run_id, SENT_FILE), bundle.to_json())
