"""Zip archives that are moved between machines: written with checksums, extracted as untrusted input.

`extract` accepts only regular files under expected names, within limits of number, size and compression
ratio, and checks these of every member before it writes the first one. SHA256SUMS detects damage but not
tampering, so the caller still checks the content.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from core.errors import DataError
from core.store.workspace import atomic_write, check_regular_file, ensure_space, sha256_of, storage_error

SUMS = "SHA256SUMS"
COUNT_LIMIT = 10_100  # members; a dataset has up to 10,000 files
MEMBER_LIMIT_BYTES = 4 << 30
TOTAL_LIMIT_BYTES = 8 << 30
SUMS_LIMIT_BYTES = 4 << 20
RATIO_LIMIT = 250  # deflate at LEVEL compresses no better than this; a zip bomb does
LEVEL = 1
BLOCK_BYTES = 1 << 20
REPACK = "Download the file again, or pack it again."


def write(path: Path, members: Mapping[str, Path | bytes]) -> None:
    """Writes an archive and its SHA256SUMS; it appears complete or not at all.

    Args:
        members: name in the archive -> file or content.

    Raises:
        DataError: more or larger members than `extract` accepts. StorageError: it could not be written.
    """
    sizes = {n: len(m) if isinstance(m, bytes) else m.stat().st_size for n, m in members.items()}
    _check_sizes(path, [*sizes.values()])
    sums = {
        n: hashlib.sha256(m).hexdigest() if isinstance(m, bytes) else sha256_of(m) for n, m in members.items()
    }
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    with (
        atomic_write(path) as f,
        zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL, strict_timestamps=False) as z,
    ):
        for name, member in {**members, SUMS: text.encode()}.items():
            if isinstance(member, bytes):
                z.writestr(zipfile.ZipInfo(name), member, zipfile.ZIP_DEFLATED, LEVEL)
            else:
                z.write(check_regular_file(member), name)


def extract(path: Path, folder: Path, allowed: re.Pattern[str]) -> list[str]:
    """Extracts an archive into an empty folder; returns the names of the members.

    Args:
        allowed: matches the full names that members may have.

    Raises:
        DataError: not an archive of `write`, a member that is not a regular file or not allowed, too many or
            too large members, or a wrong checksum. StorageError: a file could not be written.
    """
    try:
        with zipfile.ZipFile(check_regular_file(path)) as z:
            members = _check_members(path, z.infolist(), allowed)
            sums = _read_sums(path, z, members)
            ensure_space(folder, sum(m.file_size for m in members))
            for member in members:
                if member.filename != SUMS and _extract_member(z, member, folder) != sums[member.filename]:
                    raise _error(path, f"The sha256 of {member.filename} does not match {SUMS}.", REPACK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as e:
        raise _error(path, f"It cannot be read as a zip file ({e}).", REPACK) from e
    except OSError as e:
        raise storage_error(e, path) from e
    return [m.filename for m in members if m.filename != SUMS]


def _error(path: Path, what: str, fix: str) -> DataError:
    return DataError(what, fix, file=path.name)


def _check_sizes(path: Path, sizes: list[int]) -> None:
    if len(sizes) > COUNT_LIMIT:
        raise _error(
            path, f"It must have at most {COUNT_LIMIT} members, got {len(sizes)}.", "Pack less data."
        )
    if sizes and (max(sizes) > MEMBER_LIMIT_BYTES or sum(sizes) > TOTAL_LIMIT_BYTES):
        raise _error(
            path,
            f"It must have at most {TOTAL_LIMIT_BYTES >> 30} GiB, {MEMBER_LIMIT_BYTES >> 30} GiB per file, "
            f"got {sum(sizes) / (1 << 30):.1f} GiB and a file of {max(sizes) / (1 << 30):.1f} GiB.",
            "Pack less data.",
        )


def _check_members(
    path: Path, members: list[zipfile.ZipInfo], allowed: re.Pattern[str]
) -> list[zipfile.ZipInfo]:
    """Checks the name, type and size of every member; returns the members."""
    _check_sizes(path, [m.file_size for m in members])
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
    if len(set(names)) != len(names):
        raise _error(path, "It has two members of the same name.", REPACK)
    return members


def _read_sums(path: Path, z: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> dict[str, str]:
    entry = next((m for m in members if m.filename == SUMS), None)
    if entry is None or entry.file_size > SUMS_LIMIT_BYTES:
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
