"""Base models on this machine and on the Hugging Face Hub: what is here, and how the rest comes.

Knows folders, the Hub's cache and downloads; follows HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_TOKEN as the Hub's own
library does. Knows nothing of torch: whether a model can be loaded is seen by loading it.
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
from core.store.workspace import FileLock, ensure_space, sha256_of, atomic_write

EMBEDDED = Path(__file__).resolve().parents[2] / "assets" / "embedded-base"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
WEIGHTS = "*.safetensors"
# Only these files of a repository are fetched: no pickles, no code, and only what lies at the top.
FETCHED = ("config.json", "generation_config.json", "tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
           "chat_template.jinja", WEIGHTS, "*.safetensors.index.json")  # fmt: skip
LEFT = ("*/*", "consolidated*", "*.py")
SPEAKERS = (
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
)  # ends of the names of models that write text
PART = ".part"
CHUNK_BYTES = 1 << 20
PARTIAL = 206  # "here is the rest", in HTTP
RETRIES = 5
SIBLINGS = 64  # folders beside the resident base that are looked at


@dataclass(frozen=True)
class LocalBase:
    """A base model that lies on this machine.

    Attributes:
        name: what loads it: "embedded", a folder, or a Hub id.
        place: "embedded", "folder" or "cache".
        why: why it cannot be chosen, or "".
    """

    name: str
    place: str
    kind: str = ""
    bytes: int = 0
    why: str = ""


@dataclass(frozen=True)
class Download:
    """A download: bytes that are here and bytes in all; 0 in all while it is being asked for."""

    name: str
    done: int = 0
    total: int = 0
    error: str = ""
    over: bool = False


class DownloadStopped(StudioError):
    """A download that was stopped; what has come stays, and the next one goes on from there."""


def locate(name: str) -> tuple[str, bool]:
    """Where a base comes from: (path or Hub id, does all of it lie on this machine).

    Raises:
        BaseModelError: neither "embedded", nor a folder with a config.json, nor a Hub id.
    """
    if not name:
        raise BaseModelError(
            "No base model is named.",
            'Choose one of the list, or give a folder or a Hub id such as "Qwen/Qwen2.5-0.5B-Instruct".',
        )
    if name == "embedded":
        return str(EMBEDDED), True
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BaseModelError(
                f"The folder {folder.name!r} has no config.json.",
                "Give a folder saved by transformers' save_pretrained.",
            )
        return str(folder.resolve()), True
    if HUB_ID.fullmatch(name):
        kept = find_snapshot(name)
        return (str(kept), True) if kept else (name, False)  # a whole copy is here: nobody is asked
    raise BaseModelError(
        f"{name!r} is no base model.",
        'Use "embedded", a local folder, or a Hub id such as "Qwen/Qwen2.5-0.5B-Instruct".',
    )


def describe_defect(folder: Path) -> str:
    """What a model folder lacks to be a base, in a sentence; "" when it looks whole."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = config.get("architectures") or [""]
    except (OSError, ValueError, AttributeError):
        return "It has no config.json that can be read."
    if not str(names[0]).endswith(SPEAKERS):
        return f"It is no model that writes text ({names[0] or 'its config names none'})."
    try:
        indexes = list(folder.glob("*.safetensors.index.json"))
        wanted = {
            f for i in indexes for f in json.loads(i.read_text(encoding="utf-8"))["weight_map"].values()
        }
    except (OSError, ValueError, KeyError, AttributeError):
        return "The list of its weight files cannot be read."
    if gone := [f for f in wanted if not (folder / f).is_file()]:
        return f"{len(gone)} of its {len(wanted)} weight files are missing: download it again, it goes on where it was."
    if not wanted and not any(folder.glob(WEIGHTS)):
        return "It has no *.safetensors weights; other formats can run code, and are not read."
    return (
        ""
        if any(
            (folder / f).is_file()
            for f in ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
        )
        else "It has no tokenizer."
    )


def _described(name: str, place: str, folder: Path) -> LocalBase:
    why = describe_defect(folder)
    try:
        kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        kind = ""
    return LocalBase(name, place, kind, sum(f.stat().st_size for f in folder.glob(WEIGHTS) if f.is_file()), why)


def list_cached() -> list[LocalBase]:
    """Models in the Hub's cache, whole or not."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    if not Path(constants.HF_HUB_CACHE).is_dir():
        return []
    try:
        found = scan_cache_dir().repos
    except CacheNotFound:
        return []
    offers = []
    for repo in sorted(found, key=lambda r: str(r.repo_id).lower()):
        newest = max(repo.revisions, key=lambda r: r.last_modified, default=None)
        if (
            repo.repo_type == "model"
            and newest is not None
            and (newest.snapshot_path / "config.json").exists()
        ):
            offers.append(_described(str(repo.repo_id), "cache", newest.snapshot_path))
    return offers


def list_nearby(folders: Iterable[str]) -> list[LocalBase]:
    """Models in these folders and in the folders beside them."""
    found: dict[str, LocalBase] = {}
    for folder in (Path(f).expanduser() for f in folders):
        try:
            near = (
                [folder, *sorted(p for p in folder.parent.iterdir() if p.is_dir())[:SIBLINGS]]
                if folder.is_dir()
                else []
            )
        except OSError:
            near = [folder]
        for place in near:
            path = str(place.resolve())
            if (place / "config.json").is_file() and path != str(EMBEDDED) and path not in found:
                found[path] = _described(path, "folder", place)
    return list(found.values())


def find_snapshot(name: str) -> Path | None:
    """The folder in the Hub's cache that holds all of a model, the one that its main branch points to first."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not HUB_ID.fullmatch(name):
        return None
    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    try:
        main = (
            (root / "refs" / "main").read_text(encoding="utf-8").strip()
            if (root / "refs" / "main").is_file()
            else ""
        )
        found = sorted(
            (root / "snapshots").iterdir(), key=lambda p: (p.name == main, p.stat().st_mtime), reverse=True
        )
    except OSError:
        return None
    return next((p for p in found if not describe_defect(p)), None)


def download(name: str, tell: Callable[[Download], None], stopped: Callable[[], bool]) -> Path:
    """Downloads a model from the Hub into its cache.

    The weights are fetched by us, because the Hub's own library (2.4) begins a file anew that was cut off;
    the rest, and the cache's layout, is left to it.

    Args:
        tell: hears how far it is, often.
        stopped: true ends it soon.

    Returns:
        the folder of the snapshot.

    Raises:
        BaseModelError: no such id, gated, offline, or nothing there that we read. StorageError: it does not fit the disk.
        Busy: another process fetches it. Stopped.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if not HUB_ID.fullmatch(name):
        raise BaseModelError(
            f"{name!r} is no Hub id.",
            'A Hub id has the form "owner/name", such as "Qwen/Qwen2.5-0.5B-Instruct".',
        )
    tell(Download(name))
    try:
        info = HfApi().model_info(name, files_metadata=True)
        files = {s.rfilename: int(s.size or 0) for s in info.siblings or () if _fetched(s.rfilename)}
        weights = [f for f in files if fnmatch.fnmatch(f, WEIGHTS)]
        if not weights:
            raise BaseModelError(
                f"{name!r} has no *.safetensors weights.",
                "Other formats can run code, and are not read: choose another repository of the model.",
            )
        total, done = sum(files.values()), 0
        for file in weights:
            blob, url = _place(name, file, info.sha)
            part = blob.with_name(f"{blob.name}{PART}")
            if not blob.exists():
                ensure_space(
                    Path(constants.HF_HUB_CACHE), total - done - (part.stat().st_size if part.exists() else 0)
                )
                for had in _bytes(url, part, files[file]):
                    if stopped():
                        raise DownloadStopped(
                            f"The download of {name!r} was stopped.", "Start it again to go on where it was."
                        )
                    tell(Download(name, done + had, total))
                _settle(part, blob, files[file])
            done += files[file]
            tell(Download(name, done, total))
        path = snapshot_download(name, revision=info.sha, allow_patterns=list(files), tqdm_class=_silent())
        (Path(path).parents[2] / "refs").mkdir(exist_ok=True)
        with atomic_write(
            Path(path).parents[2] / "refs" / "main", "w"
        ) as f:  # that of the commit is all it writes by itself
            f.write(str(info.sha))
        return Path(path)
    except Exception as e:
        raise explained(name, e) from e


def _fetched(file: str) -> bool:
    return any(fnmatch.fnmatch(file, p) for p in FETCHED) and not any(fnmatch.fnmatch(file, p) for p in LEFT)


def _place(name: str, file: str, commit: str) -> tuple[Path, str]:
    """Where the Hub's library looks for a file's bytes, and where they come from."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    url = hf_hub_url(name, file, revision=commit)
    etag = str(get_hf_file_metadata(url).etag)
    if not re.fullmatch(r"[\w-]+", etag):
        raise BaseModelError(
            f"The Hub calls {file!r} by {etag!r}, which is no name for a file.", "Try again later."
        )
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(
        repo_id=name, repo_type="model"
    ) / "blobs" / etag, url


def _bytes(url: str, part: Path, size: int) -> Iterator[int]:
    """Fetches what of a file is not there yet; yields how much is. A connection that breaks is made again, five times in vain at most."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    part.parent.mkdir(parents=True, exist_ok=True)
    claim, failures = FileLock(part.with_name(f"{part.name}.lock")), 0
    try:
        while (had := part.stat().st_size if part.exists() else 0) < size:
            headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={had}-"}
            try:
                with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
                    hf_raise_for_status(response)
                    with open(part, "ab" if response.status_code == PARTIAL else "wb") as f:
                        for chunk in response.iter_bytes(CHUNK_BYTES):
                            f.write(chunk)
                            failures = 0
                            yield f.tell()
            except OSError:
                raise
            except Exception as e:
                failures += 1
                if failures > RETRIES or not _transport(e):
                    raise
    finally:
        claim.release()


def _transport(error: Exception) -> bool:
    """Is it the connection that broke, and not an answer that we did not like?"""
    import httpx2

    return isinstance(error, httpx2.TransportError)


def _settle(part: Path, blob: Path, size: int) -> None:
    """Puts a whole file in its place after checking it; large files are called by their sha256.

    Raises:
        BaseModelError: it is not what the Hub said.
    """
    wrong = part.stat().st_size != size or (
        re.fullmatch(r"[0-9a-f]{64}", blob.name) is not None and sha256_of(part) != blob.name
    )
    if wrong:
        part.unlink()
        raise BaseModelError(
            "A file of weights did not arrive as it was sent.",
            "Start the download again; the files that are whole are kept.",
        )
    part.replace(blob)


def _silent() -> Any:
    """A class of progress bars that draw nothing."""
    from tqdm.std import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def explained(name: str, error: Exception) -> StudioError:
    """What an error on the way to the Hub means, and what to do."""
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
            "Ask for access on its Hub page, then log in with `hf auth login` or set HF_TOKEN, and start it again.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return BaseModelError(
            f"The Hub knows no model {name!r}, or it is private.",
            "Check the spelling; for a private one, log in with `hf auth login` or set HF_TOKEN.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return BaseModelError(
            f"{name!r} is not on this machine, and HF_HUB_OFFLINE is set.",
            "Unset it to download, or choose a base that is here.",
        )
    if isinstance(error, HfHubHTTPError):
        return BaseModelError(
            f"The Hub did not give {name!r} ({text}).",
            "Try again; what has come is kept. Bases that are here can be used meanwhile.",
        )
    return BaseModelError(
        f"The Hub could not be reached for {name!r} ({text}).",
        "Check the network and start it again; what has come is kept. Or copy the model's folder to this machine and give its path.",
    )
