"""Zip files that travel between machines: written with the sha256 of every member, opened with suspicion.

Knows zip files and SHA256SUMS. Knows nothing of what the members mean. The sums tell damage, not
intent: whoever opens an archive still checks what it says.
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
from core.store.workspace import ensure_space, check_regular_file, sha256_of, storage_error, atomic_write

SUMS = "SHA256SUMS"
COUNT_LIMIT = 10_100  # members; a dataset has up to 10 000 files
MEMBER_LIMIT_BYTES = 4 << 30
TOTAL_LIMIT_BYTES = 8 << 30
SUMS_LIMIT_BYTES = 4 << 20
RATIO_LIMIT = 250  # what deflate reaches at our level at the very best; a bomb needs more
LEVEL = 1
BLOCK = 1 << 20
AGAIN = "Download or pack it again."


def write(path: Path, members: Mapping[str, Path | bytes]) -> None:
    """Writes a zip of files and bytes under the names given, and their SHA256SUMS; it appears whole or not at all.

    Raises:
        DataError: more, or larger, than `extract` takes. StorageError: the disk refused.
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


def extract(path: Path, place: Path, allowed: re.Pattern[str]) -> list[str]:
    """Unpacks an archive of ours member by member into an empty folder; returns the members' names.

    Args:
        allowed: the whole names that a member may have.

    Raises:
        DataError: no such archive, a member that is no plain file or not allowed, too many or too large ones, or other bytes than were packed.
        StorageError: the disk refused.
    """
    try:
        with zipfile.ZipFile(check_regular_file(path)) as z:
            members = _checked(path, z.infolist(), allowed)
            sums = _sums(path, z, members)
            ensure_space(place, sum(m.file_size for m in members))
            for member in members:
                if member.filename != SUMS and _copy(z, member, place) != sums[member.filename]:
                    raise _refused(
                        path, f"{member.filename} is not what was packed: its sha256 differs.", AGAIN
                    )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as e:
        raise _refused(path, f"It cannot be read as a zip file ({e}).", AGAIN) from e
    except OSError as e:
        raise storage_error(e, path) from e
    return [m.filename for m in members if m.filename != SUMS]


def _refused(path: Path, what: str, fix: str) -> DataError:
    return DataError(what, fix, file=path.name)


def _check_sizes(path: Path, sizes: list[int]) -> None:
    if len(sizes) > COUNT_LIMIT:
        raise _refused(path, f"It has {len(sizes)} members.", f"At most {COUNT_LIMIT} are taken.")
    if sizes and (max(sizes) > MEMBER_LIMIT_BYTES or sum(sizes) > TOTAL_LIMIT_BYTES):
        what = f"It holds {sum(sizes) / 1e9:.1f} GB."
        raise _refused(
            path,
            what,
            f"At most {TOTAL_LIMIT_BYTES >> 30} GiB are taken, and {MEMBER_LIMIT_BYTES >> 30} GiB a file.",
        )


def _checked(path: Path, members: list[zipfile.ZipInfo], allowed: re.Pattern[str]) -> list[zipfile.ZipInfo]:
    """The members, every one a plain file under a name that is allowed; nothing is unpacked before all of them are seen."""
    _check_sizes(path, [m.file_size for m in members])
    names = [m.filename for m in members]
    for member, name in zip(members, names, strict=True):
        mode = member.external_attr >> 16
        if name != SUMS and not allowed.fullmatch(name):
            raise _refused(
                path,
                f"The member {name[:120]!r} does not belong into it.",
                "Only what Adapter Studio packed is taken.",
            )
        if (mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode)) or member.is_dir() or member.flag_bits & 1:
            raise _refused(
                path,
                f"The member {name!r} is not a plain file.",
                "Links, folders, devices and encrypted members are not taken.",
            )
        if member.file_size > RATIO_LIMIT * max(member.compress_size, 1) and member.file_size > BLOCK:
            raise _refused(
                path,
                f"The member {name!r} grows {member.file_size // max(member.compress_size, 1)}-fold.",
                f"At most {RATIO_LIMIT}-fold is taken.",
            )
    if len(set(names)) != len(names):
        raise _refused(path, "It has two members of one name.", AGAIN)
    return members


def _sums(path: Path, z: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> dict[str, str]:
    found = next((m for m in members if m.filename == SUMS), None)
    if found is None or found.file_size > SUMS_LIMIT_BYTES:
        raise _refused(
            path, f"It has no {SUMS}, or one that is too large.", "Only what Adapter Studio packed is taken."
        )
    lines = [line.partition("  ") for line in z.read(found).decode("utf-8").splitlines()]
    sums = {name: digest for digest, _, name in lines}
    if {*sums, SUMS} != {m.filename for m in members}:
        raise _refused(path, f"{SUMS} lists other files than it has.", AGAIN)
    return sums


def _copy(z: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path) -> str:
    """Unpacks one member; returns the sha256 of its bytes."""
    target = place / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    sha = hashlib.sha256()
    with z.open(member) as source, open(target, "xb") as f:
        while block := source.read(BLOCK):  # never more than the size that was checked
            sha.update(block)
            f.write(block)
    return sha.hexdigest()
