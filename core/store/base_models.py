"""Base models on this machine: in the repository, in folders, and in the cache of the Hugging Face Hub.

Honours HF_HOME and HF_HUB_CACHE, as huggingface_hub does. `core.store.hub` downloads base models, and
`core.model.base` loads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from core.errors import BaseModelError
from core.spec.training import QUANTIZATIONS
from core.store.json_text import parse_json
from core.store.record_types import OneOf
from core.store.records import read_record
from core.store.workspace import Workspace

EMBEDDED = Path(__file__).resolve().parents[2] / "assets" / "embedded-base"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
WEIGHTS = "*.safetensors"
TEXT_MODEL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # of class names
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
SIBLING_LIMIT = 64  # how many folders beside a known base are searched


@dataclass(frozen=True)
class LocalBase:
    """A base model on this machine.

    Attributes:
        name: the name that loads it: "embedded", a folder, or a Hub id.
        place: "embedded", "folder", "cache" or "converted"; "ollama" or "lmstudio" for a file of these.
        kind: the model type of its config.
        bytes: size of its weights.
        why: why it cannot be used, or "".
        label: the name to show, or "" where the name itself says it.
    """

    name: str
    place: str
    kind: str = ""
    bytes: int = 0
    why: str = ""
    label: str = ""


@dataclass(frozen=True)
class StoredChoice:
    """The content of base.json: the base that was chosen last in a workspace."""

    base: str
    quantization: Annotated[str, OneOf(QUANTIZATIONS)]


def read_choice(workspace: Workspace) -> StoredChoice | None:
    """The base that was chosen last; None if none was chosen yet.

    Raises:
        DamagedRecord
    """
    path = workspace.base_path
    return read_record(path, StoredChoice) if path.exists() else None


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
        config = parse_json((folder / "config.json").read_bytes())
        architecture = str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError):
        return "Its config.json is missing or cannot be read."
    if not architecture.endswith(TEXT_MODEL_SUFFIXES):
        return f"It is not a text generation model ({architecture or 'its config names no architecture'})."
    try:
        indexes = [parse_json(i.read_bytes()) for i in folder.glob("*.safetensors.index.json")]
        files = {file for index in indexes for file in index["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError):
        return "The index of its weight files cannot be read."
    if missing := [f for f in files if not (folder / f).is_file()]:
        return f"{len(missing)} of its {len(files)} weight files are missing: download it again."
    if not files and not any(folder.glob(WEIGHTS)):
        return "It has no *.safetensors weights. Other formats can run code and are not loaded."
    if not any((folder / f).is_file() for f in TOKENIZER_FILES):
        return "It has no tokenizer."
    return ""


def _describe(name: str, place: str, folder: Path) -> LocalBase:
    try:
        kind = str(parse_json((folder / "config.json").read_bytes()).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        kind = ""
    size = sum(f.stat().st_size for f in folder.glob(WEIGHTS) if f.is_file())
    return LocalBase(name, place, kind, size, describe_defect(folder))


def describe_folder(folder: Path) -> LocalBase:
    """A folder as a base."""
    return _describe(str(folder), "folder", folder)


def list_cache() -> list[LocalBase]:
    """Models in the cache of the Hub, including incomplete ones."""
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
            siblings = []
            if folder.is_dir():  # a name with a dot in front is a draft
                siblings = sorted(
                    p for p in folder.parent.iterdir() if p.is_dir() and not p.name.startswith(".")
                )
            candidates = [folder, *siblings[:SIBLING_LIMIT]] if folder.is_dir() else []
        except OSError:
            candidates = [folder]
        for candidate in candidates:
            path = str(candidate.resolve())
            if (candidate / "config.json").is_file() and path != str(EMBEDDED) and path not in bases:
                bases[path] = _describe(path, "folder", candidate)
    return list(bases.values())


def find_snapshot(name: str) -> Path | None:
    """The folder of a complete model in the cache of the Hub, if possible that of its main branch."""
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
