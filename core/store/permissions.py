"""Modes of files and folders: only the user who runs the studio can read what it writes into a workspace.

On Windows the folder of the user has that effect, and these modes do nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def open_private(path: str, flags: int) -> int:
    """Opens a file; a file that this creates can be read by its owner only. For `open(..., opener=)`."""
    return os.open(path, flags, PRIVATE_FILE)


def make_private(path: Path) -> None:
    """Takes the rights of other users from a file or a folder.

    A file with several names stays as it is: another one of them may lie outside of the workspace.
    """
    with contextlib.suppress(OSError):  # a disk without modes
        state = os.lstat(path)
        if stat.S_ISDIR(state.st_mode):
            os.chmod(path, PRIVATE_FOLDER)
        elif stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
            os.chmod(path, PRIVATE_FILE)
