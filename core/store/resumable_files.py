"""Large files that are written block by block, and continued after a crash where they were.

    NAME.part       the blocks so far
    NAME.progress   {"plan", "blocks", "bytes"}: what of NAME.part is on the disk for certain
    NAME            appears complete, once every block is on the disk

The plan is a digest of everything that the content follows from. A part of another plan is begun again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import Cancelled, StorageError
from core.store.files import read_json, replace, storage_error, sync_folder, write_json

SYNC_BYTES = 64 << 20  # what a crash can cost, at most, of a block that is not larger

Report = Callable[[int, int], None]  # bytes that are written, bytes in all
PollStop = Callable[[], bool]


@dataclass(frozen=True)
class Block:
    """A part of a file.

    Attributes:
        size: in bytes.
        read: yields its bytes, as often as it is called the same ones.
    """

    size: int
    read: Callable[[], Iterable[bytes]]


def write_blocks(
    path: Path,
    plan: str,
    blocks: Sequence[Block],
    report: Report = lambda done, total: None,
    poll_stop: PollStop = lambda: False,
) -> None:
    """Writes a file, or continues it; a file that exists is left as it is.

    Args:
        path: of the file; its folder exists.
        plan: a digest of what the content follows from.
        poll_stop: returns True to stop; what is written stays for the next call.

    Raises:
        Cancelled: it was stopped. StorageError, DiskFull: the disk refused.
        ValueError: a block has another size than it states.
    """
    total = sum(block.size for block in blocks)
    if path.exists():
        report(total, total)
        return
    part, progress = (path.with_name(path.name + suffix) for suffix in (".part", ".progress"))
    try:
        first, begin = _find_start(part, progress, plan, blocks)
        with open(part, "r+b" if begin else "wb") as file:
            file.truncate(begin)
            file.seek(begin)
            done = synced = begin
            report(done, total)
            for number, block in enumerate(blocks[first:], start=first + 1):
                end = done + block.size
                for piece in block.read():
                    if poll_stop():
                        raise Cancelled("The file is not complete: it was stopped.")
                    file.write(piece)
                    done += len(piece)
                    report(done, total)
                if done != end:
                    raise ValueError(f"block {number} of {path.name} has {block.size + done - end} bytes")
                if done - synced >= SYNC_BYTES:
                    file.flush()
                    os.fsync(file.fileno())
                    write_json(progress, {"plan": plan, "blocks": number, "bytes": done})
                    synced = done
            file.flush()
            os.fsync(file.fileno())
        replace(part, path)
        sync_folder(path.parent)
        progress.unlink(missing_ok=True)
    except OSError as e:
        raise storage_error(e, path) from e


def _find_start(part: Path, progress: Path, plan: str, blocks: Sequence[Block]) -> tuple[int, int]:
    """(blocks, bytes) that are on the disk for certain."""
    try:
        known = read_json(progress)
        number, size = known["blocks"], known["bytes"]
        is_same = known["plan"] == plan and size == sum(block.size for block in blocks[:number])
        if is_same and part.stat().st_size >= size:
            return number, size
    except (StorageError, OSError, LookupError, TypeError):
        pass
    return 0, 0
