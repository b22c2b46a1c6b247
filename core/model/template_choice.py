"""Whether a base is used with its own chat template, or with the plain one until a user accepts it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from core.data.tokens.template_review import TemplateReview, review
from core.errors import StudioError
from core.model.families import Family
from core.store import accepted_templates, adapters
from core.store.accepted_templates import ACCEPTED, WAITING
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)


def choose_template(
    tokenizer: Any, family: Family, workspace: Workspace | None, find_fingerprint: Callable[[], str]
) -> tuple[TemplateReview, bool]:
    """Reviews the template of a tokenizer, and decides whether it is used.

    Args:
        workspace: remembers what its users have accepted. Without one, only a template that cannot be used
            is left out.
        find_fingerprint: returns the fingerprint of the base. A workspace with adapters that were trained
            on it, before templates were reviewed, has accepted its template.

    Returns:
        (the review, whether the own template is used)
    """
    own = _read_template(tokenizer)
    if not own:
        return TemplateReview(), False
    found = review(own, family.model_type)
    if found.is_broken:
        return found, False
    if not found.differs or workspace is None:
        return found, True
    state = accepted_templates.load(workspace).get(found.digest)
    if state is None:
        state = ACCEPTED if _has_adapters(workspace, find_fingerprint()) else WAITING
        try:
            accepted_templates.store(workspace, found.digest, state)
        except StudioError as e:
            logger.warning("That a chat template was seen could not be stored: %s", e)
    return found, state == ACCEPTED


def _read_template(tokenizer: Any) -> str:
    """The template that a conversation is rendered with; "" without one."""
    return str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""


def _has_adapters(workspace: Workspace, fingerprint: str) -> bool:
    return any(a.base_fingerprint == fingerprint for a in adapters.load_all(workspace))
