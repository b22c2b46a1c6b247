"""Artefacts: folders of adapters or exports with a checksums.txt, fetched from elsewhere and verified.

    folder, zip, Hub id, rclone remote ─> a folder beside the target ─ every checksum ─> the target

checksums.txt is what `sha256sum` writes: one line per file, "SHA256  NAME", with slashes in names. Nothing
else is believed: the target appears only when every file that the list names has its sha256.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from core.errors import AdapterError, BaseModelError, InvalidName, NotFound, StorageError, StudioError
from core.store import archives
from core.store.base_models import HUB_ID
from core.store.files import ensure_space, rename, sha256_of, storage_error
from core.store.hub import convert_error

CHECKSUMS = "checksums.txt"
LIST_LIMIT_BYTES = 4 << 20
FILE_LIMIT = 10_000
RCLONE_SECONDS = 24 * 3600
# One letter before the colon is a drive of Windows.
REMOTE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+@-]+:.*")
_LINE = re.compile(r"\\?([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class Verified:
    """What was verified.

    Attributes:
        folder: with the files.
        files: name -> sha256, each of them checked.
        unlisted: names of files that the list does not name, which nothing is known of.
    """

    folder: Path
    files: dict[str, str]
    unlisted: tuple[str, ...] = ()


def fetch(source: str, target: Path) -> Verified:
    """Copies an artefact to a folder, complete and verified or not at all.

    Args:
        source: a folder, a zip file, "owner/name" or "owner/name@revision" on the Hub, or a path on a remote
            of rclone ("drive:adapters/x").
        target: must not exist.

    Raises:
        NotFound, AdapterError, DataError, StorageError, DiskFull: it could not be fetched or verified.
        InvalidName: the target exists.
    """
    if target.exists():
        raise InvalidName(f"{target} exists already.", "Name a folder that does not exist.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        _copy(source.strip(), folder)
        found = verify(_find_root(folder))
        try:
            rename(found.folder, target)
        except OSError as e:
            raise storage_error(e, target) from e
    return Verified(target, found.files, found.unlisted)


def verify(folder: Path) -> Verified:
    """Checks every file that the checksums of a folder name.

    Raises:
        NotFound: no such folder. AdapterError: it has no checksums, or a file is missing or changed.
    """
    if not folder.is_dir():
        raise NotFound(f"The folder {str(folder)!r} does not exist.", "Check the path.")
    digests = read_list(folder)
    for name, digest in digests.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise AdapterError(f"{name} is missing, which {CHECKSUMS} names.", "Fetch or copy it again.")
        if (found := sha256_of(path)) != digest:
            raise AdapterError(
                f"{name} has the sha256 {found[:16]}…, and {CHECKSUMS} names {digest[:16]}….",
                "It was changed or is not complete: fetch or copy it again.",
            )
    present = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())
    return Verified(folder, digests, tuple(n for n in present if n not in digests and n != CHECKSUMS))


def read_list(folder: Path) -> dict[str, str]:
    """Name -> sha256, from the checksums of a folder.

    Raises:
        AdapterError: there are none, or a line is not one.
    """
    path = folder / CHECKSUMS
    if not path.is_file() or path.stat().st_size > LIST_LIMIT_BYTES:
        raise AdapterError(
            f"The folder {folder.name!r} has no {CHECKSUMS}, so nothing can be verified.",
            f"Give the folder that an export or a download of the studio has written; or make the list with "
            f"`sha256sum * > {CHECKSUMS}` where the files are known to be right.",
        )
    digests = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else None
        if match is None or name is None or name.is_absolute() or ".." in name.parts:
            raise AdapterError(
                f"Line {number} of {CHECKSUMS} is not a checksum with a name.", "Fetch it again."
            )
        digests[name.as_posix()] = match[1]
    if not digests or len(digests) > FILE_LIMIT:
        raise AdapterError(f"{CHECKSUMS} names {len(digests):,} files.", f"1 to {FILE_LIMIT:,} are read.")
    return digests


# --- sources


def _copy(source: str, folder: Path) -> None:
    path = Path(source).expanduser()
    if path.is_dir():
        _copy_folder(path, folder)
    elif path.is_file():
        archives.extract_some(path, folder, lambda name: True)
    elif HUB_ID.fullmatch(source.partition("@")[0]):
        _download(source, folder)
    elif REMOTE.fullmatch(source):
        _copy_remote(source, folder)
    else:
        raise NotFound(
            f"{source!r} is not a folder, a zip file, a Hub id or a remote of rclone.", "Check the path."
        )


def _copy_folder(path: Path, folder: Path) -> None:
    names = [*read_list(path), CHECKSUMS]
    try:
        sizes = [(path / name).stat().st_size for name in names if (path / name).is_file()]
        ensure_space(folder, sum(sizes))
        for name in names:
            if (path / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, folder / name)
    except OSError as e:
        raise storage_error(e, folder) from e


def _download(source: str, folder: Path) -> None:
    """Downloads the list from the Hub, then what it names."""
    from huggingface_hub import HfApi, hf_hub_download

    name, _, revision = source.partition("@")
    try:
        commit = str(HfApi().model_info(name, revision=revision or None).sha)
        hf_hub_download(name, CHECKSUMS, revision=commit, local_dir=folder)
        for file in read_list(folder):
            hf_hub_download(name, file, revision=commit, local_dir=folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # what the library remembers of a download
    except StudioError:
        raise
    except Exception as e:
        error = convert_error(name, e)
        is_base_error = isinstance(error, BaseModelError)
        raise (AdapterError(error.what, error.fix) if is_base_error else error) from e


def _copy_remote(source: str, folder: Path) -> None:
    program = shutil.which("rclone")
    if program is None:
        raise AdapterError(
            f"{source!r} is on a remote of rclone, which is not installed.",
            "Install rclone, or copy the folder yourself and give its path.",
        )
    command = [program, "copy", "--retries", "3", "--", source, str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=RCLONE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise StorageError(f"rclone could not copy {source!r}: {e}.", "Try again.") from e
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise AdapterError(f"rclone could not copy {source!r}: {lines[-1][:300]}", "Check the remote's name.")


def _find_root(folder: Path) -> Path:
    """The folder with the checksums: a zip may hold it inside one other folder."""
    inner = [p for p in folder.iterdir() if p.is_dir()]
    is_wrapped = not (folder / CHECKSUMS).exists() and len(inner) == 1
    return inner[0] if is_wrapped else folder
