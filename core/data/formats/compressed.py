"""Gzip and zip files of data: their members are inflated one by one.

    data.jsonl.gz    one file in the format that the name says
    data.zip         files of all formats, also in folders; no archive inside

A member that is read from its beginning to its end is inflated while it is read (`InflatedStream`), another
one into a temporary file without a name. An archive is untrusted: names never become paths, and counts, sizes
and ratio are checked while the bytes are inflated, whatever the headers claim.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from core.data.formats.read_log import ReadLog
from core.errors import DataError
from core.store.files import ensure_space

SUFFIXES = (".gz", ".zip")
ARCHIVES = (".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".7z", ".rar", ".zst", ".lz4")
COUNT_LIMIT = 10_000  # members
DIRECTORY_LIMIT_BYTES = 16 << 20  # the list of members at the end of a zip file
MEMBER_LIMIT_BYTES = 1 << 30
TOTAL_LIMIT_BYTES = 2 << 30  # all members of an archive
RATIO_LIMIT = 200  # inflated bytes per byte of the archive, from RATIO_FLOOR_BYTES on
RATIO_FLOOR_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20
NAME_LIMIT = 300  # characters
RECORD = "adapter-studio.json"  # of the splits, in the zip of a dataset; see `split_record`

_ABOUT = ("readme", "license", "licence", "notice", "changelog", "citation", "contributing")
_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xlsx")
_REPACK = "Unpack it, and import its files or the folder."
# What zipfile and gzip raise for damaged bytes; an OSError only with EINVAL, for an offset outside the file.
_DAMAGE = (
    zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError,
    IndexError, OSError,
)  # fmt: skip
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"


def is_archive(name: str) -> bool:
    """Whether the name is that of a gzip or zip file."""
    return PurePosixPath(name.lower()).suffix in SUFFIXES


def check_archive_name(name: str, formats: Collection[str]) -> None:
    """Checks that the name of a gzip file says which format is inside.

    Raises:
        DataError: it does not, or the file inside is an archive.
    """
    if not name.lower().endswith(".gz"):
        return
    inner = PurePosixPath(name.lower().removesuffix(".gz")).suffix
    if inner in ARCHIVES:
        raise DataError(f"an archive ({inner}) inside a gzip file is not opened.", _REPACK, file=name)
    if inner not in formats:
        raise DataError(
            "the name does not say which format is inside the gzip file.",
            f"Name it like data.jsonl.gz. Supported formats: {', '.join(formats)}.",
            file=name,
        )


def inflate_members(
    file: IO[bytes], name: str, formats: Collection[str], log: ReadLog, streamed: Collection[str] = ()
) -> Iterator[tuple[IO[bytes], str]]:
    """Yields the files of an archive, each open for reading until the next one.

    Args:
        file: the archive, open for reading, seekable.
        name: the archive's name for the user; members are called "data.zip/folder/a.csv".
        formats: suffixes of the files that are wanted; others are left out and counted.
        log: gets the counts.
        streamed: suffixes of the files that are yielded as an `InflatedStream`.

    Raises:
        DataError: not an archive, damaged, encrypted, an archive inside, or above a limit.
    """
    check_archive_name(name, formats)
    with _report_damage(name):
        if name.lower().endswith(".gz"):
            yield from _inflate_gzip(file, name, streamed)
        else:
            yield from _inflate_zip(file, name, formats, log, streamed)


@contextlib.contextmanager
def _report_damage(name: str) -> Iterator[None]:
    """Converts what zipfile and gzip raise for damaged bytes."""
    try:
        yield
    except _DAMAGE as e:
        if isinstance(e, OSError) and e.errno not in (None, errno.EINVAL):
            raise
        raise DataError(
            f"the archive is damaged or incomplete: {str(e)[:120] or type(e).__name__}.",
            "Copy or download it again.",
            file=name,
        ) from e


def _inflate_gzip(file: IO[bytes], name: str, streamed: Collection[str]) -> Iterator[tuple[IO[bytes], str]]:
    def open_member() -> IO[bytes]:
        file.seek(0)
        return gzip.GzipFile(fileobj=file, mode="rb")  # type: ignore[return-value]

    inner = name[: -len(".gz")]
    with _inflate(open_member, _suffix(inner) in streamed, _Budget(name, _measure(file))) as content:
        yield content, inner


def _inflate_zip(
    file: IO[bytes], name: str, formats: Collection[str], log: ReadLog, streamed: Collection[str]
) -> Iterator[tuple[IO[bytes], str]]:
    _check_directory(file, name)
    budget = _Budget(name, _measure(file))
    with zipfile.ZipFile(file) as archive:
        for member in _choose_members(archive.infolist(), name, formats, log):

            def open_member(member: zipfile.ZipInfo = member) -> IO[bytes]:
                return _open_member(archive, member, name)

            with _inflate(open_member, _suffix(member.filename) in streamed, budget) as content:
                yield content, f"{name}/{member.filename}"


@contextlib.contextmanager
def _inflate(open_member: Callable[[], IO[bytes]], is_streamed: bool, budget: _Budget) -> Iterator[IO[bytes]]:
    """Opens a member, as a stream or as a temporary file."""
    if is_streamed:
        with InflatedStream(_Member(open_member, budget)) as stream:
            yield stream
        return
    with open_member() as packed, tempfile.TemporaryFile() as copy:
        _copy(packed, copy, budget)
        yield copy


def measure_members(file: IO[bytes], name: str, formats: Collection[str]) -> dict[str, int]:
    """The names of the files in an archive, and how many bytes each claims to have; nothing is inflated.

    Args:
        file, name, formats: see `inflate_members`.

    Raises:
        DataError: as `inflate_members`, as far as the list of files shows it.
    """
    check_archive_name(name, formats)
    packed = _measure(file)
    if name.lower().endswith(".gz"):
        file.seek(max(0, packed - 4))
        claimed = int.from_bytes(file.read(4), "little")  # of the last part, modulo 4 GB
        file.seek(0)
        return {name[: -len(".gz")]: max(claimed, packed) if claimed <= RATIO_LIMIT * packed else packed}
    with _report_damage(name):
        _check_directory(file, name)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.filename == RECORD for member in members):
                return {RECORD: 0}  # the rows and their recorded splits are read together
            return {m.filename: m.file_size for m in _choose_members(members, name, formats, ReadLog())}


def read_member(file: IO[bytes], name: str, member: str, limit: int) -> bytes | None:
    """The content of one small file of a zip; None if it is not there, or is not a plain file.

    Args:
        file: the zip, open for reading, seekable.
        name: the zip's name for the user.
        member: the name of the file inside.
        limit: bytes that it may have.

    Raises:
        DataError: not a zip file, damaged, encrypted, or the file is above the limit.
    """
    with _report_damage(name):
        _check_directory(file, name)
        with zipfile.ZipFile(file) as archive:
            found = next((m for m in archive.infolist() if m.filename == member), None)
            if found is None or _find_objection(found, name, (_suffix(member),)):
                return None
            with _open_member(archive, found, name) as packed:
                data = packed.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{member} may have at most {limit:,} bytes.", "Remove it.", file=name)
    return data


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> IO[bytes]:
    try:
        return archive.open(member)
    except RuntimeError as e:  # what zipfile raises for a password
        raise _refuse_password(name, member.filename) from e


def _refuse_password(name: str, member: str) -> DataError:
    return DataError(f"{member} is encrypted.", "Unpack the archive with its password.", file=name)


def _check_directory(file: IO[bytes], name: str) -> None:
    """Checks the size of the list of members before it is read into memory."""
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - 100))
    tail = file.read()
    at, at64 = tail.rfind(_END), tail.rfind(_END64)
    directory = 0
    if at >= 0 and len(tail) >= at + 22:
        directory = struct.unpack_from("<L", tail, at + 12)[0]
    if directory == 0xFFFFFFFF and at64 >= 0 and len(tail) >= at64 + 56:
        directory = struct.unpack_from("<Q", tail, at64 + 40)[0]
    if directory > DIRECTORY_LIMIT_BYTES:
        raise DataError(
            f"the archive's list of files has {directory:,} bytes; "
            f"at most {DIRECTORY_LIMIT_BYTES:,} are read.",
            "Pack fewer files, or put many short texts into one file.",
            file=name,
        )
    file.seek(0)


def _choose_members(
    members: list[zipfile.ZipInfo], name: str, formats: Collection[str], log: ReadLog
) -> list[zipfile.ZipInfo]:
    """Chooses the members to inflate, sorted by name, and counts the others in the log."""
    if len(members) > COUNT_LIMIT:
        raise DataError(
            f"an archive may have at most {COUNT_LIMIT:,} files, got {len(members):,}.",
            "Pack fewer files, or put many short texts into one file.",
            file=name,
        )
    left_out: Counter[str] = Counter()
    chosen: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        if member.is_dir() or _is_hidden(member.filename) or member.filename == RECORD:
            continue
        if reason := _find_objection(member, name, formats):
            left_out[reason] += 1
            continue
        left_out["of which a later one has the same name"] += member.filename in chosen
        chosen[member.filename] = member
    if any(_suffix(n) in _TABLES for n in chosen):
        about = [n for n in chosen if PurePosixPath(n).stem.lower().startswith(_ABOUT)]
        for n in (n for n in about if _suffix(n) not in _TABLES):
            left_out["about the data, such as README"] += 1
            del chosen[n]
    for reason, count in left_out.items():
        if count:
            log.say(f"{name}: {count:,} {'file is' if count == 1 else 'files are'} left out, {reason}.")
    if not chosen:
        raise DataError(
            "the archive has no supported file.", f"Supported formats: {', '.join(formats)}.", file=name
        )
    return [chosen[n] for n in sorted(chosen)]


def _is_hidden(member: str) -> bool:
    parts = PurePosixPath(member).parts
    return "__MACOSX" in parts or any(p.startswith(".") and p not in (".", "..") for p in parts)


def _find_objection(member: zipfile.ZipInfo, name: str, formats: Collection[str]) -> str:
    """Why a member is left out; "" if it is read.

    Raises:
        DataError: it is an archive, encrypted, or compressed in a way that is not supported.
    """
    path, suffix = PurePosixPath(member.filename), _suffix(member.filename)
    mode = stat.S_IFMT(member.external_attr >> 16)
    if mode not in (0, stat.S_IFREG):
        return "links or devices"
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in path.parts[0]:
        return "with a path that leaves the archive"
    if len(member.filename) > NAME_LIMIT:
        return f"with a name of more than {NAME_LIMIT} characters"
    if suffix in ARCHIVES:
        raise DataError(f"{member.filename[:120]} is an archive inside the archive.", _REPACK, file=name)
    if suffix not in formats:
        return f"of other formats ({suffix or 'without a suffix'})"
    if member.flag_bits & 1:
        raise _refuse_password(name, member.filename[:120])
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{member.filename[:120]} is compressed with a method that is not supported.",
            "Pack it again with the usual method (deflate), or import the unpacked files.",
            file=name,
        )
    return ""


def _suffix(member: str) -> str:
    return PurePosixPath(member.lower()).suffix


class _Budget:
    """Counts the inflated bytes of an archive.

    Args:
        packed: bytes of the archive.
    """

    def __init__(self, name: str, packed: int) -> None:
        self.name, self.packed, self.total = name, packed, 0

    def spend(self, size: int, member: int) -> None:
        """Counts a block; `member` is the size of its member so far.

        Raises:
            DataError: a limit is exceeded.
        """
        self.total += size
        allowed = max(RATIO_FLOOR_BYTES, RATIO_LIMIT * self.packed)
        problem = ""
        if member > MEMBER_LIMIT_BYTES:
            problem = f"a file inside has more than {MEMBER_LIMIT_BYTES:,} bytes"
        elif self.total > TOTAL_LIMIT_BYTES:
            problem = f"the archive inflates to more than {TOTAL_LIMIT_BYTES:,} bytes"
        elif self.total > allowed:
            problem = f"the archive of {self.packed:,} bytes inflates to more than {allowed:,}"
        if problem:
            raise DataError(f"{problem}.", _REPACK, file=self.name)


@dataclass
class _Member:
    """A member of an archive, which can be opened several times.

    Attributes:
        open: opens it at its beginning.
        counted: bytes that the budget has counted; those that are inflated again do not count.
    """

    open: Callable[[], IO[bytes]]
    budget: _Budget
    counted: int = 0


class _InflatedBytes(io.RawIOBase):
    """The bytes of a member, inflated while they are read; `seek` goes to the beginning only."""

    def __init__(self, member: _Member) -> None:
        self._member, self._at = member, 0
        self._packed: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, space: Any) -> int:
        member = self._member
        with _report_damage(member.budget.name):
            if self._packed is None:
                self._packed = member.open()
            block = self._packed.read(len(space))
        space[: len(block)] = block
        self._at += len(block)
        if self._at > member.counted:
            member.budget.spend(self._at - member.counted, self._at)
            member.counted = self._at
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset == 0:
            self._close_member()
            self._at = 0
        elif offset or whence != io.SEEK_CUR:
            raise io.UnsupportedOperation("an inflated file is read from its beginning")
        return self._at

    def _close_member(self) -> None:
        if self._packed is not None:
            self._packed.close()
            self._packed = None

    def close(self) -> None:
        self._close_member()
        super().close()


class InflatedStream(io.BufferedReader):
    """A member of an archive that is inflated while it is read, within the limits of archives.

    It can be read again from the beginning, which inflates it again. The archive must stay open.
    """

    def __init__(self, member: _Member) -> None:
        super().__init__(_InflatedBytes(member), BLOCK_BYTES)
        self._member = member

    def reopen(self) -> InflatedStream:
        """The same content from its beginning, as a file of its own. One of them is read at a time."""
        return InflatedStream(self._member)


def _copy(packed: IO[bytes], copy: IO[bytes], budget: _Budget) -> None:
    """Inflates a member into the temporary file, and leaves that at its beginning."""
    size = 0
    while block := packed.read(BLOCK_BYTES):
        size += len(block)
        budget.spend(len(block), size)
        if size % (64 * BLOCK_BYTES) < BLOCK_BYTES:
            ensure_space(Path(tempfile.gettempdir()), 64 * BLOCK_BYTES)
        copy.write(block)
    copy.flush()
    copy.seek(0)


def _measure(file: IO[bytes]) -> int:
    size = file.seek(0, 2)
    file.seek(0)
    return size


@contextlib.contextmanager
def check_zip_parts(file: IO[bytes], name: str, total_bytes: int) -> Iterator[zipfile.ZipFile]:
    """Opens a format that is a zip file, such as .xlsx, and checks what its parts claim to inflate to.

    Args:
        total_bytes: limit of all parts together. A reader has to count as well, since headers may be wrong.

    Raises:
        DataError: not a zip file, encrypted, or too large.
    """
    _check_directory(file, name)
    packed = _measure(file)
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            total = sum(p.file_size for p in parts)
            if len(parts) > COUNT_LIMIT or total > min(
                total_bytes, max(RATIO_FLOOR_BYTES, RATIO_LIMIT * packed)
            ):
                raise DataError(
                    f"its {len(parts):,} parts inflate to {total:,} bytes, more than are read.",
                    "Save it again, or as .csv.",
                    file=name,
                )
            yield archive
    except _DAMAGE as e:
        if isinstance(e, OSError) and e.errno not in (None, errno.EINVAL):
            raise
        raise DataError(
            "the file is damaged, or not of the format that its name says.",
            "Open it in its program, and save it again.",
            file=name,
        ) from e
