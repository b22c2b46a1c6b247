"""Derives a dataset in a process of its own: of many rows it takes long, and the model's thread would wait.

    parent ─ stdin: the arguments of `derive_dataset` as JSON ─> child
    child ─ stdout: {"dataset"}, or {"kind", "error", "fix"} ─> parent

A child whose parent ends leaves a draft at most, which the next start removes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from core import errors
from core.data.child_process import build_child_command
from core.data.datasets import Dataset, load_dataset
from core.data.derivation import derive_dataset
from core.data.personal_data import KINDS
from core.errors import StudioError
from core.store.workspace import Workspace

PROCESS_ROWS = 5_000  # rows of the parents from which a process of its own is worth its start


def derive(
    workspace: Workspace,
    dataset_ids: Sequence[str],
    operation: str,
    name: str,
    near: bool = False,
    kinds: Sequence[str] = KINDS,
    rows: Mapping[str, Sequence[int]] | None = None,
) -> Dataset:
    """Makes a new dataset from others; args, result and errors are those of `derivation.derive_dataset`."""
    total = sum(load_dataset(workspace, dataset_id).rows for dataset_id in dataset_ids)
    if total < PROCESS_ROWS:
        return derive_dataset(workspace, dataset_ids, operation, name, near, kinds, rows)
    arguments = {
        "root": str(workspace.root),
        "dataset_ids": [*dataset_ids],
        "operation": operation,
        "name": name,
        "near": near,
        "kinds": [*kinds],
        "rows": rows,
    }
    done = subprocess.run(
        build_child_command("core.data.derivation_job", "run"),
        input=json.dumps(arguments).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as e:
        raise StudioError(
            f"The process that makes the dataset ended with code {done.returncode}.",
            "It may have run out of memory. Close other programs and try again.",
        ) from e
    if "error" in answer:
        raise _rebuild_error(answer)
    return load_dataset(workspace, answer["dataset"])


def _rebuild_error(answer: Mapping[str, str]) -> StudioError:
    """The error that the child reported, of the class that it had there."""
    kind = getattr(errors, answer["kind"], StudioError)
    try:
        error = kind(answer["error"], answer["fix"])
    except TypeError:  # an error with other arguments, such as DamagedRecord
        error = StudioError(answer["error"], answer["fix"])
    return error  # type: ignore[no-any-return]


def run() -> None:
    """The entrance of the child. What libraries print goes to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    arguments = json.loads(sys.stdin.buffer.read())
    workspace = Workspace(arguments.pop("root"))
    try:
        answer = {"dataset": derive_dataset(workspace, **arguments).id}
    except StudioError as e:
        answer = {"kind": type(e).__name__, "error": e.what, "fix": e.fix}
    output.write(json.dumps(answer).encode() + b"\n")
    output.flush()
