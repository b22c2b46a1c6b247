"""Inspections that are kept in their datasets' folders; one may be deleted or damaged at any time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets

from core.data.inspection.records import Inspection
from core.errors import StudioError
from core.store.files import replace
from core.store.json_text import parse_object
from core.store.record_types import check_type
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)

FILE = "inspection.json"


def load_inspection(workspace: Workspace, dataset_id: str, content: str) -> Inspection | None:
    """The inspection that was kept for this content; None without one, or if the file is damaged."""
    try:
        record = parse_object(workspace.path("datasets", dataset_id, FILE).read_bytes())
        if record["content"] != content:
            return None
        return check_type(Inspection, record["inspection"])  # type: ignore[no-any-return]
    except (OSError, ValueError, TypeError, LookupError, RecursionError, StudioError):
        return None


def save_inspection(workspace: Workspace, dataset_id: str, content: str, inspection: Inspection) -> None:
    """Keeps an inspection; a disk that refuses costs another inspection later.

    The folder is never created: the dataset may have been deleted since the inspection began.

    Args:
        content: digest of everything that the inspection depends on.
    """
    path = workspace.path("datasets", dataset_id, FILE)
    partial = path.with_name(f".{FILE}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(json.dumps({"content": content, "inspection": inspection.to_json()}), "utf-8")
        replace(partial, path)
    except OSError as e:
        logger.info("the inspection of %s was not kept: %s", dataset_id, e)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)
