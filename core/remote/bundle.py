"""A bundle: one zip file that holds what another machine needs to train a run, except the base model.

    pack ──> bundle.zip ── command template ──> run_bundle (other machine) ──> result.zip ──> collect
      └────> exports/<run id>/sent.json: what was packed, to compare the result with ────────────┘

    bundle.zip   bundle.json                                  the `Bundle`, as JSON
                 datasets/<id>/*   adapters/<parent id>/*     as they lie in a workspace
    result.zip   result.json   run.json   events.jsonl        what was trained, and its log
                 adapters/<adapter id>/*                      the trained adapter
    both         SHA256SUMS                                   the sha256 of every member

The ids of the run, its adapter, its datasets and its parent adapter are assigned when the bundle is packed,
and are the same on both machines, because the checksum of the settings covers them.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data.datasets import Dataset, load_dataset, verify_dataset
from core.errors import NotFound, SpecError
from core.spec.training import QUANTIZATIONS, RunStatus, TrainSpec
from core.store import adapters, grids
from core.store.adapters import Adapter
from core.store.files import read_json, write_json
from core.store.runs import Run, RunExtra
from core.store.workspace import ID, Workspace

FORMAT = 1
BUNDLE_FILE, RESULT_FILE, SENT_FILE = "bundle.json", "result.json", "sent.json"
_ID, _FILE = r"[a-z0-9][a-z0-9-]{0,63}", r"\w[\w.-]{0,199}"
BUNDLE_MEMBERS = re.compile(
    rf"bundle\.json|datasets/{_ID}/(?:rows\.jsonl|dataset\.json|(?:splits|source)/{_FILE})|adapters/{_ID}/{_FILE}",
    re.ASCII,
)
RESULT_MEMBERS = re.compile(rf"result\.json|run\.json|events\.jsonl|adapters/{_ID}/{_FILE}", re.ASCII)
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
            values["spec"] = TrainSpec.from_json(raw["spec"])
            values["extra"] = RunExtra.from_json(raw["extra"])
            bundle = cls(**values)
            is_valid = bundle._has_valid_fields()
        except (KeyError, TypeError, AttributeError) as e:
            raise SpecError(
                f"The bundle's description cannot be read ({type(e).__name__}: {e}).", PACK_AGAIN
            ) from e
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


# --- the record of what was packed


def list_bundles(workspace: Workspace) -> list[Bundle]:
    """Every bundle that was packed in this workspace, by run id."""
    return [
        load_bundle(workspace, run_id)
        for run_id in workspace.ids("exports")
        if workspace.path("exports", run_id, SENT_FILE).is_file()
    ]


def load_bundle(workspace: Workspace, run_id: str) -> Bundle:
    """The bundle that was packed for a run.

    Raises:
        NotFound: the run was not packed in this workspace.
    """
    path = workspace.path("exports", run_id, SENT_FILE)
    if not path.is_file():
        raise NotFound(
            f"The run {run_id!r} was not packed in this workspace.",
            "Collect a result in the workspace that packed its bundle.",
        )
    return Bundle.from_json(read_json(path))


def save_bundle(workspace: Workspace, bundle: Bundle) -> None:
    """Records what was packed.

    Raises:
        StorageError: it could not be written.
    """
    write_json(workspace.path("exports", bundle.run_id, SENT_FILE), bundle.to_json())


# --- what a run reads


def load_inputs(workspace: Workspace, spec: TrainSpec) -> tuple[list[Dataset], Adapter | None]:
    """Verifies and reads the datasets and the parent adapter of a run.

    Raises:
        StudioError: one of them is missing or damaged.
    """
    names = [spec.dataset]
    if spec.replay_share and spec.replay_dataset not in ("", spec.dataset):
        names.append(spec.replay_dataset)
    for name in names:
        verify_dataset(workspace, name)
    data = [load_dataset(workspace, name) for name in names]
    if not spec.stack_on:
        return data, None
    adapters.verify(workspace, spec.stack_on)
    return data, adapters.load(workspace, spec.stack_on)


def list_files(workspace: Workspace, kind: str, item_id: str) -> Iterator[tuple[str, Path]]:
    """The files of an item of the workspace, as (name of the zip member, path); hidden files are left out."""
    folder = workspace.find(kind, item_id)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield f"{kind}/{item_id}/{path.relative_to(folder).as_posix()}", path
