"""Base models on this machine and on the Hugging Face Hub: finding them, checking their files, downloading them.

Honours HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_TOKEN, as huggingface_hub does. From the Hub come config, tokenizer and
safetensors files of the top folder of a repository, checked by sha256, and never code or pickles. Whether a model can be
loaded is found out by `core.model.base`.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import BaseModelError, StudioError
from core.store.workspace import FileLock, atomic_write, ensure_space, sha256_of

EMBEDDED = Path(__file__).resolve().parents[2] / "assets" / "embedded-base"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
WEIGHTS = "*.safetensors"
# Only these files of a repository are downloaded: no pickles, no code, and nothing from subfolders.
DOWNLOADED_FILES = ("config.json", "generation_config.json", "tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
           "chat_template.jinja", WEIGHTS, "*.safetensors.index.json")  # fmt: skip
SKIPPED_FILES = ("*/*", "consolidated*", "*.py")
TEXT_MODEL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # of class names
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
PART = ".part"
CHUNK_BYTES = 1 << 20
PARTIAL_CONTENT = 206  # the HTTP status of an answer to a range request
RETRIES = 5  # after a broken connection, without any byte in between
SIBLING_LIMIT = 64  # folders beside a known base that are searched


@dataclass(frozen=True)
class LocalBase:
    """A base model on this machine.

    Attributes:
        name: what loads it: "embedded", a folder, or a Hub id.
        place: "embedded", "folder" or "cache".
        kind: the model type of its config.
        bytes: size of its weights.
        why: why it cannot be used, or "".
    """

    name: str
    place: str
    kind: str = ""
    bytes: int = 0
    why: str = ""


@dataclass(frozen=True)
class Download:
    """The state of a download.

    Attributes:
        done, total: bytes on this machine and in all; the total is 0 until the Hub has answered.
        error: why it failed, or "".
        over: it has ended.
    """

    name: str
    done: int = 0
    total: int = 0
    error: str = ""
    over: bool = False


class DownloadStopped(StudioError):
    """The user stopped a download. The bytes that have arrived stay, and the next download continues from there."""


def locate(name: str) -> tuple[str, bool]:
    """Finds where a base is loaded from.

    Args:
        name: "embedded", a folder, or a Hub id.

    Returns:
        (path or Hub id, whether all of its files are on this machine)

    Raises:
        BaseModelError: the name has none of these forms, or the folder has no config.json.
    """
    if not name:
        raise BaseModelError(
            "No base model was given.",
            'Choose one from the list, or enter a folder or a Hub id such as "Qwen/Qwen2.5-0.5B-Instruct".',
        )
    if name == "embedded":
        return str(EMBEDDED), True
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BaseModelError(
                f"The folder {folder.name!r} has no config.json.",
                "Choose a folder that transformers' save_pretrained wrote.",
            )
        return str(folder.resolve()), True
    if HUB_ID.fullmatch(name):
        snapshot = find_snapshot(name)  # a complete copy is loaded without a request to the Hub
        return (str(snapshot), True) if snapshot else (name, False)
    raise BaseModelError(
        f'A base model must be "embedded", a local folder or a Hub id, got {name!r}.',
        'A Hub id has the form "owner/name", such as "Qwen/Qwen2.5-0.5B-Instruct".',
    )


def describe_defect(folder: Path) -> str:
    """Why a model folder cannot be a base, in one sentence; "" if its files look complete."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError):
        return "Its config.json is missing or cannot be read."
    if not architecture.endswith(TEXT_MODEL_SUFFIXES):
        return f"It is not a text generation model ({architecture or 'its config names no architecture'})."
    try:
        indexes = [json.loads(i.read_text(encoding="utf-8")) for i in folder.glob("*.safetensors.index.json")]
        files = {file for index in indexes for file in index["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError):
        return "The index of its weight files cannot be read."
    if missing := [f for f in files if not (folder / f).is_file()]:
        return f"{len(missing)} of its {len(files)} weight files are missing: download it again, which continues."
    if not files and not any(folder.glob(WEIGHTS)):
        return "It has no *.safetensors weights. Other formats can run code and are not loaded."
    if not any((folder / f).is_file() for f in TOKENIZER_FILES):
        return "It has no tokenizer."
    return ""


def _describe(name: str, place: str, folder: Path) -> LocalBase:
    try:
        kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        kind = ""
    size = sum(f.stat().st_size for f in folder.glob(WEIGHTS) if f.is_file())
    return LocalBase(name, place, kind, size, describe_defect(folder))


def list_cached() -> list[LocalBase]:
    """Models in the cache of the Hub, also incomplete ones."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    if not Path(constants.HF_HUB_CACHE).is_dir():
        return []
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    bases = []
    for repo in sorted(repos, key=lambda r: str(r.repo_id).lower()):
        newest = max(repo.revisions, key=lambda r: r.last_modified, default=None)
        if repo.repo_type != "model" or newest is None:
            continue
        if (newest.snapshot_path / "config.json").exists():
            bases.append(_describe(str(repo.repo_id), "cache", newest.snapshot_path))
    return bases


def list_nearby(folders: Iterable[str]) -> list[LocalBase]:
    """Models in these folders and in the folders beside them."""
    bases: dict[str, LocalBase] = {}
    for folder in (Path(f).expanduser() for f in folders):
        try:
            siblings = sorted(p for p in folder.parent.iterdir() if p.is_dir()) if folder.is_dir() else []
            candidates = [folder, *siblings[:SIBLING_LIMIT]] if folder.is_dir() else []
        except OSError:
            candidates = [folder]
        for candidate in candidates:
            path = str(candidate.resolve())
            if (candidate / "config.json").is_file() and path != str(EMBEDDED) and path not in bases:
                bases[path] = _describe(path, "folder", candidate)
    return list(bases.values())


def find_snapshot(name: str) -> Path | None:
    """The folder in the cache of the Hub that holds a complete model; the one of its main branch is preferred."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not HUB_ID.fullmatch(name):
        return None
    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    ref = root / "refs" / "main"
    try:
        main = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
        snapshots = sorted(
            (root / "snapshots").iterdir(), key=lambda p: (p.name == main, p.stat().st_mtime), reverse=True
        )
    except OSError:
        return None
    return next((p for p in snapshots if not describe_defect(p)), None)


def download(name: str, report: Callable[[Download], None], poll_stop: Callable[[], bool]) -> Path:
    """Downloads a model from the Hub into its cache.

    huggingface_hub 2.4 starts an interrupted file from its first byte, however large it is. So the weight files are
    downloaded here, by range requests, to where that library looks for them; the other files are left to the library.

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
    from huggingface_hub import HfApi, constants, snapshot_download

    if not HUB_ID.fullmatch(name):
        raise BaseModelError(
            f'A Hub id must have the form "owner/name", got {name!r}.',
            'For example "Qwen/Qwen2.5-0.5B-Instruct".',
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
        total, done = sum(sizes.values()), 0
        for file in weights:
            blob, url = _locate_blob(name, file, info.sha)
            part = blob.with_name(f"{blob.name}{PART}")
            if not blob.exists():
                size_here = part.stat().st_size if part.exists() else 0
                ensure_space(Path(constants.HF_HUB_CACHE), total - done - size_here)
                for size_here in _download_part(url, part, sizes[file]):
                    if poll_stop():
                        raise DownloadStopped(
                            f"The download of {name!r} was stopped.", "Start it again to continue it."
                        )
                    report(Download(name, done + size_here, total))
                _commit_part(part, blob, sizes[file])
            done += sizes[file]
            report(Download(name, done, total))
        path = snapshot_download(
            name, revision=info.sha, allow_patterns=list(sizes), tqdm_class=_make_silent_bar()
        )
        refs = Path(path).parents[2] / "refs"
        refs.mkdir(exist_ok=True)
        with atomic_write(
            refs / "main", "w"
        ) as f:  # for a given revision, the library writes only its own ref
            f.write(str(info.sha))
        return Path(path)
    except Exception as e:
        raise convert_error(name, e) from e


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


def _download_part(url: str, part: Path, size: int) -> Iterator[int]:
    """Downloads the missing rest of a file; yields its size so far. Reconnects at most RETRIES times without a byte."""
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
                            yield f.tell()
            except OSError:
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
    """Checks a complete file and renames it to its blob. The blob of a large file is named by its sha256.

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
    part.replace(blob)


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
