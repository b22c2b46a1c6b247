"""The key of one start of the server: printed to the console or read from a file, beside the stored keys."""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from fastapi import Request

from core.errors import SpecError, StorageError
from core.server.access import KeyAccess, Principal, Role, read_key
from core.store.api_keys import PREFIX, SECRET_BYTES, ApiKeys

SHORTEST, LONGEST = 16, 512  # characters of a key in a file


class StartKeyAccess(KeyAccess):
    """Accepts the keys of the workspace, and one more, whose role is owner.

    Args:
        secret: the further key.
    """

    def __init__(self, keys: ApiKeys, secret: str) -> None:
        super().__init__(keys)
        self._secret = secret.encode()

    def identify(self, request: Request) -> Principal:
        """The principal of the key of a request.

        Raises:
            Problem: 429 after too many wrong keys.
        """
        if hmac.compare_digest(read_key(request).encode("utf-8", "surrogateescape"), self._secret):
            return Principal("start key", Role.OWNER)
        return super().identify(request)


def make_start_key() -> str:
    """A key of 192 random bits, valid until the server ends."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def read_start_key(file: Path) -> str:
    """Reads the key from the first line of a file.

    Raises:
        StorageError: the file cannot be read. SpecError: its first line cannot be a key.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            key = lines.readline(LONGEST + 2).strip()
    except (OSError, UnicodeDecodeError) as e:
        raise StorageError(f"The key file {file} cannot be read.", "Give a text file with one key.") from e
    if not SHORTEST <= len(key) <= LONGEST or not key.isascii() or not key.isprintable() or " " in key:
        raise SpecError(
            f"The first line of {file} must be a key of {SHORTEST} to {LONGEST} letters, digits and signs.",
            "Write a random key into it, for example with `python -m core keys create`.",
        ).at("key_file")
    return key
