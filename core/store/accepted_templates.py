"""Which chat templates of bases a workspace uses: accepted by a user, or waiting to be.

templates.json   {"format": 1, "templates": {digest: "accepted" or "waiting"}}
"""

from __future__ import annotations

from core.errors import StudioError
from core.store.files import read_json, write_json
from core.store.workspace import Workspace

FORMAT = 1
ACCEPTED, WAITING = "accepted", "waiting"


def load(workspace: Workspace) -> dict[str, str]:
    """Digest -> "accepted" or "waiting"; a damaged file counts as empty, so that users accept them again."""
    if not workspace.templates_path.exists():
        return {}
    try:
        value = read_json(workspace.templates_path)
    except StudioError:
        return {}
    found = value.get("templates") if isinstance(value, dict) else None
    if not isinstance(found, dict):
        return {}
    return {str(digest): state for digest, state in found.items() if state in (ACCEPTED, WAITING)}


def store(workspace: Workspace, digest: str, state: str) -> None:
    """Stores the state of a template.

    Raises:
        StorageError
    """
    templates = {**load(workspace), digest: state}
    write_json(workspace.templates_path, {"format": FORMAT, "templates": templates})
