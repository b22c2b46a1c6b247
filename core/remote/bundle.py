"""A bundle: one zip file that holds what another machine needs to train a run, except the base model.

    pack ──> bundle.zip ── command template ──> run_bundle (other machine) ──> result.zip ──> collect
      └────> exports/<run id>/sent.json: what was packed, to compare the result with ────────────┘

    bundle.zip   bundle.json                                  the `Bundle`, as JSON
                 datasets/<id>/*   adapters/<parent id>/*     as they lie in a workspace
                 templates.json                               accepted chat templates, if there are any
    result.zip   result.json   run.json   events.jsonl        what was trained, and its log
                 adapters/<adapter id>/*                      the trained adapter
    both         SHA256SUMS                                   the sha256 of every member

The ids of the run, its adapter, its datasets and its parent adapter are assigned when the bundle is packed,
and are the same on both machines, because the checksum of the settings covers them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from core.data.datasets import Dataset, load_dataset, verify_dataset
from core.spec.training import TrainSpec
from core.store import adapters
from core.store.adapters import Adapter
from core.store.workspace import Workspace

BUNDLE_FILE, RESULT_FILE = "bundle.json", "result.json"
_ID, _FILE = r"[a-z0-9][a-z0-9-]{0,63}", r"\w[\w.-]{0,199}"
BUNDLE_MEMBERS = re.compile(
    rf"(?:bundle|templates)\.json|datasets/{_ID}/(?:rows\.jsonl|dataset\.json|(?:splits|source)/{_FILE})|adapters/{_ID}/{_FILE}",
    re.ASCII,
)
RESULT_MEMBERS = re.compile(rf"result\.json|run\.json|events\.jsonl|adapters/{_ID}/{_FILE}", re.ASCII)


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
