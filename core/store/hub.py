"""Downloads of base models from the Hugging Face Hub into its cache.

Honours HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_TOKEN, as huggingface_hub does. Downloads only the config,
tokenizer and safetensors files in the top folder of a repository, never code or pickles. Weight files are
checked by sha256.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import BaseModelError, DiskFull, StudioError
from core.store.base_models import HUB_ID, WEIGHTS
from core.store.files import FULL, atomic_write, ensure_space, replace, sha256_of, sync_file, sync_folder
from core.store.locks import FileLock

# Only these files of a repository are downloaded: no pickles, no code, and nothing from subfolders.
DOWNLOADED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    WEIGHTS,
    "*.safetensors.index.json",
)
SKIPPED_FILES = ("*/*", "consolidated*", "*.py")
PART = ".part"
CHUNK_BYTES = 1 << 20
PARTIAL_CONTENT = 206  # the HTTP status of an answer to a range request
RETRIES = 5  # of a broken connection in a row, without a byte in between


@dataclass(frozen=True)
class Download:
    """The state of a download.

    Attributes:
        done, total: bytes on this machine and in all; the total is 0 until the Hub has answered.
        error: why it failed, or "".
        over: it has ended.
        text: what is being done; "" means that bytes arrive from the Hub.
        base: the base that is ready now, where it has another name than the download; else "".
    """

    name: str
    done: int = 0
    total: int = 0
    error: str = ""
    over: bool = False
    text: str = ""
    base: str = ""


class DownloadStopped(StudioError):
    """The user stopped a download. The downloaded bytes stay, and the next download continues from them."""


def download(name: str, report: Callable[[Download], None], poll_stop: Callable[[], bool]) -> Path:
    """Downloads a model from the Hub into its cache.

    huggingface_hub 2.4 restarts an interrupted file from its first byte, however large it is. So the weight
    files are downloaded here, by range requests, into the folder where the library looks for them; the
    library itself downloads the other files.

    Args:
        name: a Hub id.
        report: receives the state of the download often.
        poll_stop: returns True to stop the download.

    Returns:
        The folder of the snapshot.

    Raises:
        BaseModelError: not a Hub id, a gated or unknown model, no connection, or no weights that can be read.
        DiskFull: it does not fit on the disk. Busy: another process downloads it. DownloadStopped.
    """
    from huggingface_hub import HfApi, snapshot_download

    if not HUB_ID.fullmatch(name):
        raise BaseModelError(
            f'A Hub id must have the form "owner/name", got {name!r}.',
            'Enter an id such as "Qwen/Qwen2.5-0.5B-Instruct".',
        )
    report(Download(name))
    try:
        info = HfApi().model_info(name, files_metadata=True)
        sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or () if _is_downloaded(s.rfilename)}
        weights = [f for f in sizes if fnmatch.fnmatch(f, WEIGHTS)]
        if not weights:
            raise BaseModelError(
                f"{name!r} has no *.safetensors weights.",
                "Other formats can run code and are not loaded: choose another repository of the model.",
            )
        _download_weights(name, str(info.sha), weights, sizes, report, poll_stop)
        path = snapshot_download(
            name, revision=info.sha, allow_patterns=list(sizes), tqdm_class=_make_silent_bar()
        )
        refs = Path(path).parents[1] / "refs"  # beside snapshots/<commit>
        refs.mkdir(exist_ok=True)
        # The library was given a commit, so it has not written the ref of the main branch.
        with atomic_write(refs / "main", "w") as f:
            f.write(str(info.sha))
        return Path(path)
    except Exception as e:
        raise convert_error(name, e) from e


def _download_weights(
    name: str,
    commit: str,
    weights: list[str],
    sizes: dict[str, int],
    report: Callable[[Download], None],
    poll_stop: Callable[[], bool],
) -> None:
    """Downloads the weight files into the cache; `sizes` has the bytes of every file of the model."""
    from huggingface_hub import constants

    total, done = sum(sizes.values()), 0
    for file in weights:
        blob, url = _locate_blob(name, file, commit)
        part = blob.with_name(f"{blob.name}{PART}")
        if not blob.exists():
            size_here = part.stat().st_size if part.exists() else 0
            ensure_space(Path(constants.HF_HUB_CACHE), total - done - size_here)
            for size_here in download_part(url, part, sizes[file]):
                if poll_stop():
                    raise DownloadStopped(
                        f"The download of {name!r} was stopped.", "Start it again to continue it."
                    )
                report(Download(name, done + size_here, total))
            _commit_part(part, blob, sizes[file])
        done += sizes[file]
        report(Download(name, done, total))


def _is_downloaded(file: str) -> bool:
    return any(fnmatch.fnmatch(file, p) for p in DOWNLOADED_FILES) and not any(
        fnmatch.fnmatch(file, p) for p in SKIPPED_FILES
    )


def _locate_blob(name: str, file: str, commit: str) -> tuple[Path, str]:
    """(where huggingface_hub looks for the content of a file, its address)"""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    url = hf_hub_url(name, file, revision=commit)
    etag = str(get_hf_file_metadata(url).etag)
    if not re.fullmatch(r"[\w-]+", etag):
        raise BaseModelError(
            f"The Hub sent the etag {etag!r} for {file!r}, which cannot be a file name.", "Try again later."
        )
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "blobs"
    return blobs / etag, url


def download_part(url: str, part: Path, size: int) -> Iterator[int]:
    """Downloads the rest of a file; yields its size so far. Reconnects after a broken connection."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    part.parent.mkdir(parents=True, exist_ok=True)
    lock, failures = FileLock(part.with_name(f"{part.name}.lock")), 0
    try:
        while (start := part.stat().st_size if part.exists() else 0) < size:
            headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
            try:
                with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
                    hf_raise_for_status(response)
                    with open(part, "ab" if response.status_code == PARTIAL_CONTENT else "wb") as f:
                        for chunk in response.iter_bytes(CHUNK_BYTES):
                            f.write(chunk)
                            failures = 0
                            if f.tell() > size:
                                raise BaseModelError(
                                    f"The Hub sends more than the {size:,} bytes that it announced.",
                                    "Start the download again.",
                                )
                            yield f.tell()
            except (OSError, StudioError):
                raise
            except Exception as e:
                failures += 1
                if failures > RETRIES or not _is_connection_error(e):
                    raise
    finally:
        lock.release()


def _is_connection_error(error: Exception) -> bool:
    import httpx2

    return isinstance(error, httpx2.TransportError)


def _commit_part(part: Path, blob: Path, size: int) -> None:
    """Checks a complete file and renames it to its blob. The blob of a large file is named after its sha256.

    Raises:
        BaseModelError: wrong size or checksum; the file is deleted.
    """
    is_sha256 = re.fullmatch(r"[0-9a-f]{64}", blob.name) is not None
    if part.stat().st_size != size or (is_sha256 and sha256_of(part) != blob.name):
        part.unlink()
        raise BaseModelError(
            "A weight file failed its checksum.",
            "Start the download again; the complete files are kept.",
        )
    sync_file(part)
    replace(part, blob)
    sync_folder(blob.parent)


def _make_silent_bar() -> Any:
    """A tqdm class that draws nothing."""
    from tqdm.std import tqdm

    class SilentBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return SilentBar


def convert_error(name: str, error: Exception) -> StudioError:
    """Converts an error of a download into the error that the user sees."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, StudioError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return DiskFull(
            f"The disk is full: the download of {name!r} stopped.",
            "Free some space and start the download again; the bytes that have arrived are kept.",
        )
    text = f"{type(error).__name__}: {error}".strip().split("\n")[0][:200]
    if isinstance(error, GatedRepoError):
        return BaseModelError(
            f"{name!r} is gated.",
            "Request access on its Hub page, log in with `hf auth login` or set HF_TOKEN, and start again.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return BaseModelError(
            f"The Hub has no model {name!r}, or it is private.",
            "Check the spelling. For a private model, log in with `hf auth login` or set HF_TOKEN.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return BaseModelError(
            f"{name!r} is not on this machine, and HF_HUB_OFFLINE is set.",
            "Unset HF_HUB_OFFLINE to download it, or choose a base on this machine.",
        )
    if isinstance(error, HfHubHTTPError):
        return BaseModelError(
            f"The Hub refused the request for {name!r} ({text}).",
            "Try again; the bytes that have arrived are kept. Bases on this machine can still be used.",
        )
    return BaseModelError(
        f"The Hub could not be reached for {name!r} ({text}).",
        "Check the network and start again; the bytes that have arrived are kept. "
        "You can also copy the model folder to this machine and enter its path.",
    )
