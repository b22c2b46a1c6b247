"""API keys: .api_keys.json holds the name, the role and the hash of each key; a secret is shown once.

The file stays on its machine: it begins with a dot, so backups leave it out. Only its owner can read it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import os
import secrets
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from core.errors import Busy, NotFound, SpecError, StorageError
from core.spec.access import ROLES
from core.store.files import storage_error, write_json
from core.store.locks import FileLock
from core.store.record_types import OneOf, Time
from core.store.records import read_record
from core.store.workspace import Workspace, check_name

PREFIX = "as-"
SECRET_BYTES = 24  # 192 random bits: 32 characters
KEY_LIMIT = 200
LOCK_SECONDS = 5.0  # one change holds the lock for a few milliseconds


@dataclass(frozen=True)
class ApiKey:
    """A key; its secret is not stored.

    Attributes:
        id: names it in a list, and to revoke it.
        digest: the sha256 of the secret, in hexadecimal.
        created: Unix seconds.
        used: the day of its last use, as "2026-01-31"; "" until the first.
    """

    id: str
    name: str
    role: Annotated[str, OneOf(ROLES)]
    digest: str
    created: Time
    used: str = ""


@dataclass(frozen=True)
class ApiKeyFile:
    """The content of the file."""

    keys: tuple[ApiKey, ...] = ()


class ApiKeys:
    """The keys of a workspace. Every process of the workspace may change them, and sees changes at once."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.keys_path
        self._keys: tuple[ApiKey, ...] = ()
        self._version: tuple[int, int, int] | None = None  # of the file that `_keys` was read from

    def list(self) -> tuple[ApiKey, ...]:
        """All keys, oldest first.

        Raises:
            DamagedRecord: the file cannot be read.
        """
        try:
            state = os.stat(self._path)
        except FileNotFoundError:
            self._keys, self._version = (), None
            return ()
        except OSError as e:
            raise storage_error(e, self._path) from e
        version = (state.st_mtime_ns, state.st_size, state.st_ino)
        if version != self._version:
            self._keys, self._version = read_record(self._path, ApiKeyFile).keys, version
        return self._keys

    def create(self, name: str, role: str) -> tuple[ApiKey, str]:
        """Creates a key.

        Args:
            name: who or what uses it; one name, one key.
            role: one of `core.spec.access.ROLES`.

        Returns:
            the key, and its secret, which cannot be read again.

        Raises:
            SpecError: the role is unknown, the name is taken, or there are too many keys.
            InvalidName, Busy, StorageError
        """
        name = check_name(name)
        if role not in ROLES:
            raise SpecError(f"Role must be one of {', '.join(ROLES)}, got {role!r}.").at("role")
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        key = ApiKey(secrets.token_hex(4), name, role, digest_of(secret), _now().timestamp())
        with self._lock():
            keys = self.list()
            if any(k.name == name for k in keys):
                raise SpecError(
                    f"There is already a key called {name!r}.",
                    "Choose another name, or revoke that key first.",
                ).at("name")
            if len(keys) >= KEY_LIMIT:
                raise SpecError(f"At most {KEY_LIMIT} keys are allowed.", "Revoke keys that are not used.")
            self._write((*keys, key))
        return key, secret

    def revoke(self, which: str) -> ApiKey:
        """Removes a key; requests with it are refused from then on.

        Args:
            which: its id or name.

        Raises:
            NotFound: no key has this id or name. Busy, StorageError
        """
        with self._lock():
            keys = self.list()
            found = next((k for k in keys if which in (k.id, k.name)), None)
            if found is None:
                raise NotFound(f"No key has the name or id {which!r}.", "List the keys to see their names.")
            self._write(tuple(k for k in keys if k.id != found.id))
        return found

    def find(self, secret: str) -> ApiKey | None:
        """The key of a secret, or None; notes the day of its use.

        All digests are compared, each in constant time, so that the time says nothing about them.

        Raises:
            DamagedRecord: the file cannot be read.
        """
        digest, found = digest_of(secret), None
        for key in self.list():
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is not None and found.used != _today():
            self._note_use(found.id)
        return found

    def _note_use(self, key_id: str) -> None:
        # A read-only disk, or another process that holds the lock, must not refuse the request.
        with contextlib.suppress(Busy, StorageError), self._lock():
            self._write(tuple(replace(k, used=_today()) if k.id == key_id else k for k in self.list()))

    def _write(self, keys: tuple[ApiKey, ...]) -> None:
        write_json(self._path, {"keys": [asdict(k) for k in keys]})  # atomic, and with mode 0600

    def _lock(self) -> FileLock:
        try:
            return FileLock(self._path.with_name(f"{self._path.name}.lock"), LOCK_SECONDS, temporary=True)
        except OSError as e:
            raise storage_error(e, self._path) from e


def digest_of(secret: str) -> str:
    """The stored form of a secret.

    One pass of SHA-256 is enough: a slow hash protects passwords, which can be guessed, and 192 random bits
    cannot.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _now() -> datetime.datetime:
    return datetime.datetime.now()


def _today() -> str:
    return _now().date().isoformat()
