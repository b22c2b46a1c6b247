"""Zip archives that are moved between machines: written with checksums, extracted as untrusted input.

`extract` accepts only regular files under expected names, within limits of number, size and compression
ratio, and checks these of every member before it writes the first one. SHA256SUMS detects damage but not
tampering, so the caller still checks the content.
"""

from __future__ import annotations

import hashlib
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import DataError
from core.store.files import atomic_write, check_regular_file, ensure_space, storage_error

SUMS = "SHA256SUMS"
COUNT_LIMIT = 10_100  # members; a dataset has up to 10,000 files
MEMBER_LIMIT_BYTES = 4 << 30
TOTAL_LIMIT_BYTES = 8 << 30
SUMS_LIMIT_BYTES = 4 << 20
RATIO_LIMIT = 250  # deflate at LEVEL compresses no better than this; a zip bomb does
LEVEL = 1
BLOCK_BYTES = 1 << 20
REPACK = "Download the file again, or pack it again."
# Relative names without "..", empty parts, drives and control characters.
INSIDE = re.compile(r"(?!\.\.?(?:/|$))[^\x00-\x1f\x7f/\\:]+(?:/(?!\.\.?(?:/|$))[^\x00-\x1f\x7f/\\:]+)*")
INCOMPRESSIBLE = (".safetensors", ".zip", ".gz", ".parquet", ".pt", ".pth")  # are stored as they are


@dataclass(frozen=True)
class Limits:
    """What an archive may hold.

    Attributes:
        count: members, SHA256SUMS included.
        member_bytes, total_bytes: size of one member and of all members, uncompressed.
        sums_bytes: size of SHA256SUMS.
    """

    count: int
    member_bytes: int
    total_bytes: int
    sums_bytes: int


@dataclass(frozen=True)
class ArchiveProgress:
    """How far an archive is written or extracted, in bytes of content."""

    done: int
    total: int
    name: str


Report = Callable[[ArchiveProgress], None]


def default_limits() -> Limits:
    """The limits of a bundle or a result."""
    return Limits(COUNT_LIMIT, MEMBER_LIMIT_BYTES, TOTAL_LIMIT_BYTES, SUMS_LIMIT_BYTES)


def write(
    path: Path,
    members: Mapping[str, Path | bytes],
    limits: Limits | None = None,
    report: Report | None = None,
) -> None:
    """Writes an archive and its SHA256SUMS; it appears complete or not at all.

    Every file is read once: the sha256 is that of the bytes in the archive.

    Args:
        members: name in the archive -> file or content.
        limits: None takes those of a bundle.
        report: receives the progress before each member.

    Raises:
        DataError: more or larger members than `extract` accepts. StorageError: it could not be written.
    """
    sizes = {n: len(m) if isinstance(m, bytes) else m.stat().st_size for n, m in members.items()}
    _check_sizes(path, [*sizes.values()], limits or default_limits())
    ensure_space(path.parent, sum(sizes.values()))
    sums, done = {}, 0
    with (
        atomic_write(path) as f,
        zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL, strict_timestamps=False) as z,
    ):
        for name, member in members.items():
            if report is not None:
                report(ArchiveProgress(done, sum(sizes.values()), name))
            sums[name] = _add_member(z, name, member)
            done += sizes[name]
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
        z.writestr(zipfile.ZipInfo(SUMS), text.encode(), zipfile.ZIP_DEFLATED, LEVEL)


def _add_member(z: zipfile.ZipFile, name: str, member: Path | bytes) -> str:
    """Adds one member; returns the sha256 of its content."""
    if isinstance(member, bytes):
        z.writestr(zipfile.ZipInfo(name), member, zipfile.ZIP_DEFLATED, LEVEL)
        return hashlib.sha256(member).hexdigest()
    info = zipfile.ZipInfo.from_file(check_regular_file(member), name, strict_timestamps=False)
    is_compressible = not name.endswith(INCOMPRESSIBLE)
    info.compress_type = zipfile.ZIP_DEFLATED if is_compressible else zipfile.ZIP_STORED
    info._compresslevel = LEVEL  # type: ignore[attr-defined] # ZipFile.write sets it in the same way
    sha = hashlib.sha256()
    with open(member, "rb") as source, z.open(info, "w") as f:
        while block := source.read(BLOCK_BYTES):
            sha.update(block)
            f.write(block)
    return sha.hexdigest()


def extract(
    path: Path,
    folder: Path,
    allowed: re.Pattern[str],
    limits: Limits | None = None,
    report: Report | None = None,
) -> list[str]:
    """Extracts an archive into an empty folder; returns the names of the members.

    Args:
        allowed: matches the full names that members may have.
        limits: None takes those of a bundle.
        report: receives the progress before each member.

    Raises:
        DataError: not an archive of `write`, a member that is not a regular file or not allowed, too many or
            too large members, or a wrong checksum. StorageError: a file could not be written.
    """
    limits, done = limits or default_limits(), 0
    try:
        with zipfile.ZipFile(check_regular_file(path)) as z:
            members = _check_members(path, z.infolist(), allowed, limits)
            sums = _read_sums(path, z, members, limits)
            total = sum(m.file_size for m in members)
            ensure_space(folder, total)
            for member in members:
                if report is not None:
                    report(ArchiveProgress(done, total, member.filename))
                done += member.file_size
                if member.filename != SUMS and _extract_member(z, member, folder) != sums[member.filename]:
                    raise _error(path, f"The sha256 of {member.filename} does not match {SUMS}.", REPACK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as e:
        raise _error(path, f"It cannot be read as a zip file ({e}).", REPACK) from e
    except OSError as e:
        raise storage_error(e, folder) from e
    return [m.filename for m in members if m.filename != SUMS]


def extract_some(
    path: Path, folder: Path, is_chosen: Callable[[str], bool], limits: Limits | None = None
) -> list[str]:
    """Extracts some members of an archive that any program packed; returns their names.

    The rules are those of `extract` without SHA256SUMS and without a list of allowed names: a member that is
    not chosen is not written, whatever its name. A link anywhere in the archive refuses it.

    Args:
        folder: an empty folder. is_chosen: receives the name of a member.

    Raises:
        DataError: a link, a chosen member that is not a regular file or leaves the folder, too many or too
            large members. StorageError: a file could not be written.
    """
    limits = limits or default_limits()
    try:
        with zipfile.ZipFile(check_regular_file(path)) as z:
            entries = z.infolist()
            if link := next((m for m in entries if stat.S_ISLNK(m.external_attr >> 16)), None):
                raise _error(
                    path, f"The member {link.filename[:120]!r} is a link.", "Pack the files themselves."
                )
            if len(entries) > limits.count:
                _check_sizes(path, [0] * len(entries), limits)
            chosen = [m for m in entries if not m.is_dir() and is_chosen(m.filename)]
            members = _check_members(path, chosen, INSIDE, limits)
            ensure_space(folder, sum(m.file_size for m in members))
            for member in members:
                _extract_member(z, member, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as e:
        raise _error(path, f"It cannot be read as a zip file ({e}).", REPACK) from e
    except OSError as e:
        raise storage_error(e, folder) from e
    return [m.filename for m in members]


def _error(path: Path, what: str, fix: str) -> DataError:
    return DataError(what, fix, file=path.name)


def _check_sizes(path: Path, sizes: list[int], limits: Limits) -> None:
    if len(sizes) > limits.count:
        raise _error(
            path, f"It must have at most {limits.count} members, got {len(sizes)}.", "Pack less data."
        )
    if sizes and (max(sizes) > limits.member_bytes or sum(sizes) > limits.total_bytes):
        raise _error(
            path,
            f"It must have at most {limits.total_bytes >> 30} GiB, {limits.member_bytes >> 30} GiB per file, "
            f"got {sum(sizes) / (1 << 30):.1f} GiB and a file of {max(sizes) / (1 << 30):.1f} GiB.",
            "Pack less data.",
        )


def _check_members(
    path: Path, members: list[zipfile.ZipInfo], allowed: re.Pattern[str], limits: Limits
) -> list[zipfile.ZipInfo]:
    """Checks the name, type and size of every member; returns the members."""
    _check_sizes(path, [m.file_size for m in members], limits)
    names = [m.filename for m in members]
    for member, name in zip(members, names, strict=True):
        mode = member.external_attr >> 16
        if name != SUMS and not allowed.fullmatch(name):
            raise _error(
                path,
                f"The member {name[:120]!r} is not allowed.",
                "Use a file that Adapter Studio packed.",
            )
        if (mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode)) or member.is_dir() or member.flag_bits & 1:
            raise _error(
                path,
                f"The member {name!r} is not a regular file.",
                "Links, folders, devices and encrypted members are not allowed.",
            )
        if member.file_size > RATIO_LIMIT * max(member.compress_size, 1) and member.file_size > BLOCK_BYTES:
            raise _error(
                path,
                f"The compression ratio of {name!r} must be at most {RATIO_LIMIT}, "
                f"got {member.file_size // max(member.compress_size, 1)}.",
                "Use a file that Adapter Studio packed.",
            )
    # A disk may ignore case (Windows, macOS) and the form of accents (macOS).
    folded = {unicodedata.normalize("NFC", n).casefold() for n in names}
    if len(folded) != len(names):
        raise _error(path, "It has two members of the same name.", REPACK)
    if any(_is_inside_file(n, folded) for n in folded):
        raise _error(path, "It has a file and a folder of the same name.", REPACK)
    return members


def _is_inside_file(name: str, files: set[str]) -> bool:
    """Whether a folder above `name` is one of the files."""
    parts = name.split("/")
    return any("/".join(parts[:i]) in files for i in range(1, len(parts)))


def _read_sums(
    path: Path, z: zipfile.ZipFile, members: list[zipfile.ZipInfo], limits: Limits
) -> dict[str, str]:
    entry = next((m for m in members if m.filename == SUMS), None)
    if entry is None or entry.file_size > limits.sums_bytes:
        raise _error(path, f"Its {SUMS} is missing or too large.", "Use a file that Adapter Studio packed.")
    lines = [line.partition("  ") for line in z.read(entry).decode("utf-8").splitlines()]
    sums = {name: digest for digest, _, name in lines}
    if {*sums, SUMS} != {m.filename for m in members}:
        raise _error(path, f"{SUMS} does not list exactly its members.", REPACK)
    return sums


def _extract_member(z: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> str:
    """Extracts one member; returns the sha256 of its content."""
    target = folder / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    sha = hashlib.sha256()
    with z.open(member) as source, open(target, "xb") as f:
        while block := source.read(BLOCK_BYTES):  # zipfile stops at the size that was checked
            sha.update(block)
            f.write(block)
    return sha.hexdigest()
