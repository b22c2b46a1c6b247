"""The files of an adapter's folder: their names, their checksums, and the checks before the weights are used.

The weights and the config are written once. The metadata, the model card and the checksums are written again
when the adapter is renamed or gets a result. The first version wrote these three one after the other, so a
kill could leave new metadata beside old checksums. The metadata holds the sha256 of the weights, too; where
it matches, such a folder is repaired instead of refused (`core.store.adapters.verify`).
"""

from __future__ import annotations

import re
from pathlib import Path

from core.errors import AdapterError
from core.store import adapter_config, adapter_weights
from core.store.adapter_config import parse_config
from core.store.adapter_weights import check_weights
from core.store.files import atomic_write, sha256_of
from core.store.records import read_object, report_damage

WEIGHTS = adapter_weights.FILE
CONFIG = adapter_config.FILE
METADATA = "EXPERIMENT_METADATA.json"
CHECKSUMS = "checksums.txt"
CARD = "README.md"
REWRITTEN = (METADATA, CARD, CHECKSUMS)
CODE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".py", ".ckpt")  # loading such files can run code
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\]+)")


def write_checksums(folder: Path, known: dict[str, str] | None = None) -> None:
    """Writes the sha256 of every other file.

    Args:
        known: file name -> sha256 of files that did not change.
    """
    names = sorted(
        p.name for p in folder.iterdir() if p.is_file() and p.name != CHECKSUMS and not p.name.startswith(".")
    )
    digests = {n: (known or {}).get(n) or sha256_of(folder / n) for n in names}
    with atomic_write(folder / CHECKSUMS, "w") as f:
        f.writelines(f"{digest}  {name}\n" for name, digest in digests.items())


def read_checksums(folder: Path) -> tuple[dict[str, str], bool]:
    """File name -> sha256, of the lines that are complete; and whether all lines are."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}, False
    with report_damage(path):
        lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    matches = [m for m in map(_LINE.fullmatch, lines) if m]
    digests = {m.group(2): m.group(1) for m in matches}
    return digests, len(digests) == len(lines) and all(n in digests for n in (WEIGHTS, CONFIG, METADATA))


def verify_folder(folder: Path) -> list[str]:
    """Checks the files of an adapter: checksums, tensor names, shapes and finite values.

    Args:
        folder: in the library or elsewhere; its name is the adapter's id.

    Returns:
        What was checked, one sentence each.

    Raises:
        AdapterError: a file was changed, is missing, or is invalid. DamagedRecord: it cannot be read.
    """
    digests, is_complete = read_checksums(folder)
    if not is_complete:
        raise AdapterError(
            f"{CHECKSUMS} of the adapter {folder.name!r} is missing or incomplete.",
            "Restore the folder from a backup, or train the adapter again.",
        )
    if changed := find_changes(folder, digests):
        raise AdapterError(
            f"{changed[0]} of the adapter {folder.name!r} is missing or has changed since it was saved.",
            "Restore it from a backup, or train the adapter again.",
        )
    return [f"All {len(digests)} files have the sha256 that was saved with them.", *_check_content(folder)]


def find_changes(folder: Path, digests: dict[str, str]) -> list[str]:
    """The names among `digests` whose file is missing or has another sha256."""
    return [n for n, d in digests.items() if not (folder / n).is_file() or sha256_of(folder / n) != d]


def find_repairable(folder: Path) -> list[str]:
    """The files that can be written again because all other files prove to be the ones that were saved.

    The weights must have the sha256 that the metadata names, the config must fit the weights, and no checksum
    of another file may differ.

    Returns:
        names among REWRITTEN; empty if the folder cannot be repaired, or need not be.

    Raises:
        AdapterError, DamagedRecord: the other files do not fit together.
    """
    digests, is_complete = read_checksums(folder)
    changed = find_changes(folder, digests)
    if any(n not in REWRITTEN for n in changed):
        return []
    _check_content(folder)
    return [] if is_complete and not changed else [*changed, CHECKSUMS]


def _check_content(folder: Path) -> list[str]:
    """Checks metadata, config and weights against each other; one sentence per check.

    Raises:
        AdapterError, DamagedRecord
    """
    with report_damage(folder / WEIGHTS):
        digest = sha256_of(folder / WEIGHTS)
    if read_object(folder / METADATA).get("sha256") != digest:
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
    config = parse_config(read_object(folder / CONFIG), only_plain=False)
    tensors, values = check_weights(folder, config)
    return [
        f"All {tensors} tensors have the names and shapes of a rank-{config['r']} adapter.",
        f"All {values:,} values are finite.",
    ]
