"""A copy of the tokenizer of the base that is loaded, for work beside the model's thread."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.data.inspection.token_checks import TokenizerOfBase
from core.engine.worker import Worker
from core.errors import BaseModelError, Busy

if TYPE_CHECKING:
    from core.model.resident import Resident

logger = logging.getLogger(__name__)
LENGTH_WARNING = "sequence-length-is-longer-than-the-specified-maximum"  # its key in a tokenizer


@dataclass(frozen=True)
class TokenizerCopy:
    """A copy of a tokenizer.

    Attributes:
        base: the copy and what belongs to it; None without one.
        digest: of everything that token counts depend on.
        problem: why the base is None, for the user; else "".
    """

    base: TokenizerOfBase | None
    digest: str
    problem: str = ""


NO_BASE = TokenizerCopy(None, "no base", "Tokens are not counted without a base model.")
BUSY = TokenizerCopy(None, "busy", "The model was busy or still loading, so that tokens are not counted.")


class TokenizerCopies:
    """Copies the tokenizer of each base once. Safe to call from any thread.

    Args:
        resident: returns the resident base; called on the model's thread only.
    """

    def __init__(self, worker: Worker, resident: Callable[[], Resident]) -> None:
        self._worker, self._resident = worker, resident
        self._known: tuple[object, TokenizerCopy] | None = None

    def get(self, seconds: float) -> TokenizerCopy | None:
        """The copy of the base that is loaded; NO_BASE without a base.

        Returns:
            None where the model's thread is busy for longer than `seconds`.
        """

        def copy() -> TokenizerCopy:
            base = self._resident().base
            if self._known is None or self._known[0] is not base:
                self._known = (base, copy_tokenizer(base))
            return self._known[1]

        try:
            return self._worker.call(copy, seconds)
        except BaseModelError:
            return NO_BASE
        except Busy:
            return None


def copy_tokenizer(base: Any) -> TokenizerCopy:
    """Copies the tokenizer of a `core.model.base.Base` through pickle, as a process that receives it does."""
    copy = TokenizerOfBase(base.name, base.tokenizer, base.eos_ids, base.context)
    try:
        copy = pickle.loads(pickle.dumps(copy))
    except Exception as e:  # noqa: BLE001 (a tokenizer of a library that cannot be copied)
        logger.info("the tokenizer of %s cannot be copied: %s", base.name, e)
        return TokenizerCopy(
            None, "no copy", f"The tokenizer of {base.name} cannot be copied ({type(e).__name__})."
        )
    # The copy counts whole rows; the library would warn that the model cannot read so long ones.
    getattr(copy.tokenizer, "deprecation_warnings", {})[LENGTH_WARNING] = True
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else ""
    template = str(base.tokenizer.chat_template)
    digest = compute_digest(base.fingerprint, base.name, base.context, base.eos_ids, template, text)
    return TokenizerCopy(copy, digest)


def compute_digest(*values: object) -> str:
    """The sha256 of values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
