"""Where a Space keeps its workspace, and what its page says about it.

The disk of a Space is emptied at every restart. A volume that its owner mounts (at /data, by custom) is kept.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import StudioError
from core.space.seed import describe_failure, plant_seed
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)
VOLUME = "/data"
FOLDER = "adapter-studio"  # in the volume, which may hold other files


@dataclass(frozen=True)
class Storage:
    """The storage of a Space.

    Attributes:
        notices: what visitors of the page must read, one or two sentences each; usually empty.
    """

    workspace: Path
    notices: tuple[str, ...] = ()


def open_storage(
    volume: Path, disk: Path, seed: Path, is_mount: Callable[[Path], bool] = Path.is_mount
) -> Storage:
    """Chooses the folder of the workspace, and plants the seed of the Space in it.

    Args:
        volume: where a volume is mounted, if there is one.
        disk: the workspace on the disk of the Space, which is used without a volume.
        seed: the folder of `core.space.seed`; it need not exist.
        is_mount: whether a folder is a mount point; a plain folder of that name is lost, too.
    """
    problem = _describe_volume(volume, is_mount)
    workspace = disk if problem else volume / FOLDER
    notices = []
    if problem:
        notices.append(
            f"{problem} Everything that is made here (datasets, runs, adapters, mixes and votes) is lost "
            "when the Space restarts or sleeps. Download what you want to keep; the owner of the Space can "
            f"mount a volume at {volume} in its settings."
        )
    try:
        planted = plant_seed(seed, Workspace(workspace))
        notices += planted.skipped
        logger.info("From the seed: %d adapters, %d mixes", len(planted.adapters), len(planted.mixes))
    except StudioError as e:
        notices.append(describe_failure(e))
    for text in notices:
        logger.warning(text)
    return Storage(workspace, tuple(notices))


def _describe_volume(volume: Path, is_mount: Callable[[Path], bool]) -> str:
    """Why a volume cannot be used, in one sentence; "" if it can."""
    if not volume.is_dir() or not is_mount(volume):
        return "This Space has no persistent storage."
    probe = volume / f".{secrets.token_hex(8)}.partial"
    try:
        probe.write_bytes(b"")
    except OSError as e:
        return f"The volume at {volume} cannot be written ({e.strerror or e})."
    with contextlib.suppress(OSError):
        probe.unlink()
    return ""
